"""Sampling: of which traces all are kept, and of which a share. Pure; what it comes to in SQL is sampling_sql.py's.

A rule asks something of a trace; the first one that is met says the share of such traces that is kept, and the default
says it of all others. Which ones these are, follows from their ids, so that all collectors keep the same. A trace that
is kept weighs 1 ÷ share: so many as this one came.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from storage.match import TEXT_BYTES_MAX, Match
from storage.match import parsed as parsed_match
from storage.rules import BadRules, only

RULES_MAX = 48
"""They are bits of a number."""
WAIT_S_MAX = 600.0
KEEP_MIN = 0.0001
COUNT_MAX = 1_000_000
TRACE_MS_MAX = 1e12
DEFAULT, BUDGET = "default", "budget"
"""What decided if no rule did: these are no names of rules."""
ORDINARY_NANO_MAX = 10_000_000_000
"""A trace that lasts so long is no ordinary one."""
_SEED = 0x5350414E
_RULE_KEYS = ("name", "match", "min_trace_ms", "rare_below", "first_traces", "keep")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a trace has to be, all of it, and the share of such traces that is kept.

    `match` is of any of its spans. `rare_below`: it names an operation of a service that fewer traces named since
    yesterday; `first_traces`: the same of a version of a service, model or agent.
    """

    name: str
    keep: float
    match: Match | None = None
    min_trace_ms: float | None = None
    rare_below: int | None = None
    first_traces: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """A version of them. `wait_s`: a trace is decided so long after the log was synced that has its first spans."""

    rules: tuple[Rule, ...] = ()
    keep: float = 1.0
    wait_s: float = 30.0
    version: int = 0
    since_unix_nano: int = 0
    changed_by: str = ""
    comment: str = ""

    @property
    def any(self) -> bool:
        """Whether anything is left out by them."""
        return self.keep < 1 or any(rule.keep < 1 for rule in self.rules)

    @property
    def counts_places(self) -> bool:
        """Whether it counts which operations and versions there were."""
        return any(rule.rare_below is not None or rule.first_traces is not None for rule in self.rules)

    def json(self) -> dict[str, Any]:
        """As `parsed` takes it, with what the store knows of it."""
        return {
            "version": self.version,
            "since_unix_nano": self.since_unix_nano,
            "changed_by": self.changed_by,
            "comment": self.comment,
            "wait_s": self.wait_s,
            "rules": [dict(_rule_json(rule)) for rule in self.rules],
            "default": {"keep": self.keep},
        }


@dataclass(slots=True)
class Surveyed:
    """What is known of a trace when it is decided. `matched` has bit n where a span matches rule n.

    `notable`: a span of it failed, or it is assessed or pinned.
    """

    matched: int
    notable: bool
    duration_nano: int
    operations: Sequence[int] = field(default=())
    versions: Sequence[int] = field(default=())


class Decision(NamedTuple):
    """What becomes of a trace: its weight, 0 if it is left out, and the rule that said so."""

    weight: float
    rule: str


def decide(
    rules: Rules, trace_id: bytes, trace: Surveyed, seen: Callable[[int], int], ordinary_keep: float | None = None
) -> Decision:
    """What becomes of a trace. `seen` says how many traces named a place since yesterday.

    `ordinary_keep` is the most that is kept of ordinary traces of its tenant: those that are not notable, not long, and
    that no rule keeps all of.
    """
    met = next((rule for n, rule in enumerate(rules.rules) if _met(rule, n, trace, seen)), None)
    share, name = (met.keep, met.name) if met else (rules.keep, DEFAULT)
    ordinary = not trace.notable and trace.duration_nano < ORDINARY_NANO_MAX and not (met and met.keep >= 1)
    if ordinary_keep is not None and ordinary and ordinary_keep < share:
        share, name = ordinary_keep, BUDGET
    return Decision(1 / share if place(trace_id) < share else 0.0, name)


def place(trace_id: bytes) -> float:
    """Where between 0 and 1 an id lies: evenly, whoever made it, and not as the shards have it."""
    return float(xxh3_64_intdigest(trace_id, _SEED) / 2.0**64)


def _met(rule: Rule, number: int, trace: Surveyed, seen: Callable[[int], int]) -> bool:
    if rule.match is not None and not trace.matched >> number & 1:
        return False
    if rule.min_trace_ms is not None and trace.duration_nano < rule.min_trace_ms * 1e6:
        return False
    if rule.rare_below is not None and not any(seen(one) < rule.rare_below for one in trace.operations):
        return False
    return rule.first_traces is None or any(seen(one) <= rule.first_traces for one in trace.versions)


# What is written


def from_toml(text: str) -> Rules:
    """Rules of a file. Raises BadRules."""
    try:
        return parsed(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadRules(f"cannot read the rules: {error}") from error


def parsed(document: Mapping[str, Any]) -> Rules:
    """Rules as in a file or a body: `wait_s`, `rules` (in TOML `[[rules]]`) and `default`. Raises BadRules."""
    only(document, ("wait_s", "rules", "default"), "the sampling rules")
    given = document.get("rules", [])
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise BadRules("cannot use `rules`: it has to be a list, in TOML [[rules]]")
    if len(given) > RULES_MAX:
        raise BadRules(f"cannot use {len(given)} rules: {RULES_MAX} are the most")
    rules = tuple(_rule(one, i) for i, one in enumerate(given))
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRules(f"cannot use two rules of one name: {twice!r}")
    default = document.get("default", {})
    if not isinstance(default, Mapping):
        raise BadRules("cannot use `default`: it has to hold keep")
    only(default, ("keep",), "the default")
    wait_s = _number(document.get("wait_s", 30), "wait_s", 1, WAIT_S_MAX, "the sampling rules")
    return Rules(rules, _keep(default.get("keep", 1), "the default"), wait_s)


def stored(document: Mapping[str, Any]) -> Rules:
    """What `Rules.json` gave."""
    said = Rules(
        tuple(_rule(one, i) for i, one in enumerate(document["rules"])),
        document["default"]["keep"],
        document["wait_s"],
        document["version"],
        document["since_unix_nano"],
        document["changed_by"],
        document["comment"],
    )
    return said


def _rule(one: Any, index: int) -> Rule:
    where = f"rule {index + 1}"
    if not isinstance(one, Mapping):
        raise BadRules(f"cannot use {where}: it has to be a table with name, match and keep")
    name = one.get("name")
    if not isinstance(name, str) or not name.strip() or len(name.encode()) > TEXT_BYTES_MAX:
        raise BadRules(f"cannot use {where}: it needs a name of 1 to {TEXT_BYTES_MAX} bytes")
    if name in {DEFAULT, BUDGET}:
        raise BadRules(f"cannot call a rule {name!r}: that is what decides where no rule does")
    where = f"rule {name!r}"
    only(one, _RULE_KEYS, where)
    if "keep" not in one:
        raise BadRules(f"cannot use {where}: it needs keep, the share of its traces that is kept")
    match = parsed_match(one["match"], where) if "match" in one else None
    return Rule(
        name,
        _keep(one["keep"], where),
        match,
        _number(one["min_trace_ms"], "min_trace_ms", 0, TRACE_MS_MAX, where) if "min_trace_ms" in one else None,
        _count(one, "rare_below", where),
        _count(one, "first_traces", where),
    )


def _keep(value: Any, where: str) -> float:
    share = _number(value, "keep", 0, 1, where)
    if 0 < share < KEEP_MIN:
        raise BadRules(f"cannot use {where}: keep is {value!r}; {KEEP_MIN} is the least beside 0")
    return share


def _count(one: Mapping[str, Any], key: str, where: str) -> int | None:
    value = one.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= COUNT_MAX):
        raise BadRules(f"cannot use {where}: {key} is {value!r}; write a number of traces from 1 to {COUNT_MAX}")
    return value


def _number(value: Any, key: str, least: float, most: float, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise BadRules(f"cannot use {where}: {key} is {value!r}; write a number from {least:g} to {most:g}")
    return float(value)


def _rule_json(rule: Rule) -> Iterator[tuple[str, Any]]:
    yield "name", rule.name
    if rule.match is not None:
        yield "match", rule.match.json()
    for key in ("min_trace_ms", "rare_below", "first_traces"):
        if (value := getattr(rule, key)) is not None:
            yield key, value
    yield "keep", rule.keep
