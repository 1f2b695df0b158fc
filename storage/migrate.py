"""Brings the schema of a store to this program's: `schema/NNNN_*.sql`, each once, in order.

Runs at start, on the main thread, before anything else uses the store; a collector, which starts without its store,
does it before its first load. A file is written down when all its statements have run; each of them can run again, so a
start that was cut short is simply repeated.
"""

import hashlib
import logging
from collections.abc import Callable, Container, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from storage.alone import alone
from storage.engine import Engine, Signal
from storage.errors import StoreUnavailable
from storage.partitioning import by_class, is_moved

SCHEMA = Path(__file__).with_name("schema")
PARTITIONED = "0014_retention.sql"
"""After it rows move, which no statement does alone."""

_MIGRATIONS = """CREATE TABLE IF NOT EXISTS spanhouse.migrations
(
    Name String,
    Sha256 String,
    Applied DateTime('UTC') DEFAULT now()
)
ENGINE = MergeTree
ORDER BY Name
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"""

logger = logging.getLogger(__name__)


class SchemaMismatch(StoreUnavailable):
    """The store was made by another program than this one."""


@dataclass(frozen=True)
class Migration:
    """One file of the schema."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of what it says: what is applied must not change afterwards."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self) -> list[str]:
        """Its statements; a line that begins with `--` is for people."""
        code = "\n".join(line for line in self.text.splitlines() if not line.startswith("--"))
        return [statement.strip() for statement in code.split(";\n") if statement.strip(" \n;")]


def migrations(directory: Path = SCHEMA) -> list[Migration]:
    """All files of the schema, in order."""
    return [Migration(path.name, path.read_text() + "\n") for path in sorted(directory.glob("[0-9]*_*.sql"))]


def migrated(open_engine: Callable[[], Engine]) -> Engine:
    """An engine whose store has the schema of this program. Raises what `migrate` and `open_engine` raise.

    It is opened once more if anything was applied: a view whose query was altered gives its parts other tokens than
    after the next start, and a segment that is loaded before and after it would be stored twice (chDB 26.9).
    """
    engine = open_engine()
    try:
        applied = migrate(engine)
    except BaseException:
        engine.close()
        raise
    if not applied or engine.shared:
        return engine
    engine.close()
    return open_engine()


def loads_when_migrated(
    engine: Engine, load: Callable[[Path, str, Signal], None]
) -> Callable[[Path, str, Signal], None]:
    """The same load, which brings the schema before the first one: the store need not be reachable before."""
    ready = False

    def loading(segment: Path, token: str, signal: Signal) -> None:
        nonlocal ready
        if not ready:
            migrate(engine)
            ready = True
        load(segment, token, signal)

    return loading


def pending(engine: Engine, directory: Path = SCHEMA) -> list[Migration]:
    """What the store does not have yet, in order. Raises SchemaMismatch, StoreUnavailable."""
    there = "SELECT count() FROM system.tables WHERE database = 'spanhouse' AND name = 'migrations'"
    applied: dict[str, str] = {}
    if engine.rows(there)[0][0]:
        applied = dict(map(tuple, engine.rows("SELECT Name, any(Sha256) FROM spanhouse.migrations GROUP BY Name")))
    known = migrations(directory)
    if unknown := sorted(set(applied) - {m.name for m in known}):
        if not engine.shared:
            raise SchemaMismatch(
                f"cannot use this store: it has {', '.join(unknown)}, which this program does not know; start the "
                "program that made it, or a newer one"
            )
        # While processes are replaced one by one; what a newer schema adds has defaults.
        logger.warning("the store has %s of a newer program than this one", ", ".join(unknown))
    for migration in known:
        if applied.get(migration.name, migration.sha256) != migration.sha256:
            raise SchemaMismatch(
                f"cannot use this store: {migration.name} was changed after it had been applied; start the program "
                "that made it, or move the data directory away"
            )
    return [migration for migration in known if migration.name not in applied]


def statements(engine: Engine, migration: Migration) -> Iterator[str]:
    """Those of a migration as this store understands them."""
    settings = {name for [name] in engine.rows("SELECT name FROM system.merge_tree_settings")}
    for statement in migration.statements():
        yield from engine.definitions(_understood(statement, settings))


def migrate(engine: Engine, directory: Path = SCHEMA) -> list[str]:
    """Apply what the store does not have yet, and give the names. Raises SchemaMismatch, StoreUnavailable.

    Several processes may do so at once: one does it, the others wait.
    """
    if not pending(engine, directory):
        return []
    engine.define("CREATE DATABASE IF NOT EXISTS spanhouse")
    with alone(engine) if engine.shared else nullcontext():
        engine.define(_MIGRATIONS)
        done = []
        for migration in pending(engine, directory):
            for statement in statements(engine, migration):
                if not is_moved(engine, statement):
                    engine.command(statement)
            if migration.name == PARTITIONED:
                by_class(engine)
            engine.command(
                "INSERT INTO spanhouse.migrations (Name, Sha256) VALUES ({name:String}, {sha256:String})",
                {"name": migration.name, "sha256": migration.sha256},
            )
            logger.info("applied %s", migration.name)
            done.append(migration.name)
    return done


def _understood(statement: str, settings: Container[str]) -> str:
    """A statement without the settings of its table that this version of ClickHouse does not have."""
    head, name, tail = statement.rpartition("\nSETTINGS")
    if not name or not statement.startswith("CREATE TABLE"):
        return statement
    kept = [one for one in tail.split(",") if one.split("=")[0].strip() in settings]
    return f"{head}{name}{','.join(kept)}" if kept else head
