"""What is understood of each recorded case: its trees, and of every span the canonical fields, held against files that
were checked by hand against the program that was recorded (tests/golden/README.md)."""

import json
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from recorded import CASES, requests
from store import Store

from collector.otlp_json import to_protobuf
from query import trace_json
from query.tree import build

GOLDEN = Path(__file__).with_name("golden")
SPANS_MAX = 10_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """All cases, each as a tenant."""
    store = Store(tmp_path_factory.mktemp("golden"))
    for case in CASES:
        store.load([r.decoded() if "json" not in r.content_type else to_protobuf(r.body) for r in requests(case)], case)
    yield store
    store.close()


def outline(node: dict) -> dict:
    """A span as it is written into a golden file."""
    counted = node["usage"] and (node["usage"]["reason"] or "counts")
    said = {"span": node["name"], "id": node["span_id"], **node["canonical"]}
    return said | ({"usage": counted} if counted else {}) | {"children": [outline(child) for child in node["children"]]}


def understood(store: Store, case: str) -> list[dict]:
    """The traces of a case by their start."""
    traces = []
    for (trace_id,) in store.engine.rows(
        f"SELECT lower(hex(TraceId)) FROM spanhouse.traces WHERE Tenant = '{case}'"
        " GROUP BY TraceId ORDER BY min(Start), 1"
    ):
        spans = store.traces.spans_of(case, bytes.fromhex(trace_id), True, SPANS_MAX)
        about = {"links": {}, "assessments": []}
        pieces = trace_json.pieces(
            build(spans), nested=True, truncated=False, now_unix_nano=0, price=lambda _: None, about=about
        )
        trace = orjson.loads(b"".join(pieces))
        del trace["usage"]["cost_usd"]
        traces.append({"trace": trace_id, "usage": trace["usage"], "spans": [outline(span) for span in trace["spans"]]})
    return traces


@pytest.mark.parametrize("case", CASES)
def test_everything_recorded_is_understood(store: Store, case: str) -> None:
    """Regenerate with: rm tests/golden/<case>.json, then run this test twice, and check what changed by hand."""
    golden = GOLDEN / f"{case}.json"
    found = understood(store, case)
    if not golden.exists():
        golden.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        pytest.fail(f"{golden.name} was missing and is written now: check it by hand, then run again")
    assert found == json.loads(golden.read_text())
