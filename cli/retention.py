"""`spanhouse retention`: show the policies and how far they are."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.terminal import _plain
from cli.versions import matched, title


def draw(console: Console, retention: dict[str, Any]) -> None:
    """The policies, in their order."""
    table = Table(title=title(retention), title_justify="left", box=None)
    for name, justify in (("policy", "left"), ("matches", "left"), ("skeleton", "right"), ("content", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    rest = {"name": "default", "match": {}, **retention["default"]}
    for policy in [*retention["policies"], rest]:
        days = (_days(policy["skeleton_days"]), _days(policy["content_days"]))
        said = (Text(_plain(text)) for text in (policy["name"], matched(policy["match"]) or "all else"))
        table.add_row(*said, *days, ", ".join(_besides(policy)))
    console.print(table)
    if retention["paused"]:
        console.print("Paused: nothing expires until `spanhouse retention resume`.", style="yellow")


def draw_progress(console: Console, progress: dict[str, Any]) -> None:
    """How far the policies in force have reached what is stored."""
    done, days = progress["days_done"], progress["days"]
    console.print(
        f"Version {progress['version']} has reached {done} of {_days(days)} that are stored.", highlight=False
    )
    if progress["paused"]:
        console.print("Paused: nothing expires until `spanhouse retention resume`.", style="yellow")
    if progress["working_on"]:
        console.print(f"At {progress['working_on']}.", highlight=False)
    console.print(
        f"Since the server started: {progress['rows_removed']:,} rows removed, {progress['rows_moved']:,} moved, "
        f"{progress['partitions_dropped']:,} partitions dropped.",
        highlight=False,
    )


def as_they_are(retention: dict[str, Any]) -> dict[str, Any]:
    """The policies of an answer, as the API takes them."""
    return {key: retention[key] for key in ("policies", "default")}


def _besides(keep: dict[str, Any]) -> Iterator[str]:
    if keep.get("thin_after_days"):
        yield f"{keep['thin_keep']:.3g} of its traces from {_days(keep['thin_after_days'])} on"
    if keep["expire_early"]:
        yield "goes early when the disk is full"


def _days(days: int) -> str:
    return f"{days} day{'' if days == 1 else 's'}"
