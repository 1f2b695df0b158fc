"""Erasures on every footing of the store: which traces a selector means, and that no table keeps anything of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute
from settling_house import House, call, eventually, request, span, trace_id, value

from storage import erasure_selectors, erasures
from storage.erasure_notes import Note
from storage.erasure_rows import BY_TRACE
from storage.erasure_selectors import BadSelector, Selector, statements
from storage.erasures import Erasures, Running
from storage.pins import Pin, Pins
from storage.vocabulary import load

SNAPSHOT = Path(__file__).with_name("snapshots") / "erase.sql"


class ErasingHouse(House):
    """A house with erasures."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.erasures = Erasures(self.engine, self.store.vocabulary, self.settler.catch_up)
        self._load = self.erasures.gated(self._load)
        self.start()
        self.erasures.start()

    def erase(self, *selectors: Selector, tenant: str = "default", **more: Any) -> Note:
        """The note of an erasure that has ended."""
        begun = self.erasures.begin(tenant, selectors, **more)
        return eventually(lambda: self.ended(tenant, begun.id), 120)

    def ended(self, tenant: str, id: str) -> Note | None:
        note = self.erasures.find(tenant, id)
        assert note is not None
        return None if note.state == "running" else note

    def left(self) -> set[int]:
        """Traces of which there are spans."""
        return {int(text, 16) for [text] in self.engine.rows("SELECT DISTINCT hex(TraceId) FROM spanhouse.spans")}

    def rows_of(self, trace: int) -> dict[str, int]:
        """Rows of a trace by table, old states of them too."""
        wanted = trace_id(trace).hex()
        return {
            table: self.store.number(f"SELECT count() FROM spanhouse.{table} WHERE TraceId = unhex('{wanted}')")
            for table in BY_TRACE
        }

    def close(self) -> None:
        self.erasures.stop()
        super().close()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ErasingHouse]:
    monkeypatch.setattr(erasures, "QUIET_S", 0.3)
    monkeypatch.setattr(erasures, "QUIET_SHARED_S", 2)
    house = ErasingHouse(tmp_path)
    yield house
    house.close()


def with_attributes(trace: int, **values: AnyValue) -> Span:
    made = span(trace, 1)
    made.attributes.extend(attribute(key, each) for key, each in values.items())
    return made


def text(of: str) -> AnyValue:
    return AnyValue(string_value=of)


def everywhere(trace: int, said: str) -> list[tuple[int, Any]]:
    """Requests that say `k` is this, each in another place of a trace of its own."""
    event, link, scope = span(trace + 8, 1), span(trace + 9, 1), request(span(trace + 10, 1))
    event.events.append(Span.Event(name="e", attributes=[attribute("k", text(said))]))
    link.links.append(Span.Link(trace_id=trace_id(1), span_id=b"12345678", attributes=[attribute("k", text(said))]))
    scope.resource_spans[0].scope_spans[0].scope.attributes.append(attribute("k", text(said)))
    record = ExportLogsServiceRequest()
    record.resource_logs.add().scope_logs.add().log_records.append(
        LogRecord(trace_id=trace_id(trace + 11), span_id=b"12345678", attributes=[attribute("k", text(said))])
    )
    pairs = KeyValueList(values=[attribute("inner", text(said))])
    return [
        (trace, request(with_attributes(trace, k=text(said)))),
        (trace + 1, request(with_attributes(trace + 1, k=AnyValue(bytes_value=said.encode())))),
        (trace + 2, request(with_attributes(trace + 2, k=AnyValue(array_value=ArrayValue(values=[text(said)]))))),
        (trace + 3, request(with_attributes(trace + 3, k=AnyValue(kvlist_value=pairs)))),
        (trace + 4, request(span(trace + 4, 1), k=said)),
        (trace + 8, request(event)),
        (trace + 9, request(link)),
        (trace + 10, scope),
        (trace + 11, record),
        (trace + 11, request(span(trace + 11, 1))),
    ]


def test_an_attribute_is_found_in_every_place_and_as_a_whole(house: ErasingHouse) -> None:
    long = "a long text, which is payload" * 100
    for first, said in ((0x100, "alice"), (0x200, "alice2"), (0x300, long)):
        for _, message in everywhere(first, said):
            house.store.load([message])
    other = span(0x400, 1, other="alice")
    house.load(request(other), request(with_attributes(0x401, k=text("an alice in a text"))))
    before = house.left()
    assert house.erase(Selector("attribute", "alice", "k")).state == "done"
    assert before - house.left() == {trace for trace, _ in everywhere(0x100, "")}
    assert house.erase(Selector("attribute", long, "k")).state == "done"
    assert before - house.left() == {trace for first in (0x100, 0x300) for trace, _ in everywhere(first, "")}
    assert set(house.rows_of(0x10B).values()) == {0}


@pytest.mark.parametrize(("sent", "asked"), [(7, "7"), (2.5, "2.50"), (True, "true"), (-3, "-3")])
def test_numbers_are_compared_as_they_are(house: ErasingHouse, sent: object, asked: str) -> None:
    event = span(2, 1)
    event.events.append(Span.Event(name="e", attributes=[attribute("k", value(sent))]))
    house.load(request(span(1, 1, k=sent)), request(event), request(span(3, 1, k=f"{sent} x")), request(span(4, 1)))
    house.erase(Selector("attribute", asked, "k"))
    assert house.left() == {3, 4}


def test_users_and_sessions_by_all_that_says_so(house: ErasingHouse) -> None:
    """By any convention, a resource, a header, a link, or what MLflow's client said; not by a name in a text."""
    house.load(request(span(1, 1, user__id="ann"), span(1, 2)), request(span(2, 1, langfuse__user__id="ann")))
    house.load(request(span(3, 1), user__id="ann"), request(span(6, 1, session__id="ann")))
    house.load(request(span(4, 1)), context=(("user_id", "ann"),))
    house.load(request(span(5, 1), span(5, 2)), request(span(7, 1, note="ann")), request(span(8, 1, user__id="bob")))
    house.annotations.link("default", [trace_id(5)], "user", "ann")
    house.settle()
    note = house.erase(Selector("user", "ann"))
    assert house.left() == {6, 7, 8}
    assert note.traces == 5
    assert house.erase(Selector("session", "ann"), Selector("user", "bob")).traces == 2
    assert house.left() == {7}
    assert {row[0] for row in house.engine.rows("SELECT Id FROM spanhouse.seen")} == set()


def test_what_somebody_said_goes_and_what_was_said_of_others_stays(house: ErasingHouse) -> None:
    house.load(request(call(1, 1, user__id="ann-1")), request(call(2, 1, user__id="bob")))
    for trace in (1, 2):
        house.annotations.link("default", [trace_id(trace)], "run", f"run {trace}")
    house.settle()
    kept = house.rows_of(2)
    note = house.erase(Selector("user", "ann-1"), by="case 1")
    assert set(house.rows_of(1).values()) == {0}
    assert house.rows_of(2) == kept
    assert house.linked(trace_id(2))
    assert note.certificate["removed"]["explicit_links"] == 1
    assert note.certificate["by"] == "case 1"
    assert house.store.number("SELECT count() FROM spanhouse.erasing") == 0
    assert "ann-1" not in str(house.engine.rows("SELECT Body FROM spanhouse.erasures"))


def test_a_name_that_was_corrected_goes_and_the_trace_stays(house: ErasingHouse) -> None:
    """The tables of links keep what was replaced until they are merged."""
    house.load(request(call(1, 1)))
    house.annotations.link("default", [trace_id(1)], "user", "ann by mistake")
    house.settle()
    house.annotations.link("default", [trace_id(1)], "user", "bob")
    house.settle()
    eventually(lambda: ("user", "bob", "", "api") in house.linked(trace_id(1)))
    house.erase(Selector("user", "ann by mistake"))
    assert house.left() == {1}
    for table, column in (("links", "Id"), ("explicit_links", "Id"), ("seen", "Id"), ("facts", "toString(Links)")):
        held = f"SELECT count() FROM spanhouse.{table} WHERE position({column}, 'ann') > 0"
        assert house.store.number(held) == 0, table
    assert ("user", "bob", "", "api") in house.linked(trace_id(1))


def test_an_origin_goes_when_nobody_else_uses_it(house: ErasingHouse) -> None:
    house.load(request(span(1, 1, user__id="ann"), desk="shared"), request(span(2, 1, user__id="ann"), desk="hers"))
    house.load(request(span(3, 1), desk="shared"), request(span(4, 1), desk="his"))
    house.erase(Selector("user", "ann"))
    desks = house.engine.rows("SELECT DISTINCT ResourceAttributes['desk'] AS d FROM spanhouse.origins ORDER BY d")
    assert [desk for [desk] in desks] == ["shis", "sshared"]


def test_pins_and_decisions_go_too(house: ErasingHouse) -> None:
    """Of the person, of erased traces, and what was taken back; not those of others."""
    house.load(request(span(1, 1, user__id="ann")), request(span(2, 1, user__id="bob")))
    house.settle()
    pins = Pins(house.engine)
    for tenant in ("default", "other"):
        pins.put(tenant, Pin("user", "ann"))
        pins.put(tenant, Pin("trace", trace_id(1).hex(), comment="ann called"))
    for entity, of in (("user", "bob"), ("trace", trace_id(2).hex()), ("session", "ann"), ("run", "ann")):
        pins.put("default", Pin(entity, of))
    assert pins.remove("default", "user", "ann", "")
    columns = ("Tenant", "TraceId", "Weight", "Rule", "Spans")
    house.engine.insert("decisions", columns, [("default", trace_id(n), 1.0, "default", 1) for n in (1, 2)])
    note = house.erase(Selector("user", "ann"))
    assert note.certificate["removed"]["pins"] >= 2
    assert note.certificate["removed"]["decisions"] == 1
    left = house.engine.rows("SELECT toString(Tenant), toString(Entity), Id FROM spanhouse.pins FINAL")
    assert sorted(map(tuple, left)) == sorted([
        ("default", "user", "bob"), ("default", "trace", trace_id(2).hex()), ("default", "session", "ann"),
        ("default", "run", "ann"), ("other", "user", "ann"), ("other", "trace", trace_id(1).hex()),
    ])  # fmt: skip
    assert house.store.number("SELECT count() FROM spanhouse.decisions") == 1


def test_many_traces_in_pages(house: ErasingHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round takes so many; the next one finds the rest."""
    monkeypatch.setattr(erasure_selectors, "PAGE_TRACES_MAX", 40)
    monkeypatch.setattr("storage.erasure.PAGE_TRACES_MAX", 40)
    monkeypatch.setattr("storage.erasure_rows.PAGE_TRACES_MAX", 40)
    house.load(*(request(span(trace, 1, user__id="ann")) for trace in range(1, 101)))
    house.load(request(span(500, 1, user__id="bob")))
    note = house.erase(Selector("user", "ann"))
    assert (note.state, note.traces, house.left()) == ("done", 100, {500})
    assert note.certificate["rounds"] >= 3
    assert note.certificate["removed"]["spans"] == 100


def test_a_dry_run_and_one_at_a_time(house: ErasingHouse) -> None:
    house.load(request(span(1, 1, user__id="ann")))
    note = house.erase(Selector("user", "ann"), dry_run=True)
    assert (note.state, note.totals()["spans"], note.certificate, house.left()) == ("counted", 1, {}, {1})
    begun = house.erasures.begin("default", [Selector("user", "ann")])
    with pytest.raises(Running, match=begun.id):
        house.erasures.begin("default", [Selector("user", "bob")])
    with pytest.raises(Running, match="of another tenant"):
        house.erasures.begin("other", [Selector("user", "bob")])
    eventually(lambda: house.ended("default", begun.id), 60)
    assert house.erasures.find("other", begun.id) is None
    assert [each.id for each in house.erasures.all("default")] == [begun.id, note.id]


def test_the_settings_of_tables_are_taken_back(house: ErasingHouse) -> None:
    house.load(request(span(1, 1, user__id="ann")))
    house.erase(Selector("user", "ann"))
    made = house.engine.rows(
        "SELECT count() FROM system.tables WHERE database IN ('spanhouse', 'spanhouse_local')"
        " AND name NOT IN ('erasing') AND position(create_table_query, 'old_parts_lifetime') > 0"
    )
    assert list(map(list, made)) == [[0]]


def test_the_statements_are_known() -> None:
    """Regenerate with: rm tests/snapshots/erase.sql, then run this test twice."""
    selectors = [Selector("user", "a'b"), Selector("session", "s"), Selector("attribute", "v", "k")]
    found = statements(selectors, load())
    text = "\n\n".join(f"-- {one.table}\n{one.sql};" for one in found) + "\n"
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(text)
        pytest.fail(f"{SNAPSHOT.name} was missing and is written now: look at it, then run again")
    assert text == SNAPSHOT.read_text(), "the statements changed: if that is meant, remove tests/snapshots/erase.sql"
    assert "a'b" not in text


def test_a_selector_that_makes_no_sense() -> None:
    for arguments in (("user", ""), ("trace", "A" * 32), ("attribute", "v"), ("user", "\ud800"), ("user", "é" * 2049)):
        with pytest.raises(BadSelector, match="cannot erase"):
            Selector(*arguments)  # type: ignore[arg-type]
