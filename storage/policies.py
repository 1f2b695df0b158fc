"""The versions of the retention policies, which the store keeps, and what loads apply of them.

Policies are of a whole store: who may change them may drop anybody's traces. Called from the threads of the API, of the
loader and of the expiry.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storage.engine import Engine, Signal
from storage.retention import Policies, stored
from storage.retention_sql import ClassSql
from storage.row_clock import RowClock
from storage.vocabulary import Vocabulary

REFRESH_S = 5.0
"""How often a process looks for what another one changed."""
NOTICE_S = 4 * REFRESH_S
"""A new version counts for segments begun so long after it where others load, too: they know of it by then."""
VERSIONS_MAX = 1_000
"""So many are told apart; what was loaded by older ones is looked at as if the policies had changed."""
_BEGUN_S = 3600
"""A segment is begun at most so long before what it holds is received."""
_READ = """SELECT argMax(Policies, Updated)
FROM spanhouse.retention
GROUP BY Version
ORDER BY Version DESC
LIMIT {limit}"""
_COLUMNS = ("Version", "Since", "Policies", "Updated")

logger = logging.getLogger(__name__)


class VersionConflict(Exception):
    """The policies were changed since whoever changes them read them. The text says which version there is."""


class RetentionPolicies:
    """All versions; the newest ones are known here."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary) -> None:
        self._engine, self._vocabulary = engine, vocabulary
        self._changing = threading.Lock()
        self._versions: list[Policies] = []
        self._history: list[Policies] = []
        """VERSIONS_MAX of them, the newest first."""
        self._read_s = -REFRESH_S

    @property
    def current(self) -> Policies:
        """The newest version. Raises StoreUnavailable."""
        self._refresh()
        return self._versions[0]

    @property
    def sql(self) -> ClassSql:
        """The newest version as SQL. Raises StoreUnavailable."""
        return ClassSql(self.current, self._vocabulary)

    def versions(self, limit: int) -> list[Policies]:
        """The newest first. Raises StoreUnavailable."""
        rows = self._engine.rows(_READ.format(limit=int(limit)))
        return [stored(json.loads(text)) for (text,) in rows]

    def matched_alike(self, since_unix_s: float, until_unix_s: float) -> bool:
        """Whether all that was received then got the classes that it would get now. Raises StoreUnavailable."""
        self._refresh()
        begun_s, until_s = since_unix_s - _BEGUN_S, float("inf")
        for version in self._history:
            since_s = version.since_unix_nano / 1e9
            counted = since_s <= until_unix_s and until_s > begun_s
            if counted and version.matching != self._versions[0].matching:
                return False
            until_s = since_s
        return until_s <= max(begun_s, 0)

    def put(self, wanted: Policies, changed_by: str, comment: str, expected: int | None = None) -> Policies:
        """Make these the next version, if `expected` is the newest one or None.

        Raises BadRules, VersionConflict, StoreUnavailable.
        """
        ClassSql(wanted, self._vocabulary).resource_bits  # noqa: B018 (it raises)
        with self._changing:
            self._refresh(at_once=True)
            now = self._versions[0]
            if expected is not None and expected != now.version:
                raise VersionConflict(
                    f"cannot replace version {expected} of the policies: version {now.version} by {now.changed_by!r} "
                    "is newer; read it, and change that one"
                )
            notice_s = NOTICE_S if self._engine.shared else 0
            since = time.time_ns() + int(notice_s * 1e9)
            following = replace(now.succeeded_by(wanted), since_unix_nano=since, changed_by=changed_by, comment=comment)
            self._write(following)
            self._refresh(at_once=True)
            return following

    def refreshed(self, load: Callable[[Path, str, Signal], None]) -> Callable[[Path, str, Signal], None]:
        """The same load, by the newest policies. All loads must go through it."""

        def loading(segment: Path, token: str, signal: Signal) -> None:
            self._refresh()
            load(segment, token, signal)

        return loading

    def _refresh(self, *, at_once: bool = False) -> None:
        stale = self._engine.shared and time.monotonic() >= self._read_s + REFRESH_S
        if not (at_once or stale or not self._versions):
            return
        versions = self.versions(3)
        if not versions:
            self._write(Policies(version=1, changed_by="Spanhouse", comment="the default of a new store"))
            versions = self.versions(3)
        if [v.version for v in versions] != [v.version for v in self._versions]:
            self._versions = versions
            self._history = self.versions(VERSIONS_MAX)
            self._engine.classify(versions)
            logger.info("%s", _said(versions[0]))
        self._read_s = time.monotonic()

    def _write(self, policies: Policies) -> None:
        clock = RowClock.of(self._engine, 1_000_000, "Updated", "retention")
        row = (policies.version, policies.since_unix_nano, json.dumps(policies.json()), clock.next())
        self._engine.insert("retention", _COLUMNS, [row])


def _said(policies: Policies) -> str:
    """What is kept how long, for who starts the program."""
    default, count = policies.default, len(policies.policies)
    whose = "what no policy matches" if count else "everything"
    return (
        f"retention: {whose} keeps its skeleton for {default.skeleton_days} days and its content for "
        f"{default.content_days} (version {policies.version}, policies: {count}); to change that: "
        "spanhouse retention apply --policy FILE"
    )
