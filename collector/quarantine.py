"""Frames that the store cannot load: kept with their reason until somebody replays or drops them.

Owns the quarantine directory: `<segment id>.<index>.frame` (the frame as it lay in the segment) and `.json` (why it is
here) per entry. Put by the loader's thread, read and emptied by the API's. Its bytes count against the WAL's limit, so
that a flood of bad frames ends in backpressure and not in a full disk.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.message import DecodeError, EncodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.frames import Frame, Signal, StoredFrame, encode_frame, read_frame
from collector.ledger import Ledger
from collector.schema import STRICT
from storage.disk import sync_directory, write_file

FRAME_SUFFIX, ENTRY_SUFFIX = ".frame", ".json"

_ID = re.compile(r"[0-9]{19}-[0-9a-f]{6}\.[0-9]{1,9}")
_REASON_CHARACTERS_MAX = 4000
_SPANS_SHOWN_MAX = 20

logger = logging.getLogger(__name__)


class NotQuarantined(LookupError):
    """There is no such frame in the quarantine (any more)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Why a frame is in the quarantine. `bytes` is the length of its request, which holds spans or log records."""

    id: str
    tenant: str
    spans: int
    bytes: int
    received_unix_nano: int
    quarantined_unix_nano: int
    reason: str
    log_records: int = 0

    @property
    def signal(self) -> Signal:
        """What the request holds."""
        return "logs" if self.log_records else "traces"

    @property
    def items(self) -> int:
        """How many of it."""
        return self.log_records or self.spans


def normalise(request: bytes | memoryview, signal: Signal) -> bytes | None:
    """The request encoded anew by the engine's own schema, which mends what is legal on the wire but not to the engine.

    That is a oneof set twice, numbers wider than their field, fields of OTLP sent as another wire type, groups: parsers
    of protobuf take the last, cut, or skip them. None when it cannot be decoded, or is the same bytes again.
    """
    try:
        message = STRICT["Request" if signal == "traces" else "LogsRequest"].FromString(bytes(request))
        message.DiscardUnknownFields()
        normal = message.SerializeToString()
    except (DecodeError, EncodeError):
        return None
    return None if normal == request else bytes(normal)


class Quarantine:
    """A directory of frames with reasons. Raises OSError where it touches the disk."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self._directory = directory
        self._ledger = ledger
        self._lock = threading.Lock()  # one replay or drop at a time: a frame is replayed once
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.glob("*.tmp"):
            path.unlink()
        for path in directory.glob(f"*{FRAME_SUFFIX}"):  # a crash came before its entry: the loader puts it again
            if not path.with_suffix(ENTRY_SUFFIX).exists():
                path.unlink()
        self._bytes = sum(path.stat().st_size for path in directory.iterdir())
        ledger.gauge("spanhouse_quarantine_bytes", "Bytes on disk in the quarantine.", self.bytes_on_disk)

    def bytes_on_disk(self) -> int:
        """Bytes of all files in the quarantine."""
        return self._bytes

    def put(self, segment_id: str, index: int, frame: StoredFrame, reason: str) -> None:
        """Keep frame `index` of a segment; on return it is on disk. Calling it again is harmless."""
        frame_id = f"{segment_id}.{index}"
        again = frame.with_request(bytes(frame.request))
        entry = {
            "id": frame_id,
            "tenant": frame.tenant,
            "spans": frame.items if frame.signal == "traces" else 0,
            "log_records": frame.items if frame.signal == "logs" else 0,
            "bytes": len(frame.request),
            "received_unix_nano": frame.received_unix_nano,
            "quarantined_unix_nano": time.time_ns(),
            "reason": reason[:_REASON_CHARACTERS_MAX],
        }
        with self._lock:
            before = self._size(frame_id)
            write_file(self._path(frame_id, FRAME_SUFFIX), encode_frame(again, frame.received_unix_nano), durable=True)
            write_file(self._path(frame_id, ENTRY_SUFFIX), [orjson.dumps(entry)], durable=True)
            sync_directory(self._directory)
            self._bytes += self._size(frame_id) - before
        amount = _amount(frame.items, frame.signal)
        logger.error("quarantined frame %s (tenant %s, %s): %s", frame_id, frame.tenant, amount, reason)

    def page(self, *, limit: int, after: str = "") -> list[Entry]:
        """At most `limit` entries whose ids follow `after`, in order of id (oldest segment first)."""
        ids = sorted(
            (path.stem for path in self._directory.glob(f"*{ENTRY_SUFFIX}") if _order(path.stem) > _order(after)),
            key=_order,
        )
        entries = (self._find(frame_id) for frame_id in ids[:limit])
        return [entry for entry in entries if entry is not None]

    def get(self, frame_id: str) -> Entry:
        """The entry of a frame. Raises NotQuarantined."""
        if not _ID.fullmatch(frame_id) or (entry := self._find(frame_id)) is None:
            raise NotQuarantined(f"cannot find frame {frame_id[:80]!r} in the quarantine")
        return entry

    def has(self, frame_id: str) -> bool:
        """Whether a frame is here."""
        return self._path(frame_id, ENTRY_SUFFIX).exists()

    def frame(self, frame_id: str) -> StoredFrame:
        """The frame itself. Raises NotQuarantined, also when it is damaged."""
        self.get(frame_id)
        return self._frame(frame_id)

    def summary(self, frame_id: str) -> dict[str, Any]:
        """What the request of a frame holds, as far as it can be decoded: services, and its first spans.

        Of log records: the spans they belong to, under the names of the events. `decodes` says whether it can; `error`
        why not. Raises NotQuarantined.
        """
        self.get(frame_id)
        frame = self._frame(frame_id)
        try:
            resources = _resources(frame)
        except DecodeError as error:
            return {"decodes": False, "error": str(error), "services": [], "spans": []}
        services: dict[str, None] = {}
        spans: list[dict[str, str]] = []
        for attributes, items in resources:
            services.update({kv.value.string_value[:200]: None for kv in attributes if kv.key == "service.name"})
            spans += [
                {"trace_id": trace_id.hex(), "span_id": span_id.hex(), "name": name[:200]}
                for trace_id, span_id, name in islice(items, _SPANS_SHOWN_MAX - len(spans))
            ]
        return {"decodes": True, "error": "", "services": list(services)[:_SPANS_SHOWN_MAX], "spans": spans}

    def replay(self, frame_id: str, append: Callable[[Frame], Future[None]]) -> Entry:
        """Send a frame through the WAL again, normalised if it can be, and remove it from here once it is durable.

        Returns its entry. A frame that fails again comes back under a new id. A crash between the two steps leaves it
        in both places: replaying it once more stores its spans a second time, and reads show them once. Raises
        NotQuarantined, what `append` raises, and OSError.
        """
        with self._lock:
            entry = self.get(frame_id)
            frame = self._frame(frame_id)
            request = normalise(frame.request, frame.signal) or bytes(frame.request)
            append(frame.with_request(request)).result()
            self._ledger.replayed(frame.tenant, frame.items, frame.signal)
            self._remove(frame_id)
        logger.info("replayed frame %s (tenant %s, %s)", frame_id, frame.tenant, _amount(frame.items, frame.signal))
        return entry

    def drop(self, frame_id: str) -> None:
        """Remove a frame for good. Raises NotQuarantined."""
        with self._lock:
            entry = self.get(frame_id)
            self._remove(frame_id)
        logger.warning("dropped frame %s (tenant %s, %s)", frame_id, entry.tenant, _amount(entry.items, entry.signal))

    def _find(self, frame_id: str) -> Entry | None:
        try:
            return Entry(**orjson.loads(self._path(frame_id, ENTRY_SUFFIX).read_bytes()))
        except FileNotFoundError:
            return None

    def _frame(self, frame_id: str) -> StoredFrame:
        path = self._path(frame_id, FRAME_SUFFIX)
        frame = read_frame(path, 0)
        if frame is None:
            raise NotQuarantined(f"cannot read frame {frame_id}: {path} is damaged; drop it")
        return frame

    def _remove(self, frame_id: str) -> None:
        size = self._size(frame_id)
        # The entry goes first: a frame without one is cleared away at the next start.
        self._path(frame_id, ENTRY_SUFFIX).unlink()
        self._path(frame_id, FRAME_SUFFIX).unlink(missing_ok=True)
        self._bytes -= size
        sync_directory(self._directory)

    def _size(self, frame_id: str) -> int:
        paths = (self._path(frame_id, suffix) for suffix in (FRAME_SUFFIX, ENTRY_SUFFIX))
        return sum(path.stat().st_size for path in paths if path.exists())

    def _path(self, frame_id: str, suffix: str) -> Path:
        return self._directory / f"{frame_id}{suffix}"


def _resources(frame: StoredFrame) -> Iterator[tuple[Any, Iterator[tuple[bytes, bytes, str]]]]:
    """The resources of a request: their attributes; trace id, span id and name of their items. Raises DecodeError."""
    if frame.signal == "traces":
        spans = ExportTraceServiceRequest.FromString(bytes(frame.request)).resource_spans
        return (
            (r.resource.attributes, ((s.trace_id, s.span_id, s.name) for scope in r.scope_spans for s in scope.spans))
            for r in spans
        )
    logs = ExportLogsServiceRequest.FromString(bytes(frame.request)).resource_logs
    return (
        (
            r.resource.attributes,
            (
                (record.trace_id, record.span_id, record.event_name)
                for scope in r.scope_logs
                for record in scope.log_records
            ),
        )
        for r in logs
    )


def _amount(items: int, signal: Signal) -> str:
    return f"{items} {'spans' if signal == 'traces' else 'log records'}"


def _order(frame_id: str) -> tuple[str, int]:
    """Sorts frames by segment, then by index as a number."""
    segment_id, _, index = frame_id.partition(".")
    return segment_id, int(index) if index.isdecimal() else -1
