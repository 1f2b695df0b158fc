"""The shapes of the API's answers about links, deployments and the jobs that settle traces again."""

from typing import Any, Literal

from pydantic import Field

from query.answers import Answer, Nano
from query.link_bodies import ModelVersion


class Linked(Answer):
    """What was linked."""

    traces: int = Field(description="Traces that were found; a trace by its id counts though it has not come yet.")
    links: int


class Unlinked(Answer):
    """What was taken back."""

    links: int


class TraceLinksAnswer(Answer):
    """What a trace belongs to."""

    links: dict[str, Any] = Field(
        description="run, experiment, model_version, logged_model, prompt, session, agent, user: each with its "
        "`provenance`; `others` where there are several.",
        examples=[{"run": {"id": "4f2c…", "provenance": "api"}, "session": {"id": "s-1", "provenance": "span"}}],
    )


class Deployment(Answer):
    """Which version of a model a service ran, and when."""

    id: str
    service: str
    environment: str = Field(description="Empty: any.")
    model: ModelVersion
    since_unix_nano: Nano
    until_unix_nano: Nano | None = Field(description="null while it runs.")
    source: Literal["api", "file"]


class Deployments(Answer):
    """All deployments of a tenant."""

    deployments: list[Deployment]


class Job(Answer):
    """How far it is."""

    state: Literal["none", "running", "done", "failed", "stopped"] = Field(
        description="`none`: nothing was asked since the program started. `stopped`: the program ended before it did."
    )
    stage: Literal["spans", "traces"] | None = Field(
        None, description="First the vocabulary is applied to the stored spans (relink), then traces are settled."
    )
    share: float | None = Field(None, description="Share of the traces' stage that is done.")
    traces: int | None = Field(None, description="Traces settled so far.")
    tenant: str | None = None
    start_time_unix_nano: Nano | None = Field(None, description="Traces that begin at this time or later …")
    end_time_unix_nano: Nano | None = Field(None, description="… and before this time.")
    started_unix_nano: Nano | None = None
    ended_unix_nano: Nano | None = Field(None, description="null while it runs.")
    error: str | None = Field(None, description="Why it failed.")
