"""The HTTP API of the retention policies. In the framework's threads."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from query.answers import FAILURES, Answer
from query.errors import Refused
from query.parameters import NoParameters, only_known
from storage.expiry import Expiry
from storage.policies import RetentionPolicies, VersionConflict
from storage.retention import Keep, Policies, parsed
from storage.rules import BadRules

VERSIONS_MAX = 1_000
WHO_CHARACTERS_MAX = 200
COMMENT_CHARACTERS_MAX = 2_000


class KeepAnswer(Answer):
    """How long something is kept, in whole days after its own."""

    skeleton_days: int = Field(description="Names, times, ids, short attributes; the trace as a whole.")
    content_days: int = Field(description="Payload: prompts, answers, arguments and results of tools, log records.")
    expire_early: bool = Field(description="Whether it may go before that when the disk is full.")
    thin_after_days: int | None = Field(None, description="From so many days on a share of its traces stays.")
    thin_keep: float | None = Field(None, description="This one; they stand for all.")


class PolicyAnswer(KeepAnswer):
    """One policy."""

    name: str
    match: dict[str, Any] = Field(description="What a span has to be, all of it; see docs/retention.md.")


class RetentionAnswer(Answer):
    """A version of the policies. A trace is kept as the first one says that matches any of its spans."""

    version: int
    since_unix_nano: str = Field(description="What was received from then on is loaded by it.")
    changed_by: str
    comment: str
    policies: list[PolicyAnswer] = Field(description="In order.")
    default: KeepAnswer = Field(description="What no policy matches.")
    paused: bool = Field(description="Whether nothing expires until a version says otherwise.")
    retired: list[PolicyAnswer] = Field(
        description="Of earlier versions: what was loaded by them is kept as they said until these have reached it."
    )


class RetentionProgress(Answer):
    """How far the policies in force have reached what is stored."""

    version: int
    paused: bool
    days: int = Field(description="Days of which something is stored.")
    days_done: int = Field(description="Of these, days that were gone through by the policies in force.")
    working_on: str | None = Field(description="The day that this process is at.")
    rows_removed: int = Field(description="By this process since it started, as the rest.")
    rows_moved: int = Field(description="Copied to where what counts for their trace is kept.")
    partitions_dropped: int


class RetentionVersions(Answer):
    """Versions of the policies."""

    versions: list[RetentionAnswer] = Field(description="The newest first.")


class RetentionChange(BaseModel):
    """The policies as they are to be, all of them."""

    model_config = ConfigDict(extra="forbid")

    policies: list[dict[str, Any]] = Field(
        [],
        description="Each with name, match, skeleton_days, content_days; expire_early, thin_after_days, thin_keep.",
    )
    default: dict[str, Any] = Field(default_factory=dict, description="The same days and shares.")
    changed_by: str = Field("", max_length=WHO_CHARACTERS_MAX, description="Who changes them.")
    comment: str = Field("", max_length=COMMENT_CHARACTERS_MAX, description="Why.")
    paused: bool = Field(False, description="Let nothing expire until a version says otherwise.")
    version: int | None = Field(None, description="The version that this replaces; 409 if there is a newer one.")


class HistoryParameters(BaseModel):
    """Query parameters."""

    limit: int = Field(100, ge=1, le=VERSIONS_MAX, description="How many versions are listed.")


def router(policies: RetentionPolicies, expiry: Expiry) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/v1/retention", tags=["operation"], responses=FAILURES)

    @routes.get("", summary="What is kept how long", dependencies=[Depends(only_known(NoParameters))])
    def current() -> RetentionAnswer:
        """The policies in force, of all tenants."""
        return _answer(policies.current)

    @routes.get("/versions", summary="What was kept how long", dependencies=[Depends(only_known(HistoryParameters))])
    def versions(parameters: Annotated[HistoryParameters, Query()]) -> RetentionVersions:
        """Who changed the policies, when and to what."""
        return RetentionVersions(versions=[_answer(each) for each in policies.versions(parameters.limit)])

    @routes.get(
        "/progress",
        summary="How far a change has reached what is stored",
        dependencies=[Depends(only_known(NoParameters))],
    )
    def progress() -> RetentionProgress:
        """Every day is gone through anew when the policies, or the pins, come to something else for it."""
        far, now = expiry.progress(), policies.current
        return RetentionProgress(
            version=now.version,
            paused=now.paused,
            days=far.days,
            days_done=far.days_done,
            working_on=far.working_on.isoformat() if far.working_on else None,
            rows_removed=far.rows_removed,
            rows_moved=far.rows_moved,
            partitions_dropped=far.partitions_dropped,
        )

    @routes.put("", summary="Change what is kept how long", dependencies=[Depends(only_known(NoParameters))])
    def change(wanted: RetentionChange) -> RetentionAnswer:
        """All policies are replaced. In the background, the new ones reach what is stored: see `progress`."""
        try:
            new = parsed({"policies": wanted.policies, "default": wanted.default})
            new = replace(new, paused=wanted.paused)
            return _answer(policies.put(new, wanted.changed_by, wanted.comment, wanted.version))
        except BadRules as error:
            raise Refused(400, str(error)) from error
        except VersionConflict as error:
            raise Refused(409, str(error)) from error

    return routes


def keep_answer(keep: Keep) -> KeepAnswer:
    """How long that is."""
    return KeepAnswer(**keep.json())


def _answer(policies: Policies) -> RetentionAnswer:
    said = policies.json()
    return RetentionAnswer(
        version=policies.version,
        since_unix_nano=str(policies.since_unix_nano),
        changed_by=policies.changed_by,
        comment=policies.comment,
        policies=[_policy(one) for one in said["policies"]],
        default=keep_answer(policies.default),
        paused=policies.paused,
        retired=[_policy(one) for one in said["retired"]],
    )


def _policy(one: dict[str, Any]) -> PolicyAnswer:
    return PolicyAnswer(**{key: value for key, value in one.items() if key != "class"})
