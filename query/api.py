"""The HTTP API that reads traces: the application, its paths and their parameters.

Endpoints run in the framework's thread pool, liveness on the event loop itself, so that it answers while all threads
are busy. A trace is streamed: what can fail (its read, its tree) happens before the first byte is out.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import chain
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Message, Send

from query import answers, assessed, health, otlp, trace_json
from query.errors import RETRY_AFTER, Refused, install
from query.model import BadCursor, TraceFilter, TracePage, TraceSummary
from query.parameters import DURATION_FORMATS, TIME_FORMATS, Duration, Tenant, Time, TraceId, only_known
from query.spending import Price
from query.tree import build
from storage.spans import Span

CHUNK_BYTES = 256 * 1024
"""What is sent at once, and how much of an answer is in memory as text. From 128 KiB on, gzip works off the loop."""
ATTRIBUTE_FILTERS_MAX = 32
ATTRIBUTE_PREFIX = "attr."
TRUNCATED = "x-spanhouse-truncated"
"""A header, since OTLP has no place to say it."""
_PROTOBUF = ("application/x-protobuf", "application/protobuf")

_DESCRIPTION = """
Reads the traces that Spanhouse received. A span can be read about two seconds after it was acknowledged.

- **Ids** are lower-case hex. **64-bit nanoseconds** are strings, as in OTLP/JSON; other integers are exact numbers.
- **Tenants**: the header `x-spanhouse-tenant` names whose traces are read; without it, those of `default`.
- **Errors** of any kind are `{"error": {"code", "message", …}}`.
- **Large answers** are streamed, and compressed for `Accept-Encoding: gzip`.
"""

_log = logging.getLogger(__name__)


class TraceReader(Protocol):
    """Where traces come from. Called from many threads at once."""

    def spans_of(self, tenant: str, trace_id: bytes, content: bool, limit: int, records: bool = True) -> list[Span]:
        """Spans of one trace by start, at most `limit`, each once; without content attributes if not `content`.

        With `records`, what was sent as log records is in them too; else they are as they were sent.
        """
        ...

    def list_traces(self, tenant: str, filters: TraceFilter, limit: int, cursor: str | None) -> TracePage:
        """Newest first. Raises BadCursor for a cursor that it did not make for these filters."""
        ...


_Written = tuple[Iterator[bytes], str]
About = Callable[[str, bytes, list[Span]], dict[str, Any]]
"""Tenant, trace id and spans of a trace → what is known of it beside them: `links` and `assessments`."""


def _nothing_about(_tenant: str, _trace_id: bytes, _spans: list[Span]) -> dict[str, Any]:
    return {"links": {}, "assessments": []}


def create_app(
    reader: TraceReader,
    ready: Callable[[], dict[str, str]],
    *,
    price: Price = lambda _: None,
    about: About = _nothing_about,
    trace_spans_max: int = 200_000,
    trace_reads_max: int = 4,
    trace_read_wait_s: float = 10,
    send_stall_s: float = 30,
) -> FastAPI:
    """The application. Other parts add their own routers to it.

    `ready` gives the parts that are not ready, by name, with the reason; empty when all are.
    `trace_spans_max`: spans in an answer; a larger trace is cut and says so.
    `trace_reads_max`: traces in memory at once, so that there are no more spans than the product of the two. A further
    request waits `trace_read_wait_s` and then gets a 503.
    `send_stall_s`: a client that takes nothing for so long loses its connection, and with it its trace in memory.
    """
    app = FastAPI(title="Spanhouse", version=version("spanhouse"), description=_DESCRIPTION)
    install(app)
    app.add_middleware(GZipMiddleware, minimum_size=1_000, compresslevel=2)
    written = partial(_written, price=price, about=about)
    slot = _slots(trace_reads_max, trace_read_wait_s)
    app.include_router(_traces(reader, written, trace_spans_max, slot, send_stall_s))
    app.include_router(health.router(ready))
    return app


# Parameters


class TraceParameters(BaseModel):
    """Query parameters of one trace."""

    format: Literal["tree", "flat", "otlp"] = Field(
        "tree",
        description="`tree` nests children in their parents, as deep as the trace is; `flat` lists spans by start; "
        "`otlp` is TracesData in OTLP/JSON, or in protobuf with `Accept: application/x-protobuf`.",
    )
    content: bool = Field(True, description="With prompts, outputs, tool arguments and results.")


class ListParameters(BaseModel):
    """Query parameters of the trace list, besides attr.<key>."""

    start: Time | None = Field(None, description=f"Traces that start at this time or later. {TIME_FORMATS}")
    end: Time | None = Field(None, description=f"Traces that start before this time. {TIME_FORMATS}")
    service: str | None = Field(None, description="Service name of a span.")
    name: str | None = Field(None, description="Name of that same span.")
    status: Literal["error", "ok", "unset"] | None = Field(
        None,
        description="`error`: that same span has the status ERROR. `ok`: no span of the trace has ERROR, and at least "
        "one has OK. `unset`: no span of the trace has ERROR or OK.",
    )
    min_duration: Duration | None = Field(None, description=f"The whole trace takes at least this. {DURATION_FORMATS}")
    max_duration: Duration | None = Field(None, description=f"The whole trace takes at most this. {DURATION_FORMATS}")
    limit: int = Field(50, ge=1, le=1000, description="Traces on a page.")
    cursor: str | None = Field(None, max_length=4096, description="`next_cursor` of the page before, same filters.")


_ATTRIBUTE_PARAMETER = {
    "name": "attr.<key>",
    "in": "query",
    "description": "`attr.gen_ai.request.model=gpt-4o-mini`: an attribute of that same span, or of its resource, has "
    "this value, be it a string, a number or a boolean. May be given up to "
    f"{ATTRIBUTE_FILTERS_MAX} times; all must hold.",
    "schema": {"type": "string"},
}


_ASSESSMENT_PARAMETER = {
    "name": "assessment.<name>",
    "in": "query",
    "description": "`assessment.quality=good`, `assessment.quality>=0.5`, `assessment.quality=!=bad`: an assessment of "
    "the trace, or of one of its spans, has this value.",
    "schema": {"type": "string"},
}


# Paths


def _traces(
    reader: TraceReader, written: Callable[..., _Written], spans_max: int, slot: Any, send_stall_s: float
) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["traces"], responses=answers.FAILURES)

    @router.get(
        "/traces/{trace_id}",
        summary="One trace as a tree",
        response_class=_Stream,
        status_code=200,
        responses={
            200: {
                "model": answers.Trace,
                "description": "The trace. Or, with format=otlp, opentelemetry.proto.trace.v1.TracesData.",
                "headers": {
                    TRUNCATED: {
                        "description": "`true` if the trace has more spans than an answer holds.",
                        "schema": {"type": "string"},
                    }
                },
                "content": {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
        dependencies=[Depends(only_known(TraceParameters)), Depends(slot)],
    )
    def trace(
        request: Request,
        trace_id: TraceId,
        parameters: Annotated[TraceParameters, Query()],
        tenant: Tenant = "default",
    ) -> Response:
        """Every span is in the tree exactly once; `integrity` says how far the tree can be trusted."""
        records = parameters.format != "otlp"
        spans = reader.spans_of(tenant, trace_id, parameters.content, spans_max + 1, records)
        if not spans:
            raise Refused(404, _not_found(trace_id, tenant))
        truncated = len(spans) > spans_max
        del spans[spans_max:]
        pieces, media_type = written(tenant, spans, truncated, parameters.format, request.headers.get("accept", ""))
        chunks = in_chunks(pieces)
        first = next(chunks)  # before the status line is out: what fails here is still an error answer
        headers = {"Vary": "Accept"} | ({TRUNCATED: "true"} if truncated else {})
        return _Stream(chain((first,), chunks), media_type=media_type, headers=headers, stall_s=send_stall_s)

    @router.get(
        "/traces",
        summary="A list of traces, newest first",
        response_model=answers.TraceList,
        dependencies=[Depends(only_known(ListParameters, ATTRIBUTE_PREFIX, assessed.PREFIX))],
        openapi_extra={"parameters": [_ATTRIBUTE_PARAMETER, _ASSESSMENT_PARAMETER]},
    )
    def list_traces(
        request: Request, parameters: Annotated[ListParameters, Query()], tenant: Tenant = "default"
    ) -> Response:
        """A trace is listed if *one* of its spans meets service, name, every attribute and `status=error` together.

        `status=ok` and `status=unset` are about the whole trace, and so are the times and durations.
        """
        filters = _filter(parameters, request.query_params.multi_items())
        try:
            page = reader.list_traces(tenant, filters, parameters.limit, parameters.cursor)
        except BadCursor as error:
            raise Refused(400, str(error)) from error
        body = {"traces": [_summary_json(trace) for trace in page.traces], "next_cursor": page.next_cursor}
        return answers.json_response(body)

    return router


def _not_found(trace_id: bytes, tenant: str) -> str:
    return (
        f"cannot find trace {trace_id.hex()} of tenant {tenant!r}: it never came, came within the last seconds, has "
        "expired, or is another tenant's (header x-spanhouse-tenant)"
    )


def _filter(parameters: ListParameters, items: Sequence[tuple[str, str]]) -> TraceFilter:
    attributes = [
        (name.removeprefix(ATTRIBUTE_PREFIX), value) for name, value in items if name.startswith(ATTRIBUTE_PREFIX)
    ]
    if len(attributes) > ATTRIBUTE_FILTERS_MAX:
        raise Refused(400, f"cannot filter by {len(attributes)} attributes: {ATTRIBUTE_FILTERS_MAX} are the most")
    for low, high in (("start", "end"), ("min_duration", "max_duration")):
        least, most = getattr(parameters, low), getattr(parameters, high)
        if least is not None and most is not None and least > most:
            raise Refused(400, f"cannot list traces: {low} ({least}) is beyond {high} ({most})")
    try:
        assessments = assessed.parse(items)
    except assessed.BadFilter as error:
        raise Refused(400, str(error)) from error
    return TraceFilter(
        start_unix_nano=parameters.start,
        end_unix_nano=parameters.end,
        service=parameters.service,
        name=parameters.name,
        status=parameters.status,
        min_duration_nano=parameters.min_duration,
        max_duration_nano=parameters.max_duration,
        attributes=attributes,
        assessments=assessments,
    )


def _summary_json(trace: TraceSummary) -> dict[str, Any]:
    has_root = trace.root_service is not None and trace.root_name is not None
    return {
        "trace_id": trace.trace_id,
        "root": {"service": trace.root_service, "name": trace.root_name} if has_root else None,
        "start_time_unix_nano": str(trace.start_time_unix_nano),
        "duration_nano": str(trace.duration_nano),
        "span_count": trace.span_count,
        "error_count": trace.error_count,
        "services": trace.services,
        "weight": trace.weight,
    }


# Streaming


def _written(
    tenant: str, spans: list[Span], truncated: bool, form: str, accept: str, *, price: Price, about: About
) -> _Written:
    """Pieces of the answer and their media type."""
    if form == "otlp":
        ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
        if any(media_type in ranges for media_type in _PROTOBUF):
            return otlp.protobuf_pieces(spans), "application/x-protobuf"
        return otlp.json_pieces(spans), "application/json"
    nested = form == "tree"
    pieces = trace_json.pieces(
        build(spans),
        nested=nested,
        truncated=truncated,
        now_unix_nano=time.time_ns(),
        price=price,
        about=about(tenant, spans[0].trace_id, spans),
    )
    return pieces, "application/json"


def in_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces to chunks of at least CHUNK_BYTES: a step of the stream costs a change of threads."""
    chunk: list[bytes] = []
    size = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            yield b"".join(chunk)
            chunk.clear()
            size = 0
    yield b"".join(chunk)


class _Stream(StreamingResponse):
    """A stream whose client must take each chunk in time: a trace is held in memory until its last chunk is sent."""

    def __init__(self, chunks: Iterator[bytes], *, media_type: str, headers: dict[str, str], stall_s: float) -> None:
        super().__init__(chunks, media_type=media_type, headers=headers)
        self._stall_s = stall_s

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._stall_s):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:  # the answer is incomplete, so the server ends the connection
            _log.warning("a client took nothing of its trace for %s s: connection closed", self._stall_s)


def _slots(count: int, wait_s: float) -> Callable[[], AsyncIterator[None]]:
    """A dependency that holds one of `count` places from before the read until the answer is sent."""
    places = asyncio.Semaphore(count)

    async def slot() -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(wait_s):
                await places.acquire()
        except TimeoutError:
            raise Refused(
                503, f"cannot read the trace now: {count} traces are being read already", headers=RETRY_AFTER
            ) from None
        try:
            yield
        finally:
            places.release()

    return slot
