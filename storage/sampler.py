"""Decides which traces are kept, a segment of the log at a time, before it is loaded.

Every segment is surveyed as soon as it is sealed: what its spans say of their traces goes into `surveys`, which all
collectors share. When a segment has waited long enough, its traces are decided by all surveys there are; that is
written to `decisions`, where late spans and other collectors find it, and to a file beside the segment
(storage/decided.py), by which it loads, also after a crash. Runs on the loader's thread.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from storage import decided
from storage.decided import Decided, decided_path
from storage.engine import Engine, Signal
from storage.errors import DataError
from storage.pins import PINNED_TRACES
from storage.recheck import born_unix_nano
from storage.sampling import Decision, Rules, Surveyed, decide
from storage.sampling_rules import SamplingRules
from storage.sampling_sql import PLACES, SurveySql
from storage.vocabulary import Vocabulary

PAGE_TRACES = 50_000
EARLIER_NANO = 3600 * 1_000_000_000
"""Surveys of segments that were begun so long before may speak of the same traces, undecided yet."""
SURVEYED_MAX = 10_000
_OF_SEGMENT = "SELECT Tenant, TraceId FROM spanhouse.surveys WHERE Segment = {segment:String}"
_PAGE = "sipHash64(TraceId) % {pages:UInt64} = {page:UInt64}"
_COUNT = "SELECT count() FROM spanhouse.surveys WHERE Segment = {segment:String}"
_SURVEYS = f"""SELECT
    toString(Tenant), TraceId, groupBitOr(Matched), max(Notable), max(End) - min(Start), groupUniqArrayArray(Places),
    maxIf(surveys.Spans, Segment = {{segment:String}})
FROM spanhouse.surveys
WHERE Segment >= {{earliest:String}} AND Version = {{version:UInt32}}
    AND (Tenant, TraceId) IN ({_OF_SEGMENT}) AND {_PAGE}
GROUP BY Tenant, TraceId"""
_NOTABLE = f"""SELECT toString(Tenant), TraceId
FROM
(
    SELECT Tenant, TraceId FROM spanhouse.assessments FINAL WHERE Deleted = 0 AND (Tenant, TraceId) IN ({_OF_SEGMENT})
    UNION DISTINCT
    SELECT Tenant, TraceId FROM spanhouse.surveys WHERE Segment = {{segment:String}} AND {PINNED_TRACES}
)
WHERE {_PAGE}"""
_DECISIONS = f"""SELECT
    toString(Tenant), TraceId, argMin(Weight, (Decided, Weight)), toString(argMin(Rule, (Decided, Weight)))
FROM spanhouse.decisions
WHERE (Tenant, TraceId) IN ({_OF_SEGMENT}) AND {_PAGE}
GROUP BY Tenant, TraceId"""
_PLACES = """SELECT toString(Tenant), Place, sum(Traces)
FROM spanhouse.places
WHERE Day >= today() - 1 AND (Tenant, Place) GLOBAL IN
    (SELECT DISTINCT Tenant, arrayJoin(Places) FROM spanhouse.surveys WHERE Segment = {segment:String})
GROUP BY Tenant, Place"""
_COLUMNS = ("Tenant", "TraceId", "Weight", "Rule", "Spans")

_Load = Callable[[Path, str, Signal], None]
_Key = tuple[str, bytes]

logger = logging.getLogger(__name__)


class Sampler:
    """Decides by the newest rules. `counted` is told how many traces a rule kept and left out: rule, kept, left out."""

    def __init__(
        self,
        engine: Engine,
        rules: SamplingRules,
        vocabulary: Vocabulary,
        counted: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self._ordinary_keep: Mapping[str, float] = {}
        self.rules = rules
        self._engine, self._vocabulary, self._counted = engine, vocabulary, counted
        self._sql: tuple[int, SurveySql] | None = None
        self._surveyed: dict[str, int] = {}
        """Token → version of the rules."""
        self._prepared: set[str] = set()
        """Tokens that are being decoded already, undecided."""

    @property
    def wait_s(self) -> float:
        """How long a sealed segment waits before its traces are decided; 0 while all are kept."""
        rules = self.rules.known
        return rules.wait_s if rules.any or self._ordinary_keep else 0.0

    def keep_of_ordinary(self, shares: Mapping[str, float]) -> None:
        """From now on keep at most these shares, by tenant, of ordinary traces (storage/sampling.py)."""
        self._ordinary_keep = shares

    def survey(self, segment: Path, token: str) -> None:
        """Note what the spans of a segment say of their traces, once. Raises what a load raises, DataError aside."""
        rules = self.rules.current
        if self._surveyed.get(token) == rules.version:
            return
        if self._sql is None or self._sql[0] != rules.version:
            self._sql = rules.version, SurveySql(rules, self._vocabulary)
        try:
            self._engine.add(segment, self._sql[1].rows(segment, token))
        except DataError as error:
            # A load of it will say the same, and the parts of it that do load are surveyed by themselves.
            logger.warning("%s: its traces are decided without it", error)
        while len(self._surveyed) >= SURVEYED_MAX:
            del self._surveyed[next(iter(self._surveyed))]
        self._surveyed[token] = rules.version

    def sampled(self, load: _Load) -> _Load:
        """The same load, of the spans of those traces that are kept. All loads must go through it."""

        def loading(segment: Path, token: str, signal: Signal = "traces") -> None:
            if signal == "traces" and token not in self._prepared:
                self.decide(segment, token)
            load(segment, token, signal)
            self._prepared.discard(token)

        return loading

    def prepared(self, prepare: _Load) -> _Load:
        """The same preparation of a load, once it is known what will be loaded."""

        def preparing(segment: Path, token: str, signal: Signal) -> None:
            if signal == "traces" and not decided_path(segment).exists():
                if self.wait_s:
                    return
                self._prepared.add(token)
            prepare(segment, token, signal)

        return preparing

    def left_out(self, segment: Path) -> Mapping[str, int]:
        """How many spans of a segment are left out, by tenant. Raises OSError."""
        return decided.left_out(segment)

    def forget(self, segment: Path) -> None:
        """Remove what was decided for a segment that is loaded, and for its parts. Raises OSError."""
        self._surveyed.pop(segment.stem, None)
        if decided_path(segment).exists():
            for path in segment.parent.glob(f"{segment.stem}.*{decided.SUFFIX}"):
                path.unlink(missing_ok=True)
            decided_path(segment).unlink(missing_ok=True)

    def decide(self, segment: Path, token: str) -> None:
        """Decide the traces of a segment, if anything is left out at all. Raises what a load raises, and OSError."""
        rules, ordinary_keep = self.rules.current, dict(self._ordinary_keep)
        if decided_path(segment).exists() or not (rules.any or ordinary_keep):
            return
        self.survey(segment, token)
        counts: Counter[tuple[str, bool]] = Counter()
        decided.write(decided_path(segment), self._decided(rules, ordinary_keep, token, counts))
        for rule in {rule for rule, _ in counts}:
            self._counted(rule, counts[rule, True], counts[rule, False])

    def _decided(
        self, rules: Rules, ordinary_keep: Mapping[str, float], token: str, counts: Counter[tuple[str, bool]]
    ) -> Iterator[Decided]:
        """The traces of a segment that are not simply kept. What is decided anew is written down, and counted."""
        born = born_unix_nano(token)
        asked: dict[str, Any] = {
            "segment": token,
            "version": rules.version,
            "earliest": f"{max(born - EARLIER_NANO, 0):019d}" if born is not None else "",
        }
        [count] = self._engine.read_all(_COUNT, asked)[0]
        asked["pages"] = 1 + count // PAGE_TRACES
        seen = self._seen(rules, asked)
        for page in range(asked["pages"]):
            asked["page"] = page
            surveyed = self._rows(_SURVEYS, asked)
            known = self._known(asked)
            notable = {_key(*one) for one in self._rows(_NOTABLE, asked)} if ordinary_keep else set()
            fresh = []
            for tenant, trace_id, matched, said, duration, places, spans in surveyed:
                key = _key(tenant, trace_id)
                if key in known:
                    continue
                trace = Surveyed(matched, bool(said) or key in notable, duration, *_told_apart(places))
                decision = decide(rules, key[1], trace, partial(_count, seen, key[0]), ordinary_keep.get(key[0]))
                fresh.append((*key, *decision, spans))
            known |= self._written(fresh, asked, counts)
            for tenant, trace_id, *_, spans in surveyed:
                key = _key(tenant, trace_id)
                if (weight := known[key].weight) != 1:
                    yield Decided(*key, weight, spans)

    def _written(
        self,
        fresh: Sequence[tuple[str, bytes, float, str, int]],
        asked: Mapping[str, Any],
        counts: Counter[tuple[str, bool]],
    ) -> dict[_Key, Decision]:
        """Write decisions down, and give what holds: that of another collector, if it came first."""
        if not fresh:
            return {}
        self._engine.insert("decisions", _COLUMNS, fresh)
        for _, _, weight, rule, _ in fresh:
            counts[rule, weight > 0] += 1
        if self._engine.shared:
            return self._known(asked)
        return {(tenant, trace_id): Decision(weight, rule) for tenant, trace_id, weight, rule, _ in fresh}

    def _known(self, asked: Mapping[str, Any]) -> dict[_Key, Decision]:
        return {
            _key(tenant, trace_id): Decision(weight, rule.decode(errors="replace"))
            for tenant, trace_id, weight, rule in self._rows(_DECISIONS, asked)
        }

    def _seen(self, rules: Rules, asked: Mapping[str, Any]) -> Counter[tuple[str, int]]:
        """How many traces named a place since yesterday, of those places that the segment's traces name."""
        if not rules.counts_places:
            return Counter()
        return Counter({(tenant.decode(), place): traces for tenant, place, traces in self._rows(_PLACES, asked)})

    def _rows(self, sql: str, asked: Mapping[str, Any]) -> list[Any]:
        return list(zip(*self._engine.read_all(sql, asked), strict=True))


def _key(tenant: bytes, trace_id: bytes) -> _Key:
    return tenant.decode(), trace_id


def _count(seen: Counter[tuple[str, int]], tenant: str, place: int) -> int:
    return seen[tenant, place]


def _told_apart(places: Iterable[int]) -> tuple[list[int], list[int]]:
    """Operations, and versions."""
    operations: list[int] = []
    versions: list[int] = []
    for one in places:
        (operations if one < PLACES else versions).append(one)
    return operations, versions
