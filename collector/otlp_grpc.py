"""The OTLP/gRPC receiver: TraceService/Export and LogsService/Export, raw bytes in and out.

Owns the gRPC server and its threads. A handler thread has one call from its message to its answer: it receives the
message, admits it, and waits until it is on disk; as many calls as there are threads so share one fsync. The message is
taken from a stream of one (on the wire the same as a unary call), because a unary handler is only called once the whole
message is in memory, and cannot refuse it before, nor give up on a sender that never ends.

A call beyond the limit is refused on a thread of its own, unread. (grpc's `maximum_concurrent_rpcs` would refuse it
without RetryInfo, which tells OTLP clients to drop the data.)
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc

from collector.admission import DEFAULT_TENANT, TENANT_HEADER, Admission
from collector.frames import Context, Signal
from collector.headers import HEADERS, context_of
from collector.status import AckTimeout, BadRequest, NotFound, Overloaded, Refusal, SlowSender, grpc_status, refusal_of

EXPORTS: dict[str, Signal] = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
}

# Services of OTLP that this server does not have. grpc would answer them with the same code and "Method not found!".
OTHER_SIGNALS = {
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export": "profiles",
}

_METADATA = HEADERS | {TENANT_HEADER}

_KEEPALIVE_MS = 60_000
_DEADLINES_LOOKED_AT_S = 0.5


class OtlpGrpc:
    """The gRPC server: `start()` binds and serves, `stop()` lets the calls in progress end.

    `address` is host:port; port 0 picks a free one, and `port` says which. `threads` calls are worked on at a time and
    `waiting_calls_max` more wait for a thread. A message has `receive_timeout_s` to arrive and `ack_timeout_s` to
    become durable.
    """

    def __init__(
        self,
        admission: Admission,
        address: str,
        *,
        threads: int = 16,
        waiting_calls_max: int = 512,
        receive_timeout_s: float = 30.0,
        ack_timeout_s: float = 10.0,
    ) -> None:
        self.port = 0
        self._admission = admission
        self._address = address
        self._ack_timeout_s = ack_timeout_s
        self._calls = _CountingPool(threads, thread_name_prefix="otlp-grpc")
        self._calls_max = threads + waiting_calls_max
        self._refusals = futures.ThreadPoolExecutor(1, thread_name_prefix="otlp-grpc-refusals")
        self._deadlines = _Deadlines(receive_timeout_s, admission.ledger.refused)
        self._server = grpc.server(
            self._calls,
            handlers=[_Methods(self._handler_of)],
            options=[
                ("grpc.max_receive_message_length", admission.request_bytes_max),
                # Two servers on one port would share its connections without a word.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                # Exporters send keepalives of their own; by default the server cuts off those that do so often.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method: grpc.stream_unary_rpc_method_handler(partial(self._answer, signal))
            for method, signal in EXPORTS.items()
        }
        self._overloaded = self._refuse_with(lambda: Overloaded("cannot take more calls at a time: send later"))

    def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be bound."""
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address} for OTLP/gRPC: is it in use?") from error
        self._deadlines.start()
        self._server.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Take no more calls, give those in progress `grace_s` seconds, end. May be called twice, or without start."""
        self._server.stop(grace_s).wait()
        self._deadlines.stop()
        self._calls.shutdown()
        self._refusals.shutdown()

    def _handler_of(self, method: str) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Which handler gets a call. Runs on grpc's own thread, before anything of the message is read."""
        if handler := self._handlers.get(method):
            return handler if self._calls.pending < self._calls_max else self._overloaded
        if signal := OTHER_SIGNALS.get(method):
            return self._refuse_with(lambda: NotFound(f"cannot take {signal}: Spanhouse takes traces and logs only"))
        return None  # grpc answers UNIMPLEMENTED

    def _refuse_with(self, refusal: Callable[[], Refusal]) -> "grpc.RpcMethodHandler[Any, Any]":
        return grpc.stream_unary_rpc_method_handler(_Refuse(self._admission, refusal, self._refusals))

    def _answer(self, signal: Signal, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """One call, from its message to its answer. Whatever goes wrong is a refusal: never UNKNOWN."""
        try:
            return self._export_one(signal, messages, context)
        except grpc.RpcError:
            return b""  # the client is gone: nobody hears this
        except Exception as error:
            refusal = refusal_of(error)
        self._admission.ledger.refused(refusal.reason)
        context.abort_with_status(grpc_status(refusal))

    def _export_one(self, signal: Signal, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        with self._deadlines.watch(context) as in_time:
            body = next(messages, None)
            if body is None and not in_time():
                return b""  # the call was ended, and counted, by the watch
        if body is None:
            # Also what a message over the limit looks like from here: then grpc has answered, and this goes nowhere.
            raise BadRequest("cannot take a call without a message")
        with self._admission.in_flight.hold(len(body)):
            receipt = self._admission.admit(body, *_said(context), signal)
            try:
                return receipt.result(self._ack_timeout_s).encode()
            except futures.TimeoutError as error:
                raise AckTimeout.after(self._ack_timeout_s) from error


def _said(context: grpc.ServicerContext) -> tuple[str, Context]:
    """The tenant of a call, and what else its metadata say. Raises BadRequest."""
    said = {
        key: value if isinstance(value, str) else value.decode(errors="replace")
        for key, value in context.invocation_metadata()
        if key in _METADATA
    }
    tenant = said.pop(TENANT_HEADER, DEFAULT_TENANT)
    return tenant, context_of(said) if said else ()


class _Methods(grpc.GenericRpcHandler):
    """Hands the choice of a handler to a function of the method's name."""

    def __init__(self, handler_of: Callable[[str], "grpc.RpcMethodHandler[Any, Any] | None"]) -> None:
        self._handler_of = handler_of

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        return self._handler_of(handler_call_details.method)


class _Refuse:
    """A handler that refuses a call without reading it."""

    def __init__(self, admission: Admission, refusal: Callable[[], Refusal], pool: futures.ThreadPoolExecutor) -> None:
        self._admission = admission
        self._refusal = refusal
        self.experimental_thread_pool = pool  # grpc runs the handler there

    def __call__(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        refusal = self._refusal()
        self._admission.ledger.refused(refusal.reason)
        context.abort_with_status(grpc_status(refusal))


class _CountingPool(futures.ThreadPoolExecutor):
    """A pool that knows how many calls it has, waiting ones included."""

    def __init__(self, threads: int, thread_name_prefix: str) -> None:
        super().__init__(threads, thread_name_prefix=thread_name_prefix)
        self.pending = 0
        self._pending_lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "futures.Future[Any]":
        with self._pending_lock:
            self.pending += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: "futures.Future[Any]") -> None:
        with self._pending_lock:
            self.pending -= 1


class _Deadlines:
    """Cancels calls whose message takes too long to arrive: one thread that looks every half second.

    A cancelled call is a retryable one to the client.
    """

    def __init__(self, timeout_s: float, refused: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._refused = refused
        self._watched: dict[grpc.ServicerContext, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-grpc-deadlines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def watch(self, context: grpc.ServicerContext) -> Iterator[Callable[[], bool]]:
        """Watch the call in this block; the function that it gives says whether it has not been ended yet."""
        self._watched[context] = time.monotonic() + self._timeout_s
        try:
            yield lambda: context in self._watched
        finally:
            self._watched.pop(context, None)

    def _run(self) -> None:
        while not self._stopped.wait(_DEADLINES_LOOKED_AT_S):
            now = time.monotonic()
            # list() copies in one step of the interpreter; the calls' threads come and go meanwhile.
            for context, deadline in list(self._watched.items()):
                if deadline < now and self._watched.pop(context, None) is not None:
                    self._refused(SlowSender.__name__)
                    context.cancel()
