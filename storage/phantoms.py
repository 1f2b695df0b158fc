"""Makes the engine forget parts that it noted and never stored, so that loading their segment again stores them.

Runs at start, before the engine is open. The engine writes a part under a temporary name, notes its token in the
table's deduplication log, and then gives the part its name: killed between the last two (measured with chDB 26.9), it
would take the next load of the same segment for a repetition, and the spans of that part would be lost.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_LOGS = "store/*/*/deduplication_logs/deduplication_log_*.txt"
_PART = re.compile(r"(?P<partition>.+)_(?P<first>\d+)_(?P<last>\d+)_\d+(?:_\d+)?")  # directory of a part: its blocks
_ADDED = "1"  # a line is: operation, part, token; separated by tabs

logger = logging.getLogger(__name__)


def forget_phantoms(store: Path) -> int:
    """Drop the notes of parts that are not there from all deduplication logs of a store that is not open.

    Returns how many. A part is there when its blocks are in a part on disk, itself or a merged one. The note of a part
    that retention removed may go as well: its segment is long gone. Raises OSError.
    """
    return sum(_forget(log) for log in sorted(store.glob(_LOGS)))


def _forget(log: Path) -> int:
    lines = log.read_text().splitlines(keepends=True)
    blocks = _blocks(path.name for path in log.parent.parent.iterdir())
    kept = [line for line in lines if not _is_phantom(line, blocks)]
    dropped = len(lines) - len(kept)
    if dropped:
        temporary = log.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(log)
        logger.warning("the last load was cut short: forgot %d parts noted in %s", dropped, log)
    return dropped


def _blocks(names: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """The ranges of block numbers on disk, by partition."""
    found = defaultdict(list)
    for name in names:
        if part := _PART.fullmatch(name):
            found[part["partition"]].append((int(part["first"]), int(part["last"])))
    return found


def _is_phantom(line: str, blocks: dict[str, list[tuple[int, int]]]) -> bool:
    operation, _, rest = line.partition("\t")
    part = _PART.fullmatch(rest.partition("\t")[0])
    if operation != _ADDED or part is None:
        return False
    first, last = int(part["first"]), int(part["last"])
    return not any(low <= first and last <= high for low, high in blocks[part["partition"]])
