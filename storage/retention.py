"""Retention policies: which traces are kept how long, their skeleton and their content apart.

A policy matches spans. A trace is kept as the first policy says that matches any of its spans, or else as the default
says. Every policy has a class: the number under which the rows of its spans are stored, which it keeps when it is
changed and nobody gets after it. Pure; what it comes to in SQL is retention_sql.py's.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from storage.match import TEXT_BYTES_MAX, Match
from storage.match import parsed as parsed_match
from storage.rules import BadRules, only

UNKNOWN, DEFAULT, PINNED, FIRST = 0, 1, 2, 16
"""Classes: of rows from before there were policies, of the default, of what is kept because somebody pinned it, and the
least one of a policy; others are free."""
POLICIES_MAX = 64
DAYS_MAX = 36_500
THIN_KEEP_MIN = 0.001
CLASS_MAX = (1 << 14) - 1
THINNED, DROPPED = 1 << 15, 1 << 14
"""Bits beside a class: of traces that stand for others, since those went; and of those others."""
_KEEP_KEYS = ("skeleton_days", "content_days", "expire_early", "thin_after_days", "thin_keep")
_POLICY_KEYS = ("name", "match", *_KEEP_KEYS)


@dataclass(frozen=True, slots=True)
class Keep:
    """How many whole days after its own a day is kept: what spans are, and what they carry.

    `expire_early`: it may go before that when the disk is full. From `thin_after_days` on, if that is not 0, the part
    `thin_keep` of its traces stays, and stands for all of them.
    """

    skeleton_days: int = 30
    content_days: int = 7
    expire_early: bool = False
    thin_after_days: int = 0
    thin_keep: float = 1.0

    def full_days(self, days: int) -> float:
        """So many days take as much as this many of which nothing is thinned."""
        thinned = days - min(days, self.thin_after_days or days)
        return days - thinned * (1 - self.thin_keep)

    def json(self) -> dict[str, Any]:
        """As in a file."""
        keys = _KEEP_KEYS if self.thin_after_days else _KEEP_KEYS[:-2]
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept how long. `class_` is UNKNOWN until the store has given one."""

    name: str
    match: Match
    keep: Keep
    class_: int = UNKNOWN


class Due(NamedTuple):
    """Classes of a day that are kept no longer: their spans, and what these carry; and those that are thinned."""

    spans: frozenset[int]
    content: frozenset[int]
    thin: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Policies:
    """A version of them. `retired` were in earlier ones: their rows are kept as those said.

    `since_unix_nano`: segments begun before it load by the version before. 0 is what a new store begins with.
    """

    policies: tuple[Policy, ...] = ()
    default: Keep = Keep()
    retired: tuple[Policy, ...] = ()
    version: int = 0
    since_unix_nano: int = 0
    changed_by: str = ""
    comment: str = ""
    paused: bool = False
    """Nothing expires until a version says otherwise."""

    def keep(self, class_: int) -> Keep:
        """How long rows of a class are kept."""
        plain = class_ & CLASS_MAX
        return next((p.keep for p in (*self.policies, *self.retired) if p.class_ == plain), self.default)

    def name(self, class_: int) -> str:
        """What the policy of a class is called."""
        return next((p.name for p in (*self.policies, *self.retired) if p.class_ == class_ & CLASS_MAX), "default")

    @property
    def plain(self) -> tuple[int, ...]:
        """The classes that a load gives, the one that wins first."""
        return (*(p.class_ for p in self.policies), DEFAULT)

    @property
    def order(self) -> tuple[int, ...]:
        """The classes that a row may have, the one that wins first."""
        return tuple(class_ | thinned for class_ in self.plain for thinned in (0, THINNED))

    @property
    def matching(self) -> tuple[tuple[int, Match], ...]:
        """What decides on the class of a span."""
        return tuple((policy.class_, policy.match) for policy in self.policies)

    def due(self, day: date, now_unix_s: float, classes: Iterable[int]) -> "Due":
        """Which of these classes are kept no longer of a day."""
        age_days = (datetime.fromtimestamp(now_unix_s, UTC).date() - day).days - 1
        ruled = [(class_, self.keep(class_)) for class_ in sorted(set(classes)) if class_ & CLASS_MAX != PINNED]
        spans = frozenset(class_ for class_, keep in ruled if age_days >= keep.skeleton_days)
        thin = {class_ for class_, keep in ruled if 0 < keep.thin_after_days <= age_days and not class_ & THINNED}
        return Due(
            spans,
            frozenset(class_ for class_, keep in ruled if age_days >= keep.content_days),
            frozenset(thin - spans),
        )

    def json(self) -> dict[str, Any]:
        """As `parsed` takes it, with what the store knows of it."""
        return {
            "version": self.version,
            "since_unix_nano": self.since_unix_nano,
            "changed_by": self.changed_by,
            "comment": self.comment,
            "paused": self.paused,
            "default": self.default.json(),
            "policies": [_policy_json(policy) for policy in self.policies],
            "retired": [_policy_json(policy) for policy in self.retired],
        }

    def succeeded_by(self, wanted: "Policies") -> "Policies":
        """`wanted` as the next version: a policy of the same name keeps its class, a new one gets one of its own."""
        known = {policy.name: policy.class_ for policy in (*self.retired, *self.policies)}
        free = max([FIRST - 1, *known.values()]) + 1
        policies = []
        for policy in wanted.policies:
            class_ = known.get(policy.name)
            if class_ is None:
                class_, free = free, free + 1
            policies.append(replace(policy, class_=class_))
        if free > CLASS_MAX:
            raise BadRules(
                f"cannot add another policy: all {CLASS_MAX + 1 - FIRST} classes were used; give a policy an old name"
            )
        names = {policy.name for policy in policies}
        retired = tuple(p for p in (*self.policies, *self.retired) if p.name not in names)
        return replace(wanted, policies=tuple(policies), retired=retired, version=self.version + 1)


def from_toml(text: str) -> Policies:
    """Policies of a file. Raises BadRules."""
    try:
        return parsed(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadRules(f"cannot read the policies: {error}") from error


def parsed(document: Mapping[str, Any]) -> Policies:
    """Policies as in a file or a body: `policies` (in TOML `[[policies]]`) and `default`. Raises BadRules."""
    only(document, ("policies", "default"), "the policies")
    given = document.get("policies", [])
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise BadRules("cannot use `policies`: it has to be a list, in TOML [[policies]]")
    if len(given) > POLICIES_MAX:
        raise BadRules(f"cannot use {len(given)} policies: {POLICIES_MAX} are the most")
    policies = tuple(_policy(one, i) for i, one in enumerate(given))
    names = [policy.name for policy in policies]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRules(f"cannot use two policies of one name: {twice!r}")
    default = document.get("default", {})
    if not isinstance(default, Mapping):
        raise BadRules("cannot use `default`: it has to hold skeleton_days and content_days")
    only(default, _KEEP_KEYS, "the default")
    return Policies(policies, _keep(default, Keep(), "the default"))


def stored(document: Mapping[str, Any]) -> Policies:
    """What `Policies.json` gave."""

    def policy(one: Mapping[str, Any]) -> Policy:
        plain = {key: value for key, value in one.items() if key != "class"}
        return replace(_policy(plain, 0), class_=one["class"])

    return Policies(
        tuple(map(policy, document["policies"])),
        Keep(**document["default"]),
        tuple(map(policy, document["retired"])),
        document["version"],
        document["since_unix_nano"],
        document["changed_by"],
        document["comment"],
        document["paused"],
    )


def _policy(one: Any, index: int) -> Policy:
    where = f"policy {index + 1}"
    if not isinstance(one, Mapping):
        raise BadRules(f"cannot use {where}: it has to be a table with name, match, skeleton_days and content_days")
    name = one.get("name")
    if not isinstance(name, str) or not name.strip() or len(name.encode()) > TEXT_BYTES_MAX:
        raise BadRules(f"cannot use {where}: it needs a name of 1 to {TEXT_BYTES_MAX} bytes")
    if name == "default":
        raise BadRules("cannot call a policy 'default': write [default] for what no policy matches")
    where = f"policy {name!r}"
    only(one, _POLICY_KEYS, where)
    return Policy(name, parsed_match(one.get("match", {}), where), _keep(one, None, where))


def _keep(one: Mapping[str, Any], default: Keep | None, where: str) -> Keep:
    days: dict[str, int] = {}
    for key in ("skeleton_days", "content_days"):
        value = one.get(key, getattr(default, key, None))
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= DAYS_MAX:
            raise BadRules(f"cannot use {where}: {key} is {value!r}; write whole days from 1 to {DAYS_MAX}")
        days[key] = value
    early = one.get("expire_early", False)
    if not isinstance(early, bool):
        raise BadRules(f"cannot use {where}: expire_early is {early!r}; write true or false")
    keep = Keep(**days, expire_early=early, **_thinning(one, days["skeleton_days"], where))
    if keep.content_days > keep.skeleton_days:
        raise BadRules(
            f"cannot use {where}: content for {keep.content_days} days without its skeleton, which is kept for "
            f"{keep.skeleton_days}; content_days has to be skeleton_days at most"
        )
    return keep


def _thinning(one: Mapping[str, Any], skeleton_days: int, where: str) -> dict[str, Any]:
    after, share = one.get("thin_after_days"), one.get("thin_keep")
    if after is None and share is None:
        return {}
    if not isinstance(after, int) or isinstance(after, bool) or not 1 <= after < skeleton_days:
        raise BadRules(
            f"cannot use {where}: thin_after_days is {after!r}; write whole days from 1 to {skeleton_days - 1}, before "
            "the skeletons go"
        )
    if not isinstance(share, int | float) or isinstance(share, bool) or not THIN_KEEP_MIN <= share < 1:
        raise BadRules(f"cannot use {where}: thin_keep is {share!r}; write a share from {THIN_KEEP_MIN} to below 1")
    return {"thin_after_days": after, "thin_keep": float(share)}


def _policy_json(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "match": policy.match.json(),
        **policy.keep.json(),
        "class": policy.class_,
    }
