"""The commands against the real program, and the drawing of traces that no sane program would send."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from program import COMMAND, Program
from rich.console import Console
from xxhash import xxh3_128_digest

from cli import sampling, terminal, versions
from cli.client import Client, Trouble
from cli.demo import send
from collector.frames import StoredFrame
from collector.ledger import Ledger
from collector.quarantine import Quarantine


def run(*arguments: str, url: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "110", "LANG": "C.UTF-8", **environment}
    if url:
        env["SPANHOUSE_URL"] = url
    return subprocess.run([COMMAND, *arguments], check=False, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def trace_id(spanhouse: Program) -> str:
    """A demo conversation that can be read."""
    sent = send(f"http://{spanhouse.grpc}", "default")
    with Client(spanhouse.http, "default") as client:
        client.wait_for_trace(sent.trace_id, sent.spans)
    return sent.trace_id


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, "spanhouse 0.1.0\n")


def test_help_is_made_of_sentences() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in ("serve", "demo", "trace", "traces", "quarantine"):
        assert f"\n  {command} " in result.stdout
        assert run(command, "--help").stdout.split("\n")[2].strip().endswith(".")


@pytest.mark.parametrize("command", [["trace", "0" * 31 + "1"], ["traces"], ["demo"], ["quarantine", "list"]])
def test_a_server_that_is_away_is_named_with_the_way_out(command: list[str]) -> None:
    result = run(*command, url="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "Error: cannot reach http://127.0.0.1:9: " in result.stderr
    assert "Try:   start the server with `spanhouse serve`" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_not_the_api_is_named(spanhouse: Program) -> None:
    result = run("traces", url=spanhouse.otlp_http)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert spanhouse.otlp_http in result.stderr


def test_trace_draws_the_tree(spanhouse: Program, trace_id: str) -> None:
    result = run("trace", trace_id, url=spanhouse.http)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(trace_id)
    assert "7.20 s  16 spans  2 services  2 errors" in lines[0]
    assert lines[1] == "model support-bot 4  run nightly-214  session chat-20c4  5468→351 tokens  $0.0172"
    assert lines[2].startswith("POST /chat")
    assert lines[3].startswith("└─ invoke_agent triage")
    assert lines[4].startswith("   ├─ chat gpt-5-mini")
    assert "318→24" in lines[4]
    assert "870 ms" in lines[4]
    assert "✗ PaymentTimeout: the payment service did not answer within 1000 ms" in result.stdout
    assert "charged twice for order" not in result.stdout, "content only when asked for"
    assert len(lines) == 2 + 16 + 2, "head, spans, two errors, and no doubt about the tree"


def test_trace_shows_content_when_asked(spanhouse: Program, trace_id: str) -> None:
    result = run("trace", trace_id, "--content", url=spanhouse.http)
    assert "in user: Hi, I was charged twice for order 8841." in result.stdout
    assert 'out assistant: look_up_invoice({"invoice":8841})' in result.stdout


def test_trace_is_bounded(spanhouse: Program, trace_id: str) -> None:
    result = run("trace", trace_id, "--spans-max=3", url=spanhouse.http)
    assert result.stdout.splitlines()[-1] == "… 13 more spans: --spans-max draws more"


def test_trace_saves_a_picture(spanhouse: Program, trace_id: str, tmp_path: Path) -> None:
    picture = tmp_path / "trace.svg"
    assert run("trace", trace_id, "--save-svg", str(picture), url=spanhouse.http).returncode == 0
    svg = picture.read_text()
    assert "issue_refund" in svg
    assert "url(http" not in svg.replace('"', ""), "it loads nothing from elsewhere"


def test_a_trace_that_is_not_there(spanhouse: Program) -> None:
    result = run("trace", "ab" * 16, url=spanhouse.http)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: cannot find trace {'ab' * 16}")


def test_an_id_that_is_none(spanhouse: Program) -> None:
    result = run("trace", "hello", url=spanhouse.http)
    assert result.returncode == 1
    assert "32 hex digits" in result.stderr


def test_traces_lists_and_filters(spanhouse: Program, trace_id: str) -> None:
    result = run("traces", url=spanhouse.http, COLUMNS="160")
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stdout.splitlines() if line.startswith(trace_id)]
    assert line.split()[3:] == ["7.20", "s", "16", "2", "POST", "/chat", "support-desk"]
    narrow = run("traces", url=spanhouse.http, COLUMNS="70").stdout
    assert trace_id in narrow, "an id can be copied from a terminal of any width"
    found = run("traces", "--service=billing-agents", "--attr=gen_ai.tool.name=issue_refund", url=spanhouse.http)
    assert trace_id in found.stdout, found.stderr
    assert run("traces", "--service=nobody", url=spanhouse.http).stdout == "no traces match\n"
    wrong = run("traces", "--attr=no-equals-sign", url=spanhouse.http)
    assert wrong.returncode == 2
    assert "write KEY=VALUE" in wrong.stderr
    assert "min_duration" in run("traces", "--min-duration=long", url=spanhouse.http).stderr


def test_traces_goes_on_with_the_cursor(spanhouse: Program, trace_id: str) -> None:
    send(f"http://{spanhouse.grpc}", "pages")
    sent = send(f"http://{spanhouse.grpc}", "pages")
    with Client(spanhouse.http, "pages") as client:
        client.wait_for_trace(sent.trace_id, sent.spans)
        [newest] = client.traces([("limit", "1")])["traces"]
    first = run("traces", "--limit=1", "--tenant=pages", url=spanhouse.http, COLUMNS="160")
    assert newest["trace_id"] in first.stdout
    cursor = first.stdout.splitlines()[-1].split("--cursor ")[1]
    second = run("traces", "--limit=1", "--tenant=pages", "--cursor", cursor, url=spanhouse.http, COLUMNS="160")
    assert second.returncode == 0, second.stderr
    assert newest["trace_id"] not in second.stdout
    assert len(second.stdout.splitlines()) == 2


def test_an_empty_quarantine(spanhouse: Program) -> None:
    assert run("quarantine", "list", url=spanhouse.http).stdout == "the quarantine is empty\n"
    for command in ("show", "replay", "drop"):
        result = run("quarantine", command, "1-2.3", url=spanhouse.http)
        assert (result.returncode, "cannot find frame" in result.stderr) == (1, True), result.stderr


def test_quarantine_is_listed_shown_replayed_and_dropped(tmp_path: Path) -> None:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "shop"
    resource_spans.scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name="pay")
    body = request.SerializeToString()
    quarantine = Quarantine(tmp_path / "data" / "quarantine", Ledger())
    frame = StoredFrame(0, 0, 10**18, "default", xxh3_128_digest(body), 1, memoryview(body))
    for index in range(2):
        quarantine.put("1000000000000000000-0a1b2c", index, frame, "the store said no")

    with Program(tmp_path / "data") as program:
        listed = run("quarantine", "list", url=program.http).stdout.splitlines()
        assert [line.split()[0] for line in listed] == ["frame", *(f"1000000000000000000-0a1b2c.{i}" for i in range(2))]
        assert listed[1].endswith("1 span  the store said no")
        first, second = (line.split()[0] for line in listed[1:])
        shown = run("quarantine", "show", first, url=program.http)
        assert json.loads(shown.stdout)["request"]["spans"] == [
            {"trace_id": "01" * 16, "span_id": "02" * 8, "name": "pay"}
        ]
        assert run("quarantine", "drop", second, url=program.http).returncode == 0
        replayed = run("quarantine", "replay", first, url=program.http)
        assert replayed.returncode == 0, replayed.stderr
        assert program.read_trace("01" * 16, 1)["spans"][0]["name"] == "pay"
        assert run("quarantine", "list", url=program.http).stdout == "the quarantine is empty\n"


def test_quarantined_log_records_are_counted_as_such() -> None:
    frame = {
        "id": "1-2.3",
        "received_unix_nano": "0",
        "tenant": "default",
        "reason": "no",
        "spans": 0,
        "log_records": 2,
    }
    console = Console(width=120, file=io.StringIO())
    terminal.draw_quarantine(console, [frame])
    assert "2 log records  no" in console.file.getvalue()


# Drawing what no sane program would send


def span(span_id: str, parent: str, **more: Any) -> dict[str, Any]:
    return {
        "span_id": span_id, "parent_span_id": parent, "name": span_id, "service": "s", "duration_nano": "1",
        "start_time_unix_nano": "1", "end_time_unix_nano": "2", "status": {"code": "unset", "message": ""},
        "attributes": {}, "events": [], "canonical": {}, "usage": None, **more,
    }  # fmt: skip


def drawn(
    spans: list[dict[str, Any]],
    spans_max: int = 1000,
    links: dict[str, Any] | None = None,
    usage: tuple[int, int, float | None] = (0, 0, None),
    **integrity: int,
) -> list[str]:
    asked, answered, cost_usd = usage
    counts = dict.fromkeys(
        (
            "roots",
            "orphans",
            "missing_parents",
            "duplicate_span_ids",
            "cycles",
            "spans_in_cycles",
            "clock_skew",
            "times",
        ),
        0,
    )
    trace = {
        "trace_id": "t", "start_time_unix_nano": "1", "duration_nano": "1", "span_count": len(spans), "error_count": 0,
        "services": ["s"], "spans": spans, "links": links or {},
        "usage": {
            "input_tokens": asked, "output_tokens": answered, "total_tokens": asked + answered, "cost_usd": cost_usd,
        },
        "integrity": {"root": "present", "truncated": False, "times": [], "counts": {**counts, **integrity}},
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=100)
    terminal.draw_trace(console, trace, spans_max=spans_max)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_deep_chain_is_drawn_to_the_limit() -> None:
    spans = [span("0", "")] + [span(str(depth), str(depth - 1)) for depth in range(1, 100_000)]
    lines = drawn(spans)
    assert len(lines) == 1 + 1000 + 1
    assert lines[1 + 16].startswith("   " * 15 + "└─ 16 ")
    assert lines[1 + 17].startswith("   " * 16 + "(17) 17 ")
    assert lines[1 + 999].startswith("   " * 16 + "(999) 999 ")
    assert lines[-1] == "… 99000 more spans: --spans-max draws more"


def test_every_span_is_drawn_once() -> None:
    spans = [
        span("root", ""),
        span("child", "root"),
        span("child", "root", name="double"),
        span("below", "child"),
        span("orphan", "gone"),
        span("self", "self"),
        span("tick", "tock"),
        span("tock", "tick"),
    ]
    lines = drawn(spans, orphans=1, missing_parents=1, duplicate_span_ids=1, cycles=2, spans_in_cycles=3)
    names = [line.lstrip("│├└─ ").split()[0] for line in lines[1:9]]
    assert names == ["root", "child", "below", "double", "orphan", "self", "tick", "tock"]
    assert lines[9:] == [
        "! 1 span of 1 missing parent, drawn without it",
        "! 1 span id used by more than one span",
        "! 3 spans in a cycle of parents; it is cut at the earliest",
    ]


def test_the_head_says_what_a_trace_belongs_to_and_what_it_spent() -> None:
    links = {
        "run": {"id": "r-1\x1b[2J", "provenance": "span", "others": [{"id": "r-2", "provenance": "span"}]},
        "model_version": {"name": "bot", "version": None, "provenance": "header"},
        "agent": {"name": "triage", "version": "1", "provenance": "span"},
    }
    lines = drawn([span("a", "")], links=links, usage=(1200, 34, None))
    assert lines[1] == "model bot  run r-1␛[2J and 1 more  1200→34 tokens"
    assert drawn([span("a", "")], usage=(0, 0, 1234.5))[1] == "$1,234.50", "some tools cost and have no tokens"
    assert drawn([span("a", "")])[1].startswith("a "), "no line where nothing is known"


@pytest.mark.parametrize(("usd", "text"), [(0, "$0.00"), (4e-5, "<$0.0001"), (0.01723, "$0.0172"), (2.345, "$2.35")])
def test_costs(usd: float, text: str) -> None:
    assert terminal._cost(usd) == text


def test_tokens_of_any_vendor_are_drawn() -> None:
    [_, line] = drawn([span("a", "", canonical={"input_tokens": 7, "request_model": "gpt-5"}, usage={"counts": False})])
    assert line.startswith("a gpt-5 ")
    assert "7→?" in line


def test_a_name_cannot_draw_outside_its_place() -> None:
    [_, line] = drawn([span("a", "", name="\x1b[2J\x1b[31mred\nnext\x9b2J\u202egnp [bold]x[/bold]")])
    assert line.startswith("␛[2J␛[31mred␊next\ufffd2J\ufffdgnp [bold]x[/bold] ")


def test_times_beyond_reason_are_drawn() -> None:
    lines = drawn([span("a", "", start_time_unix_nano=str(2**64 - 1), end_time_unix_nano="0", duration_nano="-5")])
    assert "-5 ns" in lines[1]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1.00 µs"), (9_996_000, "10.0 ms"), (99_960_000, "100 ms"),
     (1_500_000_000, "1.50 s"), (90 * 10**9, "1.50 min"), (2**63, "2562048 h")],
)  # fmt: skip
def test_durations(nanoseconds: int, text: str) -> None:
    assert terminal._duration(nanoseconds) == text


@pytest.mark.parametrize("url", ["127.0.0.1:4320", "localhost", "ftp://x", "", "http://x:port"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(Trouble, match=f"cannot use '{url}' as the server's URL"):
        Client(url, "default")


def test_names_of_rules_and_people_are_shown_as_they_are() -> None:
    rule = {"name": "crawler [b]\x1b[2J", "match": {"service": ["[red]"]}, "keep": 0.5}
    version = {"version": 2, "changed_by": "ann [dim]", "comment": "[bold]", "since_unix_nano": "0", "rules": [rule]}
    console = Console(file=io.StringIO(), width=200)
    sampling.draw(console, {**version, "wait_s": 5, "default": {"keep": 1}})
    versions.draw(console, [version], "rules")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert [word in text for word in ("crawler [b]", "service [red]", "by ann [dim];", "[bold]")] == [True] * 4
    assert "\x1b" not in text
