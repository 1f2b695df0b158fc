"""The HTTP API of what traces belong to: lists, pages and traces of runs, model versions, agents and so on.

One set of routes for each sort, all alike. Runs in the framework's threads.
"""

import time
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, Field

from query import entity_answers
from query.answers import FAILURES, json_response
from query.entities import Entities, Entity
from query.errors import Refused
from query.model import BadCursor
from query.parameters import TIME_FORMATS, Tenant, Time, only_known
from storage.decode import INT64_MAX

LIST_DAYS = 30
_DAY_NANO = 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sort:
    """A sort of entity: its path, its name in the store, and what a person calls one."""

    path: str
    entity: str
    word: str


SORTS = (
    Sort("runs", "run", "run"),
    Sort("experiments", "experiment", "experiment"),
    Sort("sessions", "session", "session"),
    Sort("users", "user", "user"),
    Sort("logged-models", "logged_model", "logged model"),
    Sort("models", "model", "model"),
    Sort("agents", "agent", "agent"),
    Sort("prompts", "prompt", "prompt"),
)

Id = Annotated[str, Path(min_length=1, max_length=1024, description="As its traces say it; slashes are allowed.")]
Name = Annotated[str, Path(min_length=1, max_length=1024, description="As its traces say it; slashes are allowed.")]
Version = Annotated[str, Path(min_length=1, max_length=1024, description="As its traces say it.", examples=["4"])]
_Cursor = Annotated[str | None, Field(max_length=8192, description="`next_cursor` of the page before, same question.")]


class ListParameters(BaseModel):
    """Query parameters of a list of entities."""

    start: Time | None = Field(
        None, description=f"Traces that start at this time or later; {LIST_DAYS} days before `end` if it is not given."
    )
    end: Time | None = Field(None, description=f"Traces that start before this time; now if not given. {TIME_FORMATS}")
    limit: int = Field(50, ge=1, le=500, description="Entities on a page.")
    cursor: _Cursor = None


class PageParameters(BaseModel):
    """Query parameters of an entity's page."""

    start: Time | None = Field(None, description=f"Traces that start at this time or later. {TIME_FORMATS}")
    end: Time | None = Field(None, description="Traces that start before this time.")


class TracesParameters(PageParameters):
    """Query parameters of an entity's traces."""

    status: Literal["error", "ok"] | None = Field(None, description="Traces that failed, or that did not.")
    limit: int = Field(50, ge=1, le=1000, description="Traces on a page.")
    cursor: _Cursor = None


def router(entities: Entities) -> APIRouter:
    """The routes of all sorts."""
    routes = APIRouter()
    for sort in SORTS:
        routes.include_router(_Routes(entities, sort).router())
    return routes


class _Routes:
    """The routes of one sort."""

    def __init__(self, entities: Entities, sort: Sort) -> None:
        self._entities = entities
        self._sort = sort
        self._versioned = Entity("", sort.entity).versioned

    def router(self) -> APIRouter:
        """Those that end in a word come first: an id may hold slashes, and takes what is left."""
        routes = APIRouter(prefix=f"/api/v1/{self._sort.path}", tags=[self._sort.path], responses=FAILURES)
        self._add_list(routes)
        if self._versioned:
            self._add_versions(routes)
        self._add_one(routes)
        return routes

    def _add_list(self, routes: APIRouter) -> None:
        @routes.get(
            "",
            summary=f"A list of {self._sort.word}s, last seen first",
            response_model=entity_answers.NamedList if self._versioned else entity_answers.EntityList,
            dependencies=[Depends(only_known(ListParameters))],
        )
        def newest(parameters: Annotated[ListParameters, Query()], tenant: Tenant = "default") -> Response:
            until = time.time_ns() + 1 if parameters.end is None else parameters.end
            since = max(until - LIST_DAYS * _DAY_NANO, 0) if parameters.start is None else parameters.start
            asked = Entity(tenant, self._sort.entity, since_unix_nano=since, until_unix_nano=until)
            try:
                items, cursor = self._entities.newest(asked, parameters.limit, parameters.cursor)
            except BadCursor as error:
                raise Refused(400, str(error)) from error
            return json_response({"items": items, "next_cursor": cursor})

    def _add_versions(self, routes: APIRouter) -> None:
        @routes.get(
            "/{name:path}/versions/{version:path}/traces",
            summary=f"The traces of a version of a {self._sort.word}, newest first",
            response_model=entity_answers.LinkedTraces,
            dependencies=[Depends(only_known(TracesParameters))],
        )
        def version_traces(
            name: Name, version: Version, parameters: Annotated[TracesParameters, Query()], tenant: Tenant = "default"
        ) -> Response:
            return self._traces(tenant, name, version, parameters)

        @routes.get(
            "/{name:path}/versions/{version:path}",
            summary=f"A version of a {self._sort.word}",
            response_model=entity_answers.VersionPage,
            response_model_exclude_unset=True,
            dependencies=[Depends(only_known(PageParameters))],
        )
        def version(
            name: Name, version: Version, parameters: Annotated[PageParameters, Query()], tenant: Tenant = "default"
        ) -> Response:
            return self._page(tenant, name, version, parameters)

    def _add_one(self, routes: APIRouter) -> None:
        @routes.get(
            "/{id:path}/traces",
            summary=f"The traces of a {self._sort.word}, newest first",
            response_model=entity_answers.LinkedTraces,
            dependencies=[Depends(only_known(TracesParameters))],
        )
        def traces(id: Id, parameters: Annotated[TracesParameters, Query()], tenant: Tenant = "default") -> Response:
            return self._traces(tenant, id, None, parameters)

        @routes.get(
            "/{id:path}",
            summary=f"A {self._sort.word}",
            response_model=entity_answers.NamedPage if self._versioned else entity_answers.EntityPage,
            dependencies=[Depends(only_known(PageParameters))],
        )
        def one(id: Id, parameters: Annotated[PageParameters, Query()], tenant: Tenant = "default") -> Response:
            return self._page(tenant, id, None, parameters)

    def _page(self, tenant: str, id_: str, version: str | None, parameters: PageParameters) -> Response:
        page = self._entities.page(self._asked(tenant, id_, version, parameters))
        if page is None:
            which = repr(id_) if version is None else f"{id_!r} version {version!r}"
            raise Refused(
                404,
                f"cannot find {self._sort.word} {which} of tenant {tenant!r}: no trace is linked to it (which takes "
                "some seconds), none in that time, or it is another tenant's (header x-spanhouse-tenant)",
            )
        return json_response(page)

    def _traces(self, tenant: str, id_: str, version: str | None, parameters: TracesParameters) -> Response:
        asked = self._asked(tenant, id_, version, parameters)
        try:
            traces, cursor = self._entities.traces(asked, parameters.status, parameters.limit, parameters.cursor)
        except BadCursor as error:
            raise Refused(400, str(error)) from error
        return json_response({"traces": traces, "next_cursor": cursor})

    def _asked(self, tenant: str, id_: str, version: str | None, parameters: PageParameters) -> Entity:
        since = 0 if parameters.start is None else parameters.start
        until = INT64_MAX if parameters.end is None else parameters.end
        return Entity(tenant, self._sort.entity, id_, version, since, until)
