"""The versions of the sampling rules, which the store keeps, and what came of them lately.

Rules are of a whole store, like retention policies. Called from the threads of the API and of the loader.
"""

import json
import logging
import threading
import time
from dataclasses import dataclass, replace

from storage.engine import Engine
from storage.errors import StoreError
from storage.policies import REFRESH_S, VersionConflict
from storage.row_clock import RowClock
from storage.sampling import Rules, stored
from storage.sampling_sql import SurveySql
from storage.vocabulary import Vocabulary

OUTCOME_S = 86_400
_READ = """SELECT argMax(Rules, Updated)
FROM spanhouse.sampling
GROUP BY Version
ORDER BY Version DESC
LIMIT {limit}"""
_COLUMNS = ("Version", "Rules", "Updated")
_OUTCOME = f"""SELECT
    toString(Rule), countIf(Weight > 0), countIf(Weight = 0), sumIf(decisions.Spans, Weight > 0),
    sumIf(decisions.Spans, Weight = 0), sum(toFloat64(Weight))
FROM spanhouse.decisions
WHERE Decided >= now() - {OUTCOME_S}
GROUP BY Rule
ORDER BY Rule"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule did in the last day. Spans are those that a trace had when it was decided."""

    rule: str
    kept_traces: int
    left_out_traces: int
    kept_spans: int
    left_out_spans: int
    weight: float


class SamplingRules:
    """All versions; the newest one is known here."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary) -> None:
        self._engine, self._vocabulary = engine, vocabulary
        self._changing = threading.Lock()
        self._current: Rules | None = None
        self._read_s = -REFRESH_S

    @property
    def current(self) -> Rules:
        """The newest version; without any, all is kept. Raises StoreUnavailable."""
        stale = self._engine.shared and time.monotonic() >= self._read_s + REFRESH_S
        if self._current is None or stale:
            return self._refreshed()
        return self._current

    @property
    def known(self) -> Rules:
        """The same, or what was known last if the store is away; nothing known is no rules."""
        if self._current is None and time.monotonic() < self._read_s + REFRESH_S:
            return Rules()
        try:
            return self.current
        except StoreError:
            self._read_s = time.monotonic()  # whoever loads will hear of it
            return self._current or Rules()

    def versions(self, limit: int) -> list[Rules]:
        """The newest first. Raises StoreUnavailable."""
        return [stored(json.loads(text)) for (text,) in self._engine.rows(_READ.format(limit=int(limit)))]

    def put(self, wanted: Rules, changed_by: str, comment: str, expected: int | None = None) -> Rules:
        """Make these the next version, if `expected` is the newest one or None.

        Raises BadRules, VersionConflict, StoreUnavailable.
        """
        SurveySql(wanted, self._vocabulary)  # it raises
        with self._changing:
            now = self._refreshed()
            if expected is not None and expected != now.version:
                raise VersionConflict(
                    f"cannot replace version {expected} of the sampling rules: version {now.version} by "
                    f"{now.changed_by!r} is newer; read it, and change that one"
                )
            following = replace(
                wanted,
                version=now.version + 1,
                since_unix_nano=time.time_ns(),
                changed_by=changed_by,
                comment=comment,
            )
            clock = RowClock.of(self._engine, 1_000_000, "Updated", "sampling")
            self._engine.insert("sampling", _COLUMNS, [(following.version, json.dumps(following.json()), clock.next())])
            return self._refreshed()

    def outcome(self) -> list[Outcome]:
        """What was decided in the last day, by rule. Raises QueryTimeout, QueryTooLarge, StoreUnavailable."""
        columns = self._engine.read_all(_OUTCOME, {})
        return [Outcome(rule.decode(errors="replace"), *rest) for rule, *rest in zip(*columns, strict=True)]

    def _refreshed(self) -> Rules:
        versions = self.versions(1)
        current = versions[0] if versions else Rules()
        if self._current is None or current.version != self._current.version:
            self._current = current
            if current.version:
                logger.info(
                    "sampling: version %d, %d rules, %g of all other traces are kept",
                    current.version, len(current.rules), current.keep,
                )  # fmt: skip
        self._read_s = time.monotonic()
        return self._current
