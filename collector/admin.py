"""The operator's routes of the HTTP API: the quarantine, and `/metrics`.

Owns no state. FastAPI runs these functions on its pool of threads: they wait for the disk.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, Field

from collector.frames import Frame
from collector.quarantine import Entry, NotQuarantined, Quarantine
from collector.status import Refusal, codes, retry_after

PAGE_FRAMES_MAX = 1000


class QuarantinedFrame(BaseModel):
    """A frame that the store cannot load, and why. Times are 64-bit nanoseconds as strings, as in OTLP/JSON."""

    id: str
    tenant: str
    spans: int = Field(description="Spans in the request; 0 when it is one of log records.")
    log_records: int = Field(description="Log records in the request.")
    bytes: int = Field(description="Length of the encoded request.")
    received_unix_nano: str
    quarantined_unix_nano: str
    reason: str = Field(description="What the store said of it.")


class QuarantinePage(BaseModel):
    """Some frames of the quarantine, oldest first."""

    frames: list[QuarantinedFrame]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last one.")


class SpanSummary(BaseModel):
    """Enough of a span to find out where it came from."""

    trace_id: str
    span_id: str
    name: str


class RequestSummary(BaseModel):
    """What can be told of a quarantined request: its services and its first spans, or those of its log records."""

    decodes: bool
    error: str = Field(description="Why it does not decode; empty when it does.")
    services: list[str]
    spans: list[SpanSummary]


class QuarantinedRequest(QuarantinedFrame):
    """A quarantined frame with what is in it."""

    request: RequestSummary


class ErrorDetail(BaseModel):
    """What went wrong, for a program and for a person."""

    code: int
    message: str


class ErrorBody(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail


_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody}}
_REFUSED: dict[int | str, dict[str, Any]] = {429: {"model": ErrorBody}, 503: {"model": ErrorBody}}

FrameId = Annotated[str, Path(description="Id of a quarantined frame.", max_length=80)]


def metrics_router(registry: CollectorRegistry) -> APIRouter:
    """`/metrics`, of what is in `registry`."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def quarantine_router(quarantine: Quarantine, append: Callable[[Frame], Future[None]]) -> APIRouter:
    """The routes of the quarantine; replayed frames go through `append`."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/api/v1/quarantine")
    def list_quarantine(
        limit: Annotated[int, Query(ge=1, le=PAGE_FRAMES_MAX)] = 100,
        cursor: Annotated[str, Query(max_length=80, description="`next_cursor` of the page before.")] = "",
    ) -> QuarantinePage:
        """List the frames that the store cannot load, oldest segment first."""
        entries = quarantine.page(limit=limit + 1, after=cursor)
        more = len(entries) > limit
        return QuarantinePage(
            frames=[QuarantinedFrame.model_validate(_fields(entry)) for entry in entries[:limit]],
            next_cursor=entries[limit - 1].id if more else None,
        )

    @routes.get("/api/v1/quarantine/{frame_id}", response_model=QuarantinedRequest, responses=_NOT_FOUND)
    def show_quarantined(frame_id: FrameId) -> QuarantinedRequest | JSONResponse:
        """Show a frame, its reason, and what can be decoded of its request."""
        try:
            summary = quarantine.summary(frame_id)
            return QuarantinedRequest.model_validate({**_fields(quarantine.get(frame_id)), "request": summary})
        except NotQuarantined as error:
            return _error(404, str(error))

    @routes.post(
        "/api/v1/quarantine/{frame_id}/replay", response_model=QuarantinedFrame, responses={**_NOT_FOUND, **_REFUSED}
    )
    def replay_quarantined(frame_id: FrameId) -> QuarantinedFrame | JSONResponse:
        """Send a frame through the write-ahead log again and remove it here. If it fails again it gets a new id.

        Its spans count as received a second time in the metrics.
        """
        try:
            return QuarantinedFrame.model_validate(_fields(quarantine.replay(frame_id, append)))
        except NotQuarantined as error:
            return _error(404, str(error))
        except Refusal as refusal:
            wait = retry_after(refusal)
            return _error(codes(refusal).http, refusal.message, {"Retry-After": wait.decode()} if wait else None)

    @routes.delete("/api/v1/quarantine/{frame_id}", status_code=204, response_model=None, responses=_NOT_FOUND)
    def drop_quarantined(frame_id: FrameId) -> Response:
        """Remove a frame for good: its spans are lost."""
        try:
            quarantine.drop(frame_id)
        except NotQuarantined as error:
            return _error(404, str(error))
        return Response(status_code=204)

    return routes


def _fields(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "tenant": entry.tenant,
        "spans": entry.spans,
        "log_records": entry.log_records,
        "bytes": entry.bytes,
        "received_unix_nano": str(entry.received_unix_nano),
        "quarantined_unix_nano": str(entry.quarantined_unix_nano),
        "reason": entry.reason,
    }


def _error(code: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, code, headers)
