"""`spanhouse retention`: show the policies, their versions and how far they are, and change them."""

import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Trouble
from cli.terminal import _plain


def read(path: Path) -> dict[str, Any]:
    """The policies of a TOML file, as the API takes them. Raises Trouble."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise Trouble(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Trouble(f"cannot read {path}: {error}", "write it as docs/retention.md has it") from error


def draw(console: Console, retention: dict[str, Any]) -> None:
    """The policies, in their order."""
    by = f" by {retention['changed_by']}" if retention["changed_by"] else ""
    table = Table(title=Text(_plain(f"Version {retention['version']}{by}")), title_justify="left", box=None)
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


def draw_versions(console: Console, versions: list[dict[str, Any]]) -> None:
    """Who changed them when."""
    table = Table(box=None)
    for name in ("version", "since", "by", "policies", "comment"):
        table.add_column(name)
    for one in versions:
        by, comment = (Text(_plain(one[member])) for member in ("changed_by", "comment"))
        table.add_row(str(one["version"]), since(one), by, str(len(one["policies"])), comment)
    console.print(table)


def since(version: dict[str, Any]) -> str:
    """When a version began."""
    since_s = int(version["since_unix_nano"]) / 1e9
    return datetime.fromtimestamp(since_s, UTC).isoformat(timespec="seconds") if since_s else "the beginning"


def _besides(keep: dict[str, Any]) -> Iterator[str]:
    if keep.get("thin_after_days"):
        yield f"{keep['thin_keep']:.3g} of its traces from {_days(keep['thin_after_days'])} on"
    if keep["expire_early"]:
        yield "goes early when the disk is full"


def _days(days: int) -> str:
    return f"{days} day{'' if days == 1 else 's'}"


def matched(match: dict[str, Any]) -> str:
    """What a span has to be, for a person; '' for anything."""
    words = []
    for key, value in match.items():
        if key == "attributes":
            words += [f"{name} = {_either(values)}" for name, values in value.items()]
        elif key.endswith("_duration_ms"):
            words.append(f"{'from' if key.startswith('min') else 'up to'} {value:g} ms")
        else:
            words.append(f"{key} {_either(value)}")
    return ", ".join(words)


def _either(values: Any) -> str:
    return " or ".join(map(str, values)) if isinstance(values, list) else str(values)
