"""`spanhouse storage` in the terminal: what is stored of whom, as a table, how it grew, as a plot, and when the disk is
full."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.copying import _size
from cli.terminal import _plain

PLOT_ROWS = 5
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def draw(console: Console, answer: Mapping[str, Any]) -> None:
    """Draw the answer of `GET /api/v1/storage`."""
    if answer["counted"] < 0.9995:
        console.print(Text(f"! {answer['counted']:.1%} of the rows are counted; the others follow", "yellow"))
    if not answer["days"]:
        console.print(Text("nothing is stored", "dim"))
    else:
        console.print(_table(answer))
        for line in _plot(answer["days"], console.width):
            console.print(line, soft_wrap=True)
    if answer["store"] is None:
        console.print(Text("of all tenants, with the disk and when it is full: --all-tenants", "dim"))
    else:
        for line in _about_store(answer["store"]):
            console.print(line, soft_wrap=True)


def _table(answer: Mapping[str, Any]) -> Table:
    """The groups, and all together, which is more where groups of no name are left out."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(answer["by"], overflow="ellipsis", no_wrap=True)
    for heading in ("spans", "logs", "skeleton", "content", "on disk", "of raw", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    whole = _stored(answer["total"])
    for group in answer["groups"]:
        table.add_row(Text(_plain(group["name"])) if group["name"] else Text("(none)", "dim"), *_cells(group, whole))
    table.add_row(Text("all", "bold"), *_cells(answer["total"], whole))
    return table


def _cells(of: Mapping[str, Any], whole: int) -> Iterator[str]:
    stored, raw = _stored(of), of["skeleton"]["raw_bytes"] + of["content"]["raw_bytes"]
    yield f"{of['spans']:,}"
    yield f"{of['log_records']:,}"
    yield _size(of["skeleton"]["stored_bytes"])
    yield _size(of["content"]["stored_bytes"])
    yield _size(stored)
    yield f"{stored / raw:.0%}" if raw else ""
    yield f"{stored / whole:.0%}" if whole else ""


def _plot(days: Sequence[Mapping[str, Any]], width: int) -> Iterator[Text]:
    """A column a day, as high as what it takes on disk."""
    shown = days[-max(width - 12, 10) :]
    sizes = [_stored(day) for day in shown]
    top = max(*sizes, 1)
    yield Text()
    for row in reversed(range(PLOT_ROWS)):
        label = _size(top) if row == PLOT_ROWS - 1 else ""
        cells = (min(max(round(size * PLOT_ROWS * 8 / top) - row * 8, 0), 8) for size in sizes)
        yield Text(f"{label:>10} ", "dim").append("".join(_EIGHTHS[cell] for cell in cells), "blue")
    ends = f"{shown[0]['day']} to {shown[-1]['day']}" if len(shown) > 1 else str(shown[0]["day"])
    yield Text(f"{'':>10} {ends}, by day of the spans", "dim")


def _about_store(store: Mapping[str, Any]) -> Iterator[Text]:
    copies = store["stored_bytes_all_copies"]
    yield Text()
    more = f", {_size(copies)} with all copies" if copies > store["stored_bytes"] * 1.01 else ""
    yield Text(f"store  {_size(store['stored_bytes'])} in all tables{more}")
    if log := store["log"]:
        quarantine = log["quarantine_bytes"]
        yield Text(f"log    {_size(log['wal_bytes'])}" + (f", quarantine {_size(quarantine)}" if quarantine else ""))
    for disk in store["disks"]:
        yield Text(f"disk   {_size(disk['free_bytes'])} free of {_size(disk['total_bytes'])}, {_plain(disk['host'])}")
    yield Text(f"full   {_verdict(store['forecast'])}", "" if store["forecast"]["verdict"] != "full" else "bold")


def _verdict(found: Mapping[str, Any]) -> str:
    if found["verdict"] == "cannot tell":
        return f"cannot tell yet: {found['rests_on']}"
    rate = found["bytes_per_day"]
    growth = f"{'-' if rate < 0 else ''}{_size(abs(rate))} a day over {found['rests_on']}"
    return f"on {found['day']}: {growth}" if found["verdict"] == "full" else f"not within a year: {growth}"


def _stored(of: Mapping[str, Any]) -> int:
    return int(of["skeleton"]["stored_bytes"] + of["content"]["stored_bytes"])
