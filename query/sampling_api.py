"""The HTTP API of the sampling rules. In the framework's threads."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from query.answers import FAILURES, Answer
from query.errors import Refused
from query.parameters import NoParameters, only_known
from query.retention_api import COMMENT_CHARACTERS_MAX, WHO_CHARACTERS_MAX, HistoryParameters
from storage.policies import VersionConflict
from storage.rules import BadRules
from storage.sampling import Rules, parsed
from storage.sampling_rules import Outcome, SamplingRules


class ShareAnswer(Answer):
    """A share of traces."""

    keep: float = Field(description="From 0 to 1. A trace that is kept weighs 1 ÷ keep.")


class RuleAnswer(ShareAnswer):
    """One rule. Of a trace for which all holds that it asks, the share `keep` is kept."""

    name: str
    match: dict[str, Any] | None = Field(None, description="What a span has to be, all of it; see docs/retention.md.")
    min_trace_ms: float | None = Field(None, description="How long the trace has to last.")
    rare_below: int | None = Field(
        None, description="It names an operation that fewer traces named since yesterday, 00:00 UTC."
    )
    first_traces: int | None = Field(
        None, description="It is one of so many first ones of a version of a service, model or agent since then."
    )


class RulesAnswer(Answer):
    """A version of the rules. The first one that is met by a trace says which share of such traces is kept."""

    version: int = Field(description="0: there were none yet, and all is kept.")
    since_unix_nano: str
    changed_by: str
    comment: str
    wait_s: float = Field(description="How long what was received waits before its traces are decided.")
    rules: list[RuleAnswer] = Field(description="In order.")
    default: ShareAnswer = Field(description="What no rule is met by.")


class OutcomeAnswer(Answer):
    """What a rule decided. Spans are those that came before the decision."""

    rule: str = Field(description="Its name, `default`, or `budget` for a share that a budget made smaller.")
    kept_traces: int
    left_out_traces: int
    kept_spans: int
    left_out_spans: int
    estimated_traces: float = Field(description="How many there were by the weights of those that are kept.")


class SamplingAnswer(RulesAnswer):
    """The rules in force, and what came of them."""

    last_day: list[OutcomeAnswer] = Field(description="By rule, of all tenants, in the last 24 hours.")


class SamplingVersions(Answer):
    """Versions of the rules."""

    versions: list[RulesAnswer] = Field(description="The newest first.")


class SamplingChange(BaseModel):
    """The rules as they are to be, all of them."""

    model_config = ConfigDict(extra="forbid")

    wait_s: float = Field(30, description="How long a trace waits before it is decided.")
    rules: list[dict[str, Any]] = Field([], description="Each with name, keep, and what it asks of a trace.")
    default: dict[str, Any] = Field(default_factory=dict, description="keep.")
    changed_by: str = Field("", max_length=WHO_CHARACTERS_MAX, description="Who changes them.")
    comment: str = Field("", max_length=COMMENT_CHARACTERS_MAX, description="Why.")
    version: int | None = Field(None, description="The version that this replaces; 409 if there is a newer one.")


def router(rules: SamplingRules) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/v1/sampling", tags=["operation"], responses=FAILURES)

    @routes.get("", summary="Which traces are kept", dependencies=[Depends(only_known(NoParameters))])
    def current() -> SamplingAnswer:
        """The rules in force, of all tenants, and what they kept and left out in the last day."""
        last_day = [_outcome(one) for one in rules.outcome()]
        return SamplingAnswer(**_said(rules.current), last_day=last_day)

    @routes.get("/versions", summary="Which traces were kept", dependencies=[Depends(only_known(HistoryParameters))])
    def versions(parameters: Annotated[HistoryParameters, Query()]) -> SamplingVersions:
        """Who changed the rules, when and to what."""
        return SamplingVersions(versions=[RulesAnswer(**_said(each)) for each in rules.versions(parameters.limit)])

    @routes.put("", summary="Change which traces are kept", dependencies=[Depends(only_known(NoParameters))])
    def change(wanted: SamplingChange) -> RulesAnswer:
        """All rules are replaced. Traces that were decided stay so."""
        try:
            new = parsed({"wait_s": wanted.wait_s, "rules": wanted.rules, "default": wanted.default})
            return RulesAnswer(**_said(rules.put(new, wanted.changed_by, wanted.comment, wanted.version)))
        except BadRules as error:
            raise Refused(400, str(error)) from error
        except VersionConflict as error:
            raise Refused(409, str(error)) from error

    return routes


def _said(rules: Rules) -> dict[str, Any]:
    said = rules.json()
    return {
        **said,
        "since_unix_nano": str(rules.since_unix_nano),
        "rules": [RuleAnswer(**one) for one in said["rules"]],
    }


def _outcome(one: Outcome) -> OutcomeAnswer:
    return OutcomeAnswer(
        rule=one.rule,
        kept_traces=one.kept_traces,
        left_out_traces=one.left_out_traces,
        kept_spans=one.kept_spans,
        left_out_spans=one.left_out_spans,
        estimated_traces=one.weight,
    )
