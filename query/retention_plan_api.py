"""The HTTP API of retention plans. In the framework's threads."""

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from query.answers import FAILURES, Answer
from query.bodies import JsonRoute
from query.errors import Refused
from query.parameters import NoParameters, only_known
from query.retention_api import KeepAnswer, keep_answer
from storage.retention import parsed
from storage.retention_figures import Amount, Kept, Outcome
from storage.retention_plan import DAYS, DAYS_MAX, NAMES, Busy, RetentionPlans
from storage.rules import BadRules

_GB = 10**9
_MONTH_PRICE_MAX = 1e6


class PlanRequest(BaseModel):
    """Policies to plan, and how."""

    model_config = ConfigDict(extra="forbid")

    policies: list[dict[str, Any]] | None = Field(
        None, description="As in `PUT /api/v1/retention`. Without these and `default`: the policies in force."
    )
    default: dict[str, Any] | None = Field(None, description="skeleton_days, content_days, expire_early.")
    days: int = Field(DAYS, ge=1, le=DAYS_MAX, description="Of how many of the last whole days it looks at the spans.")
    names: int = Field(NAMES, ge=1, le=100, description="How many services and agents are listed; the others are one.")
    price_per_gb_month: float | None = Field(
        None, ge=0, le=_MONTH_PRICE_MAX, description="What a gigabyte (10⁹ bytes) costs a month, in any currency."
    )


class BytesAnswer(Answer):
    """Bytes on disk, of one copy."""

    skeleton_bytes: int
    content_bytes: int = Field(description="With log records.")


class DailyAnswer(BytesAnswer):
    """What comes a day."""

    traces: float
    spans: float


class SteadyAnswer(BytesAnswer):
    """What that comes to when it has gone on for as many days as it is kept."""

    cost_per_month: float | None = Field(description="null without a price.")


class KeptAnswer(Answer):
    """What comes under a name."""

    name: str
    daily: DailyAnswer
    steady: SteadyAnswer | None = Field(description="null for what is pinned: it has no end.")


class PolicyPlanAnswer(KeptAnswer):
    """What a policy holds."""

    name: str = Field(description="Of the policy; `default`, and `pinned` for what is pinned.")
    keep: KeepAnswer | None = Field(description="null for what is pinned.")
    goes: BytesAnswer = Field(description="What of what is stored now would go at once.")


class OutcomeAnswer(Answer):
    """What some policies come to."""

    policies: list[PolicyPlanAnswer] = Field(description="In order; the default and what is pinned last.")
    services: list[KeptAnswer] = Field(description="The largest in steady state first.")
    agents: list[KeptAnswer]
    steady: SteadyAnswer
    goes: BytesAnswer


class PlanAnswer(Answer):
    """What policies would come to. Nothing is changed."""

    days: list[str] = Field(description="The days that it rests on, oldest first.")
    partial: bool = Field(description="Whether that is today alone, as far as it is, taken for a whole day.")
    traces_share: float = Field(description="Which share of the traces was looked at, on the day where it was least.")
    content_share: float = Field(description="The same of their payload.")
    stored: BytesAnswer = Field(description="All that is stored now.")
    in_force: OutcomeAnswer = Field(description="By the policies in force.")
    planned: OutcomeAnswer | None = Field(description="By those of the request; null if it has none.")
    difference: SteadyAnswer | None = Field(description="Steady state of `planned` less that of `in_force`.")


def router(plans: RetentionPlans) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/api/v1/retention", tags=["operation"], responses=FAILURES, route_class=JsonRoute)

    @routes.post("/plan", summary="What policies would come to", dependencies=[Depends(only_known(NoParameters))])
    def plan(asked: PlanRequest) -> PlanAnswer:
        """Bytes a day and in steady state by policy, service and agent, and what would go at once. Changes nothing."""
        given = {key: value for key in ("policies", "default") if (value := getattr(asked, key)) is not None}
        try:
            made = plans.plan(parsed(given) if given else None, asked.days, asked.names)
        except BadRules as error:
            raise Refused(400, str(error)) from error
        except Busy as error:
            raise Refused(409, str(error)) from error
        price = asked.price_per_gb_month
        now, then = made.now.steady, made.then.steady
        difference = Amount(0, 0, then.skeleton - now.skeleton, then.content - now.content)
        return PlanAnswer(
            days=[day.isoformat() for day in made.days],
            partial=made.partial,
            traces_share=made.traces_share,
            content_share=made.content_share,
            stored=_bytes(made.stored),
            in_force=_outcome(made.now, price),
            planned=_outcome(made.then, price) if given else None,
            difference=_steady(difference, price) if given else None,
        )

    return routes


def _outcome(of: Outcome, price: float | None) -> OutcomeAnswer:
    def largest(names: dict[str, Kept]) -> list[KeptAnswer]:
        ordered = sorted(names.values(), key=lambda one: (-one.steady.skeleton - one.steady.content, one.name))
        return [
            KeptAnswer(name=one.name, daily=_daily(one.daily), steady=_steady(one.steady, price)) for one in ordered
        ]

    return OutcomeAnswer(
        policies=[_policy(one, price) for one in of.policies],
        services=largest(of.services),
        agents=largest(of.agents),
        steady=_steady(of.steady, price),
        goes=_bytes(of.goes),
    )


def _policy(one: Kept, price: float | None) -> PolicyPlanAnswer:
    return PolicyPlanAnswer(
        name=one.name,
        keep=keep_answer(one.keep) if one.keep else None,
        daily=_daily(one.daily),
        steady=_steady(one.steady, price) if one.keep else None,
        goes=_bytes(one.goes),
    )


def _daily(of: Amount) -> DailyAnswer:
    return DailyAnswer(
        traces=round(of.traces, 1),
        spans=round(of.spans, 1),
        skeleton_bytes=round(of.skeleton),
        content_bytes=round(of.content),
    )


def _steady(of: Amount, price: float | None) -> SteadyAnswer:
    cost = None if price is None else round((of.skeleton + of.content) / _GB * price, 4)
    return SteadyAnswer(skeleton_bytes=round(of.skeleton), content_bytes=round(of.content), cost_per_month=cost)


def _bytes(of: Amount) -> BytesAnswer:
    return BytesAnswer(skeleton_bytes=round(of.skeleton), content_bytes=round(of.content))
