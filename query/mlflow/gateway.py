"""The address for MLflow's programs, `MLFLOW_TRACKING_URI=http://host:4320/mlflow`: an ASGI application to be mounted.

Answers the trace calls of MLflow's REST API from this store, hands spans to the OTLP receiver, and passes everything
else on to the MLflow server that is configured. Runs on the event loop of the API; what reads or writes the store runs
on the threads of the API.

`/mlflow/t/<tenant>` is the same address for a tenant, since MLflow's client sends no headers of a user's own.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal
from urllib.parse import parse_qs

import orjson
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from query.api import in_chunks
from query.mlflow import trace_info
from query.mlflow.arrivals import Arrivals
from query.mlflow.assessing import AssessmentCalls
from query.mlflow.calls import Answer, Call, ReadCalls, not_here
from query.mlflow.changes import WriteCalls
from query.mlflow.linking import LinkStore
from query.mlflow.passthrough import Disconnected, Passthrough
from query.mlflow.reading import Reading, SpanReader
from query.mlflow.refusals import MlflowRefused, invalid, refusal_of
from query.mlflow.search import Search
from query.mlflow.trace_info import member
from storage.assessments import Assessments
from storage.engine import Engine
from storage.mlflow_traces import MlflowTraces

VERSION = "3.17.2"
"""The MLflow whose trace calls are answered. Its client asks for it, and sends no spans to one before 3.4."""
SPANS_SINCE = (3, 4)
BODY_BYTES_MAX = 8 << 20
QUERY_FIELDS_MAX = 2_000
READS_MAX = 4
"""Traces that are read at a time: each is in memory until its answer is sent."""
STALL_TIMEOUT_S = 60
"""For a caller to take a piece of an answer."""
VERSION_TIMEOUT_S = 1.5
"""MLflow's client waits three seconds for the version, and takes silence for a server that takes no spans."""
EXPERIMENT_TIMEOUT_S = 2
EXPERIMENTS_CACHED_MAX = 1_000
EXPERIMENT_RETRY_S = 30

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[[Call], Answer]
Waits = Literal["", "known", "complete"]

_log = logging.getLogger(__name__)
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TENANT_HEADER = b"x-spanhouse-tenant"
_API = re.compile(r"/(?:ajax-)?api/(?P<version>[234]\.0)/mlflow/(?P<call>traces(?:/.*)?|get-trace-artifact)")
_OTLP = re.compile(r"/v1/(?:traces|logs)")


@dataclass(frozen=True, slots=True)
class _Route:
    """One call: the versions of the API that have it, its method, its path, and what of its trace it waits for."""

    versions: str
    method: str
    path: re.Pattern[str]
    handler: Handler
    waits: Waits = ""


def _routes(reads: ReadCalls, writes: WriteCalls, assessments: AssessmentCalls) -> list[_Route]:
    """The first that fits answers: paths of fixed words stand before those with an id."""
    one = "traces/(?P<trace_id>[^/]+)"
    listed: list[tuple[str, str, str, Handler, Waits]] = [
        ("3.0", "POST", "traces", writes.start, ""),
        ("2.0", "POST", "traces", writes.start_v2, ""),
        ("2.0", "GET", "traces", reads.search_v2, ""),
        ("3.0", "POST", "traces/search", reads.search, ""),
        ("3.0", "GET", "traces/get", reads.get, "complete"),
        ("3.0", "GET", "traces/batchGet", reads.batch, "complete"),
        ("3.0", "POST", "traces/batchGetInfos", reads.batch_infos, ""),
        ("3.0", "POST", "traces/metrics", not_here, ""),
        ("3.0", "POST", "traces/calculate-filter-correlation", not_here, ""),
        ("2.0 3.0", "POST", "traces/delete-traces", writes.delete, ""),
        ("2.0 3.0", "POST", "traces/link-to-run", writes.link_to_run, ""),
        ("2.0 3.0", "POST", "traces/link-prompts", writes.link_prompts, "known"),
        ("2.0 3.0", "GET", "get-trace-artifact", reads.file, "complete"),
        ("3.0", "GET", one, reads.info, "known"),
        ("2.0", "PATCH", one, writes.end_v2, ""),
        ("2.0", "GET", f"{one}/info", reads.info_v2, "known"),
        ("2.0 3.0", "PATCH", f"{one}/tags", writes.set_tag, "known"),
        ("2.0 3.0", "DELETE", f"{one}/tags", writes.delete_tag, "known"),
        ("3.0", "POST", f"{one}/assessments", assessments.assess, "known"),
        ("3.0", "GET", f"{one}/assessments/(?P<assessment_id>[^/]+)", assessments.assessment, "known"),
        ("3.0", "PATCH", f"{one}/assessments/(?P<assessment_id>[^/]+)", assessments.reassess, "known"),
        ("3.0", "DELETE", f"{one}/assessments/(?P<assessment_id>[^/]+)", assessments.unassess, "known"),
    ]
    return [
        _Route(versions, method, re.compile(path), handler, waits) for versions, method, path, handler, waits in listed
    ]


class Gateway:
    """The application.

    `otlp` is the OTLP/HTTP receiver, which takes spans at `/v1/traces`; `mlflow_url` the MLflow server, with http or
    https, or None. Raises ValueError for another URL.
    """

    def __init__(
        self,
        engine: Engine,
        traces: SpanReader,
        assessments: Assessments,
        links: LinkStore,
        otlp: Asgi,
        *,
        mlflow_url: str | None,
    ) -> None:
        rows, search = MlflowTraces(engine), Search(engine)
        reading = Reading(engine, rows, traces, assessments)
        self._routes = _routes(
            ReadCalls(reading, search),
            WriteCalls(rows, reading, search, links, assessments),
            AssessmentCalls(reading, assessments),
        )
        self._arrivals = Arrivals(rows, reading)
        self._passthrough = Passthrough(mlflow_url)
        self._otlp = otlp
        self._reads = asyncio.Semaphore(READS_MAX)
        self._artifacts: dict[str, tuple[float, str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await send(message)

        try:
            await self._answer(scope, receive, noted)
        except Disconnected:
            return
        except Exception as error:
            if begun:  # the answer is incomplete, so the server ends the connection
                _log.warning("cannot finish an answer to MLflow's client: %s %s", type(error).__name__, error)
                return
            refused = refusal_of(error)
            headers = {"Retry-After": "1"} if refused.status == 503 else None
            await Response(refused.body(), refused.status, headers, "application/json")(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request.of(scope)
        if _OTLP.fullmatch(request.path):
            headers = [pair for pair in scope["headers"] if pair[0] != _TENANT_HEADER]
            headers.append((_TENANT_HEADER, request.tenant.encode()))
            at_root = {"path": request.path, "raw_path": request.path.encode(), "root_path": "", "headers": headers}
            await self._otlp({**scope, **at_root}, receive, send)
        elif (match := _API.fullmatch(request.path)) is not None:
            await self._traces(request, match, scope, receive, send)
        elif request.path == "/version" and scope["method"] == "GET":
            version = await self._version(scope)
            await Response(version, media_type="text/plain")(scope, receive, send)
        elif request.path == "/health" and not self._passthrough.configured:
            await Response("OK", media_type="text/plain")(scope, receive, send)
        else:
            await self._passthrough.forward(scope, receive, send, request.raw_path, request.home)

    async def _traces(
        self, request: "_Request", asked: re.Match[str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        route, match = self._route(scope["method"], asked)
        query = _query(scope)
        json = {} if scope["method"] == "GET" else await _json(receive)
        call = Call(request.tenant, query=query, json=json, **match.groupdict())
        if route.path.pattern == "traces" and scope["method"] == "POST":
            call = replace(call, artifacts=await self._artifacts_of(json, scope))
        if route.waits and (ids := _trace_ids(call)):
            await (self._arrivals.complete if route.waits == "complete" else self._arrivals.known)(request.tenant, ids)
        async with self._reads if route.waits == "complete" else nullcontext():
            answer = await run_in_threadpool(route.handler, call)
            if isinstance(answer, dict):
                await Response(orjson.dumps(answer), media_type="application/json")(scope, receive, send)
                return
            pieces = in_chunks(answer)
            first = await run_in_threadpool(next, pieces)  # what fails here is still an error answer
            stream = iterate_in_threadpool(chain((first,), pieces))
            await StreamingResponse(stream, media_type="application/json")(scope, receive, send)

    def _route(self, method: str, asked: re.Match[str]) -> tuple[_Route, re.Match[str]]:
        for route in self._routes:
            match = route.path.fullmatch(asked["call"])
            if match is not None and asked["version"] in route.versions and method == route.method:
                return route, match
        # Never the MLflow server's to answer: it has none of these traces.
        raise MlflowRefused("ENDPOINT_NOT_FOUND", f"cannot {method} {asked[0][:200]}: MLflow's API has no such call")

    async def _version(self, scope: Scope) -> str:
        """The MLflow server's version, if it answers in time and is one to which the client sends spans."""
        answer = await self._passthrough.get("/version", scope["headers"], VERSION_TIMEOUT_S)
        if answer is not None and answer.status_code == 200:
            numbers = re.match(r"(\d+)\.(\d+)", answer.text)
            if numbers and (int(numbers[1]), int(numbers[2])) >= SPANS_SINCE:
                return answer.text
        return VERSION

    async def _artifacts_of(self, json: Any, scope: Scope) -> str:
        """Where the MLflow server keeps files of the trace's experiment: attachments go there. Empty if it is away."""
        info = member(member(json, "trace"), "trace_info") or json
        location = member(member(info, "trace_location"), "mlflow_experiment") or info
        experiment = str(member(location, "experiment_id") or trace_info.DEFAULT_EXPERIMENT)
        if not self._passthrough.configured or not experiment.isalnum():
            return ""
        asked, known = self._artifacts.get(experiment, (float("-inf"), ""))
        if known or time.monotonic() - asked < EXPERIMENT_RETRY_S:
            return known
        path = f"/api/2.0/mlflow/experiments/get?experiment_id={experiment}"
        answer = await self._passthrough.get(path, scope["headers"], EXPERIMENT_TIMEOUT_S)
        if answer is not None and answer.status_code == 200:
            try:
                known = str(answer.json()["experiment"]["artifact_location"])
            except (ValueError, TypeError, KeyError):
                known = ""
        if len(self._artifacts) >= EXPERIMENTS_CACHED_MAX:
            self._artifacts.clear()
        self._artifacts[experiment] = (time.monotonic(), known)
        return known


@dataclass(frozen=True, slots=True)
class _Request:
    """Where a request goes: the path below the address, also as it was sent, the address, and the tenant."""

    path: str
    raw_path: bytes
    home: str
    tenant: str

    @classmethod
    def of(cls, scope: Scope) -> "_Request":
        home = scope.get("root_path", "")
        path = scope["path"].removeprefix(home)
        raw_path = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0].removeprefix(home.encode())
        tenant = dict(scope["headers"]).get(_TENANT_HEADER, b"default").decode("latin-1")
        if (match := re.match(r"/t/([^/]*)(?=/|$)", path)) is not None:
            tenant, path, home = match[1], path[match.end() :] or "/", home + match[0]
            raw_path = b"/" + b"".join(raw_path.split(b"/", 3)[3:])
        if _TENANT.fullmatch(tenant) is None:
            raise invalid(f"cannot take the tenant {tenant[:80]!r}: 1 to 64 of A-Z a-z 0-9 . _ -")
        return cls(path, raw_path, home, tenant)


def _query(scope: Scope) -> dict[str, list[str]]:
    try:
        return parse_qs(
            scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX
        )
    except ValueError as error:
        raise invalid(f"cannot read the query: it has more than {QUERY_FIELDS_MAX} parameters") from error


async def _json(receive: Receive) -> dict[str, Any]:
    """The body, a JSON object; none is an empty one. Raises MlflowRefused and Disconnected."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES_MAX:
            raise invalid(f"cannot take a body of more than {BODY_BYTES_MAX} bytes")
    try:
        json = orjson.loads(bytes(body)) if body else {}
    except orjson.JSONDecodeError as error:
        raise invalid(f"cannot read the body: it is not JSON: {error}") from error
    if not isinstance(json, dict):
        raise invalid("cannot read the body: it is no JSON object")
    return json


def _trace_ids(call: Call) -> list[bytes]:
    """The traces that a call speaks of; none if it does not say so in the right form, which its handler will refuse."""
    texts = [call.trace_id, call.parameter("trace_id"), call.parameter("request_id"), member(call.json, "trace_id")]
    texts += call.query.get("trace_ids", [])
    try:
        return [trace_info.trace_id_of(text) for text in texts if text]
    except MlflowRefused:
        return []
