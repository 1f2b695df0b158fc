"""Thinning of old traces: after some days a share stays, whole, and stands for all of them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from settling_house import SECOND, START, House, call, eventually, request, span, trace_id
from store import expiry_of

from storage.assessments import Assessment
from storage.expiry_day import Changes, partitions
from storage.pins import Pin, Pins
from storage.policies import RetentionPolicies
from storage.retention import THINNED, from_toml, stored
from storage.rules import BadRules

DAY_S = 86_400
POLICIES = """
[[policies]]
name = "errors"
match = { status = "error" }
skeleton_days = 30
content_days = 30

[[policies]]
name = "gold"
match = { attributes = { "user.tier" = "gold" } }
skeleton_days = 20
content_days = 20
thin_after_days = 5
thin_keep = 0.5

[default]
skeleton_days = 20
content_days = 10
thin_after_days = 3
thin_keep = 0.25
"""
ERRORS, PINNED, ASSESSED, GOLD = range(1, 21), 21, 22, range(23, 63)
PLAIN = range(63, 463)
PROMPT = "why? " * 50


class Site:
    """A store of traces of one day, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.house = House(directory)
        self.engine = self.house.engine
        self.policies = RetentionPolicies(self.engine, self.house.store.vocabulary)
        self.policies.put(from_toml(POLICIES), "a test", "")
        self.house._load = self.policies.refreshed(self.house.settler.watched(self.engine.load))
        self.house.start()
        self.age_days = 0.0
        self.expiry = expiry_of(
            self.engine, self.policies, Pins(self.engine), lambda: START / SECOND + DAY_S * (self.age_days + 1)
        )

    def send(self, numbers: Any, first: int = 1, **said: Any) -> None:
        """Traces of two spans each."""
        said |= {"gen_ai__input__messages": PROMPT, "session__id": "s"}
        spans = [call(n, first, **said) for n in numbers] + [span(n, first + 1, first, **said) for n in numbers]
        self.house.load(request(*spans))

    def kept(self) -> dict[int, tuple[int, float]]:
        """Stored traces: spans, and their one weight."""
        rows = self.engine.rows("SELECT TraceId, count(), groupUniqArray(Weight) FROM spanhouse.spans GROUP BY TraceId")
        assert all(len(weights) == 1 for _, _, weights in rows), rows
        return {int.from_bytes(trace, "big"): (count, weight) for trace, count, (weight,) in rows}

    def contents(self) -> dict[int, int]:
        rows = self.engine.rows("SELECT TraceId, count() FROM spanhouse.content GROUP BY TraceId")
        return {int.from_bytes(trace, "big"): count for trace, count in rows}

    def settled(self) -> None:
        """Wait until its session has, by its links, as many traces as the stored ones stand for."""
        expected = {n: weight for n, (_, weight) in self.kept().items()}
        rows = "SELECT TraceId, Weight FROM spanhouse.links FINAL WHERE Entity = 'session' AND Deleted = 0"
        eventually(lambda: {int.from_bytes(id_, "big"): w for id_, w in self.engine.rows(rows)} == expected)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("thinning"))
    yield made
    made.house.close()


def test_policies_that_thin_are_read_and_written_back() -> None:
    policies = from_toml("").succeeded_by(from_toml(POLICIES))
    assert stored(policies.json()) == policies
    assert (policies.default.thin_after_days, policies.default.thin_keep) == (3, 0.25)
    assert "thin_keep" not in policies.json()["policies"][0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("thin_keep = 0.1", "thin_after_days is None; write whole days from 1 to 29"),
        ("thin_after_days = 30\nthin_keep = 0.1", "thin_after_days is 30"),
        ("thin_after_days = 3", "thin_keep is None; write a share from 0.001"),
        ("thin_after_days = 3\nthin_keep = 1", "thin_keep is 1"),
        ("expire_early = 1", "expire_early is 1; write true or false"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(BadRules, match=reason):
        from_toml(f"[default]\n{text}")


def test_a_share_stays_and_stands_for_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.send(ERRORS, failed=True)
    site.send([PINNED, ASSESSED])
    site.send(GOLD, user__tier="gold")
    site.send(PLAIN)
    Pins(site.engine).put("default", Pin("trace", trace_id(PINNED).hex()))
    site.house.assessments.put("default", [Assessment(trace_id(ASSESSED), "right", True, "human")])
    everything = dict.fromkeys(range(1, 463), (2, 1.0))
    site.settled()
    site.age_days = 2
    site.expiry.run()
    assert site.kept() == everything

    site.age_days = 4  # the default is thinned; once the program ends before a statement, at each of them
    drop, drops = Changes.drop, 0

    def dropping(self: Changes, table: str, partition: str) -> None:
        nonlocal drops
        drops += 1
        if drops == 1:
            raise KeyboardInterrupt
        drop(self, table, partition)

    monkeypatch.setattr(Changes, "drop", dropping)
    with pytest.raises(KeyboardInterrupt):
        site.expiry.run()
    site.expiry.run()
    assert drops > 1
    kept = site.kept()
    whole = {*ERRORS, PINNED, ASSESSED, *GOLD}
    assert {n: kept[n] for n in whole} == dict.fromkeys(whole, (2, 1.0))
    plain = {n: one for n, one in kept.items() if n in PLAIN}
    assert set(plain.values()) == {(2, 4.0)}
    assert 60 < len(plain) < 140
    assert site.contents() == dict.fromkeys(kept, 2)
    default = f"{time.strftime('%Y%m%d', time.gmtime(START / SECOND))}-1"
    assert default not in partitions(site.engine, "spans") + partitions(site.engine, "content")
    site.settled()

    moved = site.expiry.progress().rows_moved
    site.expiry.run()
    assert (site.kept(), site.expiry.progress().rows_moved) == (kept, moved)


def test_late_spans_follow_their_trace(site: Site) -> None:
    before = site.kept()
    gone = [n for n in PLAIN if n not in before][:5]
    stayed = [n for n in PLAIN if n in before][:5]
    site.send([*gone, *stayed], first=11)
    site.expiry.run()
    assert site.kept() == before | dict.fromkeys(stayed, (4, 4.0))
    site.settled()


def test_what_is_thinned_is_not_thinned_again_by_another_policy(site: Site) -> None:
    """A new policy matches all that is left: what stands for others already stays, the rest is thinned."""
    before = site.kept()
    everything = '[[policies]]\nname = "all"\nmatch = { session = "s" }\nskeleton_days = 15\ncontent_days = 15\n'
    site.policies.put(from_toml(everything + "thin_after_days = 1\nthin_keep = 0.5\n"), "a test", "")
    site.expiry.run()
    kept = site.kept()
    assert {n: one for n, one in kept.items() if n in PLAIN} == {n: one for n, one in before.items() if n in PLAIN}
    assert kept[PINNED] == kept[ASSESSED] == (2, 1.0)
    rest = {n: one for n, one in kept.items() if n in {*ERRORS, *GOLD}}
    assert set(rest.values()) == {(2, 2.0)} and 15 < len(rest) < 45
    assert all(int(p.split("-")[1]) & THINNED or p.endswith("-2") for p in partitions(site.engine, "spans"))
    site.settled()
    site.age_days = 17
    for pin in Pins(site.engine).of("default"):
        Pins(site.engine).remove("default", pin.entity, pin.id, pin.version)
    site.expiry.run()
    assert site.kept() == {}
    assert partitions(site.engine, "spans") == partitions(site.engine, "content") == []
