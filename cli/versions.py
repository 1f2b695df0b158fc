"""What the policies and the sampling rules have in common: files to read them from, and versions."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Trouble
from cli.terminal import _plain


def read(path: Path, page: str) -> dict[str, Any]:
    """What a TOML file says, as the API takes it; `page` of the documentation has how to write it. Raises Trouble."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise Trouble(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Trouble(f"cannot read {path}: {error}", f"write it as {page} has it") from error


def title(version: dict[str, Any], more: str = "") -> Text:
    """Which version it is, and who made it."""
    by = f" by {version['changed_by']}" if version["changed_by"] else ""
    return Text(_plain(f"Version {version['version']}{by}{more}"))


def draw(console: Console, versions: list[dict[str, Any]], counted: str) -> None:
    """Who changed them when; `counted` is the member of which each has a number."""
    table = Table(box=None)
    for name in ("version", "since", "by", counted, "comment"):
        table.add_column(name)
    for one in versions:
        by, comment = (Text(_plain(one[member])) for member in ("changed_by", "comment"))
        table.add_row(str(one["version"]), _since(one), by, str(len(one[counted])), comment)
    console.print(table)


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


def _since(version: dict[str, Any]) -> str:
    since_s = int(version["since_unix_nano"]) / 1e9
    return datetime.fromtimestamp(since_s, UTC).isoformat(timespec="seconds") if since_s else "the beginning"


def _either(values: Any) -> str:
    return " or ".join(map(str, values)) if isinstance(values, list) else str(values)
