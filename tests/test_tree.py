"""The tree and its integrity, against a naive model, and as JSON."""

import json
import time
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_spans import SHOP, START, resource, span, span_id
from nested_values import deep, nested
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from query import answers, integrity, trace_json
from query.plain import plain_attributes
from query.tree import build
from storage.spans import Event, Link, Nested, Span

NOW = START + 3600 * 10**9


def examined(spans, *, truncated=False, now=NOW):
    return integrity.examine(build(spans), truncated=truncated, now_unix_nano=now)


def pieces(tree, *, nested, truncated, now_unix_nano):
    """The answer in its pieces, of a trace of which nothing is known but its spans."""
    return trace_json.pieces(
        tree,
        nested=nested,
        truncated=truncated,
        now_unix_nano=now_unix_nano,
        price=lambda _: None,
        about={"links": {}, "assessments": []},
    )


def written(spans, *, nested=True, truncated=False, now=NOW):
    """The answer, parsed, after a look whether it is what the API's documentation says."""
    text = b"".join(pieces(build(spans), nested=nested, truncated=truncated, now_unix_nano=now))
    answer = json.loads(text)
    answers.Trace.model_validate(answer)
    return answer


def ids(*numbers):
    return [span_id(number).hex() for number in numbers]


def outline(nodes):
    """Nested answer as {number: {number: …}}, to be read at a glance."""
    return [(int(node["span_id"], 16), outline(node["children"])) for node in nodes]


# Against a model

parents = st.one_of(st.none(), st.just(bytes(8)), st.integers(1, 12), st.integers(100, 103))
random_spans = st.lists(
    st.builds(
        lambda number, parent, start, service: span(number, parent, start=START + start, resource=service),
        st.integers(1, 10),
        parents,
        st.integers(0, 5),
        st.sampled_from([SHOP, resource("bank")]),
    ),
    min_size=1,
    max_size=30,
)


class Model:
    """The same by brute force: for each span, follow parents for as many steps as there are spans."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = sorted(spans, key=lambda one: (one.start_time_unix_nano, one.span_id))
        self.first = {one.span_id: one for one in reversed(self.spans)}

    def parent(self, one: Span) -> Span | None:
        return self.first.get(one.parent_span_id)

    def is_root(self, one: Span) -> bool:
        return one.parent_span_id in (b"", bytes(8))

    def roots(self) -> list[Span]:
        return [one for one in self.spans if self.is_root(one)]

    def orphans(self) -> dict[bytes, list[Span]]:
        found: dict[bytes, list[Span]] = {}
        for one in self.spans:
            if not self.is_root(one) and self.parent(one) is None:
                found.setdefault(one.parent_span_id, []).append(one)
        return found

    def cycle_of(self, one: Span) -> list[Span] | None:
        """The cycle that the span is a member of, upwards from it."""
        path, above = [one], self.parent(one)
        for _ in self.spans:
            if above is None or self.is_root(path[-1]):
                return None
            if above is one:
                return path
            path.append(above)
            above = self.parent(above)
        return None

    def cycles(self) -> list[list[Span]]:
        found = []
        for one in self.spans:
            cycle = self.cycle_of(one)
            if cycle and not any(one is member for other in found for member in other):
                found.append([one, *reversed(cycle[1:])])  # self.spans is by start: one is the earliest
        return found


@given(random_spans)
@settings(max_examples=400, deadline=None)
def test_every_span_is_in_the_tree_once_below_its_parent(spans):
    tree, model = build(spans), Model(spans)
    walked = list(tree.walk())
    assert Counter(id(tree.spans[index]) for index, _ in walked) == Counter(id(one) for one in spans)
    cut = {id(cycle[0]) for cycle in model.cycles()}
    path: list[Span] = []
    for index, depth in walked:
        one = tree.spans[index]
        assert depth <= len(path)
        del path[depth:]
        at_top = model.is_root(one) or model.parent(one) is None or id(one) in cut
        assert at_top == (depth == 0)
        if depth:
            assert path[-1] is model.parent(one)
        path.append(one)


@given(random_spans)
@settings(max_examples=400, deadline=None)
def test_integrity_agrees_with_the_model(spans):
    found, model = examined(spans), Model(spans)
    assert found.roots == [one.span_id.hex() for one in model.roots()]
    assert found.orphans == {
        parent.hex(): [one.span_id.hex() for one in group] for parent, group in model.orphans().items()
    }
    assert list(found.orphans) == [parent.hex() for parent in model.orphans()]
    assert found.cycles == [[one.span_id.hex() for one in cycle] for cycle in model.cycles()]
    counted = Counter(one.span_id.hex() for one in spans)
    assert sorted(found.duplicate_span_ids) == sorted(one for one, times in counted.items() if times > 1)
    assert found.root == ("present" if model.roots() else "missing")
    assert found.complete == bool(model.roots() and not model.orphans() and not model.cycles())
    early = {
        (one.span_id.hex(), one.resource == above.resource)
        for one in spans
        if not model.is_root(one)
        and (above := model.parent(one)) is not None
        and one.start_time_unix_nano < above.start_time_unix_nano
        and not any(one is cycle[0] for cycle in model.cycles())
    }
    assert {skew.span_id for skew in found.clock_skew} == {one for one, same in early if not same}
    assert {problem.span_id for problem in found.times} == {one for one, same in early if same}


@given(random_spans)
@settings(max_examples=100, deadline=None)
def test_siblings_are_ordered_by_start_and_the_top_level_by_kind(spans):
    answer = written(spans)

    def check(siblings):
        keys = [(int(node["start_time_unix_nano"]), node["span_id"]) for node in siblings]
        assert keys == sorted(keys)
        for node in siblings:
            check(node["children"])

    for node in answer["spans"]:
        check(node["children"])
    roots = len(answer["integrity"]["roots"])
    check(answer["spans"][:roots])
    assert [node["span_id"] for node in answer["spans"]] == [
        *answer["integrity"]["roots"],
        *(one for group in answer["integrity"]["orphans"].values() for one in group),
        *(cycle[0] for cycle in answer["integrity"]["cycles"]),
    ]


@given(random_spans)
@settings(max_examples=100, deadline=None)
def test_flat_and_nested_hold_the_same_spans(spans):
    def flattened(nodes):
        for node in nodes:
            children = node.pop("children")
            yield node
            yield from flattened(children)

    flat = written(spans, nested=False)["spans"]
    assert sorted(map(json.dumps, flattened(written(spans)["spans"]))) == sorted(map(json.dumps, flat))
    assert [int(one["start_time_unix_nano"]) for one in flat] == sorted(one.start_time_unix_nano for one in spans)


# By example


def test_a_whole_trace():
    bank = resource("bank")
    spans = [
        span(3, 2, start=START + 20, end=START + 5_000, resource=bank, kind=2, status=2),
        span(1, start=START, end=START + 4_000),
        span(2, 1, start=START + 10, end=START + 3_000, kind=3),
        span(4, 1, start=START + 5, end=START + 6),
    ]
    answer = written(spans)
    assert outline(answer["spans"]) == [(1, [(4, []), (2, [(3, [])])])]
    assert answer["root"] == {"service": "shop", "name": "span 1", "span_id": ids(1)[0]}
    assert (answer["start_time_unix_nano"], answer["duration_nano"]) == (str(START), "5000")
    assert (answer["span_count"], answer["error_count"], answer["services"]) == (4, 1, ["bank", "shop"])
    assert answer["integrity"]["complete"] is True
    assert not any(
        answer["integrity"][problem] for problem in ("orphans", "cycles", "clock_skew", "times", "truncated")
    )
    assert answer["spans"][0]["children"][1]["children"][0]["kind"] == "server"


def test_orphans_stand_at_the_top_grouped_by_the_missing_parent():
    spans = [
        span(1, 90, start=START + 1),
        span(2, 91, start=START + 2),
        span(3, 90, start=START + 3),
        span(4, 3, start=START + 4),
        span(5, start=START + 9),
    ]
    answer = written(spans)
    assert outline(answer["spans"]) == [(5, []), (1, []), (3, [(4, [])]), (2, [])]
    assert answer["integrity"]["orphans"] == {ids(90)[0]: ids(1, 3), ids(91)[0]: ids(2)}
    assert answer["integrity"]["complete"] is False
    counts = answer["integrity"]["counts"]
    assert (counts["orphans"], counts["missing_parents"]) == (3, 2)


def test_a_root_that_is_not_there_is_late_while_spans_come_and_missing_after():
    spans = [span(1, 90, received=NOW - 120 * 10**9), span(2, 90, received=NOW - 59 * 10**9)]
    assert examined(spans).root == "late"
    assert examined(spans, now=NOW + 2 * 10**9).root == "missing"
    assert written(spans)["root"] is None
    assert examined([*spans, span(90)]).root == "present"


def test_zeros_for_a_parent_are_no_parent():
    answer = written([span(1, bytes(8))])
    assert answer["integrity"]["roots"] == ids(1)
    assert answer["spans"][0]["parent_span_id"] == ""


def test_several_roots_are_said_and_the_earliest_names_the_trace():
    answer = written([span(2, start=START + 1), span(1, start=START + 2)])
    assert answer["integrity"]["roots"] == ids(2, 1)
    assert answer["root"]["span_id"] == ids(2)[0]
    assert answer["integrity"]["complete"] is True


def test_a_span_that_is_its_own_parent():
    answer = written([span(1, 1), span(2, 1)])
    assert outline(answer["spans"]) == [(1, [(2, [])])]
    assert answer["integrity"]["cycles"] == [ids(1)]
    assert (answer["root"], answer["integrity"]["complete"]) == (None, False)


def test_a_cycle_is_cut_at_its_earliest_span_and_keeps_its_branches():
    spans = [
        span(1, 3, start=START + 5),
        span(2, 1, start=START + 3),
        span(3, 2, start=START + 4),
        span(4, 3, start=START + 9),
        span(5, start=START + 10),
    ]
    answer = written(spans)
    assert answer["integrity"]["cycles"] == [ids(2, 3, 1)]
    assert outline(answer["spans"]) == [(5, []), (2, [(3, [(1, []), (4, [])])])]
    assert answer["spans"][1]["parent_span_id"] == ids(1)[0]
    assert answer["integrity"]["counts"]["spans_in_cycles"] == 3


def test_spans_with_one_id_are_all_shown_and_children_hang_from_the_earliest():
    spans = [span(1), span(2, 1, start=START + 7, name="second"), span(2, 1, start=START + 3, name="first"), span(3, 2)]
    answer = written(spans)
    first, second = answer["spans"][0]["children"]
    assert (first["name"], len(first["children"])) == ("first", 1)
    assert (second["name"], len(second["children"])) == ("second", 0)
    assert answer["integrity"]["duplicate_span_ids"] == ids(2)


def test_clock_skew_is_between_resources_and_moves_nothing():
    spans = [
        span(1, start=START, end=START + 100),
        span(2, 1, start=START - 30, end=START + 110, resource=resource("bank")),
        span(3, 1, start=START - 20, end=START + 10),
        span(4, 1, start=START + 50, end=START + 900, resource=resource("bank")),
        span(5, 1, start=START - 10, end=0, resource=resource("bank")),
    ]
    answer = written(spans)
    assert answer["integrity"]["clock_skew"] == [
        {
            "span_id": ids(2)[0],
            "parent_span_id": ids(1)[0],
            "starts_before_parent_nano": "30",
            "ends_after_parent_nano": "10",
        },
        {
            "span_id": ids(5)[0],
            "parent_span_id": ids(1)[0],
            "starts_before_parent_nano": "10",
            "ends_after_parent_nano": None,
        },
    ]
    assert {"span_id": ids(3)[0], "problem": "start before parent's start"} in answer["integrity"]["times"]
    shown = {node["span_id"]: node["start_time_unix_nano"] for node in answer["spans"][0]["children"]}
    assert shown[ids(2)[0]] == str(START - 30)
    assert answer["start_time_unix_nano"] == str(START - 30)


def test_times_that_cannot_be_right_are_shown_as_sent():
    spans = [
        span(1, start=START, end=START + 10),
        span(2, 1, start=0, end=START),
        span(3, 1, start=START, end=0),
        span(4, 1, start=START + 5, end=START + 2),
        span(5, 1, start=2**64 - 2, end=2**64 - 1),
    ]
    answer = written(spans)
    assert {(one["span_id"], one["problem"]) for one in answer["integrity"]["times"]} == {
        (ids(2)[0], "no start"),
        (ids(3)[0], "no end"),
        (ids(4)[0], "end before start"),
        (ids(5)[0], "beyond the representable range"),
    }
    assert answer["integrity"]["clock_skew"] == []
    assert (answer["start_time_unix_nano"], answer["duration_nano"]) == (str(START), "10")
    durations = {node["span_id"]: node["duration_nano"] for node in answer["spans"][0]["children"]}
    assert [durations[one] for one in ids(2, 3, 4, 5)] == ["0", "0", "-3", "1"]


@pytest.mark.parametrize("times", [(0, 0), (2**64 - 1, 2**64 - 1), (0, START)])
def test_a_trace_without_one_usable_start(times):
    answer = written([span(1, start=times[0], end=times[1])])
    assert (answer["start_time_unix_nano"], answer["duration_nano"]) == ("0", "0")


def test_lists_are_bounded_and_counts_are_whole():
    spans = [span(number, number + 10_000) for number in range(1, 1501)]
    spans += [span(number, number) for number in range(3001, 4201)]
    spans += [span(number, 5001 + (number - 5000) % 1300) for number in range(5001, 6301)]
    spans += [span(7000, start=START - number) for number in range(1200)]
    spans += [span(number, start=0) for number in range(8001, 9201)]
    found = examined(spans)
    assert [len(found.orphans), len(found.times), len(found.roots)] == [1000, 1000, 1000]
    assert sum(map(len, found.cycles)) == 1000
    assert found.counts.model_dump() == {
        "roots": 2400,
        "orphans": 1500,
        "missing_parents": 1500,
        "duplicate_span_ids": 1,
        "cycles": 1201,
        "spans_in_cycles": 2500,
        "clock_skew": 0,
        "times": 1200,
    }


def test_a_truncated_trace_says_so_and_is_not_complete():
    found = examined([span(1)], truncated=True)
    assert (found.truncated, found.complete) == (True, False)


# The million


@pytest.mark.slow
def test_a_chain_of_a_million_spans_is_written_without_recursion():
    count = 1_000_000
    spans = [span(number, number - 1 or None, start=START + number) for number in range(1, count + 1)]
    began = time.monotonic()
    tail, children = b"", 0
    for piece in pieces(build(spans), nested=True, truncated=False, now_unix_nano=NOW):
        children += piece.endswith(b'"children":[')
        tail = piece if len(piece) > 2 else tail
    assert children == count
    assert tail == b"]}" * count
    assert time.monotonic() - began < 60, "linear work takes seconds even on a busy machine"


def test_writing_holds_one_piece_in_memory():
    tree = build([span(number, number - 1 or None, start=START + number) for number in range(1, 50_001)])
    written_bytes = 0
    tracemalloc.start()
    try:
        written = pieces(tree, nested=True, truncated=False, now_unix_nano=NOW)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for piece in written:
            written_bytes += len(piece)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert written_bytes > 30_000_000
    assert peak < 1_000_000


# Values


def attributes_of(*pairs):
    text = b"".join(pieces(build([span(1, attributes=list(pairs))]), nested=False, truncated=False, now_unix_nano=NOW))
    return text, json.loads(text)["spans"][0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Grüße 🜚 \x00", json.dumps("Grüße 🜚 \x00", ensure_ascii=False)),
        ("", '""'),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (2**63 - 1, "9223372036854775807"),
        (-(2**63), "-9223372036854775808"),
        (2**53 + 1, "9007199254740993"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (1e300, "1e300"),
        (5e-324, "5e-324"),
        (float("nan"), '"NaN"'),
        (float("inf"), '"Infinity"'),
        (float("-inf"), '"-Infinity"'),
        (b"", '{"bytes":""}'),
        (b"\x00\xff", '{"bytes":"AP8="}'),
        (None, "null"),
        (nested(ArrayValue()), "[]"),
        (nested(KeyValueList()), "{}"),
        (
            nested(ArrayValue(values=[AnyValue(int_value=2**63 - 1), AnyValue(double_value=2.0)])),
            "[9223372036854775807,2.0]",
        ),
        (
            nested(ArrayValue(values=[AnyValue(), AnyValue(bytes_value=b"\x01"), AnyValue(double_value=float("nan"))])),
            '[null,{"bytes":"AQ=="},"NaN"]',
        ),
        (
            nested(
                KeyValueList(
                    values=[
                        KeyValue(key="a", value=AnyValue(string_value="first")),
                        KeyValue(key='"', value=AnyValue(array_value=ArrayValue(values=[AnyValue(bool_value=True)]))),
                        KeyValue(key="a", value=AnyValue(kvlist_value=KeyValueList())),
                        KeyValue(key="b"),
                    ]
                )
            ),
            '{"a":{},"\\"":[true],"b":null}',
        ),
    ],
)
def test_values_keep_their_type_in_json(value, text):
    written_text, one = attributes_of(("key", value))
    # 1e300 may be written 1e+300: the same number, compared as such.
    if isinstance(value, float) and text == "1e300":
        assert one["attributes"]["key"] == 1e300
    else:
        assert f'"attributes":{{"key":{text}}},'.encode() in written_text
    assert "duplicate_attributes" not in one


def test_a_nested_value_that_is_not_valid_is_shown_as_bytes_at_any_place():
    bad = Nested("kvlist", b"\xff\x00")
    one = span(1, attributes=[("a", bad), ("a", bad)], events=[Event(START, "e", [("b", bad)], 0)])
    shown = written([one])["spans"][0]
    as_bytes = {"bytes": "/wA="}
    assert shown["attributes"] == {"a": as_bytes}
    assert shown["duplicate_attributes"] == [{"key": "a", "value": as_bytes}] * 2
    assert shown["events"][0]["attributes"] == {"b": as_bytes}


def test_a_value_nested_deeper_than_any_json_library_goes():
    text = b"".join(
        pieces(build([span(1, attributes=[("d", deep(20_000))])]), nested=True, truncated=False, now_unix_nano=NOW)
    )
    assert b'"attributes":{"d":[' + b'{"k":[' * 20_000 + b"null" + b"]}" * 20_000 + b"]}," in text


def test_of_a_repeated_key_the_last_value_is_in_the_object_and_all_beside_it():
    _, one = attributes_of(("a", 1), ("b", 2), ("a", float("inf")), ("a", 3))
    assert one["attributes"] == {"a": 3, "b": 2}
    assert one["duplicate_attributes"] == [
        {"key": "a", "value": 1},
        {"key": "a", "value": "Infinity"},
        {"key": "a", "value": 3},
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-5, 5))))
def test_no_attribute_is_lost(pairs):
    json_form = plain_attributes(pairs)
    assert json_form["attributes"] == dict(pairs)
    repeated = [(one["key"], one["value"]) for one in json_form.get("duplicate_attributes", [])]
    single = [pair for pair in pairs if [key for key, _ in pairs].count(pair[0]) == 1]
    assert Counter(repeated) + Counter(single) == Counter(pairs)


def test_everything_of_a_span_is_shown():
    one = span(
        1,
        kind=9,
        status=7,
        attributes=[("a", 1)],
        events=[Event(START + 1, "exception", [("exception.type", "ValueError"), ("x", 1), ("x", 2)], 3)],
        links=[Link(bytes(15) + b"\x01", bytes(7) + b"\x02", "k=v", [("why", "retry")], 4, 1)],
    )
    one.trace_state, one.status_message = "vendor=1", "why"
    one.dropped_attributes_count, one.dropped_events_count, one.dropped_links_count = 5, 6, 7
    one.resource.schema_url, one.scope.schema_url = "https://r", "https://s"
    try:
        shown = written([one])["spans"][0]
    finally:
        one.resource.schema_url = one.scope.schema_url = ""
    assert shown == {
        "trace_id": "5b8efff798038103d269b633813fc60c",
        "span_id": "0000000000000001",
        "parent_span_id": "",
        "trace_state": "vendor=1",
        "flags": 1,
        "name": "span 1",
        "kind": 9,
        "service": "shop",
        "start_time_unix_nano": str(START),
        "end_time_unix_nano": str(START + 1000),
        "duration_nano": "1000",
        "status": {"code": 7, "message": "why"},
        "attributes": {"a": 1},
        "dropped_attributes_count": 5,
        "canonical": {},
        "usage": None,
        "subtree_usage": None,
        "events": [
            {
                "time_unix_nano": str(START + 1),
                "name": "exception",
                "attributes": {"exception.type": "ValueError", "x": 2},
                "duplicate_attributes": [{"key": "x", "value": 1}, {"key": "x", "value": 2}],
                "dropped_attributes_count": 3,
            }
        ],
        "dropped_events_count": 6,
        "links": [
            {
                "trace_id": "0" * 31 + "1",
                "span_id": "0" * 15 + "2",
                "trace_state": "k=v",
                "flags": 1,
                "attributes": {"why": "retry"},
                "dropped_attributes_count": 4,
            }
        ],
        "dropped_links_count": 7,
        "resource": {
            "attributes": {"service.name": "shop"},
            "dropped_attributes_count": 0,
            "schema_url": "https://r",
        },
        "scope": {
            "name": "made",
            "version": "1.0",
            "attributes": {},
            "dropped_attributes_count": 0,
            "schema_url": "https://s",
        },
        "children": [],
    }
