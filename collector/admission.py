"""Admission: what is let in, whole or in part, and what is counted for it.

Owns the limits of a request, the tenants, the memory of retransmits and the bytes in flight over all receivers. Runs on
the receivers' threads; what follows durability runs on the WAL's committer, inside the callbacks of its futures.

A request is answered when its frame is on disk, and only then does the ledger count it: received is never ahead of what
a crash would leave.
"""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from xxhash import xxh3_128_digest

from collector.frames import Context, Frame, Signal
from collector.retransmits import Retransmits
from collector.sifting import Sifted, sift
from collector.status import BadRequest, Overloaded, TooLarge, TooManyTenants

TENANT_HEADER = "x-spanhouse-tenant"
DEFAULT_TENANT = "default"
CONTEXT_CHARS_MAX = 250
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Parsed, a request of nothing but empty messages takes up to ninety times its bytes. Requests above this size are
# sifted one at a time; the parse holds the GIL anyway.
_LARGE_BYTES = 1 << 18

# Takes a frame; the future resolves when it is on disk. Raises, or sets, a Retryable refusal.
Append = Callable[[Frame], "Future[None]"]
# (tenant, bytes): whether such a request may be stored. Raises a Retryable refusal, or NotKept.
Allow = Callable[[str, int], None]


class NotKept(Exception):
    """No item of the request is kept, and the sender is told so by a partial success: nobody is to send it again."""


class Ledger(Protocol):
    """What admission and the receivers count with; collector/ledger.py has the real one."""

    def admitted(
        self, tenant: str, *, received: int, rejected: int = 0, deduplicated: int = 0, signal: Signal = "traces"
    ) -> None:
        """Count the spans, or log records, of an acknowledged request."""

    def refused(self, reason: str) -> None:
        """Count a request that was refused."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the sender of an acknowledged request is told: partial success when `rejected` (items) is not 0."""

    rejected: int = 0
    message: str = ""
    signal: Signal = "traces"
    kept: bool = True
    """False if the request was good and nothing of it was kept all the same."""

    def encode(self, *, json: bool = False) -> bytes:
        """The ExportTraceServiceResponse, or ExportLogsServiceResponse, to answer with.

        `partial_success` is unset unless items were rejected.
        """
        if not self.rejected:
            return b"{}" if json else b""
        response: Any
        if self.signal == "traces":
            response = ExportTraceServiceResponse()
            response.partial_success.rejected_spans = self.rejected
        else:
            response = ExportLogsServiceResponse()
            response.partial_success.rejected_log_records = self.rejected
        response.partial_success.error_message = self.message
        return MessageToJson(response, indent=None).encode() if json else bytes(response.SerializeToString())


class InFlight:
    """Bounds the bytes of all requests that are being received or wait for the disk, over all receivers."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes in flight now."""
        return self._bytes

    @contextmanager
    def hold(self, size: int) -> Iterator["Hold"]:
        """Count `size` bytes, and what the hold grows by, until the end of the block. Raises Overloaded."""
        hold = Hold(self)
        try:
            hold.grow(size)
            yield hold
        finally:
            self._change(-hold.size)

    def _change(self, size: int) -> None:
        with self._lock:
            if size > 0 and self._bytes + size > self._bytes_max:
                raise Overloaded(f"cannot take more than {self._bytes_max} bytes of requests at a time: send later")
            self._bytes += size


class Hold:
    """One request's share of the bytes in flight."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self.size = 0

    def grow(self, size: int) -> None:
        """Count `size` more bytes (fewer, when negative). Raises Overloaded, and then counts nothing."""
        self._in_flight._change(size)
        self.size += size


class Admission:
    """Admits requests: validates, remembers, appends to the WAL, counts."""

    def __init__(
        self,
        append: Append,
        ledger: Ledger,
        *,
        request_bytes_max: int = 64 << 20,
        request_spans_max: int = 500_000,
        in_flight_bytes_max: int = 256 << 20,
        retransmit_window_s: float = 600.0,
        retransmit_entries_max: int = 131_072,
        tenants_max: int = 1000,
        allow: Allow = lambda *_: None,
    ) -> None:
        if in_flight_bytes_max < 2 * request_bytes_max:
            # Else a request within its own limit could be told to come again for ever.
            raise ValueError(
                f"cannot run with in_flight_bytes_max {in_flight_bytes_max}: "
                f"it must be twice request_bytes_max ({request_bytes_max}) at least"
            )
        self.ledger = ledger
        self.request_bytes_max = request_bytes_max
        self.in_flight = InFlight(in_flight_bytes_max)
        self._append, self._allow = append, allow
        self._request_spans_max = request_spans_max
        self._retransmits = Retransmits(retransmit_window_s, retransmit_entries_max)
        self._large = threading.Lock()
        self._tenants: set[str] = set()
        self._tenants_max = tenants_max

    def admit(self, body: bytes, tenant: str, context: Context = (), signal: Signal = "traces") -> "Future[Receipt]":
        """Admit an encoded ExportTraceServiceRequest or ExportLogsServiceRequest (not compressed) of a tenant.

        `context` is what was said beside it: canonical fields of all its spans (`run_id`, `model_name`, …), of which an
        empty value says nothing. The future resolves when what is kept is on disk; it cannot be cancelled. Raises a
        Refusal at once when the request is bad or the WAL takes nothing; the future's exception is one when the disk
        failed it.
        """
        if len(body) > self.request_bytes_max:
            raise too_large(len(body), self.request_bytes_max)
        if _TENANT.fullmatch(tenant) is None:
            raise BadRequest(f"cannot take {tenant[:80]!r} as {TENANT_HEADER}: 1 to 64 of A-Z a-z 0-9 . _ -")
        if context:
            context = _checked(context)
        not_kept = self._not_kept(tenant, len(body))  # before a look into it: who is refused costs little
        with self._large if len(body) > _LARGE_BYTES else nullcontext():
            sifted = sift(body, self._request_spans_max, signal)
        receipt: Future[Receipt] = Future()
        receipt.set_running_or_notify_cancel()
        if sifted.items == 0:
            if sifted.rejected:
                self._meet(tenant)
                self.ledger.admitted(tenant, received=sifted.rejected, rejected=sifted.rejected, signal=signal)
            receipt.set_result(Receipt(sifted.rejected, sifted.message, signal))
            return receipt
        self._meet(tenant)
        frame = Frame(tenant, xxh3_128_digest(sifted.request), sifted.items, sifted.request, context, signal)
        first = self._retransmits.claim(tenant, frame.identity, receipt)
        if first is None:
            self._deliver(frame, sifted, receipt, not_kept)
        else:
            first.add_done_callback(partial(self._acknowledge_again, frame, sifted, receipt))
        return receipt

    def remember(self, tenant: str, identity: bytes, received_unix_nano: int) -> None:
        """Remember a request that an earlier process acknowledged, from what the WAL kept. Oldest first, at start."""
        self._retransmits.remember(tenant, identity, received_unix_nano)

    def _meet(self, tenant: str) -> None:
        # Two threads may meet two tenants at once and exceed the limit by as many; it is a bound, not a count.
        if tenant not in self._tenants:
            if len(self._tenants) >= self._tenants_max:
                raise TooManyTenants(
                    f"cannot take tenant {tenant!r}: there are {self._tenants_max}, which is the limit"
                )
            self._tenants.add(tenant)

    def _not_kept(self, tenant: str, size: int) -> str:
        """Why a request is not to be kept; '' if it is. Raises a Retryable refusal."""
        try:
            self._allow(tenant, size)
        except NotKept as error:
            return str(error)
        return ""

    def _deliver(self, frame: Frame, sifted: Sifted, receipt: "Future[Receipt]", not_kept: str) -> None:
        if not_kept:
            self._retransmits.settle(frame.tenant, frame.identity, durable=False)
            self._reject(frame, sifted, receipt, not_kept)
            return
        try:
            appended = self._append(frame)
        except Exception as error:
            # The same request may already be waiting for this delivery: it hears what this one hears.
            self._retransmits.settle(frame.tenant, frame.identity, durable=False)
            receipt.set_exception(error)
            raise
        appended.add_done_callback(partial(self._delivered, frame, sifted, receipt))

    def _reject(self, frame: Frame, sifted: Sifted, receipt: "Future[Receipt]", message: str) -> None:
        """Acknowledge that nothing of a request is kept."""
        items = sifted.items + sifted.rejected
        self.ledger.admitted(frame.tenant, received=items, rejected=items, signal=frame.signal)
        receipt.set_result(Receipt(items, message, frame.signal, kept=False))

    def _delivered(self, frame: Frame, sifted: Sifted, receipt: "Future[Receipt]", appended: "Future[None]") -> None:
        error = appended.exception()
        self._retransmits.settle(frame.tenant, frame.identity, durable=error is None)
        if error is not None:
            receipt.set_exception(error)
            return
        received = sifted.items + sifted.rejected
        self.ledger.admitted(frame.tenant, received=received, rejected=sifted.rejected, signal=frame.signal)
        receipt.set_result(Receipt(sifted.rejected, sifted.message, frame.signal))

    def _acknowledge_again(
        self, frame: Frame, sifted: Sifted, receipt: "Future[Receipt]", first: "Future[object]"
    ) -> None:
        """Answer a retransmit: with what came of the first delivery, which it waited for when that was under way."""
        if (error := first.exception()) is not None:
            receipt.set_exception(error)
            return
        delivery = first.result()
        if isinstance(delivery, Receipt) and not delivery.kept:
            self._reject(frame, sifted, receipt, delivery.message)
            return
        self.ledger.admitted(
            frame.tenant,
            received=sifted.items + sifted.rejected,
            rejected=sifted.rejected,
            deduplicated=sifted.items,
            signal=frame.signal,
        )
        receipt.set_result(Receipt(sifted.rejected, sifted.message, frame.signal))


def too_large(size: int, size_max: int) -> TooLarge:
    """The refusal of a request of `size` bytes or more."""
    return TooLarge(f"cannot take a request of {size} bytes, {size_max} is the limit: send smaller batches")


def _checked(context: Context) -> Context:
    """The context in the form of a frame: in order, without what is empty. Raises BadRequest."""
    checked = {field: value for field, value in context if value}
    for field, value in checked.items():
        if len(value) > CONTEXT_CHARS_MAX:
            raise BadRequest(f"cannot take {value[:80]!r}… as {field}: {CONTEXT_CHARS_MAX} characters are the limit")
    return tuple(sorted(checked.items()))
