"""Retention: policies as they are written, the classes that loads give, and a month that passes in a minute."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from store import Store, expiry_of

from storage.expiry_day import partitions
from storage.pins import Pin, Pins
from storage.policies import RetentionPolicies, VersionConflict
from storage.retention import Keep, from_toml, parsed, stored
from storage.rules import BadRules
from storage.vocabulary import load

DAY_S = 86_400
FIRST_DAY = date(2026, 3, 1)
MONTH_DAYS = int(os.environ.get("SPANHOUSE_TEST_MONTH_DAYS", "12"))
"""A whole month takes some minutes, a quarter of an hour on a busy machine: SPANHOUSE_TEST_MONTH_DAYS=31."""
POLICIES = """
[[policies]]
name = "errors"
match = { status = "error" }
skeleton_days = 20
content_days = 10

[[policies]]
name = "slow in production"
match = { environment = "prod*", min_duration_ms = 5000 }
skeleton_days = 14
content_days = 14

[[policies]]
name = "crawler"
match = { tenant = ["red", "blue"], service = "crawl*" }
skeleton_days = 2
content_days = 1

[[policies]]
name = "planner"
match = { agent = "planner", operation = "agent" }
skeleton_days = 10
content_days = 2

[[policies]]
name = "gold"
match = { attributes = { "user.tier" = ["gold", "7"] } }
skeleton_days = 20
content_days = 5

[[policies]]
name = "small model"
match = { model = "gpt-*-mini" }
skeleton_days = 5
content_days = 5

[default]
skeleton_days = 7
content_days = 2
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("store"))
    yield made
    made.close()


# --- what is written ---


def test_policies_are_read_and_written_back() -> None:
    policies = from_toml(POLICIES)
    assert [p.name for p in policies.policies][:2] == ["errors", "slow in production"]
    assert policies.default == Keep(7, 2)
    first = from_toml("").succeeded_by(policies)
    assert stored(first.json()) == first
    assert [p.class_ for p in first.policies] == list(range(16, 22))
    again = first.succeeded_by(from_toml(POLICIES.replace("crawler", "spider")))
    assert {p.name: p.class_ for p in again.policies}["spider"] == 22
    assert [(p.name, p.class_) for p in again.retired] == [("crawler", 18)]
    assert again.keep(18) == Keep(2, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[policies]]\nskeleton_days = 1", "policy 1: it needs a name"),
        ("[[policies]]\nname = 'a'\nskeleton_days = 1", "content_days is None"),
        ("[[policies]]\nname = 'a'\nskeleton_days = 1\ncontent_days = 2", "content for 2 days without its skeleton"),
        ("[[policies]]\nname = 'a'\nskeleton_days = 0\ncontent_days = 0", "whole days from 1"),
        ("[[policies]]\nname = 'a'\nskeleton_days = true\ncontent_days = 1", "skeleton_days is True"),
        ("[[policies]]\nname = 'default'\nskeleton_days = 1\ncontent_days = 1", r"write \[default\]"),
        ("[[policies]]\nname = 'a'\nskeleton_days = 1\ncontent_days = 1\n" * 2, "two policies of one name: 'a'"),
        ("[[policies]]\nname = 'a'\nmatch = {colour = 'x'}", "'colour' in the match of policy 'a'"),
        ("[[policies]]\nname = 'a'\nmatch = {status = 'bad'}", "status 'bad' is none of unset, ok, error"),
        ("[[policies]]\nname = 'a'\nmatch = {service = []}", "a list of 1 to 100 texts"),
        ("[[policies]]\nname = 'a'\nmatch = {service = [{}]}", "is no text"),
        ("[[policies]]\nname = 'a'\nmatch = {min_duration_ms = 'x'}", "min_duration_ms is 'x'"),
        ("[default]\nskeleton_days = 3\nhours = 2", "'hours' in the default"),
        ("policies = 3", "it has to be a list"),
        ("x =", "cannot read the policies"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(BadRules, match=reason):
        from_toml(text)


def test_too_many_policies_are_refused() -> None:
    one = {"name": "a", "skeleton_days": 1, "content_days": 1}
    with pytest.raises(BadRules, match="65 policies: 64"):
        parsed({"policies": [{**one, "name": str(n)} for n in range(65)]})


def test_versions_follow_each_other(store: Store) -> None:
    policies = RetentionPolicies(store.engine, load())
    first = policies.current
    assert (first.version, first.default, first.policies) == (1, Keep(30, 7), ())
    second = policies.put(from_toml(POLICIES), "ann", "a month", expected=1)
    assert (second.version, second.changed_by, second.comment) == (2, "ann", "a month")
    with pytest.raises(VersionConflict, match=r"cannot replace version 1 .* version 2 by 'ann' is newer"):
        policies.put(from_toml(""), "bob", "", expected=1)
    with pytest.raises(BadRules, match=r"'input\.value' of policy 'a': it is content"):
        policies.put(from_toml(
            "[[policies]]\nname='a'\nmatch={attributes={'input.value'='x'}}\nskeleton_days=1\ncontent_days=1"
        ), "bob", "")  # fmt: skip
    assert [v.version for v in RetentionPolicies(store.engine, load()).versions(10)] == [2, 1]
    assert RetentionPolicies(store.engine, load()).current == second


# --- a month ---


@dataclass(frozen=True)
class Sent:
    """A span of the month, and what the rules look at."""

    tenant: str
    trace: int
    number: int
    start: datetime
    service: str
    environment: str
    duration_ms: int
    error: bool
    agent: str
    model: str
    tier: str | int
    prompt: str

    def otlp(self):
        start = int(self.start.timestamp()) * 1_000_000_000
        attributes = [attribute("gen_ai.input.messages", AnyValue(string_value=self.prompt))]
        if self.agent:
            attributes += [
                attribute("gen_ai.operation.name", AnyValue(string_value="invoke_agent")),
                attribute("gen_ai.agent.name", AnyValue(string_value=self.agent)),
            ]
        if self.model:
            attributes.append(attribute("gen_ai.response.model", AnyValue(string_value=self.model)))
        if self.tier:
            value = AnyValue(int_value=self.tier) if isinstance(self.tier, int) else AnyValue(string_value=self.tier)
            attributes.append(attribute("user.tier", value))
        return span(
            self.number, trace_id=self.trace.to_bytes(16, "big"), attributes=attributes,
            status={"code": 2} if self.error else {}, start_time_unix_nano=start,
            end_time_unix_nano=start + self.duration_ms * 1_000_000,
        )  # fmt: skip


RULES: dict[str, Callable[[Sent], bool]] = {
    "errors": lambda s: s.error,
    "slow in production": lambda s: s.environment.startswith("prod") and s.duration_ms >= 5000,
    "crawler": lambda s: s.tenant in ("red", "blue") and s.service.startswith("crawl"),
    "planner": lambda s: s.agent == "planner",
    "gold": lambda s: s.tier in ("gold", 7),
    "small model": lambda s: s.model.startswith("gpt-") and s.model.endswith("-mini"),
}


class Model:
    """The rules in plain Python: `rules` in their order, `days` of skeleton and content by name, and what is pinned.

    Of a trace that goes on over midnight, what goes leaves its rule to the rest: `inherited`.
    """

    def __init__(self) -> None:
        self.rules = dict(RULES)
        self.days = {"errors": (20, 10), "slow in production": (14, 14), "crawler": (2, 1), "planner": (10, 2),
                     "gold": (20, 5), "small model": (5, 5), "default": (7, 2)}  # fmt: skip
        self.pinned: set[int] = set()
        self.inherited: dict[tuple[int, date], set[str]] = {}
        self.spans: list[Sent] = []
        self.content: list[Sent] = []

    def expire(self, fresh: list[Sent], now: datetime) -> None:
        """What was sent comes in, and what is due goes: what went does not come back when it would be kept longer."""
        self.spans, self.content = self.spans + fresh, self.content + fresh
        parts: dict[tuple[int, date], list[Sent]] = {}
        for one in self.spans:
            parts.setdefault((one.trace, one.start.date()), []).append(one)
        rules = {part: self.rule(part, parts) for part in parts}
        self.content = [one for one in self.content if not self.due(one, rules, 1, now)]
        left = [one for one in self.spans if not self.due(one, rules, 0, now)]
        for trace, day in parts.keys() - {(one.trace, one.start.date()) for one in left}:
            for beside in (day - timedelta(days=1), day + timedelta(days=1)):
                self.inherited.setdefault((trace, beside), set()).add(rules[trace, day])
        self.spans = left

    def rule(self, part: tuple[int, date], parts: dict[tuple[int, date], list[Sent]]) -> str:
        """Which rule counts for what there is of a trace on a day."""
        trace, day = part
        near = [one for days in (-1, 0, 1) for one in parts.get((trace, day + timedelta(days=days)), [])]
        said = self.inherited.get(part, set())
        return next((name for name, holds in self.rules.items() if any(map(holds, near)) or name in said), "default")

    def due(self, one: Sent, rules: dict[tuple[int, date], str], kept: int, now: datetime) -> bool:
        """Whether the skeleton (`kept` is 0) or the content (1) of a span is."""
        day = one.start.date()
        midnight = datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC)
        until = midnight + timedelta(days=self.days[rules[one.trace, day]][kept])
        return one.trace not in self.pinned and now >= until


def traces_of(chance: random.Random, day: date, first: int) -> list[Sent]:
    """Some traces that begin on a day; some go on after midnight."""
    sent = []
    for trace in range(first, first + 25):
        tenant = chance.choice(["red", "green", "blue"])
        at = datetime.combine(day, datetime.min.time(), UTC) + timedelta(seconds=chance.randrange(DAY_S - 1))
        for number in range(1, chance.randrange(2, 6)):
            sent.append(Sent(
                tenant, trace, number, at, chance.choice([f"svc{n}" for n in range(8)] + ["crawler", "crawl-2"]),
                chance.choice(["prod-eu", "staging", ""]), chance.choice([3, 400, 5000, 70_000]),
                chance.random() < 0.05,
                chance.choice(["", "", "planner", "writer"]), chance.choice(["", "", "gpt-4o", "gpt-4o-mini"]),
                chance.choice(["", "", "", "gold", "silver", 7]), "why? " * chance.randrange(1, 200),
            ))  # fmt: skip
            at += timedelta(seconds=chance.choice([1, 60, 1800]))
    return sent


def load_day(store: Store, sent: list[Sent], chance: random.Random) -> None:
    """In two segments, so that spans of a trace arrive apart."""
    segments: list[list[Sent]] = [[], []]
    for one in sent:
        chance.choice(segments).append(one)
    for segment in segments:
        requests = []
        for one in segment:
            message = request(one.otlp(), service=one.service)
            if one.environment:
                value = AnyValue(string_value=one.environment)
                message.resource_spans[0].resource.attributes.append(attribute("deployment.environment.name", value))
            requests.append((one.tenant, message))
        store.load_of_tenants(requests, received=int(segment[0].start.timestamp()) * 1_000_000_000)


def change_days(model: Model) -> str:
    """Two policies keep longer, or shorter."""
    model.days |= {"crawler": (5, 5), "default": (10, 1)}
    changed = POLICIES.replace("skeleton_days = 2\ncontent_days = 1", "skeleton_days = 5\ncontent_days = 5")
    return changed.replace("skeleton_days = 7\ncontent_days = 2", "skeleton_days = 10\ncontent_days = 1")


def change_matches(model: Model, policies: str) -> str:
    """One is taken out, one matches something else, and a new one comes first."""
    del model.rules["planner"]
    model.rules["crawler"] = lambda s: s.service == "crawl-2"
    model.rules = {"silver": lambda s: s.tier == "silver", **model.rules}
    model.days["silver"] = (2, 1)
    before, rest = policies.split('[[policies]]\nname = "planner"')
    silver = '[[policies]]\nname = "silver"\nmatch = { attributes = { "user.tier" = "silver" } }'
    changed = f"{silver}\nskeleton_days = 2\ncontent_days = 1\n{before}{rest[rest.index('[[policies]]') :]}"
    return changed.replace('tenant = ["red", "blue"], service = "crawl*"', 'service = "crawl-2"')


def compare(store: Store, spans: list[Sent], content: list[Sent], now: datetime) -> None:
    """What is stored of each day, against the model."""
    found = store.engine.rows("SELECT toString(Tenant), Day, count() FROM spanhouse.spans GROUP BY ALL")
    assert {(tenant, day): count for tenant, day, count in found} == Counter(
        (one.tenant, one.start.date()) for one in spans
    ), now
    found = store.engine.rows(
        "SELECT toString(Tenant), Day, count(), sum(arraySum(arrayMap(v -> length(v), mapValues(Content))))"
        " FROM spanhouse.content GROUP BY ALL"
    )
    sizes: Counter[tuple[str, date]] = Counter()
    for one in content:
        sizes[one.tenant, one.start.date()] += len(one.prompt)
    assert {(tenant, day): size for tenant, day, _, size in found} == sizes, now
    found = store.engine.rows("SELECT DISTINCT toString(Tenant), hex(TraceId) FROM spanhouse.traces")
    assert {(tenant, int(trace, 16)) for tenant, trace in found} == {(one.tenant, one.trace) for one in spans}, now


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_month_is_kept_as_the_rules_say(store: Store) -> None:
    """Three tenants, ten services, six policies; each day is compared. Of a month of 31 days, on the 12th some traces
    are pinned, and let go on the 24th; on the 16th two policies get other days; on the 20th others match something
    else.
    """
    pinned, longer, matches, unpinned = (day * MONTH_DAYS // 31 for day in (11, 15, 19, 23))
    model, text = Model(), POLICIES
    chance = random.Random(11)
    policies, pins = RetentionPolicies(store.engine, load()), Pins(store.engine)
    policies.put(from_toml(text), "ann", "")
    now = datetime.combine(FIRST_DAY, datetime.min.time(), UTC)
    expiry = expiry_of(store.engine, policies, pins, lambda: now.timestamp())  # noqa: PLW0108 (it moves)
    dropped = 0
    for number in range(MONTH_DAYS):
        if number == pinned:
            model.pinned = {one.trace for one in chance.sample(model.spans, 20)}
            for tenant, trace in {(one.tenant, one.trace) for one in model.spans if one.trace in model.pinned}:
                pins.put(tenant, Pin("trace", f"{trace:032x}"))
        if number == longer:
            text = change_days(model)
            policies.put(from_toml(text), "ann", "longer")
        if number == matches:
            text = change_matches(model, text)
            policies.put(from_toml(text), "ann", "other matches")
        if number == unpinned:
            model.pinned = set()
            for tenant in ("red", "green", "blue"):
                for pin in pins.of(tenant):
                    assert pins.remove(tenant, pin.entity, pin.id, pin.version)
        fresh = traces_of(chance, FIRST_DAY + timedelta(days=number), number * 1000 + 1)
        load_day(store, fresh, chance)
        now += timedelta(days=1, hours=1 if number == 0 else 0)
        dropped += len(expiry.run())
        model.expire(fresh, now)
        compare(store, model.spans, model.content, now)
    assert dropped > MONTH_DAYS
    assert expiry.run() == []
    assert expiry.progress().days == expiry.progress().days_done
    now += timedelta(days=40)
    expiry.run()
    for table in ("spans", "content", "traces"):
        assert partitions(store.engine, table) == []
