"""One process changes the schema of a shared store at a time.

The sign is a table: of several that create it at once ClickHouse lets one succeed, on a cluster too, where the Keeper
puts the statements in one order. A process that dies leaves its table behind, which is taken away after STALE_S.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from storage.engine import Engine
from storage.errors import StoreUnavailable

STALE_S = 600
WAIT_S_MAX = 900.0
POLL_S = 0.5
_TABLE = "spanhouse.migrating"
_AGE = (
    "SELECT toUnixTimestamp(now()) - toUnixTimestamp(metadata_modification_time) FROM system.tables"
    " WHERE database = 'spanhouse' AND name = 'migrating'"
)

logger = logging.getLogger(__name__)


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Wait until nobody else changes the schema, and keep others from it. Raises StoreUnavailable."""
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not _taken(engine):
        if time.monotonic() > deadline_s:
            raise StoreUnavailable(f"cannot change the schema: another process has been at it for {WAIT_S_MAX:.0f} s")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        _drop(engine)


def _taken(engine: Engine) -> bool:
    """Whether the table could be created. One that was left behind is dropped."""
    age = engine.rows(_AGE)
    if age and age[0][0] > STALE_S:
        logger.warning("a process that changed the schema ended %d s ago, in the middle", age[0][0])
        _drop(engine)
    elif age:
        return False
    try:
        engine.define(f"CREATE TABLE {_TABLE} (Nothing UInt8) ENGINE = Null")
    except StoreUnavailable as error:
        if "TABLE_ALREADY_EXISTS" in str(error):
            return False
        raise
    return True


def _drop(engine: Engine) -> None:
    engine.define(f"DROP TABLE IF EXISTS {_TABLE}")
