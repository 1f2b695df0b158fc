"""Retention plans on every footing: figures against a plain model of traces, and what of a store would go."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from otlp_building import logs, record
from settling_house import eventually
from store import Store, altered, expiry_of
from test_retention import FIRST_DAY, POLICIES, RULES, Sent, load_day, traces_of
from test_volumes import of_span

from storage import retention_plan
from storage.errors import QueryTimeout, QueryTooLarge
from storage.pins import Pin, Pins
from storage.policies import RetentionPolicies
from storage.retention import Policies, from_toml, parsed
from storage.retention_figures import Amount, Kept, Plan, total
from storage.retention_plan import Busy, RetentionPlans
from storage.rules import BadRules
from storage.vocabulary import load
from storage.volumes import Rows, Volumes

DAYS = 12
HOUR = timedelta(hours=1)
TODAY = FIRST_DAY + timedelta(days=DAYS)


class House:
    """A store with twelve days of traces, at noon of the day after."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)
        self.policies, self.pins = RetentionPolicies(self.store.engine, load()), Pins(self.store.engine)
        self.volumes = Volumes(self.store.engine)
        now = datetime.combine(TODAY, datetime.min.time(), UTC).timestamp() + 43_200
        self.expiry = expiry_of(self.store.engine, self.policies, self.pins, lambda: now)
        self.plans = RetentionPlans(
            self.store.engine, load(), self.policies, self.volumes, self.pins, lambda: now
        )  # fmt: skip
        chance = random.Random(5)
        self.sent: list[Sent] = []
        for number in range(DAYS):
            fresh = traces_of(chance, FIRST_DAY + timedelta(days=number), number * 1000 + 1)
            load_day(self.store, fresh, chance)
            self.sent += fresh

    def plan(self, wanted: Policies | None, days: int = 7) -> tuple[Plan, dict[str, tuple[Rows, Rows, Rows]]]:
        """A plan, and what the tables were while it was made."""

        def made() -> tuple[Plan, dict[str, tuple[Rows, Rows, Rows]]] | None:
            before = self.volumes.by_day()
            plan = self.plans.plan(wanted, days)
            return (plan, before) if self.volumes.by_day() == before else None

        found: tuple[Plan, dict[str, tuple[Rows, Rows, Rows]]] = eventually(made, 60)
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("store"))
    yield made
    made.store.close()


class Share(NamedTuple):
    """Of a day: traces, spans, and parts of its skeletons and of its content."""

    traces: int
    spans: int
    skeleton: float
    content: float


def shares(sent: list[Sent], day: date, named: Callable[[Sent, str], str], rules: list[str]) -> dict[str, Share]:
    """What there is of a day by a name that a span and the rule of its trace give."""
    midnight = datetime.combine(day, datetime.min.time(), UTC)
    near: dict[int, list[Sent]] = {}
    for one in sent:
        if midnight - HOUR <= one.start < midnight + timedelta(days=1) + HOUR:
            near.setdefault(one.trace, []).append(one)
    rule = {
        trace: next((name for name in rules if any(map(RULES[name], spans))), "default")
        for trace, spans in near.items()
    }
    of_day = [one for spans in near.values() for one in spans if one.start.date() == day]
    counts = {(one.trace, one.number): of_span(one.otlp()) for one in of_day}
    whole = sum(c.skeleton for c in counts.values()), sum(c.content for c in counts.values())
    found: dict[str, Share] = {}
    seen = set()
    for one in of_day:
        count, name = counts[one.trace, one.number], named(one, rule[one.trace])
        old = found.get(name, Share(0, 0, 0, 0))
        found[name] = Share(
            old.traces + ((name, one.trace) not in seen), old.spans + 1,
            old.skeleton + count.skeleton / whole[0], old.content + count.content / whole[1],
        )  # fmt: skip
        seen.add((name, one.trace))
    return found


def window(days: int) -> list[date]:
    return [TODAY - timedelta(days=n) for n in range(days, 0, -1)]


def expected(
    house: House, tables: dict[str, tuple[Rows, Rows, Rows]], days: int, content_days: int,
    named: Callable[[Sent, str], str], rules: list[str],
) -> dict[str, tuple[float, ...]]:  # fmt: skip
    """Traces, spans, bytes of skeletons and of content a day, by name; content from the last `content_days`."""
    sums: dict[str, list[float]] = {}
    for day in window(days):
        spans, content, _ = tables.get(str(day), (Rows(),) * 3)
        for name, share in shares(house.sent, day, named, rules).items():
            one = sums.setdefault(name, [0.0] * 4)
            one[0] += share.traces / days
            one[1] += share.spans / days
            one[2] += share.skeleton * spans.stored_bytes / days
            if day >= TODAY - timedelta(days=content_days):
                one[3] += share.content * content.stored_bytes / content_days
    return {name: tuple(one) for name, one in sums.items()}


def daily(kept: list[Kept]) -> dict[str, tuple[float, ...]]:
    return {
        one.name: (one.daily.traces, one.daily.spans, one.daily.skeleton, one.daily.content)
        for one in kept
        if one.daily.spans
    }


def compare(found: dict[str, tuple[float, ...]], wanted: dict[str, tuple[float, ...]]) -> None:
    assert found.keys() == wanted.keys()
    for name, figures in wanted.items():
        assert found[name] == pytest.approx(figures, rel=1e-6), name


def test_what_comes_a_day_and_in_steady_state(house: House) -> None:
    wanted = from_toml(POLICIES)
    plan, tables = house.plan(wanted)
    assert (plan.days, plan.partial, plan.traces_share, plan.content_share) == (window(7), False, 1, 1)
    compare(daily(plan.now.policies), expected(house, tables, 7, 7, lambda _, __: "default", list(RULES)))
    compare(daily(plan.then.policies), expected(house, tables, 7, 7, lambda _, rule: rule, list(RULES)))
    for one in plan.then.policies[:-1]:
        assert one.keep is not None
        assert one.steady.skeleton == pytest.approx(one.daily.skeleton * one.keep.skeleton_days)
        assert one.steady.content == pytest.approx(one.daily.content * one.keep.content_days)
    assert [one.name for one in plan.then.policies] == [*RULES, "default", "pinned"]
    assert house.policies.current.version == 1


def test_by_service_and_agent(house: House) -> None:
    plan, tables = house.plan(from_toml(POLICIES), days=3)

    def spans_and_bytes(kept: dict[str, Kept]) -> dict[str, tuple[float, ...]]:
        return {name: figures[1:] for name, figures in daily(list(kept.values())).items()}

    for kept, named in (
        (plan.then.services, lambda one, _: one.service),
        (plan.then.agents, lambda one, _: one.agent),
    ):
        wanted = expected(house, tables, 3, 3, named, list(RULES))
        compare(spans_and_bytes(kept), {name: figures[1:] for name, figures in wanted.items()})
        sums = sum(one.steady.skeleton for one in kept.values()), sum(one.steady.content for one in kept.values())
        assert sums == pytest.approx((plan.then.steady.skeleton, plan.then.steady.content))
    few = house.plans.plan(None, 3, 2)
    assert "…" in few.now.services
    assert len(few.now.services) == 3
    assert few.now.steady.skeleton == pytest.approx(plan.now.steady.skeleton, rel=0.05)


def test_what_would_go_at_once(house: House) -> None:
    """Of all days that are stored, not only of the last ones; nothing is changed."""
    wanted = from_toml(POLICIES)
    plan, tables = house.plan(wanted, days=2)
    skeleton, content = Counter[str](), Counter[str]()
    keeps = {policy.name: policy.keep for policy in wanted.policies} | {"default": wanted.default}
    for day in window(DAYS):
        age = (TODAY - day).days - 1
        spans, payload, _ = tables[str(day)]
        for name, share in shares(house.sent, day, lambda _, rule: rule, list(RULES)).items():
            skeleton[name] += share.skeleton * spans.stored_bytes * (age >= keeps[name].skeleton_days)
            content[name] += share.content * payload.stored_bytes * (age >= keeps[name].content_days)
    for one in plan.then.policies[:-1]:
        assert (one.goes.skeleton, one.goes.content) == pytest.approx((skeleton[one.name], content[one.name])), one.name
    assert skeleton["crawler"] > 0
    assert plan.now.goes.skeleton == 0
    assert plan.stored.skeleton == sum(spans.stored_bytes for spans, *_ in tables.values())
    assert house.expiry.progress().rows_removed == 0


def test_a_share_is_looked_at_where_there_is_much(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes are somebody's all the same."""
    whole, tables = house.plan(from_toml(POLICIES))
    monkeypatch.setattr(retention_plan, "SPANS_MAX", 20)
    monkeypatch.setattr(retention_plan, "OLD_SPANS_MAX", 20)
    monkeypatch.setattr(retention_plan, "CONTENT_BYTES_MAX", 7 * 4000)
    plan, tables = house.plan(from_toml(POLICIES))
    assert plan.traces_share <= 1 / 3
    assert plan.content_share < plan.traces_share
    days = [tables[str(day)] for day in window(7)]
    found = total(one.daily for one in plan.then.policies)
    assert found.skeleton == pytest.approx(sum(spans.stored_bytes for spans, *_ in days) / 7)
    assert found.content == pytest.approx(sum(content.stored_bytes for _, content, _ in days) / 7)
    exact = total(one.daily for one in whole.then.policies)
    assert (found.spans, found.traces) == pytest.approx((exact.spans, exact.traces), rel=0.5)


def test_old_days_stand_for_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = house.plan(from_toml(POLICIES), days=1)
    monkeypatch.setattr(retention_plan, "OLD_DAYS_MAX", 4)
    plan, _ = house.plan(from_toml(POLICIES), days=1)
    found, exact = plan.then.goes, whole.then.goes
    assert (found.skeleton, found.content) == pytest.approx((exact.skeleton, exact.content), rel=0.5)
    assert found != exact


def test_what_is_pinned_has_no_end(house: House) -> None:
    yesterday = TODAY - timedelta(days=1)
    [one, *_] = [each for each in house.sent if each.start.date() == yesterday and each.start.hour < 22]
    spans = sum(each.trace == one.trace for each in house.sent)
    before, _ = house.plan(None, days=1)
    house.pins.put(one.tenant, Pin("trace", f"{one.trace:032x}"))
    plan, _ = house.plan(None, days=1)
    assert house.pins.remove(one.tenant, "trace", f"{one.trace:032x}", "")
    default, pinned = plan.now.policies
    assert (pinned.keep, pinned.daily.traces, pinned.daily.spans) == (None, 1, spans)
    assert pinned.steady == pinned.goes == Amount()
    assert default.daily.spans == before.now.policies[0].daily.spans - spans
    assert default.daily.skeleton + pinned.daily.skeleton == pytest.approx(before.now.policies[0].daily.skeleton)


def test_log_records_are_content_of_their_trace(house: House) -> None:
    """Those of no trace are kept as the default says. `Day` of a record is that of its own time."""
    yesterday = TODAY - timedelta(days=1)
    [failed, *_] = [each for each in house.sent if each.start.date() == yesterday and each.error]
    at = int(failed.start.timestamp()) * 1_000_000_000
    before, _ = house.plan(from_toml(POLICIES), days=1)
    of_trace = [
        record(number, trace_id=failed.trace.to_bytes(16, "big"), time_unix_nano=at, severity_text="INFO")
        for number in range(3)
    ]
    of_none = [record(9, trace_id=b"", span_id=b"", time_unix_nano=at, severity_text="INFO")]
    house.store.load([logs(*of_trace, *of_none)], failed.tenant, at)
    plan, tables = house.plan(from_toml(POLICIES), days=1)
    _, _, records = tables[str(yesterday)]
    assert records.rows == 4
    was, now = ({one.name: one.daily.content for one in each.then.policies} for each in (before, plan))
    assert now["errors"] - was["errors"] == pytest.approx(records.stored_bytes * 3 / 4)
    assert now["default"] - was["default"] == pytest.approx(records.stored_bytes / 4)
    altered(house.store.engine, "records DELETE WHERE 1")


def test_one_at_a_time_and_only_what_can_be_told(house: House) -> None:
    with house.plans._one, pytest.raises(Busy, match="another plan is being worked out"):
        house.plans.plan(None)
    content = {"name": "a", "match": {"attributes": {"input.value": "x"}}, "skeleton_days": 1, "content_days": 1}
    with pytest.raises(BadRules, match=r"'input\.value' of policy 'a': it is content"):
        house.plans.plan(parsed({"policies": [content]}))
    assert house.plans.plan(None).days


def test_a_plan_does_not_take_for_ever(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_plan, "SECONDS_MAX", 0)
    with pytest.raises(QueryTimeout, match="cannot plan within 0 s; look at fewer days"):
        house.plans.plan(None)
    monkeypatch.setitem(house.store.engine._read_settings, "max_memory_usage", 100_000)
    monkeypatch.setattr(retention_plan, "SECONDS_MAX", 60)
    with pytest.raises(QueryTooLarge):
        house.plans.plan(None)


def test_days_that_lost_their_content_do_not_count_for_it(house: House) -> None:
    """What comes a day is told from days of which nothing has expired."""
    house.policies.put(from_toml("[default]\nskeleton_days = 30\ncontent_days = 2"), "ann", "")
    house.expiry.run()
    assert house.store.number("SELECT uniqExact(Day) FROM spanhouse.content") == 2
    plan, tables = house.plan(from_toml(POLICIES))
    compare(daily(plan.then.policies), expected(house, tables, 7, 2, lambda _, rule: rule, list(RULES)))
    [default, _] = plan.now.policies
    assert default.steady.content == pytest.approx(default.daily.content * 2)
    house.policies.put(from_toml("[default]\nskeleton_days = 30\ncontent_days = 9"), "ann", "")
    longer, tables = house.plan(None)
    compare(daily(longer.now.policies), expected(house, tables, 7, 2, lambda _, __: "default", list(RULES)))
