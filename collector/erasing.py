"""What an erasure finds beside the store: the log, whose segments are still to be loaded, and the quarantine.

A frame of the quarantine goes as a whole, with all other spans in it: it was never in the store, and nobody can take it
apart that the store could not. Called from the erasures' thread; one frame is in memory at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from collector.frames import StoredFrame
from collector.quarantine import NotQuarantined, Quarantine
from collector.segments import DAMAGED_SUFFIX
from collector.wal import Wal
from storage.erasure import Swept
from storage.erasure_selectors import Selector

PAGE_FRAMES = 100
NESTING_MAX = 100


class Intake:
    """The log and the quarantine of a data directory. Raises OSError."""

    def __init__(self, wal: Wal, quarantine: Quarantine, directory: Path) -> None:
        self._wal, self._quarantine, self._directory = wal, quarantine, directory

    def remains(self) -> str:
        """Damaged ends of segments, which nobody can read; '' if there are none."""
        names = sorted(path.name for path in self._directory.glob(f"*{DAMAGED_SUFFIX}*"))
        if not names:
            return ""
        shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        return f"{self._directory} has {len(names)} damaged ends of segments that may hold such spans: remove {shown}"

    def waiting(self) -> frozenset[str]:
        """Ids of the segments that are not loaded."""
        return self._wal.unloaded()

    def sweep(
        self,
        tenant: str,
        selectors: Sequence[Selector],
        among: Callable[[Iterable[bytes]], set[bytes]],
        *,
        remove: bool,
    ) -> Swept:
        """Look through the quarantine, and remove what is found if asked to."""
        scanned = found = 0
        trace_ids: set[bytes] = set()
        for frame_id, frame in self._frames(tenant):
            scanned += 1
            said, traces = _said(frame, selectors)
            if said or among(traces):
                found += 1
                trace_ids |= {one for one in traces if len(one) == 16}
                if remove:
                    self._quarantine.drop(frame_id)
        return Swept(scanned, found, frozenset(trace_ids))

    def _frames(self, tenant: str) -> Iterator[tuple[str, StoredFrame | None]]:
        after = ""
        while page := self._quarantine.page(limit=PAGE_FRAMES, after=after):
            for entry in page:
                if entry.tenant == tenant:
                    try:
                        yield entry.id, self._quarantine.frame(entry.id)
                    except NotQuarantined:
                        if self._quarantine.has(entry.id):  # damaged: what it holds nobody can tell
                            yield entry.id, None
            after = page[-1].id


def _said(frame: StoredFrame | None, selectors: Sequence[Selector]) -> tuple[bool, set[bytes]]:
    """Whether a selector means a frame, and the traces in it. One that cannot be read is searched for the texts."""
    if frame is None:
        return True, set()
    if any(value == one.value for one in selectors if one.kind in ("user", "session") for _, value in frame.context):
        return True, _decoded(frame)[1]
    message, traces = _decoded(frame)
    ids = {bytes.fromhex(one.value) for one in selectors if one.kind == "trace"}
    if message is None:
        raw = bytes(frame.request)
        texts = [one.value.encode() for one in selectors if one.kind != "trace"]
        return any(text in raw for text in (*texts, *ids)), traces
    wanted = [one for one in selectors if one.kind != "trace"]
    said = any(_means(one, pair) for pair in _pairs(message) for one in wanted)
    return said or bool(ids & traces), traces


def _decoded(frame: StoredFrame) -> tuple[Message | None, set[bytes]]:
    try:
        if frame.signal == "traces":
            spans = ExportTraceServiceRequest.FromString(bytes(frame.request))
            return spans, {
                span.trace_id for r in spans.resource_spans for scope in r.scope_spans for span in scope.spans
            }
        logs = ExportLogsServiceRequest.FromString(bytes(frame.request))
        return logs, {
            record.trace_id for r in logs.resource_logs for scope in r.scope_logs for record in scope.log_records
        }
    except DecodeError:
        return None, set()


def _pairs(message: Message) -> Iterator[KeyValue]:
    """All attributes of a message, wherever they stand."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in value if field.is_repeated else (value,):
            if isinstance(each, KeyValue):
                yield each
            elif not isinstance(each, AnyValue):
                yield from _pairs(each)


def _means(selector: Selector, pair: KeyValue) -> bool:
    """Whether an attribute says it. A user or a session may stand under any key: conventions come and go."""
    if selector.kind == "attribute" and pair.key != selector.key:
        return False
    return any(text == selector.value for text in _texts(pair.value, 0))


def _texts(value: AnyValue, depth: int) -> Iterator[str]:
    which = value.WhichOneof("value")
    if which in ("array_value", "kvlist_value"):
        if depth < NESTING_MAX:
            for each in value.array_value.values:
                yield from _texts(each, depth + 1)
            for pair in value.kvlist_value.values:
                yield from _texts(pair.value, depth + 1)
    elif which == "bytes_value":
        yield value.bytes_value.decode(errors="replace")
    elif which == "bool_value":
        yield str(value.bool_value).lower()
    elif which is not None:
        yield str(getattr(value, which))
