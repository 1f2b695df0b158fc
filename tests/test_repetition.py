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
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for span in resource.scope_spans[0].spans:
                texts = {pair.key: pair.value.string_value for pair in span.attributes}
                found[span.trace_id, span.span_id] = {key: text for key, text in texts.items() if text}
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_repeated_comes_back_as_it_was_sent(store: Store, shape: Shape) -> None:
    bodies = requests(shape, 3, 4)
    for body in bodies:
        store.load([body])
    sent = attributes(bodies)
    for trace_id in {trace for trace, _ in sent}:
        spans = store.traces.spans_of("default", trace_id, content=True, limit=1000)
        assert len(spans) == sum(trace == trace_id for trace, _ in sent)
        for span in spans:
            texts = {key: value for key, value in span.attributes if isinstance(value, str)}
            assert texts == sent[trace_id, span.span_id]


@pytest.mark.parametrize(("shape", "keys"), [("traces", 3), ("flattened", 3), ("unnamed", 1)])
def test_payload_lies_by_session(store: Store, shape: Shape, keys: int) -> None:
    store.load(list(requests(shape, 3, 4)))
    assert store.number("SELECT uniqExact(SessionKey) FROM spanhouse.content") == keys


@pytest.mark.skipif(FOOTING.cluster is not None, reason="the shards of a cluster have parts of their own")
def test_turns_in_traces_of_their_own_compress_when_they_say_their_session(store: Store) -> None:
    sizes = {}
    shapes: tuple[Shape, ...] = ("traces", "unnamed")
    for shape in shapes:
        store.engine.command("TRUNCATE TABLE spanhouse.content")
        for body in requests(shape, 30, 8):
            store.load([body])
        store.engine.command("OPTIMIZE TABLE spanhouse.content FINAL")
        sizes[shape] = store.number(
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'spanhouse' AND table = 'content'"
        )
    assert sizes["traces"] < sizes["unnamed"] / 2


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
