"""The shapes of what the API takes and answers of assessments, and their JSON."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from query.answers import Answer, Nano, SpanId, TraceId
from query.assessed import LABELS_MAX, NameSummary
from storage.assessments import WHOLE_TRACE, Assessment

BATCH_MAX = 1_000
JSON_BYTES_MAX = 64 << 10
TEXT_CHARS_MAX = 64 << 10

Kind = Literal["feedback", "expectation", "score"]
SourceType = Literal["human", "code", "llm_judge"]
Name = Annotated[str, Field(min_length=1, max_length=250, examples=["quality"])]
AssessmentId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._:-]{1,250}$", examples=["a-5b8efff798038103d269b633813fc60c"])
]


def _bounded(value: Any) -> Any:
    try:
        size = len(orjson.dumps(value))
    except orjson.JSONEncodeError as error:
        raise ValueError("it holds what cannot be kept: integers have 64 bits, and nesting an end") from error
    if size > JSON_BYTES_MAX:
        raise ValueError(f"it has {size} bytes as JSON: {JSON_BYTES_MAX} are the most")
    return value


Json = Annotated[Any, AfterValidator(_bounded)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_bounded)]
Value = Annotated[Json, Field(description="A number, a boolean, a text, a list, an object or null.", examples=[0.9])]
Label = Annotated[
    str,
    Field(max_length=250, description="A word beside a value that is none: `relevant` for 0.92.", examples=["good"]),
]
Rationale = Annotated[str, Field(max_length=TEXT_CHARS_MAX, examples=["The answer names the right invoice."])]
Problem = Annotated[
    Json, Field(description="Why there is no value: a text or an object.", examples=["the judge timed out"])
]


class Source(BaseModel):
    """Who or what assessed."""

    model_config = ConfigDict(extra="forbid")

    type: SourceType
    id: str = Field("", max_length=250, description="A person, a function or a judge.", examples=["ann@example.org"])


class AssessmentBody(BaseModel):
    """What is said of a trace, or of one of its spans."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    kind: Kind = "feedback"
    value: Value = None
    label: Label = ""
    source: Source
    rationale: Rationale = ""
    metadata: JsonObject = Field(default_factory=dict)
    error: Problem = None
    span_id: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{16}$")] | None = Field(
        None, description="Without it, the whole trace is meant."
    )

    @model_validator(mode="after")
    def _says_something(self) -> "AssessmentBody":
        if self.value is None and self.error is None and not self.rationale:
            raise ValueError("an assessment says a value, a rationale or an error")
        return self

    def assessment(self, trace_id: bytes, assessment_id: str = "") -> Assessment:
        """As it is kept."""
        return Assessment(
            trace_id=trace_id,
            name=self.name,
            value=self.value,
            source_type=self.source.type,
            source_id=self.source.id,
            kind=self.kind,
            span_id=bytes.fromhex(self.span_id) if self.span_id else WHOLE_TRACE,
            label=self.label,
            rationale=self.rationale,
            error=self.error,
            metadata=self.metadata,
            assessment_id=assessment_id,
        )


class NewAssessment(AssessmentBody):
    """An assessment to keep. Sent again with the same id it replaces itself."""

    assessment_id: AssessmentId | None = Field(None, description="An id of yours makes the request safe to repeat.")


class NewAssessmentOfTrace(NewAssessment):
    """An assessment of a batch."""

    trace_id: str = Field(pattern=r"^[0-9a-fA-F]{32}$", examples=["5b8efff798038103d269b633813fc60c"])


class NewAssessments(BaseModel):
    """A batch: all of it is kept, or nothing."""

    model_config = ConfigDict(extra="forbid")

    assessments: list[NewAssessmentOfTrace] = Field(min_length=1, max_length=BATCH_MAX)


class AssessmentChange(BaseModel):
    """What is to be otherwise; what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    value: Value = None
    label: Label | None = None
    source: Source | None = None
    rationale: Rationale | None = None
    metadata: JsonObject | None = None
    error: Problem = None

    @model_validator(mode="after")
    def _names_something(self) -> "AssessmentChange":
        if not self.model_fields_set:
            raise ValueError(f"a change names what is to be otherwise: {', '.join(type(self).model_fields)}")
        for name in ("name", "label", "source", "rationale", "metadata"):
            if name in self.model_fields_set and getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null: leave it out, or send it empty")
        return self

    def changes(self) -> dict[str, Any]:
        """Fields of storage.assessments.Assessment and their new values."""
        changes = {name: getattr(self, name) for name in self.model_fields_set if name != "source"}
        if self.source:
            changes |= {"source_type": self.source.type, "source_id": self.source.id}
        return changes


class AssessmentAnswer(Answer):
    """An assessment as it is kept."""

    assessment_id: AssessmentId
    trace_id: TraceId
    span_id: SpanId | None = Field(description="null where the whole trace is meant.")
    name: str = Field(examples=["quality"])
    kind: Kind
    value: Any = Field(description="A number, a boolean, a text, a list, an object or null.", examples=[0.9])
    label: str = Field(description="A word beside a value that is none, or empty.")
    source: Source
    rationale: str
    metadata: dict[str, Any]
    error: Any = Field(description="Why there is no value; null if there is no reason.")
    created_time_unix_nano: Nano
    updated_time_unix_nano: Nano


class AssessmentsOfTrace(Answer):
    """The assessments of a trace and of its spans, the oldest first."""

    assessments: list[AssessmentAnswer]
    truncated: bool = Field(description="There are more than an answer holds.")


class Assessments(Answer):
    """What was kept of a batch, in its order."""

    assessments: list[AssessmentAnswer]


class LabelCount(Answer):
    """A word and how often it was said."""

    label: str = Field(examples=["good"])
    count: int


class AssessmentSummary(Answer):
    """All assessments of one name."""

    name: str = Field(examples=["quality"])
    count: int
    trace_count: int
    number_count: int = Field(description="Those whose value is a number, or a boolean: true is 1, false is 0.")
    mean: float | None = Field(description="Of those; null if there are none.")
    min: float | None
    max: float | None
    labels: list[LabelCount] = Field(description=f"Labels and short texts, the {LABELS_MAX} most frequent.")
    label_count: int = Field(description="How many different ones there are.")
    sources: dict[str, int] = Field(description="Count by type of source.", examples=[{"human": 3, "llm_judge": 40}])


class AssessmentSummaries(Answer):
    """Assessments by name, in alphabetical order."""

    assessments: list[AssessmentSummary]


def assessment_json(a: Assessment) -> dict[str, Any]:
    """An AssessmentAnswer."""
    return {
        "assessment_id": a.assessment_id,
        "trace_id": a.trace_id.hex(),
        "span_id": None if a.span_id == WHOLE_TRACE else a.span_id.hex(),
        "name": a.name,
        "kind": a.kind,
        "value": a.value,
        "label": a.label,
        "source": {"type": a.source_type, "id": a.source_id},
        "rationale": a.rationale,
        "metadata": a.metadata,
        "error": a.error,
        "created_time_unix_nano": str(a.created_unix_nano),
        "updated_time_unix_nano": str(a.updated_unix_nano),
    }


def summary_json(summary: NameSummary) -> dict[str, Any]:
    """An AssessmentSummary."""
    return {
        "name": summary.name,
        "count": summary.count,
        "trace_count": summary.traces,
        "number_count": summary.numbers,
        "mean": summary.mean,
        "min": summary.least,
        "max": summary.most,
        "labels": [{"label": text, "count": count} for text, count in summary.labels],
        "label_count": summary.label_count,
        "sources": summary.sources,
    }
