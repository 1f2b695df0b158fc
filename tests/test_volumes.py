"""What is stored of whom, on every footing: figures against a plain model of spans, and after all that changes them."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute, logs
from settling_house import eventually
from store import FOOTING, RECEIVED, Store, altered

from query.forecast import forecast
from query.storage_api import room
from storage.decode import content_rule
from storage.recount import GROUPS_MAX
from storage.recounting import Recounting
from storage.volumes import COLUMNS, OTHERS, Counts, Disk, Volumes, stored

DAY_NANO = 86_400 * 10**9
TENANTS, SERVICES = ("acme", "default", "zoo"), ("checkout", "support", "ünïcode ☂")
AGENTS, MODELS = ("", "triage", "billing"), ("", "gpt-5-mini", "claude-sonnet-4-5")
LONG = content_rule().longer_than_bytes


class Said(NamedTuple):
    """What a span is counted under."""

    tenant: str
    day: str
    service: str
    agent: str
    model: str


class House:
    """A store, what is stored of whom in it, and what puts that right."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)
        self.volumes = Volumes(self.store.engine)
        self.recounting = Recounting(self.store.engine, self.volumes)

    def reopen(self) -> None:
        self.store.close()
        self.__init__(self.store.directory)

    def sums(self) -> dict[Said, Counts]:
        """All of `volumes`."""
        columns = ", ".join(f"sum({name})" for name in COLUMNS)
        rows = self.store.engine.rows(
            f"SELECT toString(Tenant), toString(Day), Service, Agent, Model, {columns} FROM spanhouse.volumes"
            " GROUP BY 1, 2, 3, 4, 5"
        )
        found = {Said(*row[:5]): Counts(*map(int, row[5:])) for row in rows}
        return {said: counts for said, counts in found.items() if any(counts)}

    def put_right(self) -> None:
        """What the thread does in two looks."""
        self.recounting.look()
        self.recounting.look()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.store.close()


# The model


def tagged(value: AnyValue) -> int:
    """The length of a value as text or wire bytes, and of the letter before it."""
    match value.WhichOneof("value"):
        case "string_value":
            return 1 + len(value.string_value.encode())
        case "int_value":
            return 1 + len(str(value.int_value))
        case "bool_value":
            return 1 + len("true" if value.bool_value else "false")
        case "bytes_value":
            return 1 + len(value.bytes_value)
        case "array_value":
            return 1 + len(value.array_value.SerializeToString())
        case "kvlist_value":
            return 1 + len(value.kvlist_value.SerializeToString())
    return 1


def of_span(span: Span) -> Counts:
    """What one span comes to."""
    skeleton = 64 + len(span.name.encode()) + len(span.status.message.encode()) + len(span.trace_state.encode())
    content, has_content = 0, False
    for one in span.attributes:
        kind, rule = one.value.WhichOneof("value"), content_rule()
        if kind == "string_value":
            length, payload = len(one.value.string_value.encode()), rule.holds(one.key, one.value.string_value)
        elif kind in ("int_value", "double_value"):
            length, payload = 8, False
        elif kind == "bool_value":
            length, payload = 1, False
        else:
            length = tagged(one.value)
            payload = rule.holds(one.key, "") or length > LONG
        skeleton += 0 if payload else length
        content += length if payload else 0
        has_content |= payload
    skeleton += sum(8 + sum(tagged(one.value) for one in event.attributes) for event in span.events)
    skeleton += sum(len(link.SerializeToString()) for link in span.links)
    return Counts(1, skeleton, int(has_content), content)


def of_record(record: LogRecord) -> Counts:
    """What one log record comes to."""
    skeleton, content = 40 + len(record.severity_text.encode()), tagged(record.body)
    for one in record.attributes:
        text = one.value.string_value if one.value.WhichOneof("value") == "string_value" else ""
        if content_rule().holds(one.key, text):
            content += tagged(one.value)
        else:
            skeleton += tagged(one.value)
    return Counts(0, 0, 0, 0, 1, skeleton, content)


def added(*counts: Counts) -> Counts:
    return Counts(*map(sum, zip(*counts, strict=True)))


# Random spans


def text(chance: random.Random, longest: int) -> str:
    return "".join(chance.choice("abcdefghij öß☂") for _ in range(chance.randrange(longest)))


def any_value(chance: random.Random, longest: int) -> AnyValue:
    some = ArrayValue(values=[AnyValue(string_value=text(chance, 9)), AnyValue(int_value=7)])
    return chance.choice(
        (
            AnyValue(string_value=text(chance, longest)),
            AnyValue(int_value=chance.choice((0, -1, 2**63 - 1, -(2**63)))),
            AnyValue(double_value=chance.random()),
            AnyValue(bool_value=chance.random() < 0.5),
            AnyValue(bytes_value=chance.randbytes(chance.randrange(longest))),
            AnyValue(array_value=some),
            AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(string_value="v"))])),
            AnyValue(),
        )
    )


def random_span(chance: random.Random, number: int, day: int, agent: str, model: str) -> Span:
    start = RECEIVED // DAY_NANO * DAY_NANO - day * DAY_NANO + chance.randrange(DAY_NANO)
    span = Span(
        trace_id=chance.randbytes(16),
        span_id=number.to_bytes(8, "big"),
        name=text(chance, 30),
        trace_state="a=b" if chance.random() < 0.1 else "",
        start_time_unix_nano=start,
        end_time_unix_nano=start + 1000,
        status={"code": 2, "message": text(chance, 40)} if chance.random() < 0.2 else {},
    )
    for i in range(chance.randrange(6)):
        span.attributes.append(attribute(f"key{i}", any_value(chance, 2 * LONG if chance.random() < 0.1 else 40)))
    if chance.random() < 0.5:
        span.attributes.append(attribute("gen_ai.input.messages", any_value(chance, 5000)))
    for key, said in (("gen_ai.agent.name", agent), ("gen_ai.request.model", model)):
        if said:
            span.attributes.append(attribute(key, AnyValue(string_value=said)))
    for _ in range(chance.choice((0, 0, 2))):
        event = span.events.add(name=text(chance, 20), time_unix_nano=start)
        event.attributes.append(attribute("e", chance.choice((AnyValue(int_value=5), AnyValue(string_value="ö")))))
    if chance.random() < 0.2:
        span.links.add(trace_id=chance.randbytes(16), span_id=chance.randbytes(8), trace_state="x=y")
    return span


def load_random(house: House, seed: int, spans: int) -> dict[Said, Counts]:
    """Spans and log records of several tenants, a segment each; what the model makes of them."""
    chance = random.Random(seed)
    expected: dict[Said, list[Counts]] = defaultdict(list)
    number = seed * 1_000_000
    for tenant in TENANTS:
        requests = []
        for service in SERVICES:
            message = ExportTraceServiceRequest()
            resource = message.resource_spans.add()
            resource.resource.attributes.append(attribute("service.name", AnyValue(string_value=service)))
            made = resource.scope_spans.add().spans
            for _ in range(spans // len(TENANTS) // len(SERVICES)):
                number += 1
                day, agent, model = chance.randrange(4), chance.choice(AGENTS), chance.choice(MODELS)
                made.append(random_span(chance, number, day, agent, model))
                expected[Said(tenant, day_of(day), service, agent, model)].append(of_span(made[-1]))
            requests.append(message)
        said = [log_record(chance, day) for day in (0, 1, 1)]
        requests.append(logs(*said))
        for day, one in zip((0, 1, 1), said, strict=True):
            expected[Said(tenant, day_of(day), "", "", "")].append(of_record(one))
        house.store.load(requests, tenant)
    return {said: added(*counts) for said, counts in expected.items()}


def log_record(chance: random.Random, day: int) -> LogRecord:
    return LogRecord(
        trace_id=chance.randbytes(16),
        span_id=chance.randbytes(8),
        time_unix_nano=RECEIVED - day * DAY_NANO,
        severity_text=text(chance, 9),
        body=AnyValue(string_value=text(chance, 99)),
        attributes=[
            attribute("short", AnyValue(int_value=chance.randrange(10**9))),
            attribute("gen_ai.prompt", AnyValue(string_value=text(chance, 999))),
        ],
    )


def day_of(day: int) -> str:
    return ["2027-01-15", "2027-01-14", "2027-01-13", "2027-01-12"][day]


# Tests


def test_figures_are_those_of_the_model(house: House) -> None:
    first = load_random(house, 1, 360)
    second = load_random(house, 2, 180)
    expected = {key: added(first.get(key, Counts()), second.get(key, Counts())) for key in first | second}
    assert house.sums() == expected
    assert house.recounting.look() is False, "nothing differs"

    scales, counted = house.volumes.scales()
    assert counted == 1
    for tenant in TENANTS:
        own = {said: counts for said, counts in expected.items() if said.tenant == tenant}
        for by in ("service", "agent", "model", "day"):
            figures = stored(house.volumes.groups(tenant, by, 100), scales)
            assert figures.keys() == {getattr(said, by) for said in own}
            for name, figure in figures.items():
                counts = added(*(each for said, each in own.items() if getattr(said, by) == name))
                assert round(figure.spans) == counts.spans
                assert round(figure.log_records) == counts.records
                assert round(figure.skeleton_raw) == counts.skeleton + counts.record_skeleton
                assert round(figure.content_raw) == counts.content + counts.record_content
    by_tenant = stored(house.volumes.groups(None, "tenant", 100), scales)
    assert set(by_tenant) == set(TENANTS)


def test_what_is_on_disk_is_spread_over_the_tenants(house: House) -> None:
    load_random(house, 14, 180)

    def same() -> bool:
        """Nothing was merged between one question and the next."""
        by_tenant = stored(house.volumes.groups(None, "tenant", 100), house.volumes.scales()[0])
        tables = house.volumes.tables()
        on_disk = sum(tables[table].stored_bytes for table in ("spans", "content", "records"))
        return sum(each.stored for each in by_tenant.values()) == pytest.approx(on_disk, rel=1e-6)

    assert eventually(same)
    copies = 2 if FOOTING.cluster else 1
    one = sum(table.stored_bytes for table in house.volumes.tables().values())
    assert house.volumes.bytes_of_all_copies() == pytest.approx(copies * one, rel=0.3)


def test_a_segment_counts_once_however_often_it_is_loaded(house: House) -> None:
    expected = load_random(house, 3, 90)
    chance = random.Random(4)
    message = ExportTraceServiceRequest()
    made = message.resource_spans.add().scope_spans.add().spans
    made.extend(random_span(chance, i, i % 3, "", "") for i in range(1, 30))
    path, token = house.store.segment([message])
    for _ in range(3):
        house.store.engine.load(path, token)
    once = house.sums()
    house.reopen()
    house.store.engine.load(path, token)
    found = house.sums()
    assert found == once
    assert added(*found.values()) == added(*expected.values(), *map(of_span, made))


def test_what_was_stored_before_is_counted(house: House) -> None:
    expected = load_random(house, 5, 360)
    altered(house.store.engine, "volumes DELETE WHERE 1")
    assert house.sums() == {}
    assert house.volumes.scales()[1] == 0
    house.put_right()
    assert house.sums() == expected
    assert house.recounting.look() is False


def test_it_is_counted_in_pieces_of_a_bounded_size(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_random(house, 6, 360)
    monkeypatch.setattr("storage.recount.SLICE_ROWS", 20)
    monkeypatch.setattr("storage.recount.SLICE_ROWS_MIN", 20)
    altered(house.store.engine, "volumes DELETE WHERE 1")
    house.put_right()
    assert house.sums() == expected


def test_spans_far_from_their_arrival_are_counted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share a partition, whatever their times, and the last second that the store can hold is among those."""
    chance = random.Random(13)
    message = ExportTraceServiceRequest()
    made = message.resource_spans.add().scope_spans.add().spans
    for number, start in enumerate((0, 10**9, 10**18, 4_294_967_295_500_000_000, 2**63 - 1, 2**64 - 1), 1):
        one = random_span(chance, number, 0, "", "")
        one.attributes.append(attribute("input", AnyValue(string_value="hello")))
        one.start_time_unix_nano, one.end_time_unix_nano = start, start
        made.append(one)
    house.store.load([message])
    expected = added(*map(of_span, made))
    assert expected.contents == 6
    assert added(*house.sums().values()) == expected
    assert {said.day for said in house.sums()} == {"1970-01-01", "2027-01-15"}, "no start at all is the arrival"
    altered(house.store.engine, "volumes DELETE WHERE 1")
    monkeypatch.setattr("storage.recount.SLICE_ROWS", 2)
    monkeypatch.setattr("storage.recount.SLICE_ROWS_MIN", 2)
    house.put_right()
    assert added(*house.sums().values()) == expected


def test_a_day_that_expired_is_in_no_figure(house: House) -> None:
    expected = load_random(house, 7, 360)
    for table in ("spans", "content", "records"):
        partition = "20270114" if table == "records" else "20270114-1"
        house.store.engine.alter(f"ALTER TABLE spanhouse.{table} DROP PARTITION ID '{partition}'", {})
    scales, counted = house.volumes.scales()
    left = {said: counts for said, counts in expected.items() if said.day != "2027-01-14"}
    assert counted == 1
    figures = stored(house.volumes.groups(None, "day", 100), scales)
    assert figures.keys() == {said.day for said in left}, "at once, before anything was counted"
    house.put_right()
    assert house.sums() == left


def test_rows_that_are_deleted_are_in_no_figure(house: House) -> None:
    expected = load_random(house, 8, 360)
    altered(house.store.engine, "spans DELETE WHERE Tenant = 'acme'")
    altered(house.store.engine, "content DELETE WHERE Tenant = 'acme'")
    scales, _ = house.volumes.scales()
    spans = house.store.number("SELECT count() FROM spanhouse.spans")
    figures = stored(house.volumes.groups(None, "tenant", 100), scales)
    assert sum(figure.spans for figure in figures.values()) == pytest.approx(spans), "the sum is right at once"
    house.put_right()
    found = house.sums()
    assert {said: c for said, c in found.items() if said.tenant != "acme"} == {
        said: counts for said, counts in expected.items() if said.tenant != "acme"
    }
    assert added(*(c for said, c in found.items() if said.tenant == "acme")).rows == (0, 0, 3)


def test_payload_outlives_its_spans_under_no_name(house: House) -> None:
    expected = load_random(house, 9, 90)
    altered(house.store.engine, "spans DELETE WHERE 1")
    house.put_right()
    found, before = added(*house.sums().values()), added(*expected.values())
    assert found == before._replace(spans=0, skeleton=0)
    assert {said.service for said in house.sums()} == {""}


def test_a_difference_that_comes_and_goes_is_left_alone(house: House) -> None:
    load_random(house, 10, 90)
    house.store.engine.insert("volumes", ("Tenant", "Day", "Spans"), [("acme", date(2027, 1, 15), 5)], "one")
    assert house.recounting.look() is True
    house.store.engine.insert("volumes", ("Tenant", "Day", "Spans"), [("acme", date(2027, 1, 15), -5)], "two")
    before = house.sums()
    assert house.recounting.look() is False
    assert house.sums() == before


def hostile(first: int, count: int) -> ExportTraceServiceRequest:
    """Each span of its own service."""
    message = ExportTraceServiceRequest()
    for number in range(first, first + count):
        resource = message.resource_spans.add()
        resource.resource.attributes.append(
            attribute("service.name", AnyValue(string_value=f"{number:06d}" + "x" * 999))
        )
        start = RECEIVED - number
        resource.scope_spans.add().spans.add(
            trace_id=number.to_bytes(16, "big"), span_id=b"s" * 8, start_time_unix_nano=start, end_time_unix_nano=start
        )
    return message


@pytest.mark.timeout(300)
def test_names_do_not_make_it_grow_with_the_spans(house: House) -> None:
    house.store.load([hostile(1, 6000)])
    house.store.load([hostile(6001, 6000)])
    innocent = load_random(house, 11, 90)
    groups = (
        "SELECT count() FROM (SELECT Service FROM spanhouse.volumes WHERE Tenant = 'default' AND Day = '2027-01-15'"
    )
    groups += " GROUP BY Service, Agent, Model HAVING sum(Spans) != 0)"
    assert house.store.number(groups) <= 10_100 * (4 if FOOTING.cluster else 1)
    assert house.store.number("SELECT max(length(Service)) FROM spanhouse.volumes") == 128
    house.put_right()
    assert house.store.number(groups) <= GROUPS_MAX + 1
    house.put_right()
    found = house.sums()
    assert house.store.number(groups) <= GROUPS_MAX + 1
    assert added(*found.values()).spans == 12_000 + added(*innocent.values()).spans
    assert added(*(c for said, c in found.items() if said.service == OTHERS)).spans >= 10_900
    others = {said: counts for said, counts in innocent.items() if said.tenant != "default"}
    assert {said: counts for said, counts in found.items() if said.tenant != "default"} == others
    listed = stored(house.volumes.groups("default", "service", 3), house.volumes.scales()[0])
    assert len(listed) <= 4


def test_sizes_are_noted_once_an_hour(house: House) -> None:
    load_random(house, 12, 90)
    for _ in range(3):
        house.recounting.note()
    [(_, size)] = house.volumes.sizes(30)
    assert size == pytest.approx(house.volumes.bytes_of_all_copies(), rel=0.2)
    assert json.dumps(house.volumes.disks())
    assert all(0 < disk.free_bytes <= disk.total_bytes for disk in house.volumes.disks())


# The forecast


def sizes(*gigabytes: float, until: date = date(2027, 3, 10)) -> list[tuple[date, int]]:
    """Noted on days without a gap, the last of them `until`."""
    first = until - timedelta(days=len(gigabytes) - 1)
    return [(first + timedelta(days=i), int(size * 10**9)) for i, size in enumerate(gigabytes)]


@pytest.mark.parametrize(
    ("noted", "room_gb", "verdict", "day", "gb_per_day"),
    [
        pytest.param([], 10, "cannot tell", None, None, id="nothing"),
        pytest.param(sizes(1), 10, "cannot tell", None, None, id="today alone"),
        pytest.param(sizes(1, 2), 10, "cannot tell", None, None, id="no whole day"),
        pytest.param(sizes(1, 2, 3), 10, "cannot tell", None, None, id="one whole day"),
        pytest.param(sizes(1, 2, 3, 9), 10, "full", date(2027, 3, 20), 1, id="two whole days; today is none"),
        pytest.param(
            sizes(0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7), 14, "full", date(2027, 3, 24), 1, id="seven days, not nine"
        ),
        pytest.param(sizes(5, 6, 3, 4, 5, 6, 7, 7), 10, "full", date(2027, 4, 9), 1 / 3, id="deletions are in it"),
        pytest.param(sizes(9, 8, 7, 6), 10, "not within a year", None, -1, id="it shrinks"),
        pytest.param(sizes(5, 5, 5, 5), 0, "not within a year", None, 0, id="it stays"),
        pytest.param(sizes(1, 1.01, 1.02, 1.03), 3.65, "full", date(2028, 3, 9), 0.01, id="a year"),
        pytest.param(sizes(1, 1.01, 1.02, 1.03), 3.66, "not within a year", None, 0.01, id="more than a year"),
        pytest.param(sizes(1, 2, 3, 4), 0, "full", date(2027, 3, 10), 1, id="full already"),
        pytest.param(sizes(1, 2, 3, 4, until=date(2027, 2, 20)), 9, "cannot tell", None, None, id="long ago"),
        pytest.param(
            [(date(2027, 3, 3), 10**9), (date(2027, 3, 9), 7 * 10**9)], 5, "full", date(2027, 3, 15), 1, id="with a gap"
        ),
    ],
)
def test_forecast(
    noted: list[tuple[date, int]], room_gb: float, verdict: str, day: date | None, gb_per_day: float | None
) -> None:
    found = forecast(noted, int(room_gb * 10**9), date(2027, 3, 10))
    assert (found.verdict, found.day) == (verdict, day)
    if gb_per_day is None:
        assert found.bytes_per_day is None
    else:
        assert found.bytes_per_day == pytest.approx(gb_per_day * 10**9)
        assert "whole days, from the end of 2027-0" in found.rests_on


def test_room_is_that_of_the_fullest_host() -> None:
    assert room([]) == 0
    assert room([Disk("a", "default", 5, 9)]) == 5
    assert room([Disk("a", "one", 5, 9), Disk("a", "two", 5, 9), Disk("b", "default", 3, 9)]) == 6
