"""`spanhouse pin`, `unpin` and `pins`: what is kept whatever the policies say."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.terminal import _brief_moment, _plain

VERSIONED = ("model", "prompt", "agent")


def asked(entity: str, ids: Sequence[str]) -> Iterator[dict[str, str]]:
    """What the arguments name, as the API takes it. After the last @ stands a version."""
    for one in ids:
        name, at, version = one.rpartition("@")
        if entity in VERSIONED and at and name and version:
            yield {"entity": entity, "id": name, "version": version}
        else:
            yield {"entity": entity, "id": one}


def draw(console: Console, pins: Sequence[Mapping[str, Any]]) -> None:
    """All pins of a tenant."""
    if not pins:
        console.print(Text("nothing is pinned", "dim"))
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("pinned", "id", "version", "since", "by", "comment"):
        table.add_column(heading, no_wrap=heading in ("pinned", "since"), overflow="fold")
    for pin in pins:
        said = (_plain(pin[member]) for member in ("pinned_by", "comment"))
        since = _brief_moment(int(pin["since_unix_nano"]))
        table.add_row(pin["entity"], Text(_plain(pin["id"])), Text(_plain(pin["version"])), since, *map(Text, said))
    console.print(table)
