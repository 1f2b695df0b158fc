"""The program as a process: its ready line, its end, its data directory, its ports, and kill -9."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from program import COMMAND, NotReady, Program

TRACE_ID = bytes(range(16))


def export(program: Program, *span_ids: int) -> None:
    """One request with these spans, acknowledged on return."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for span_id in span_ids:
        spans.add(trace_id=TRACE_ID, span_id=span_id.to_bytes(8), name="work", start_time_unix_nano=10**18 + span_id)
    response = httpx.post(
        f"{program.otlp_http}/v1/traces",
        content=request.SerializeToString(),
        headers={"content-type": "application/x-protobuf"},
    )
    assert response.status_code == 200, response.text
    assert response.content == b""


def span_ids(program: Program, spans: int) -> list[int]:
    return sorted(int(span["span_id"], 16) for span in program.read_trace(TRACE_ID.hex(), spans)["spans"])


def test_ready_line_as_json(tmp_path: Path) -> None:
    with Program(tmp_path / "data") as program:
        assert list(program.ready) == ["event", "otlp_grpc", "otlp_http", "http"]
        assert program.ready["event"] == "ready"
        host, port = program.grpc.split(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=5).close()
        assert httpx.get(f"{program.http}/readyz").json() == {"status": "ready"}
        assert httpx.get(f"{program.http}/healthz").json() == {"status": "ok"}
        assert httpx.post(f"{program.otlp_http}/v1/traces", headers={"content-type": "application/json"}, content="{}")


def test_ready_line_as_text_and_nothing_else_on_standard_output(tmp_path: Path) -> None:
    ports = ("--otlp-grpc-port=0", "--otlp-http-port=0", "--http-port=0")
    arguments = [COMMAND, "serve", f"--data-dir={tmp_path}", *ports]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)  # Ctrl-C ends it as SIGTERM does
        rest, log = process.communicate(timeout=60)
    assert line.startswith("Spanhouse is ready: OTLP/gRPC on 127.0.0.1:"), log
    assert rest == ""
    assert process.returncode == 0, log


def test_sigterm_keeps_what_was_acknowledged_and_exits_0(tmp_path: Path) -> None:
    program = Program(tmp_path / "data")
    with program:
        for span_id in range(1, 51):
            export(program, span_id)
        assert program.stop() == 0
    assert not list((tmp_path / "data" / "wal").glob("*.wal")), "the loader had time to load what was in the log"
    with program:
        program.start()
        assert span_ids(program, 50) == list(range(1, 51))


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    program = Program(tmp_path / "data")
    program.start()
    export(program, 1)
    host, port = program.otlp_http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sender:
        sender.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{"
        )
        program.terminate()
        with pytest.raises(subprocess.TimeoutExpired):  # the request has time to end
            program.wait(2)
        program.terminate()
        assert program.wait(5) == -signal.SIGTERM
    with program:
        program.start()
        assert span_ids(program, 1) == [1]


def test_kill_9_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    program = Program(tmp_path / "data", "--flush-interval-s=60")  # nothing is loaded before the end
    program.start()
    export(program, 1, 2)
    export(program, 3)
    program.kill()
    with program:
        program.start()
        assert span_ids(program, 3) == [1, 2, 3]
        export(program, 1, 2)  # a retransmit of what the process before acknowledged
        metrics = httpx.get(f"{program.http}/metrics").text
        assert 'spanhouse_spans_received_total{tenant="default"} 5.0' in metrics
        assert 'spanhouse_spans_deduplicated_total{tenant="default"} 2.0' in metrics
        assert span_ids(program, 3) == [1, 2, 3]


def test_a_second_start_says_who_holds_the_data_directory(spanhouse: Program) -> None:
    with pytest.raises(NotReady, match=f"cannot use .*process {spanhouse.pid}"):
        Program(spanhouse.data_dir).start()
    assert httpx.get(f"{spanhouse.http}/readyz").is_success


@pytest.mark.parametrize("option", ["--otlp-grpc-port", "--otlp-http-port", "--http-port"])
def test_a_port_in_use_is_named(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NotReady, match=f"cannot listen on 127.0.0.1 port {port}: .*{option}"):
            Program(tmp_path / "data", f"{option}={port}").start()


def test_a_port_of_another_spanhouse_is_in_use(spanhouse: Program, tmp_path: Path) -> None:
    port = spanhouse.grpc.rpartition(":")[2]
    with pytest.raises(NotReady, match=f"cannot listen on 127.0.0.1 port {port}: "):
        Program(tmp_path / "data", f"--otlp-grpc-port={port}").start()


def test_log_as_json_is_json(tmp_path: Path) -> None:
    with Program(tmp_path / "data", "--log-level=debug", env={"SPANHOUSE_DATADIR": "x"}) as program:
        export(program, 1)
    entries = [json.loads(line) for line in program.log().splitlines()]
    assert any("SPANHOUSE_DATADIR" in entry["message"] for entry in entries)
    assert {"time", "level", "logger", "message"} <= set(entries[0])


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_ipv6(tmp_path: Path) -> None:
    with Program(tmp_path / "data", "--host=::1") as program:
        assert program.http.startswith("http://[::1]:")
        export(program, 1)


def test_it_writes_in_its_data_directory_only(tmp_path: Path) -> None:
    with Program(tmp_path / "data") as program:
        export(program, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "data.log"}
