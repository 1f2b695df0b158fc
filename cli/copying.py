"""`spanhouse copy` in the terminal: how far it is, and what its verification found.

On the main thread, but for `advance` and `note`, which any thread may call. Knows plain values only: the copy itself is
storage/copying.py's.
"""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cli.terminal import _plain

LINE_EVERY_S = 10
DAYS_SHOWN_MAX = 40


class _Rate(ProgressColumn):
    """Bytes a second."""

    def render(self, task: Task) -> Text:
        elapsed_s = task.elapsed or 0
        return Text(f"{_size(task.fields['size_bytes'] / elapsed_s)}/s" if elapsed_s else "", "dim")


class Drawing:
    """A bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), _Rate(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._title, self._rows, self._done, self._bytes = "", 0, 0, 0
        self._began_s = self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, title: str, rows: int, size_bytes: int) -> None:
        """Something begins that is so long."""
        self._title, self._rows, self._done, self._bytes = title, rows, 0, 0
        self._began_s = self._said_s = time.monotonic()
        self._task = self._bar.add_task(title, total=rows, size_bytes=0)
        self._line(f"{title} {rows:,} rows, about {_size(size_bytes)}")

    def advance(self, rows: int, size_bytes: int) -> None:
        """So much of it is done."""
        self._done += rows
        self._bytes += size_bytes
        if self._task is not None:
            self._bar.update(self._task, advance=rows, size_bytes=self._bytes)
        now_s = time.monotonic()
        if now_s - self._said_s > LINE_EVERY_S:
            self._said_s = now_s
            elapsed_s = now_s - self._began_s
            left_s = elapsed_s * (self._rows - self._done) / max(self._done, 1)
            rate = _size(self._bytes / elapsed_s)
            self._line(f"{self._title}: {self._done:,} of {self._rows:,} rows, {rate}/s, about {left_s:.0f} s to go")

    def note(self, text: str) -> None:
        """Something to know."""
        self._console.print(Text(_plain(text), "yellow"), soft_wrap=True)

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, soft_wrap=True)


def show(console: Console, report: Mapping[str, Any], *, verify_only: bool) -> None:
    """Say what was copied and what the verification found: a line a table, and one for each day that differs."""
    table = Table(box=None, pad_edge=False)
    for name in ("table", "days", "rows", "inserted", "on the target", "missing", "checksum"):
        table.add_column(name, justify="left" if name in ("table", "checksum") else "right")
    by_table: dict[str, list[Mapping[str, Any]]] = {}
    for each in report["checked"]:
        by_table.setdefault(each["table"], []).append(each)
    for name, days in by_table.items():
        rows, inserted, there, missing = (
            sum(day[key] for day in days) for key in ("rows", "inserted", "there", "missing")
        )
        checksum = sum(day["checksum"] for day in days) % 2**64
        number = f"{len(days):,}" if days[0]["day"] else ""
        said = ("" if name == "traces" else f"{inserted:,}"), f"{there:,}", f"{missing:,}"
        table.add_row(name, number, f"{rows:,}", *said, "" if name == "traces" else f"{checksum:016x}")
    console.print(table, highlight=False)
    for text in _differences(report["checked"]):
        console.print(Text(text, "bold red"), soft_wrap=True)
    if any(each["altered"] for each in report["checked"]):
        console.print(
            "Some spans have other canonical words there: `spanhouse relink` on the target brings them up to date.",
            soft_wrap=True,
        )
    if report["log_bytes"]:
        console.print(
            f"The log beside the store holds {_size(report['log_bytes'])} that may not be in it yet: start and stop"
            " `spanhouse serve` there once and copy again, or start it with --clickhouse, which loads it there.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    if not any(each["missing"] for each in report["checked"]):
        console.print(
            f"{'Verified' if verify_only else 'Copied and verified'}: every row is on the target.", style="green"
        )


def _differences(checked: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = []
    for each in checked:
        if not each["missing"]:
            continue
        day = f" of {each['day']}" if each["day"] else ""
        if each["table"] == "traces":
            lines.append(f"traces{day}: they sum up {each['there']:,} spans on the target, which has {each['rows']:,}")
        else:
            lines.append(
                f"{each['table']}{day}: {each['missing']:,} of {each['rows']:,} rows are not on the target, which has"
                f" {each['there']:,}"
            )
    more = [f"and {len(lines) - DAYS_SHOWN_MAX:,} days more"] if len(lines) > DAYS_SHOWN_MAX else []
    return lines[:DAYS_SHOWN_MAX] + more


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
