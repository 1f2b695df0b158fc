"""The HTTP API that says what traces belong to: links, deployments, metadata, and jobs that settle stored traces again.

Runs in the framework's threads.
"""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import orjson
from fastapi import APIRouter, Depends, Path, Response

from query import link_answers
from query.answers import FAILURES, json_response
from query.bodies import JsonRoute
from query.errors import Refused
from query.link_bodies import METADATA_BYTES_MAX, Metadata, NewDeployment, NewLinks, OldLinks, Times, _Which
from query.parameters import NoParameters, Tenant, TraceId, only_known
from query.selection import Selection
from query.trace_links import TraceLinks
from storage.annotations import Annotations
from storage.decode import INT64_MAX
from storage.deployments import Deployments, TooManyDeployments
from storage.linking import ENTITIES, Deployment
from storage.resettling import Busy, Kind, Progress, Resettling
from storage.spans import Span

SELECTED_TRACES_MAX = 100_000
"""Traces that one filter may find."""
SPANS_READ_MAX = 20_000
"""Spans by which the links of one trace are told."""

Id = Annotated[str, Path(min_length=1, max_length=1024)]
DeploymentId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,128}$", examples=["support-bot-4"])]


class SpanReader(Protocol):
    """Where the spans of a trace come from: query.traces.Traces."""

    def spans_of(self, tenant: str, trace_id: bytes, content: bool, limit: int) -> list[Span]:
        """Spans of one trace by start, at most `limit`, each once; without content attributes if not `content`."""
        ...


def router(  # noqa: PLR0917 (what it stands in front of)
    annotations: Annotations,
    deployments: Deployments,
    selection: Selection,
    trace_links: TraceLinks,
    reader: SpanReader,
    resettling: Resettling,
) -> APIRouter:
    """The routes."""
    routes = APIRouter(
        prefix="/api/v1",
        route_class=JsonRoute,
        responses=FAILURES,
        dependencies=[Depends(only_known(NoParameters))],
    )
    _links(routes, annotations, selection)
    _links_of_trace(routes, trace_links, reader)
    _deployments(routes, deployments)
    _metadata(routes, annotations)
    _jobs(routes, resettling)
    return routes


# Links


def _links(routes: APIRouter, annotations: Annotations, selection: Selection) -> None:
    def traces(tenant: str, which: _Which) -> list[bytes]:
        if which.trace_id is not None:
            return [bytes.fromhex(which.trace_id)]
        assert which.filter is not None
        found = selection.traces(tenant, which.filter.selection(), SELECTED_TRACES_MAX + 1)
        if len(found) > SELECTED_TRACES_MAX:
            raise Refused(
                400,
                f"cannot change the links of more than {SELECTED_TRACES_MAX} traces at once: give the filter a shorter "
                "time; nothing was changed",
            )
        return found

    @routes.post("/links", tags=["links"], summary="Say what traces belong to", response_model=link_answers.Linked)
    def link(body: NewLinks, tenant: Tenant = "default") -> Response:
        """What is said here counts more than what spans, resources, headers and deployments say.

        A trace is linked to one run, one model version, one session and so on; to several prompts. A filter finds
        traces that are stored; a trace by its id may come later.
        """
        found = [(one, traces(tenant, one)) for one in body.links]
        made = [
            (trace_id, entity, *what)
            for one, ids in found
            for entity, what in one.entities().items()
            for trace_id in ids
        ]
        annotations.link_all(tenant, made)
        return json_response({"traces": len({trace_id for trace_id, *_ in made}), "links": len(made)})

    @routes.delete("/links", tags=["links"], summary="Take links back", response_model=link_answers.Unlinked)
    def unlink(body: OldLinks, tenant: Tenant = "default") -> Response:
        """Of those that were made by API. What spans, resources, headers and deployments say counts again."""
        found = [(one, traces(tenant, one)) for one in body.links]
        count = sum(annotations.unlink(tenant, ids, one.entities or ENTITIES, one.id) for one, ids in found)
        return json_response({"links": count})


def _links_of_trace(routes: APIRouter, trace_links: TraceLinks, reader: SpanReader) -> None:
    @routes.get(
        "/traces/{trace_id}/links",
        tags=["links"],
        summary="What a trace belongs to, and who says so",
        response_model=link_answers.TraceLinksAnswer,
    )
    def links_of_trace(trace_id: TraceId, tenant: Tenant = "default") -> Response:
        """As it is now; lists and pages of runs, models and so on follow some seconds later."""
        spans = reader.spans_of(tenant, trace_id, content=False, limit=SPANS_READ_MAX)
        links = trace_links.json(tenant, trace_id, spans)
        if not spans and not links:
            raise Refused(404, f"cannot find trace {trace_id.hex()} of tenant {tenant!r}, nor a link of it")
        return json_response({"links": links})


# Deployments


def _deployments(routes: APIRouter, deployments: Deployments) -> None:
    @routes.get(
        "/deployments", tags=["deployments"], summary="All deployments", response_model=link_answers.Deployments
    )
    def list_deployments(tenant: Tenant = "default") -> Response:
        """By service and start, those of the file among them."""
        return json_response({"deployments": [_deployment_json(one) for one in deployments.of(tenant)]})

    @routes.get(
        "/deployments/{deployment_id}",
        tags=["deployments"],
        summary="A deployment",
        response_model=link_answers.Deployment,
    )
    def deployment(deployment_id: DeploymentId, tenant: Tenant = "default") -> Response:
        """Which version of a model a service ran, and when."""
        for one in deployments.of(tenant):
            if one.id == deployment_id:
                return json_response(_deployment_json(one))
        raise _no_deployment(deployment_id, tenant)

    @routes.put(
        "/deployments/{deployment_id}",
        tags=["deployments"],
        summary="Say which version of a model a service ran, and when",
        response_model=link_answers.Deployment,
    )
    def put(deployment_id: DeploymentId, body: NewDeployment, tenant: Tenant = "default") -> Response:
        """Traces with a span of the service that begin in that time are linked to the version, unless something else
        says what they belong to. Stored traces are, by `POST /api/v1/relink`.
        """
        made = Deployment(
            deployment_id, body.service, body.environment, body.model.name, body.model.version, body.since, body.until
        )
        try:
            deployments.put(tenant, made)
        except TooManyDeployments as error:
            raise Refused(400, str(error)) from error
        return json_response(_deployment_json(made))

    @routes.delete("/deployments/{deployment_id}", tags=["deployments"], summary="Remove a deployment", status_code=204)
    def delete(deployment_id: DeploymentId, tenant: Tenant = "default") -> Response:
        """One of the file is removed there."""
        if not deployments.delete(tenant, deployment_id):
            raise _no_deployment(deployment_id, tenant)
        return Response(status_code=204)


def _no_deployment(deployment_id: str, tenant: str) -> Refused:
    return Refused(
        404, f"cannot find deployment {deployment_id!r} of tenant {tenant!r}: GET /api/v1/deployments has all"
    )


def _deployment_json(one: Deployment) -> dict[str, Any]:
    return {
        "id": one.id,
        "service": one.service,
        "environment": one.environment,
        "model": {"name": one.model_name, "version": one.model_version},
        "since_unix_nano": str(one.since_unix_nano),
        "until_unix_nano": None if one.until_unix_nano is None else str(one.until_unix_nano),
        "source": one.source,
    }


# Metadata


def _metadata(routes: APIRouter, annotations: Annotations) -> None:
    def put(tenant: str, key: tuple[str, str, str], body: Metadata) -> Response:
        said = body.model_dump(exclude_none=True)
        size = len(orjson.dumps(said))
        if size > METADATA_BYTES_MAX:
            raise Refused(413, f"cannot keep {size} bytes of metadata: {METADATA_BYTES_MAX} are the most")
        annotations.put_entity(tenant, *key, said)
        return json_response(said)

    def forget(tenant: str, key: tuple[str, str, str]) -> Response:
        if not annotations.delete_entity(tenant, *key):
            raise Refused(404, f"cannot find metadata of {' '.join(filter(None, key))} of tenant {tenant!r}")
        return Response(status_code=204)

    @routes.put("/runs/{id:path}", tags=["runs"], summary="Describe a run", response_model=Metadata)
    def put_run(id: Id, body: Metadata, tenant: Tenant = "default") -> Response:
        """It is shown with the run and with its traces, in place of what was put before."""
        return put(tenant, ("run", id, ""), body)

    @routes.delete("/runs/{id:path}", tags=["runs"], summary="Forget what a run was described by", status_code=204)
    def delete_run(id: Id, tenant: Tenant = "default") -> Response:
        """Its traces stay."""
        return forget(tenant, ("run", id, ""))

    @routes.put(
        "/models/{name:path}/versions/{version:path}",
        tags=["models"],
        summary="Describe a model version",
        response_model=Metadata,
    )
    def put_version(name: Id, version: Id, body: Metadata, tenant: Tenant = "default") -> Response:
        """It is shown with the version and with its traces, in place of what was put before."""
        return put(tenant, ("model", name, version), body)

    @routes.delete(
        "/models/{name:path}/versions/{version:path}",
        tags=["models"],
        summary="Forget what a model version was described by",
        status_code=204,
    )
    def delete_version(name: Id, version: Id, tenant: Tenant = "default") -> Response:
        """Its traces stay."""
        return forget(tenant, ("model", name, version))


# Jobs


def _jobs(routes: APIRouter, resettling: Resettling) -> None:
    def begin(kind: Kind, tenant: str, body: Times) -> Response:
        since, until = body.start or 0, INT64_MAX if body.end is None else body.end
        if until <= since:
            raise Refused(400, f"cannot {kind}: end ({until}) is not after start ({since})")
        try:
            return json_response(_job_json(resettling.start(kind, tenant, since, until)), 202)
        except Busy as error:
            raise Refused(409, f"{error}; wait until GET /api/v1/{kind} says that it is done") from error

    _job(routes, "relink", "Settle stored traces again", begin, resettling)
    _job(routes, "reprice", "Settle stored traces again, with the prices of now", begin, resettling)


def _job(
    routes: APIRouter,
    kind: Kind,
    summary: str,
    begin: Callable[[Kind, str, Times], Response],
    resettling: Resettling,
) -> None:
    @routes.post(
        f"/{kind}", tags=["jobs"], summary=summary, name=kind, status_code=202, response_model=link_answers.Job
    )
    def post(body: Times, tenant: Tenant = "default") -> Response:
        """In the background, the tenant's traces that begin in that time, or all. One job runs at a time."""
        return begin(kind, tenant, body)

    @routes.get(
        f"/{kind}", tags=["jobs"], summary="How far it is", name=f"{kind}_progress", response_model=link_answers.Job
    )
    def progress() -> Response:
        """The last one since the program started."""
        found = resettling.progress(kind)
        return json_response({"state": "none"} if found is None else _job_json(found))


def _job_json(progress: Progress) -> dict[str, Any]:
    return {
        "state": progress.state,
        "stage": progress.stage,
        "share": progress.share,
        "traces": progress.traces,
        "tenant": progress.tenant,
        "start_time_unix_nano": str(progress.since_unix_nano),
        "end_time_unix_nano": str(progress.until_unix_nano),
        "started_unix_nano": str(progress.started_unix_nano),
        "ended_unix_nano": str(progress.ended_unix_nano) if progress.ended_unix_nano else None,
        "error": progress.error or None,
    }
