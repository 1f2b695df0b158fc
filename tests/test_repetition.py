"""A conversation that is sent again at every turn lies together in the store, and comes back as it was sent."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, body, span
from store import FOOTING, Store

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks are not installed: they are run from a clone

from benchmarks.conversations import Conversations, Shape  # noqa: E402
from benchmarks.curves import drawing  # noqa: E402
from benchmarks.repetition import SHAPES, fit  # noqa: E402


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def requests(shape: Shape, count: int, turns: int) -> list[bytes]:
    conversations = Conversations(count, shape, seed=1)
    return [body for _ in range(turns) for _, body in conversations.turn()]


def attributes(bodies: list[bytes]) -> dict[tuple[bytes, bytes], dict[str, Any]]:
    """Text attributes that were sent, by trace and span."""
    found = {}
    for each in bodies:
        for resource in ExportTraceServiceRequest.FromString(each).resource_spans:
            for sent in resource.scope_spans[0].spans:
                texts = {pair.key: pair.value.string_value for pair in sent.attributes}
                found[sent.trace_id, sent.span_id] = {key: text for key, text in texts.items() if text}
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_repeated_comes_back_as_it_was_sent(store: Store, shape: Shape) -> None:
    bodies = requests(shape, 3, 4)
    for each in bodies:
        store.load([each])
    sent = attributes(bodies)
    for trace_id in {trace for trace, _ in sent}:
        spans = store.traces.spans_of("default", trace_id, content=True, limit=1000)
        assert len(spans) == sum(trace == trace_id for trace, _ in sent)
        for back in spans:
            texts = {key: value for key, value in back.attributes if isinstance(value, str)}
            assert texts == sent[trace_id, back.span_id]


@pytest.mark.parametrize(("shape", "keys"), [("traces", 3), ("flattened", 3), ("unnamed", 1)])
def test_payload_lies_by_session(store: Store, shape: Shape, keys: int) -> None:
    store.load(list(requests(shape, 3, 4)))
    assert store.number("SELECT uniqExact(SessionKey) FROM spanhouse.content") == keys


def said(*texts: str, separator: str = ", ") -> str:
    return json.dumps([{"role": "user", "content": text} for text in texts], separators=(separator, ": "))


LONG = "the quick brown fox " * 150
PIECES_OF = {
    "empty": ("", 1),
    "a piece": ("x" * 4000, 1),
    "in the middle of a letter": ("x" + "ä" * 4500, 10),
    "short": ("x" * 10, 1),
    "a little longer than a piece": ("x" * 4001, 5),
    "messages": (said(LONG, LONG + "b", LONG + "c"), 3),
    "messages of JavaScript": (said(LONG, LONG + "b", LONG + "c", separator=","), 3),
    "messages on lines": (json.dumps([{"content": LONG + name} for name in "abc"], indent=2), 3),
    "messages in a text in JSON": (json.dumps({"input": said(LONG, LONG + "b", LONG + "c")}), 3),
    "long messages": (said("x" * 5000, LONG, "y" * 9000), 6 + 1 + 10),
    "many small objects": (json.dumps([{"x": n} for n in range(900)]), 11),
    "a zero": (said(LONG, LONG + "\0", LONG).replace("\\u0000", "\0"), 10),
    "nothing but zeros": ("\0" * 9000, 9),
}


@pytest.mark.parametrize("name", PIECES_OF)
def test_a_text_is_cut_and_comes_back(store: Store, name: str) -> None:
    text, pieces = PIECES_OF[name]
    key, one = "gen_ai.input.messages", span(1)
    for name, value in ((key, text), ("gen_ai.output.messages", "y" * 9000)):
        one.attributes.append(attribute(name, AnyValue(string_value=value)))
    store.load([body(one)])
    sizes = f"arrayMap(p -> length(p), ContentPieces['{key}'])"
    found = store.engine.rows(f"SELECT length({sizes}), arrayMax({sizes}) <= 4000 FROM spanhouse.content")
    assert found == [(pieces, 1)]
    [back] = store.traces.spans_of("default", one.trace_id, content=True, limit=10)
    assert dict(back.attributes)[key] == text


@pytest.mark.parametrize(("size", "pieces"), [(8192, 0), (8193, 2)])
def test_little_payload_is_stored_whole(store: Store, size: int, pieces: int) -> None:
    one, texts = span(1), {"input.value": "ä" * 2000, "output.value": "x" * (size - 4000)}
    one.attributes.extend(attribute(key, AnyValue(string_value=text)) for key, text in texts.items())
    store.load([body(one)])
    found = store.engine.rows("SELECT length(WholeContent), length(ContentPieces) FROM spanhouse.content")
    assert found == [(2 - pieces, pieces)]
    [back] = store.traces.spans_of("default", one.trace_id, content=True, limit=10)
    assert texts.items() <= dict(back.attributes).items()


@pytest.mark.skipif(FOOTING.cluster is not None, reason="the shards of a cluster have parts of their own")
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_stored_grows_with_turns_and_not_with_their_square(store: Store, shape: Shape) -> None:
    """Also where nothing says which conversation a turn is of, as long as what was said fits into one dictionary."""
    conversations = Conversations(5, shape, seed=1)
    sent, of_said = 0, {}
    for turn in range(1, 13):
        bodies = [body for _, body in conversations.turn()]
        sent += sum(map(len, bodies))
        store.load(bodies)
        if turn in (4, 8, 12):
            store.engine.command("OPTIMIZE TABLE spanhouse.content FINAL")
            stored = store.number(
                "SELECT sum(bytes_on_disk) FROM system.parts"
                " WHERE active AND database = 'spanhouse' AND table = 'content'"
            )
            of_said[turn] = stored / conversations.said_bytes
    assert max(of_said.values()) < 0.9 < 1.2 < sent / conversations.said_bytes
    assert of_said[12] < 1.15 * of_said[4]


# The benchmark


def test_a_conversation_is_the_same_for_the_same_seed() -> None:
    assert requests("json", 2, 3) == requests("json", 2, 3)
    first, last = (len(body) for body in (requests("json", 1, 1)[0], requests("json", 1, 10)[-1]))
    assert last > 5 * first


def test_a_square_is_found_in_a_curve() -> None:
    found = fit([(n, 7 + 3 * n + 0.5 * n * n) for n in (1, 2, 5, 10, 30)])
    assert found == pytest.approx((7, 3, 0.5))


def test_a_drawing_names_each_curve() -> None:
    text = drawing([("a <b>", [(1, 1.0), (30, 10.0)]), ("c", [(1, 1.0), (30, 10.0)])], "turns", "bytes")
    texts = [element.text for element in ElementTree.fromstring(text).iter() if element.tag.endswith("}text")]
    assert {"a <b>", "c", "turns", "bytes"} <= set(texts)


@pytest.mark.skipif(FOOTING.urls is not None, reason="the benchmark has an engine of its own")
def test_the_benchmark_runs_and_says_whom_it_leaves_out(tmp_path: Path) -> None:
    options = ["--turns=6", "--conversations=2", "--shape=json", "--tracker=phoenix", "--phoenix=/nowhere/phoenix"]
    files = [f"--json={tmp_path / 'a.json'}", f"--svg={tmp_path / 'a.svg'}", f"--directory={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.repetition", *options, *files],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out: cannot find /nowhere/phoenix" in done.stderr
    assert "| 6 | " in done.stdout
    [curve] = json.loads((tmp_path / "a.json").read_text())["curves"]
    assert [point["turns"] for point in curve["points"]] == [1, 2, 5, 6]
    assert curve["points"][-1]["by_table"]["content"] > curve["points"][0]["by_table"]["content"] > 0
    ElementTree.parse(tmp_path / "a.svg")
