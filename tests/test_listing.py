"""The list of traces in the real engine: filters, order, and a cursor that holds while spans arrive."""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from store import RECEIVED, Store

from query.listing import list_sql, windows
from query.model import BadCursor, TraceFilter

SECOND = 1_000_000_000
SNAPSHOTS = Path(__file__).with_name("snapshots")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("store"))
    yield made
    made.close()


def trace_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def at(number: int, start_s: float, seconds: float = 1, **fields):
    """The root of trace `number`, `start_s` after the epoch of these tests."""
    start = RECEIVED + int(start_s * SECOND)
    times = {"start_time_unix_nano": start, "end_time_unix_nano": start + int(seconds * SECOND)}
    return span(1, **{"trace_id": trace_id(number), "name": "root", "attributes": [], **times, **fields})


def ids(traces) -> list[int]:
    return [int(t.trace_id, 16) for t in traces]


@pytest.fixture(scope="module")
def filtered(store: Store) -> Store:
    """Four traces of a tenant, each found by something else."""
    spans = [
        at(
            1, 1, attributes=[attribute("user.id", AnyValue(string_value="ann")), attribute("n", AnyValue(int_value=7))]
        ),
        at(2, 2, seconds=10, status={"code": 1}),
        at(
            3,
            3,
            name="other",
            attributes=[attribute("f", AnyValue(double_value=0.5)), attribute("b", AnyValue(bool_value=True))],
        ),
    ]
    store.load([request(*spans, service="shop")], tenant="filters")
    child = at(4, 4.5, span_id=b"child...", parent_span_id=b"\0\0\0\0\0\0\0\1", name="tool", status={"code": 2})
    prompt = attribute("gen_ai.input.messages", AnyValue(string_value="why?"))
    store.load([request(at(4, 4, attributes=[prompt]), child, service="agent")], tenant="filters")
    return store


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (TraceFilter(), [4, 3, 2, 1]),
        (TraceFilter(service="shop"), [3, 2, 1]),
        (TraceFilter(name="other"), [3]),
        (TraceFilter(service="agent", name="other"), []),
        (TraceFilter(status="error"), [4]),
        (TraceFilter(name="tool", status="error"), [4]),
        (TraceFilter(name="root", status="error"), []),
        (TraceFilter(status="ok"), [2]),
        (TraceFilter(status="unset"), [3, 1]),
        (TraceFilter(min_duration_nano=10 * SECOND), [2]),
        (TraceFilter(max_duration_nano=SECOND), [3, 1]),
        (TraceFilter(start_unix_nano=RECEIVED + 2 * SECOND, end_unix_nano=RECEIVED + 4 * SECOND), [3, 2]),
        (TraceFilter(attributes=[("user.id", "ann")]), [1]),
        (TraceFilter(attributes=[("user.id", "ann"), ("n", "7")]), [1]),
        (TraceFilter(attributes=[("user.id", "ann"), ("n", "8")]), []),
        (TraceFilter(attributes=[("f", "0.5")]), [3]),
        (TraceFilter(attributes=[("b", "true")]), [3]),
        (TraceFilter(attributes=[("b", "false")]), []),
        (TraceFilter(attributes=[("missing", "")]), []),
        (TraceFilter(attributes=[("service.name", "agent")]), [4]),
        (TraceFilter(attributes=[("gen_ai.input.messages", "why?")]), [4]),
        (TraceFilter(attributes=[("gen_ai.input.messages", "why not?")]), []),
        (TraceFilter(name="' OR 1 = 1 --"), []),
    ],
    ids=repr,
)
def test_a_filter_finds_what_it_names(filtered: Store, filters: TraceFilter, found: list[int]) -> None:
    assert ids(filtered.list(filters, tenant="filters")) == found


def test_an_attribute_is_looked_up_in_its_index(store: Store) -> None:
    """What no resource has reads the parts of the store that have it; and the answer is the same without the index."""
    tenant = "indexed"
    spans = [
        at(
            n,
            n,
            attributes=[
                attribute("user.id", AnyValue(string_value=f"u{n}")),
                attribute("k", AnyValue(string_value="u3")),
            ],
        )
        for n in range(1, 7)
    ]
    for one in spans:
        store.load([request(one)], tenant=tenant)
    filters = TraceFilter(attributes=[("user.id", "u3")])
    assert ids(store.list(filters, tenant=tenant)) == [3]
    statement, parameters = list_sql(filters, ())
    match = re.search(r"SELECT TraceId\s+FROM spanhouse\.spans\s+WHERE (.*?)\n +\)", statement, re.DOTALL)
    assert match is not None
    inner, asked = match[0].rstrip(" \n)") + ")", {**parameters, "since": 0}
    for setting in ("force_data_skipping_indices = 'strings'", "use_skip_indexes = 0"):
        ((found,),) = store.engine.read(tenant, f"{inner} SETTINGS {setting}", asked) or [[b""]]
        assert found == trace_id(3)


def test_a_summary_says_what_the_trace_is(filtered: Store) -> None:
    newest = filtered.list(tenant="filters")[0]
    assert (newest.root_service, newest.root_name) == ("agent", "root")
    assert (newest.span_count, newest.error_count, newest.services) == (2, 1, ["agent"])
    assert newest.start_time_unix_nano == RECEIVED + 4 * SECOND
    assert newest.duration_nano == int(1.5 * SECOND)


def test_a_trace_whose_root_has_not_come_has_none(store: Store) -> None:
    store.load([request(at(1, 0, parent_span_id=b"elsewher"))], tenant="rootless")
    (only,) = store.list(tenant="rootless")
    assert (only.root_service, only.root_name) == (None, None)


def test_pages_hold_together_while_spans_arrive(store: Store) -> None:
    """Every trace of the beginning exactly once, though new ones arrive and shown ones move."""
    chance = random.Random(5)
    tenant = "paging"
    count = 200
    begun = {n: at(n, n * 400 + chance.random(), seconds=2) for n in range(1, count + 1)}
    store.load([request(*begun.values())], tenant=tenant, received=1_700_000_000 * SECOND)

    later = 4_000_000_000 * SECOND  # of arrival: far past the clock by which a list is begun
    seen: list[int] = []
    cursor = None
    for page in range(1000):
        answer = store.traces.list_traces(tenant, TraceFilter(), 7, cursor)
        seen += ids(answer.traces)
        cursor = answer.next_cursor
        if cursor is None:
            break
        shown = seen[-1]
        moved = at(shown, (shown - 20) * 400, span_id=b"earlier!")  # a shown trace begins earlier than was known
        fresh = at(10_000 + page, chance.uniform(0, count * 400))
        store.load([request(moved, fresh)], tenant=tenant, received=later + page * SECOND)
    assert cursor is None
    assert seen == sorted(begun, reverse=True)


def test_a_cursor_belongs_to_its_filters(filtered: Store) -> None:
    cursor = filtered.traces.list_traces("filters", TraceFilter(service="shop"), 1, None).next_cursor
    assert cursor is not None
    with pytest.raises(BadCursor, match="other filters"):
        filtered.traces.list_traces("filters", TraceFilter(), 1, cursor)
    for broken in ("", "x", "WzFd", cursor[:-4], "[]"):
        if broken:
            with pytest.raises(BadCursor, match="cannot read"):
                filtered.traces.list_traces("filters", TraceFilter(service="shop"), 1, broken)


def test_windows_cover_the_range_once() -> None:
    for since, until in [(0, 1), (0, 10**19), (5, 5 + 601 * SECOND), (0, 600 * SECOND)]:
        cut = list(windows(since, until))
        assert cut[0][1] == until
        assert cut[-1][0] == since
        assert all(newer[0] == older[1] for newer, older in itertools.pairwise(cut))


def test_the_statement_is_known() -> None:
    """Regenerate with: rm tests/snapshots/list.sql, then run this test twice."""
    filters = TraceFilter(
        service="shop", name="pay", status="error", min_duration_nano=1, max_duration_nano=2,
        attributes=[("user.id", "7"), ("input.value", "true")],
    )  # fmt: skip
    statement, parameters = list_sql(filters, {1})
    text = statement + "\n" + "".join(f"-- {name} = {value!r}\n" for name, value in parameters.items())
    snapshot = SNAPSHOTS / "list.sql"
    if not snapshot.exists():
        snapshot.write_text(text)
        pytest.fail(f"{snapshot.name} was missing and is written now: look at it, then run again")
    assert text == snapshot.read_text(), (
        "the list's statement changed: if that is meant, remove tests/snapshots/list.sql"
    )
