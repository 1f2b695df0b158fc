"""The OTLP/HTTP receiver: POST of traces and logs, protobuf or JSON, as a bare ASGI application for uvicorn.

Owns what HTTP adds to OTLP: methods, media types, codings, the bounded reading of a body, and answers of which
every 4xx and 5xx has a google.rpc.Status for a body. Runs on uvicorn's event loop; bodies above a few kilobytes are
inflated, converted and sifted on threads of its own, so that a large request does not hold up the others.

Refusals answer before the body was read where they can. The rest of it is then read and thrown away by uvicorn, because
a client that is cut off while it sends may never see the answer, and would send the same again.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from collector.admission import DEFAULT_TENANT, TENANT_HEADER, Admission, Hold, Receipt, too_large
from collector.compression import coding, inflate
from collector.endpoints import ENDPOINTS, LOGS_PATH, OTHER_SIGNALS, TRACES_PATH, Endpoint
from collector.frames import Context, Signal
from collector.headers import context_of_http
from collector.otlp_json import to_protobuf
from collector.status import (
    AckTimeout,
    BadRequest,
    MethodNotAllowed,
    NotFound,
    Refusal,
    SlowSender,
    UnsupportedMediaType,
    codes,
    http_body,
    refusal_of,
    retry_after,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PROTOBUF, JSON = b"application/x-protobuf", b"application/json"

# Up to this size a body is dealt with on the event loop: a hop to a thread costs more than the work.
_INLINE_BYTES = 1 << 14

# What a request counts as in flight beside its body, so that the number of requests is bounded too.
_REQUEST_OVERHEAD_BYTES = 1 << 16

_HEADERS_BYTES_MAX = 1 << 16
_HEADERS_TIMEOUT_S = 30.0


class _Sent(NamedTuple):
    """What the head of a request says of its body."""

    encoding: str
    json: bool
    tenant: str
    context: Context
    signal: Signal


class _Disconnected(Exception):
    """The client left before its request was complete: nothing of it is kept and nobody is there to be answered."""


class OtlpHttp:
    """The ASGI application. A body has `body_timeout_s` to arrive and `ack_timeout_s` to become durable.

    Serve it with `uvicorn.Config(app, host=…, port=…, **UVICORN_OPTIONS)`; call `close()` after the server has ended.
    """

    def __init__(
        self,
        admission: Admission,
        *,
        body_timeout_s: float = 30.0,
        ack_timeout_s: float = 10.0,
        threads: int = 4,
    ) -> None:
        self._admission = admission
        self._body_timeout_s = body_timeout_s
        self._ack_timeout_s = ack_timeout_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="otlp-http")

    def close(self) -> None:
        """End the threads. May be called twice."""
        self._threads.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        try:
            body = await self._export(scope, headers, media_type, receive)
        except _Disconnected:
            self._admission.ledger.refused("Disconnected")
        except Exception as error:
            await self._refuse(refusal_of(error), media_type, send)
        else:
            await _answer(send, 200, media_type, body)

    async def _export(self, scope: Scope, headers: dict[bytes, bytes], media_type: bytes, receive: Receive) -> bytes:
        endpoint = _endpoint(scope, media_type)
        encoding = coding(headers.get(b"content-encoding", b"").decode("latin-1"))
        tenant = headers.get(TENANT_HEADER.encode(), DEFAULT_TENANT.encode()).decode("latin-1")
        context = context_of_http(headers, endpoint.project_header)
        sent = _Sent(encoding, media_type == JSON, tenant, context, endpoint.signal)
        with self._admission.in_flight.hold(_REQUEST_OVERHEAD_BYTES) as hold:
            announced = headers.get(b"content-length", b"0")
            self._check_size(int(announced))
            body = await self._read(receive, hold)
            if len(body) <= _INLINE_BYTES:
                admitted = self._admit(body, sent, hold)
            else:
                loop = asyncio.get_running_loop()
                admitted = await loop.run_in_executor(self._threads, self._admit, body, sent, hold)
            del body  # a compressed body is not needed while its contents wait for the disk
            try:
                async with asyncio.timeout(self._ack_timeout_s):
                    receipt = await asyncio.wrap_future(admitted)
            except TimeoutError as error:
                raise AckTimeout.after(self._ack_timeout_s) from error
        return receipt.encode(json=sent.json)

    def _check_size(self, size: int) -> None:
        if size > self._admission.request_bytes_max:
            raise too_large(size, self._admission.request_bytes_max)

    async def _read(self, receive: Receive, hold: Hold) -> bytes:
        """The body as it was sent. Raises TooLarge, Overloaded, SlowSender and _Disconnected."""
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Disconnected
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self._check_size(size)
                    hold.grow(len(chunk))
                    chunks.append(chunk)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise SlowSender(
                f"cannot wait for the body any longer: {size} bytes came within {self._body_timeout_s:g} s"
            ) from error
        return b"".join(chunks)

    def _admit(self, body: bytes, sent: "_Sent", hold: Hold) -> "Future[Receipt]":
        """From a body as it was sent to its admission. On a thread of this receiver; on the event loop when small."""
        inflated = inflate(body, sent.encoding, self._admission.request_bytes_max)
        hold.grow(len(inflated) - len(body))
        request = to_protobuf(inflated, sent.signal) if sent.json else inflated
        return self._admission.admit(request, sent.tenant, sent.context, sent.signal)

    async def _refuse(self, refusal: Refusal, media_type: bytes, send: Send) -> None:
        self._admission.ledger.refused(refusal.reason)
        headers = []
        if (seconds := retry_after(refusal)) is not None:
            headers.append((b"retry-after", seconds))
        if isinstance(refusal, MethodNotAllowed):
            headers.append((b"allow", b"POST"))
        if isinstance(refusal, SlowSender):
            headers.append((b"connection", b"close"))
        # In the request's own type; whoever sent no type of OTLP can more likely read JSON.
        json = media_type != PROTOBUF
        await _answer(send, codes(refusal).http, JSON if json else PROTOBUF, http_body(refusal, json=json), headers)


def _endpoint(scope: Scope, media_type: bytes) -> Endpoint:
    """Raises NotFound, MethodNotAllowed or UnsupportedMediaType unless this is a POST of OTLP to a path of its own."""
    path, method = scope["path"], scope["method"]
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        if signal := OTHER_SIGNALS.get(path):
            raise NotFound(f"cannot take {signal}: Spanhouse takes traces, at {TRACES_PATH}, and logs, at {LOGS_PATH}")
        raise NotFound(f"cannot find {path[:200]!r}: traces go to {TRACES_PATH}, logs to {LOGS_PATH}")
    if method != "POST":
        raise MethodNotAllowed(f"cannot {method} {path}: POST {endpoint.signal} to it")
    if media_type not in (PROTOBUF, JSON):
        raise UnsupportedMediaType(
            f"cannot take Content-Type {media_type.decode('latin-1')[:200]!r}: "
            f"send {PROTOBUF.decode()} or {JSON.decode()}"
        )
    return endpoint


async def _answer(
    send: Send, status: int, media_type: bytes, body: bytes, more_headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *(more_headers or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with bounds it lacks: how long the headers of a request may be, and how long they may take."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time; uvicorn itself times the wait between two requests only."""
        super().connection_made(transport)
        self._in_headers = False
        self._headers_bytes = 0
        self._headers_timer = self.loop.call_later(_HEADERS_TIMEOUT_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer with the connection."""
        self._headers_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before the headers are complete. The parser keeps it all, however much it is."""
        super().data_received(data)
        if self._in_headers:
            self._headers_bytes += len(data)
            if self._headers_bytes > _HEADERS_BYTES_MAX:
                self.send_400_response(f"cannot take headers of more than {_HEADERS_BYTES_MAX} bytes")

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        self._in_headers, self._headers_bytes = True, 0
        self._headers_timer.cancel()
        self._headers_timer = self.loop.call_later(_HEADERS_TIMEOUT_S, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What follows is the body, which the application bounds."""
        self._in_headers = False
        self._headers_timer.cancel()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or too much of it, and hang up. A google.rpc.Status here as well."""
        body = http_body(BadRequest(msg), json=True)
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (JSON, len(body)) + body)
        self.transport.close()


# What uvicorn.Config needs for this application, beside host and port. Exporters send every few seconds: their
# connections should outlive the pause, or each batch meets a closing one.
UVICORN_OPTIONS: dict[str, Any] = {
    "http": BoundedHttpProtocol,
    "loop": "uvloop",
    "ws": "none",
    "lifespan": "off",
    "access_log": False,
    "server_header": False,
    "log_config": None,
    "timeout_keep_alive": 75,
}
