"""Frames that the store cannot load: kept with their reason until somebody replays or drops them.

Owns the quarantine directory: `<segment id>.<index>.frame` (the frame as it lay in the segment) and `.json` (why it is
here) per entry. Put by the loader's thread, read and emptied by the API's. Its bytes count against the WAL's limit, so
that a flood of bad frames ends in backpressure and not in a full disk.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.message import DecodeError, EncodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from xxhash import xxh3_128_digest

from collector.disk import sync_directory, write_file
from collector.frames import Frame, StoredFrame, encode_frame, read_frame
from collector.ledger import Ledger
from collector.schema import STRICT

FRAME_SUFFIX, ENTRY_SUFFIX = ".frame", ".json"

_ID = re.compile(r"[0-9]{19}-[0-9a-f]{6}\.[0-9]{1,9}")
_REASON_CHARACTERS_MAX = 4000
_SPANS_SHOWN_MAX = 20

logger = logging.getLogger(__name__)


class NotQuarantined(LookupError):
    """There is no such frame in the quarantine (any more)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Why a frame is in the quarantine. `bytes` is the length of its request."""

    id: str
    tenant: str
    spans: int
    bytes: int
    received_unix_nano: int
    quarantined_unix_nano: int
    reason: str


def normalise(request: bytes | memoryview) -> bytes | None:
    """The request encoded anew by the engine's own schema, which mends what is legal on the wire but not to the engine.

    That is a oneof set twice, numbers wider than their field, fields of OTLP sent as another wire type, groups: parsers
    of protobuf take the last, cut, or skip them. None when it cannot be decoded, or is the same bytes again.
    """
    try:
        message = STRICT["Request"].FromString(bytes(request))
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
        again = Frame(frame.tenant, frame.digest, frame.spans, bytes(frame.request))
        entry = {
            "id": frame_id,
            "tenant": frame.tenant,
            "spans": frame.spans,
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
        logger.error("quarantined frame %s (tenant %s, %d spans): %s", frame_id, frame.tenant, frame.spans, reason)

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

    def summary(self, frame_id: str) -> dict[str, Any]:
        """What the request of a frame holds, as far as it can be decoded: services, and its first spans.

        `decodes` says whether it can; `error` why not. Raises NotQuarantined.
        """
        self.get(frame_id)
        try:
            request = ExportTraceServiceRequest.FromString(bytes(self._frame(frame_id).request))
        except DecodeError as error:
            return {"decodes": False, "error": str(error), "services": [], "spans": []}
        services: dict[str, None] = {}
        spans: list[dict[str, str]] = []
        for resource_spans in request.resource_spans:
            attributes = resource_spans.resource.attributes
            services.update({kv.value.string_value[:200]: None for kv in attributes if kv.key == "service.name"})
            for scope_spans in resource_spans.scope_spans:
                spans += [
                    {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex(), "name": span.name[:200]}
                    for span in scope_spans.spans[: _SPANS_SHOWN_MAX - len(spans)]
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
            request = self._frame(frame_id).request
            request_bytes = normalise(request) or bytes(request)
            append(Frame(entry.tenant, xxh3_128_digest(request_bytes), entry.spans, request_bytes)).result()
            self._ledger.replayed(entry.tenant, entry.spans)
            self._remove(frame_id)
        logger.info("replayed frame %s (tenant %s, %d spans)", frame_id, entry.tenant, entry.spans)
        return entry

    def drop(self, frame_id: str) -> None:
        """Remove a frame for good. Raises NotQuarantined."""
        with self._lock:
            entry = self.get(frame_id)
            self._remove(frame_id)
        logger.warning("dropped frame %s (tenant %s, %d spans)", frame_id, entry.tenant, entry.spans)

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


def _order(frame_id: str) -> tuple[str, int]:
    """Sorts frames by segment, then by index as a number."""
    segment_id, _, index = frame_id.partition(".")
    return segment_id, int(index) if index.isdecimal() else -1
