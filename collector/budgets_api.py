"""The HTTP API of the budgets, and their gauges. In the framework's threads."""

from collections.abc import Iterator
from datetime import UTC, datetime

from fastapi import APIRouter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from collector.budget_rules import STEPS, Budget
from collector.budgets import USABLE, WHOLE, Budgets, Use


class BudgetUse(BaseModel):
    """A budget, and what is used of it."""

    tenant: str | None = Field(description="null for the whole store.")
    bytes: int = Field(description="What it allows on disk.")
    used_bytes: int = Field(description="What there is, with what was acknowledged and is not measured yet.")
    coming_bytes: int = Field(description="The part of it that is an estimate: still in the log, or loaded since.")
    share: float = Field(description="Of 95 % of it: the rest is left free.")
    step: str = Field(description="none, warn, shorten, sample or refuse.")
    since: str | None = Field(description="When the step was taken; null if none was since the process started.")
    refuse: str = Field(description="How senders hear of the last step: retryable or partial_success.")
    stored_per_sent: float = Field(description="Bytes on disk for one byte sent, as last measured.")
    requests: dict[str, int] = Field(description="Requests of the tenant that met shorten, sample and refuse.")


class StepChange(BaseModel):
    """A step that was taken."""

    time: str
    tenant: str | None = Field(description="null for the whole store.")
    before: str
    after: str
    share: float


class BudgetsAnswer(BaseModel):
    """All budgets, as this process keeps them."""

    measured: str | None = Field(description="When the store was asked last; null if it never answered.")
    steps: dict[str, float] = Field(description="The share of a budget at which each step begins.")
    hysteresis: float = Field(description="How far below that the share has to fall for it to end.")
    shorten_longer_than_bytes: int
    sample_keep: float
    whole: BudgetUse | None
    budgets: list[BudgetUse] = Field(description="Of each tenant that has one, by name.")
    changes: list[StepChange] = Field(description="The newest steps, the newest first.")


def router(budgets: Budgets) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/api/v1", tags=["operation"])

    @routes.get("/budgets", summary="Budgets, and what is used of them")
    def current() -> BudgetsAnswer:
        """Limits, use, steps and when they were taken."""
        rules = budgets.rules
        uses = [_use(tenant, budget, used, coming, use) for tenant, budget, used, coming, use in budgets.figures()]
        return BudgetsAnswer(
            measured=_time(budgets.measured_unix_nano),
            steps=dict(zip(STEPS[1:], rules.shares, strict=True)),
            hysteresis=rules.hysteresis,
            shorten_longer_than_bytes=rules.long_bytes,
            sample_keep=rules.keep,
            whole=next((use for use in uses if use.tenant is None), None),
            budgets=[use for use in uses if use.tenant is not None],
            changes=[
                StepChange(
                    time=_time(change.unix_nano) or "",
                    tenant=change.tenant or None,
                    before=change.before,
                    after=change.after,
                    share=change.share,
                )
                for change in budgets.changes()
            ],
        )

    return routes


def _use(tenant: str, budget: Budget, used: float, coming: float, use: Use) -> BudgetUse:
    return BudgetUse(
        tenant=None if tenant == WHOLE else tenant,
        bytes=budget.bytes,
        used_bytes=round(used),
        coming_bytes=round(coming),
        share=used / (USABLE * budget.bytes),
        step=STEPS[use.step],
        since=_time(use.since_unix_nano),
        refuse=budget.refuse,
        stored_per_sent=use.ratio,
        requests=dict(use.requests),
    )


def _time(unix_nano: int) -> str | None:
    return datetime.fromtimestamp(unix_nano / 1e9, UTC).isoformat() if unix_nano else None


class BudgetMetrics(Collector):
    """A gauge each of the budget, of what is used of it, and of the step. The whole store has an empty tenant."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees (called by the registry)."""
        allowed = GaugeMetricFamily(
            "spanhouse_budget_bytes",
            "Bytes on disk that a tenant may have; without a tenant the whole.",
            labels=["tenant"],
        )
        used = GaugeMetricFamily(
            "spanhouse_budget_used_bytes",
            "Bytes that count against a budget, those in the log included.",
            labels=["tenant"],
        )
        step = GaugeMetricFamily(
            "spanhouse_budget_step", f"Step of a budget: {', '.join(f'{i} {name}' for i, name in enumerate(STEPS))}.",
            labels=["tenant"],
        )  # fmt: skip
        for tenant, budget, used_bytes, _, use in self._budgets.figures():
            allowed.add_metric([tenant], budget.bytes)
            used.add_metric([tenant], used_bytes)
            step.add_metric([tenant], use.step)
        yield from (allowed, used, step)
