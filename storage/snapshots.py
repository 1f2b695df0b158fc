"""Snapshots of an embedded store: its parts under second names, as they are at one moment.

`ALTER TABLE … FREEZE` makes hard links of all parts of a table below `shadow/NAME` of the store, so that a snapshot
costs neither time nor disk until the store merges or drops the parts. Only the process that has the store open can make
one; any other may then read it. It is whole when its manifest is there, which says the directory of each table.

Called from any thread.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.engine import Engine
from storage.errors import StoreError, StoreUnavailable

MANIFEST = "spanhouse.json"
SNAPSHOTS_MAX = 10
"""Each keeps parts on disk that the store has replaced: somebody should look before there are more."""
_NAME = re.compile(r"[a-z0-9_]{1,63}")  # of characters that the engine writes as they are in names of directories
# Spans before what is said of them, so that a snapshot that is taken while spans arrive has all that its rows refer to.
_FIRST = ("spans", "content", "records", "traces", "origins")


class NoSuchSnapshot(StoreError):
    """There is no snapshot of this name."""


class TooManySnapshots(StoreError):
    """There are as many as may be."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`tables`: the directory of each table's parts, within the snapshot's. `created` in ISO 8601."""

    name: str
    created: str
    tables: Mapping[str, str]


class Snapshots:
    """The snapshots of the store in `directory`, which `engine` has open."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        self._directory = directory.absolute()
        self._lock = threading.Lock()

    def take(self) -> Snapshot:
        """Make one. Raises TooManySnapshots, StoreUnavailable."""
        with self._lock:
            if len(names(self._directory)) >= SNAPSHOTS_MAX:
                raise TooManySnapshots(
                    f"cannot make a snapshot: there are {SNAPSHOTS_MAX}, which keep disk space; remove some by"
                    " DELETE /api/v1/snapshots/NAME"
                )
            now = datetime.now(UTC)
            name = f"{now:%Y%m%dt%H%M%S}_{os.urandom(4).hex()}"
            paths: dict[str, str] = dict(
                map(
                    tuple,
                    self._engine.rows(
                        "SELECT name, data_paths[1] FROM system.tables"
                        " WHERE database = 'spanhouse' AND engine LIKE '%MergeTree'"
                    ),
                )
            )
            for table in sorted(paths, key=lambda table: (table not in _FIRST, table)):
                self._engine.command(f"ALTER TABLE spanhouse.{table} FREEZE WITH NAME '{name}'")
            tables = {table: os.path.relpath(path, self._directory) for table, path in paths.items()}
            # A store that has its schema has parts: without any, this would pass for a snapshot of an empty one.
            if not (place(self._directory, name) / tables["migrations"]).is_dir():
                raise StoreUnavailable(f"cannot find the parts of the snapshot {name} in {self._directory}")
            snapshot = Snapshot(name, now.isoformat(timespec="seconds"), tables)
            _write(place(self._directory, name) / MANIFEST, snapshot)
            return snapshot

    def all(self) -> list[Snapshot]:
        """Those that are whole, by age."""
        return sorted(filter(None, (found(self._directory, name) for name in names(self._directory))), key=_age)

    def drop(self, name: str) -> None:
        """Remove one. Raises NoSuchSnapshot, StoreUnavailable."""
        with self._lock:
            remove(self._directory, name)


def place(store: Path, name: str) -> Path:
    """The directory of a snapshot. Raises NoSuchSnapshot if the name cannot be one's."""
    if not _NAME.fullmatch(name):
        raise NoSuchSnapshot(f"cannot find a snapshot {name!r}: GET /api/v1/snapshots lists them")
    return store / "shadow" / name


def names(store: Path) -> list[str]:
    """Names of all snapshots of a store, also of those that were not finished."""
    shadow = store / "shadow"
    return (
        [path.name for path in shadow.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        if shadow.is_dir()
        else []
    )


def holders(store: Path) -> list[str]:
    """What keeps parts that the store has replaced, a sentence each: snapshots, and a copy that was interrupted."""
    found = [
        f"the snapshot {name} keeps parts on disk: remove it by DELETE /api/v1/snapshots/{name}"
        for name in sorted(names(store))
    ]
    copying = store.parent / "copying"
    if any(path.name != "lock" for path in copying.glob("*")):
        found.append(f"a copy keeps parts in {copying}: let it end, or remove that directory")
    return found


def found(store: Path, name: str) -> Snapshot | None:
    """The snapshot of this name, if it is whole."""
    try:
        return Snapshot(**json.loads((place(store, name) / MANIFEST).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove(store: Path, name: str) -> None:
    """Remove the snapshot of this name from the directory of a store. Raises NoSuchSnapshot, StoreUnavailable."""
    directory = place(store, name)
    try:
        (directory / MANIFEST).unlink(missing_ok=True)  # it is not whole any more from here on
        shutil.rmtree(directory)
    except FileNotFoundError:
        raise NoSuchSnapshot(f"cannot find a snapshot {name!r}: GET /api/v1/snapshots lists them") from None
    except OSError as error:
        raise StoreUnavailable(f"cannot remove the snapshot {name}: {error.strerror}") from error


def _age(snapshot: Snapshot) -> str:
    return snapshot.created


def _write(path: Path, snapshot: Snapshot) -> None:
    text = json.dumps({"name": snapshot.name, "created": snapshot.created, "tables": dict(snapshot.tables)})
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise StoreUnavailable(f"cannot write {path}: {error.strerror}") from error
