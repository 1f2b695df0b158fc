"""`spanhouse demo`, as a newcomer runs it."""

import os
import re
import subprocess
import time

import httpx
from program import COMMAND, Program


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SPANHOUSE_", "OTEL_"))}
    command = [COMMAND, "demo", *arguments]
    return subprocess.run(command, check=False, env=env | environment, capture_output=True, text=True, timeout=60)


def test_demo_says_where_to_look(spanhouse: Program) -> None:
    result = demo("--url", spanhouse.http, "--endpoint", f"http://{spanhouse.grpc}")
    assert result.returncode == 0, result.stderr
    sent, command, url = result.stdout.splitlines()
    assert sent.startswith("Sent 16 spans")
    trace_id = re.fullmatch(r"  \S*spanhouse trace ([0-9a-f]{32})", command)[1]  # type: ignore[index]
    assert url.strip() == f"{spanhouse.http}/api/v1/traces/{trace_id}"

    tree = httpx.get(url.strip()).json()
    assert (tree["span_count"], tree["error_count"], tree["services"]) == (16, 2, ["billing-agents", "support-desk"])
    assert tree["root"]["name"] == "POST /chat"
    assert tree["integrity"]["complete"] is True
    assert tree["integrity"]["counts"]["clock_skew"] == tree["integrity"]["counts"]["times"] == 0


def test_demo_has_a_run_a_model_version_and_prompts_to_look_at(spanhouse: Program) -> None:
    tenant = {"x-spanhouse-tenant": "first-day"}
    result = demo("--url", spanhouse.http, "--endpoint", f"http://{spanhouse.grpc}", "--tenant", "first-day")
    tree = httpx.get(result.stdout.splitlines()[2].strip(), headers=tenant).json()
    assert tree["links"]["run"] == {"id": "nightly-214", "provenance": "resource"}
    assert tree["links"]["model_version"] == {"name": "support-bot", "version": "4", "provenance": "resource"}
    assert tree["usage"]["total_tokens"] == 5819, "agents repeat what their calls spent"

    deadline = time.monotonic() + 20
    for path in ("runs/nightly-214", "models/support-bot/versions/4", "prompts/billing/versions/7", "agents/triage"):
        url = f"{spanhouse.http}/api/v1/{path}"
        while (page := httpx.get(url, headers=tenant)).status_code == 404 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert page.status_code == 200, page.text
        assert page.json()["traces"] == 1


def test_demo_tells_a_believable_story(spanhouse: Program) -> None:
    result = demo("--url", spanhouse.http, "--endpoint", f"http://{spanhouse.grpc}", "--tenant", "story")
    url = result.stdout.splitlines()[2].strip()
    answer = httpx.get(url, params={"format": "flat"}, headers={"x-spanhouse-tenant": "story"}).json()
    by_id = {span["span_id"]: span for span in answer["spans"]}
    spans = list(by_id.values())

    for span in spans:  # every span lies within its parent
        parent = by_id.get(span["parent_span_id"], span)
        assert int(parent["start_time_unix_nano"]) <= int(span["start_time_unix_nano"])
        assert int(span["end_time_unix_nano"]) <= int(parent["end_time_unix_nano"])
    agents = [span for span in spans if span["attributes"].get("gen_ai.operation.name") == "invoke_agent"]
    for agent in agents:  # an agent's tokens are those of its calls
        calls = [
            span["attributes"]
            for span in spans
            if span["parent_span_id"] == agent["span_id"] and "chat" in span["name"]
        ]
        for key in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
            assert agent["attributes"][key] == sum(call[key] for call in calls)
    failed, again = (span for span in spans if span["name"] == "execute_tool issue_refund")
    assert (failed["status"]["code"], again["status"]["code"]) == ("error", "unset")
    assert [event["name"] for event in failed["events"]] == ["exception"]
    assert [link["span_id"] for link in again["links"]] == [failed["span_id"]]


def test_demo_without_a_receiver(spanhouse: Program) -> None:
    result = demo("--url", spanhouse.http, "--endpoint", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "cannot send the conversation to http://127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr


def test_demo_with_the_sdk_switched_off(spanhouse: Program) -> None:
    result = demo("--url", spanhouse.http, "--endpoint", f"http://{spanhouse.grpc}", OTEL_SDK_DISABLED="true")
    assert result.returncode == 1
    assert "OTEL_SDK_DISABLED" in result.stderr
