"""What the API takes to link traces, to say what was deployed, and to describe runs and model versions."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from query.parameters import time_unix_nano
from query.selection import TraceSelection
from storage.decode import INT64_MAX

LINKS_MAX = 1_000
METADATA_BYTES_MAX = 64 * 1024

Text = Annotated[str, Field(min_length=1, max_length=1024)]
Time = Annotated[
    int,
    BeforeValidator(lambda value: time_unix_nano(str(value))),
    WithJsonSchema({"type": "string", "examples": ["2026-01-31T12:00:00Z", "-1h", "1764000000000000000"]}),
]
TraceId = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$", examples=["5b8efff798038103d269b633813fc60c"])]
EntitySort = Literal["run", "experiment", "model", "logged_model", "prompt", "session", "agent", "user"]


class Body(BaseModel):
    """A misspelt member is refused, not passed over."""

    model_config = ConfigDict(extra="forbid")


class Versioned(Body):
    """A model, a prompt or an agent."""

    name: Text = Field(examples=["support"])
    version: str = Field("", max_length=1024, description="Any, or not known, if it is empty.", examples=["4"])


class ModelVersion(Body):
    """One version of a model."""

    name: Text = Field(examples=["support"])
    version: Text = Field(examples=["4"])


class _Entities(Body):
    """What traces belong to."""

    run_id: Text | None = None
    experiment_id: Text | None = None
    model: Versioned | None = None
    logged_model_id: Text | None = None
    prompt: Versioned | None = None
    session_id: Text | None = None
    agent: Versioned | None = None
    user_id: Text | None = None

    def entities(self) -> dict[str, tuple[str, str]]:
        """Entity → id and version, of what is given."""
        ids = {
            "run": self.run_id,
            "experiment": self.experiment_id,
            "logged_model": self.logged_model_id,
            "session": self.session_id,
            "user": self.user_id,
        }
        versioned = {"model": self.model, "prompt": self.prompt, "agent": self.agent}
        return {entity: (id_, "") for entity, id_ in ids.items() if id_ is not None} | {
            entity: (one.name, one.version) for entity, one in versioned.items() if one is not None
        }


class TraceFilter(_Entities):
    """The traces that satisfy all of it; something has to be given."""

    service: Text | None = Field(None, description="Traces with a span of this service.")
    start: Time | None = Field(None, description="Traces that start at this time or later.")
    end: Time | None = Field(None, description="Traces that start before this time.")

    @model_validator(mode="after")
    def _narrow(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("an empty filter means every trace: say which, if by start alone")
        return self

    def selection(self) -> TraceSelection:
        """The same for the store."""
        return TraceSelection(
            0 if self.start is None else self.start,
            INT64_MAX if self.end is None else self.end,
            self.service or "",
            self.entities(),
        )


class _Which(Body):
    """One trace by its id, or all that a filter finds."""

    trace_id: TraceId | None = None
    filter: TraceFilter | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.trace_id is None) == (self.filter is None):
            raise ValueError("say which traces, by trace_id or by filter")
        return self


class NewLink(_Which, _Entities):
    """Traces, and what they belong to."""

    @model_validator(mode="after")
    def _to_something(self) -> Self:
        if not self.entities():
            raise ValueError(f"say what the traces belong to: {', '.join(_Entities.model_fields)}")
        return self


class NewLinks(Body):
    """Links to be made."""

    links: list[NewLink] = Field(min_length=1, max_length=LINKS_MAX)


class OldLink(_Which):
    """Traces, and which links to take back."""

    entities: list[EntitySort] | None = Field(None, min_length=1, description="Links of these sorts; all if not given.")
    id: str = Field("", max_length=1024, description="Only those to this id or name.")


class OldLinks(Body):
    """Links to be taken back."""

    links: list[OldLink] = Field(min_length=1, max_length=LINKS_MAX)


class NewDeployment(Body):
    """From `since` on, until before `until`, the service ran this version of the model."""

    service: Text = Field(examples=["support-bot"])
    environment: str = Field("", max_length=1024, description="Any, if it is empty.", examples=["prod"])
    model: ModelVersion
    since: Time
    until: Time | None = Field(None, description="null while it still runs.")

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.until is not None and self.until <= self.since:
            raise ValueError("until lies before since")
        return self


class Metadata(Body):
    """What is known of a run or a model version; 64 KiB of JSON at most."""

    name: str | None = Field(None, max_length=1024)
    description: str | None = None
    status: str | None = Field(None, max_length=256, examples=["FINISHED"])
    stage: str | None = Field(None, max_length=256, examples=["Production"])
    aliases: list[str] | None = Field(None, examples=[["champion"]])
    tags: dict[str, str] | None = None
    metrics: dict[str, float] | None = Field(None, examples=[{"accuracy": 0.93}])
    params: dict[str, Any] | None = None
    url: str | None = Field(None, pattern=r"^https?://", max_length=8192)


class Times(Body):
    """Traces that begin in this time; all, if nothing is given."""

    start: Time | None = None
    end: Time | None = None
