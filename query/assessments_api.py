"""The HTTP API of assessments: keep, list, change and remove them, and sum them up. Runs in the framework's threads."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, Field

from query.answers import FAILURES, json_response
from query.assessed import Assessed, SummaryFilter
from query.assessment_answers import (
    AssessmentAnswer,
    AssessmentBody,
    AssessmentChange,
    Assessments,
    AssessmentsOfTrace,
    AssessmentSummaries,
    NewAssessment,
    NewAssessments,
    assessment_json,
    summary_json,
)
from query.bodies import JsonRoute
from query.errors import Refused
from query.parameters import NoParameters, Tenant, Time, TraceId, only_known
from storage import assessments as kept
from storage.assessments import Assessment

Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,250}$", description="Id of an assessment of this trace.")]


class SummaryParameters(BaseModel):
    """Query parameters of the summary."""

    name: str | None = Field(None, max_length=250, description="Assessments of this name only.")
    start: Time | None = Field(None, description="Of traces that start at this time or later.")
    end: Time | None = Field(None, description="Of traces that start before this time.")
    entity: Literal["run", "experiment", "model", "logged_model", "session", "agent", "prompt", "user"] | None = Field(
        None, description="Of traces that are linked to such a thing; `id` says which."
    )
    id: str = Field("", max_length=1000, description="Id or name of that thing.")
    version: str | None = Field(None, max_length=250, description="Its version: of a model, a prompt or an agent.")


_BARE = [Depends(only_known(NoParameters))]


def router(assessments: kept.Assessments, assessed: Assessed) -> APIRouter:
    """The routes."""
    routes = APIRouter(
        prefix="/api/v1",
        tags=["assessments"],
        route_class=JsonRoute,
        responses=FAILURES,
    )
    _of_trace(routes, assessments)
    _one_of_trace(routes, assessments)
    _of_many(routes, assessments, assessed)
    return routes


def _of_trace(routes: APIRouter, assessments: kept.Assessments) -> None:
    @routes.get(
        "/traces/{trace_id}/assessments",
        summary="What was said of a trace",
        response_model=AssessmentsOfTrace,
        dependencies=_BARE,
    )
    def of_trace(trace_id: TraceId, tenant: Tenant = "default") -> Response:
        """Of the trace and of its spans, also what instrumentations sent with the spans."""
        found = assessments.of_trace(tenant, trace_id, kept.OF_TRACE_MAX + 1)
        shown = [assessment_json(one) for one in found[: kept.OF_TRACE_MAX]]
        return json_response({"assessments": shown, "truncated": len(found) > len(shown)})

    @routes.post(
        "/traces/{trace_id}/assessments",
        summary="Assess a trace or one of its spans",
        response_model=AssessmentAnswer,
        status_code=201,
        dependencies=_BARE,
    )
    def add(trace_id: TraceId, body: NewAssessment, tenant: Tenant = "default") -> Response:
        """With an `assessment_id` of yours the request may be sent again. The trace need not have come yet."""
        return _shown(assessments.put(tenant, [body.assessment(trace_id, body.assessment_id or "")])[0], 201)


def _one_of_trace(routes: APIRouter, assessments: kept.Assessments) -> None:
    @routes.get(
        "/traces/{trace_id}/assessments/{assessment_id}",
        summary="One assessment",
        response_model=AssessmentAnswer,
        dependencies=_BARE,
    )
    def show(trace_id: TraceId, assessment_id: Id, tenant: Tenant = "default") -> Response:
        """As it is now."""
        return _shown(assessments.one(tenant, trace_id, assessment_id) or _missing(trace_id, assessment_id))

    @routes.put(
        "/traces/{trace_id}/assessments/{assessment_id}",
        summary="Keep an assessment under an id",
        response_model=AssessmentAnswer,
        dependencies=_BARE,
    )
    def put(trace_id: TraceId, assessment_id: Id, body: AssessmentBody, tenant: Tenant = "default") -> Response:
        """Replaces the whole assessment if there is one."""
        return _shown(assessments.put(tenant, [body.assessment(trace_id, assessment_id)])[0])

    @routes.patch(
        "/traces/{trace_id}/assessments/{assessment_id}",
        summary="Change an assessment",
        response_model=AssessmentAnswer,
        dependencies=_BARE,
    )
    def change(trace_id: TraceId, assessment_id: Id, body: AssessmentChange, tenant: Tenant = "default") -> Response:
        """What the body does not name stays as it is."""
        changed = assessments.change(tenant, trace_id, assessment_id, body.changes())
        return _shown(changed or _missing(trace_id, assessment_id))

    @routes.delete(
        "/traces/{trace_id}/assessments/{assessment_id}",
        summary="Remove an assessment",
        status_code=204,
        response_model=None,
        dependencies=_BARE,
    )
    def delete(trace_id: TraceId, assessment_id: Id, tenant: Tenant = "default") -> Response:
        """One that came with a span does not come back when the span is sent again."""
        if not assessments.delete(tenant, trace_id, assessment_id):
            _missing(trace_id, assessment_id)
        return Response(status_code=204)


def _of_many(routes: APIRouter, assessments: kept.Assessments, assessed: Assessed) -> None:
    @routes.post(
        "/assessments",
        summary="Assess many traces",
        response_model=Assessments,
        status_code=201,
        dependencies=_BARE,
    )
    def add_many(body: NewAssessments, tenant: Tenant = "default") -> Response:
        """All of the batch is kept, or nothing."""
        given = [one.assessment(bytes.fromhex(one.trace_id), one.assessment_id or "") for one in body.assessments]
        return json_response({"assessments": [assessment_json(one) for one in assessments.put(tenant, given)]}, 201)

    @routes.get(
        "/assessments/summary",
        summary="Assessments by name",
        response_model=AssessmentSummaries,
        dependencies=[Depends(only_known(SummaryParameters))],
    )
    def summary(parameters: Annotated[SummaryParameters, Query()], tenant: Tenant = "default") -> Response:
        """How many, their mean, and their labels. Without times, those of traces that have not come count, too."""
        found = assessed.summary(tenant, _summary_filter(parameters))
        return json_response({"assessments": [summary_json(one) for one in found]})


def _summary_filter(parameters: SummaryParameters) -> SummaryFilter:
    if (parameters.entity is None) != (not parameters.id) or (parameters.version and not parameters.entity):
        raise Refused(
            400, "cannot sum up by a thing that is half named: entity and id go together, and version with them"
        )
    if parameters.start is not None and parameters.end is not None and parameters.start > parameters.end:
        raise Refused(400, f"cannot sum up: start ({parameters.start}) is beyond end ({parameters.end})")
    return SummaryFilter(
        name=parameters.name,
        start_unix_nano=parameters.start,
        end_unix_nano=parameters.end,
        entity=parameters.entity,
        id=parameters.id,
        version=parameters.version,
    )


def _missing(trace_id: bytes, assessment_id: str) -> Assessment:
    raise Refused(
        404,
        f"cannot find assessment {assessment_id} of trace {trace_id.hex()}: it was removed, never made, or is another "
        "tenant's (header x-spanhouse-tenant)",
    )


def _shown(assessment: Assessment, status_code: int = 200) -> Response:
    return json_response(assessment_json(assessment), status_code)
