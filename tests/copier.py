"""A copy in a process of its own, in small units, that can kill itself (kill -9) before or after one of its inserts.

    python tests/copier.py DATA_DIR URL [before|after NUMBER]

Prints how many rows it inserted into which table, as JSON, and ends with 1 if the verification finds a difference.
"""

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from store import server

import storage.copying
from storage.copying import Report, copy
from storage.embedded import Embedded
from storage.server import Server
from storage.vocabulary import load

UNIT_ROWS = 250


class Quiet:
    """Shows nothing but notes."""

    def begin(self, title: str, rows: int, size_bytes: int) -> None: ...

    def advance(self, rows: int, size_bytes: int) -> None: ...

    def note(self, text: str) -> None:
        sys.stderr.write(text + "\n")


def never() -> str:
    raise AssertionError("nobody has the store open")


def copied(data_dir: Path, url: str, **options: bool) -> Report:
    """The copy of a store that nobody has open."""
    storage.copying.UNIT_ROWS_MAX = UNIT_ROWS
    vocabulary = load()
    return copy(
        data_dir,
        url,
        open_store=lambda path: Embedded(path, vocabulary),
        open_target=lambda: server(vocabulary),
        ask=never,
        show=Quiet(),
        **options,
    )


def inserted(report: Report) -> dict[str, int]:
    """Rows that were inserted, by table."""
    found: Counter[str] = Counter()
    for each in report.checked:
        found[each.table] += each.inserted
    return dict(+found)


def _kill_at(moment: str, number: int) -> None:
    insert, inserts = Server.insert_block, 0

    def dying(*arguments: object) -> None:
        nonlocal inserts
        inserts += 1
        if inserts == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        insert(*arguments)  # type: ignore[arg-type]
        if inserts == number and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    Server.insert_block = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[3:]:
        _kill_at(sys.argv[3], int(sys.argv[4]))
    done = copied(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.write(json.dumps(inserted(done)))
    sys.exit(0 if done.complete else 1)
