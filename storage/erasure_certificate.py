"""The certificate of an erasure: what was asked, removed and checked, and a digest over it. Pure functions.

Whom it was about stands in it as a salted hash: who knows the name can tell that it is meant, and nobody else can.
"""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from storage.erasure_notes import Note

FRAMES = "quarantine"
"""Under this name, frames of the quarantine are counted beside the rows of tables."""


@dataclass(slots=True)
class Checked:
    """What the last look found. Times are nanoseconds since 1970, 0 where there is nothing to check.

    `rows`: by table, of all traces that were found. `system_logs`: rows of ClickHouse's own logs that hold a selector.
    """

    rows: dict[str, int] = field(default_factory=dict)
    parts_gone: int = 0
    nodes: int = 0
    loaded_unix_nano: int = 0
    system_logs: dict[str, int] = field(default_factory=dict)


def certificate(note: Note, checked: Checked) -> dict[str, Any]:
    """Of an erasure that is done."""
    removed = dict(sorted(note.totals().items()))
    frames = removed.pop(FRAMES, 0)
    text: dict[str, Any] = {
        "id": note.id,
        "tenant": note.tenant,
        "asked": list(note.selectors),
        "by": note.by,
        "begun": _iso(note.begun_unix_nano),
        "finished": _iso(note.ended_unix_nano),
        "rounds": note.round + 1,
        "traces": note.traces,
        "removed": removed,
        "quarantined_frames_removed": frames,
        "days": list(note.days),
        "parts_rewritten": note.parts,
        "checked": {
            "rows_left": checked.rows,
            "traces_found_again": 0,
            "replaced_parts_gone": checked.parts_gone,
            "detached_parts": 0,
            "nodes": checked.nodes,
            "quarantined_frames_scanned": note.frames_scanned,
            "log_loaded_until": _iso(checked.loaded_unix_nano) if checked.loaded_unix_nano else None,
            "system_logs": checked.system_logs,
        },
        "version": version("spanhouse"),
    }
    return {**text, "sha256": digest(text)}


def digest(text: dict[str, Any]) -> str:
    """SHA-256 of a certificate without its member `sha256`, as JSON with sorted keys, no spaces, in ASCII."""
    rest = {key: value for key, value in text.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _iso(unix_nano: int) -> str:
    return datetime.fromtimestamp(unix_nano / 1e9, UTC).isoformat(timespec="milliseconds")
