"""The OpenTelemetry JavaScript SDK exports over HTTP/JSON; what comes back has every value and type that went in.

Needs Node.js and the packages of tests/js: `npm ci --prefix tests/js`. Without them the test is skipped, or fails if
SPANHOUSE_REQUIRE_ALL is set, as CI does.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from program import Program

JS = Path(__file__).parent / "js"


def need_node() -> str:
    """The path of node. Skips the test when something that it needs is missing."""
    node = shutil.which("node")
    missing = "Node.js" if node is None else "" if (JS / "node_modules").is_dir() else "the packages of tests/js"
    if node is not None and not missing:
        return node
    message = f"{missing} missing: install Node.js 20.6 or later and run `npm ci --prefix tests/js`"
    if os.environ.get("SPANHOUSE_REQUIRE_ALL"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.mark.node
def test_the_tree_comes_back_with_its_types(spanhouse: Program) -> None:
    command = [need_node(), JS / "export.mjs", spanhouse.otlp_http]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    sent = json.loads(run.stdout)
    tree = spanhouse.read_trace(sent["trace_id"], 2, format="tree")

    assert (tree["root"]["service"], tree["root"]["name"]) == ("javascript-shop", "checkout")
    assert (tree["span_count"], tree["error_count"]) == (2, 1)
    assert tree["integrity"]["complete"] is True
    [root] = tree["spans"]
    assert root["span_id"] == sent["root"]["span_id"]
    assert {**root, **sent["root"]} == root  # its times, too
    # as text, which tells 1 from 1.0 and from true
    assert json.dumps(root["attributes"], sort_keys=True) == json.dumps(sent["attributes"], sort_keys=True)
    resource = {"service.name": "javascript-shop", "service.instance.id": 7, "shop.open": True}
    assert json.dumps(root["resource"]["attributes"], sort_keys=True) == json.dumps(resource, sort_keys=True)
    assert (root["scope"]["name"], root["scope"]["version"], root["kind"]) == ("shop", "1.2.3", "server")
    assert root["scope"]["schema_url"] == "https://opentelemetry.io/schemas/1.37.0"
    [link] = root["links"]
    assert (link["trace_id"], link["span_id"]) == (sent["linked"]["traceId"], sent["linked"]["spanId"])
    assert link["attributes"] == {"why": "retry"}

    [child] = root["children"]
    assert {**child, **sent["child"]} == child
    assert child["status"] == {"code": "error", "message": "card declined"}
    attempt, exception = child["events"]
    assert json.dumps(attempt["attributes"], sort_keys=True) == '{"number": 1, "took_s": 0.25}'
    assert exception["attributes"]["exception.message"] == "card declined"
