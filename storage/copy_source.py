"""Where a copy reads: a snapshot of an embedded store, in a scratch store of its own, until the copy is complete.

    DATA_DIR/copying/lock       held while a copy runs
                    state.json  of which target, and whether the snapshot can be read
                    frozen/     the snapshot, taken out of DATA_DIR/store/shadow; its parts move on into
                    store/      the scratch store: chDB with the schema, and the parts
                    pending/    what is being inserted (storage/copying.py)

So the store itself may go on serving, and a copy that was interrupted goes on with the very same rows. Parts are hard
links: they take disk only for what the store has merged away since.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.disk import sync_directory, write_file
from storage.embedded import Embedded
from storage.engine import Engine
from storage.errors import StoreError, StoreUnavailable
from storage.migrate import migrated
from storage.snapshots import Snapshot, Snapshots, found, place

OpenStore = Callable[[Path], Embedded]
"""Opens the embedded store in a directory."""
AskForSnapshot = Callable[[], str]
"""Has the process that holds the store make a snapshot, and gives its name."""


class CannotCopy(StoreError):
    """A copy cannot begin, or go on; the text says why and what to do."""


@dataclass(frozen=True)
class State:
    """Of a copy that is not complete. `id` is in all its tokens: it takes no other copy's rows for its own."""

    id: str
    target: str
    snapshot: str


class Workplace:
    """`DATA_DIR/copying`, for one copy at a time. Raises CannotCopy."""

    def __init__(self, data_dir: Path, target: str) -> None:
        self.store = data_dir.absolute() / "store"
        self.path = data_dir.absolute() / "copying"
        self.scratch = self.path / "store"
        self.pending = self.path / "pending"
        self._frozen, self._state = self.path / "frozen", self.path / "state.json"
        self._target = target
        if not (self.store / "metadata").is_dir():
            raise CannotCopy(
                f"cannot copy from {data_dir}: there is no store in it; give the --data-dir of `spanhouse serve`"
            )
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CannotCopy(
                f"cannot write to {self.path}: {error.strerror}; run this as the user of `spanhouse serve`"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise CannotCopy(f"cannot copy from {data_dir}: another copy of it is running") from None

    def state(self) -> State | None:
        """The copy that was interrupted, if any. Raises CannotCopy if it was to another target."""
        try:
            state = State(**json.loads(self._state.read_text()))
        except FileNotFoundError:
            return None
        if state.target != self._target:
            raise CannotCopy(
                f"cannot copy to {self._target}: a copy to {state.target} was interrupted; complete that one first, or"
                f" remove {self.path} to give it up"
            )
        return state

    def open(self, open_store: OpenStore, ask: AskForSnapshot) -> tuple[Engine, State]:
        """The scratch store, with the snapshot of the copy that was interrupted, or else a new one.

        Raises CannotCopy, and what `open_store` and `ask` raise.
        """
        state = self.state()
        if state is not None:
            return self._scratch(open_store), state
        self._clear()
        snapshot = self._take(open_store, ask)
        engine = self._scratch(open_store)
        try:
            self._attach(engine, snapshot)
        except BaseException:
            engine.close()
            raise
        state = State(os.urandom(8).hex(), self._target, snapshot.name)
        write_file(self._state, [json.dumps(asdict(state)).encode()], durable=True)
        sync_directory(self._state.parent)
        return engine, state

    def complete(self) -> None:
        """Forget the copy: the next one takes a new snapshot. The scratch store must be closed."""
        self._state.unlink(missing_ok=True)
        self._clear()

    def close(self) -> None:
        """Let another copy begin."""
        os.close(self._lock)

    def held(self) -> bool:
        """Whether a process has the store open."""
        try:
            status = os.open(self.store / "status", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(status)
        return False

    def log_bytes(self) -> int:
        """Bytes in the log beside the store, which are not in the store yet."""
        segments = [path for path in (self.store.parent / "wal").glob("*") if path.suffix in (".open", ".wal")]
        return sum(path.stat().st_size for path in segments)

    def _take(self, open_store: OpenStore, ask: AskForSnapshot) -> Snapshot:
        if self.held():
            name = ask()
        else:
            engine = migrated(lambda: open_store(self.store))
            try:
                name = Snapshots(engine, self.store).take().name
            finally:
                engine.close()
        snapshot = found(self.store, name)
        if snapshot is None:
            raise CannotCopy(
                f"cannot copy from {self.store.parent}: the server that was asked keeps its store elsewhere;"
                " name the one that has this directory with --url"
            )
        place(self.store, name).rename(self._frozen)
        return snapshot

    def _scratch(self, open_store: OpenStore) -> Engine:
        engine = migrated(lambda: open_store(self.scratch))
        engine.command("SYSTEM STOP MERGES")
        return engine

    def _attach(self, engine: Engine, snapshot: Snapshot) -> None:
        paths = engine.rows(
            "SELECT name, data_paths[1] FROM system.tables WHERE database = 'spanhouse' AND engine LIKE '%MergeTree'"
        )
        for table, path in paths:
            parts = self._frozen / snapshot.tables.get(table, table)
            if table == "migrations" or not parts.is_dir():
                continue
            try:
                for part in parts.iterdir():
                    part.rename(Path(path) / "detached" / part.name)
            except OSError as error:
                raise StoreUnavailable(f"cannot move {parts}: {error.strerror}") from error
            engine.command(f"ALTER TABLE spanhouse.{table} ATTACH PARTITION ALL")

    def _clear(self) -> None:
        for path in (self._frozen, self.scratch, self.pending):
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
