"""The HTTP API that compares two versions, and holds one against limits. Runs in the framework's threads."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from query import compare, gate
from query.answers import FAILURES, json_response
from query.compare import Measures, measure, side
from query.comparison import Comparison, Sample, Side, Wanted
from query.errors import Refused
from query.parameters import Tenant, Time, only_known

VERSIONED = ("model", "agent", "prompt")
TRACES_DEFAULT, TRACES_MAX = 20_000, 50_000
MIN_SCORE, MAX_SCORE_DROP = "min_score.", "max_score_drop."
SCORE_LIMITS_MAX = 20
TAG_CHARACTERS_MAX = 1_000


class SampleReader(Protocol):
    """Where the traces of two sides come from. Called from many threads at once."""

    def sample(self, tenant: str, wanted: Wanted, limit: int) -> Sample:
        """At most `limit` of the traces, the newest first."""
        ...


WriteTags = Callable[[str, str, str, Mapping[str, str]], str | None]
"""Writes tags to the entity of an id and version in the registry. Gives None, or a sentence: why it could not."""


def _share(text: Any) -> float:
    """0.1 of "10%" or "0.1". A bare 10 is refused: ten times as much is hardly meant."""
    words = str(text).strip()
    try:
        value = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        raise ValueError("a share is like 10% or 0.1") from None
    if not words.endswith("%") and value >= 1:
        raise ValueError(f"write {words}% for {words} of 100, or {value * 100:g}% for {value:g} times as much")
    if not 0 <= value <= 100:
        raise ValueError("a share lies between 0% and 10000%")
    return value


Share = Annotated[float, BeforeValidator(_share), WithJsonSchema({"type": "string", "examples": ["10%", "0.1"]})]
Name = Annotated[str, Path(max_length=1000, description="The model's name.", examples=["support-bot"])]
Id = Annotated[str, Field(min_length=1, max_length=1000)]


class CompareParameters(BaseModel):
    """Query parameters of a comparison."""

    baseline: Id = Field(description="The version that is known.", examples=["3"])
    candidate: Id = Field(description="The version that is new.", examples=["4"])
    start: Time | None = Field(None, description="Traces that start at this time or later: RFC 3339, or `-7d`.")
    end: Time | None = Field(None, description="Traces that start before this time.")
    limit: int = Field(
        TRACES_DEFAULT, ge=2, le=TRACES_MAX, description="Newest traces of each side that are looked at."
    )


class CompareAnyParameters(CompareParameters):
    """Query parameters of a comparison of anything that traces are linked to."""

    entity: Literal["run", "experiment", "model", "logged_model", "agent", "prompt"] = Field(
        description="What is compared: versions of the model, agent or prompt `id`, else ids."
    )
    id: str = Field("", max_length=1000, description="Name of the model, agent or prompt.")


class GateParameters(CompareParameters):
    """Query parameters of a gate. Shares are written `10%` or `0.1`."""

    min_traces: int = Field(200, ge=2, le=TRACES_MAX, description="Fewer traces on a side, and nobody can tell.")
    max_p50_regression: Share | None = Field(None, description="The median duration may rise by so much.")
    max_p95_regression: Share | None = Field(None, description="The p95 of the durations may rise by so much.")
    max_p99_regression: Share | None = Field(None, description="The p99 of the durations may rise by so much.")
    max_cost_regression: Share | None = Field(None, description="The mean cost of a trace may rise by so much.")
    max_tokens_regression: Share | None = Field(None, description="The mean tokens of a trace may rise by so much.")
    max_error_rate: Share | None = Field(None, description="So many of the candidate's traces may fail.")


_SCORE_PARAMETERS = [
    {
        "name": f"{MIN_SCORE}<name>",
        "in": "query",
        "description": "The candidate's mean of the assessment of this name must be so much, as in "
        "`min_score.helpfulness=0.8`.",
        "schema": {"type": "string"},
    },
    {
        "name": f"{MAX_SCORE_DROP}<name>",
        "in": "query",
        "description": "That mean may be so much less than the baseline's, as in `max_score_drop.helpfulness=5%`.",
        "schema": {"type": "string"},
    },
]


@dataclass(frozen=True, slots=True)
class WrittenBack:
    """Whether the verdict is in the registry, and if not, why."""

    ok: bool
    message: str


@dataclass(frozen=True, slots=True)
class GateAnswer:
    """The verdict with its reasons. `written_back` is null unless it was asked for, by POST."""

    model: str
    verdict: gate.Outcome
    reason: str
    checks: list[gate.Check]
    baseline: Side
    candidate: Side
    written_back: WrittenBack | None


def router(reader: SampleReader, write_tags: WriteTags | None) -> APIRouter:
    """The routes. Without `write_tags` there is no registry to write to."""
    routes = APIRouter(prefix="/api/v1", tags=["compare"], responses=FAILURES)
    sides = _Sides(reader)

    @routes.get(
        "/models/{name:path}/compare",
        summary="Two versions of a model side by side",
        response_model=Comparison,
        dependencies=[Depends(only_known(CompareParameters))],
    )
    def compare_versions(
        name: Name, parameters: Annotated[CompareParameters, Query()], tenant: Tenant = "default"
    ) -> Response:
        """Traffic, errors, durations, tokens, cost, tool paths and scores, each with 95 % confidence intervals."""
        return json_response(sides.compare(tenant, "model", name, parameters))

    @routes.get(
        "/compare",
        summary="Two runs, or two versions of anything, side by side",
        response_model=Comparison,
        dependencies=[Depends(only_known(CompareAnyParameters))],
    )
    def compare_any(parameters: Annotated[CompareAnyParameters, Query()], tenant: Tenant = "default") -> Response:
        """As for a model: `entity=run&baseline=<run id>&candidate=<run id>`, `entity=prompt&id=<name>&baseline=1&…`."""
        return json_response(sides.compare(tenant, parameters.entity, parameters.id, parameters))

    def judge(request: Request, name: str, parameters: GateParameters, tenant: str) -> GateAnswer:
        limits = _limits(parameters, request.query_params.multi_items())
        if not limits.any:
            raise Refused(400, f"cannot judge without a limit: give one of {', '.join(_LIMITS)}")
        (before, b), (after, c) = sides.of(tenant, "model", name, parameters)
        verdict = gate.judge(before, after, b, c, limits)
        return GateAnswer(name, verdict.verdict, verdict.reason, verdict.checks, before, after, None)

    checks = [Depends(only_known(GateParameters, MIN_SCORE, MAX_SCORE_DROP))]
    more = {"parameters": _SCORE_PARAMETERS}

    @routes.get(
        "/models/{name:path}/gate",
        summary="Is a version within limits?",
        response_model=GateAnswer,
        dependencies=checks,
        openapi_extra=more,
    )
    def judge_version(
        request: Request, name: Name, parameters: Annotated[GateParameters, Query()], tenant: Tenant = "default"
    ) -> Response:
        """`pass`, `fail` or `cannot_tell`, with a reason for each limit. The status is 200 for every verdict."""
        return json_response(judge(request, name, parameters, tenant))

    @routes.post(
        "/models/{name:path}/gate",
        summary="Is a version within limits? Write the verdict to the registry",
        response_model=GateAnswer,
        dependencies=checks,
        openapi_extra=more,
    )
    def judge_and_write(
        request: Request, name: Name, parameters: Annotated[GateParameters, Query()], tenant: Tenant = "default"
    ) -> Response:
        """The same, and the candidate gets tags (`spanhouse.gate` …) in the registry; `written_back` says if it did."""
        if write_tags is None:
            raise Refused(409, "cannot write the verdict back: no registry is configured")
        answer = judge(request, name, parameters, tenant)
        return json_response(_written_back(answer, write_tags))

    return routes


class _Sides:
    """Reads and measures the two sides."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader

    def compare(self, tenant: str, entity: str, name: str, parameters: CompareParameters) -> Comparison:
        (before, b), (after, c) = self.of(tenant, entity, name, parameters)
        if not before.sampled and not after.sampled:
            raise Refused(
                404,
                f"cannot compare: neither {_title(before)} nor {_title(after)} has traces in this time, of tenant "
                f"{tenant!r} (header x-spanhouse-tenant)",
            )
        return compare.compare(entity, before, after, b, c)

    def of(
        self, tenant: str, entity: str, name: str, parameters: CompareParameters
    ) -> tuple[tuple[Side, Measures], tuple[Side, Measures]]:
        if (entity in VERSIONED) != bool(name):
            wrong = (
                f"with id: a {entity} has no version" if name else f"without the name of the {entity}: give it as id"
            )
            raise Refused(400, f"cannot compare {wrong}")
        if parameters.baseline == parameters.candidate:
            raise Refused(400, f"cannot compare {parameters.baseline!r} with itself: name two")
        since, until = parameters.start, parameters.end
        if since is not None and until is not None and since > until:
            raise Refused(400, f"cannot compare: start ({since}) is beyond end ({until})")

        def one(given: str) -> tuple[Side, Measures]:
            id_, version = (name, given) if name else (given, "")
            wanted = Wanted(entity, id_, version, since, until)
            sample = self._reader.sample(tenant, wanted, parameters.limit)
            return side(sample, id_, version), measure(sample)

        return one(parameters.baseline), one(parameters.candidate)


_LIMITS = [
    *(name for name in GateParameters.model_fields if name.startswith("max_")),
    f"{MIN_SCORE}<name>",
    f"{MAX_SCORE_DROP}<name>",
]


def _limits(parameters: GateParameters, items: Iterable[tuple[str, str]]) -> gate.Limits:
    least: dict[str, float] = {}
    drops: dict[str, float] = {}
    for name, text in items:
        try:
            if name.startswith(MIN_SCORE):
                least[name.removeprefix(MIN_SCORE)] = _finite(text)
            elif name.startswith(MAX_SCORE_DROP):
                drops[name.removeprefix(MAX_SCORE_DROP)] = _share(text)
        except ValueError as error:
            raise Refused(400, f"cannot take query parameter {name[:200]}={text[:200]}: {error}") from error
    if len(least) + len(drops) > SCORE_LIMITS_MAX:
        raise Refused(
            400, f"cannot hold {len(least) + len(drops)} scores against limits: {SCORE_LIMITS_MAX} are the most"
        )
    if parameters.min_traces > parameters.limit:
        raise Refused(
            400, f"cannot find {parameters.min_traces} traces among {parameters.limit}: raise limit or lower min_traces"
        )
    given = parameters.model_dump(include={"min_traces", *(name for name in _LIMITS if "<" not in name)})
    return gate.Limits(**given, min_score=least, max_score_drop=drops)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a score is a number")
    return value


def _written_back(answer: GateAnswer, write_tags: WriteTags) -> GateAnswer:
    reasons = "; ".join([answer.reason, *(check.reason for check in answer.checks)])
    tags = {
        "spanhouse.gate": answer.verdict,
        "spanhouse.gate.baseline": answer.baseline.version,
        "spanhouse.gate.reason": reasons[:TAG_CHARACTERS_MAX],
        "spanhouse.gate.time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    problem = write_tags("model", answer.model, answer.candidate.version, tags)
    return replace(answer, written_back=WrittenBack(problem is None, problem or ""))


def _title(of: Side) -> str:
    return f"{of.id!r} version {of.version!r}" if of.version else repr(of.id)
