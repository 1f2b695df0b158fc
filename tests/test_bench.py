"""The benchmarks measure what they say: their payloads, their arithmetic, and one short run of them from end to end."""

import json
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter, defaultdict
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks are not installed: they are run from a clone

from benchmarks import payloads  # noqa: E402
from benchmarks.__main__ import PROFILES  # noqa: E402
from benchmarks.expiry_traces import TRACE_SPANS, Traces  # noqa: E402
from benchmarks.meter import Meter, quantile  # noqa: E402

COMMAND = [sys.executable, "-m", "benchmarks", "--quick"]
ENDED_S_MAX = 30
# Bytes a span, how far zlib (level 1) compresses, and spans a trace: of the generator with which every figure of the
# design was measured.
SHAPES = {"agent": (2012, 6.98, 11.4), "service": (360, 7.47, 8.57)}


def processes_of(directory: Path) -> list[str]:
    """Command lines that name the directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if str(directory) in line and "-m benchmarks" not in line]


@pytest.mark.parametrize("profile", PROFILES)
def test_payloads_have_the_shape_of_their_profile(profile: payloads.Profile, tmp_path: Path) -> None:
    size_bytes, repetition, trace_spans = SHAPES[profile]
    payload = payloads.write(tmp_path / "a", profile, 20_000, seed=1)
    data = payload.path.read_bytes()
    assert payload.spans == pytest.approx(20_000, abs=20)
    assert payload.size_bytes == len(data)
    assert payload.size_bytes / payload.spans == pytest.approx(size_bytes, rel=0.01)
    assert len(data) / len(zlib.compress(data, 1)) == pytest.approx(repetition, rel=0.01)

    spans_of_traces: Counter[bytes] = Counter()
    for spans, body in payload.bodies():
        request = ExportTraceServiceRequest.FromString(body)
        ids = [s.trace_id for rs in request.resource_spans for ss in rs.scope_spans for s in ss.spans]
        assert len(ids) == spans
        assert spans <= payloads.REQUEST_SPANS + 20
        spans_of_traces.update(ids)
    assert payload.spans / len(spans_of_traces) == pytest.approx(trace_spans, rel=0.05)


def test_payloads_repeat_for_a_seed_and_differ_between_seeds(tmp_path: Path) -> None:
    one, same, other = (
        payloads.write(tmp_path / name, "agent", 500, seed=seed).path.read_bytes()
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same
    assert one != other


def test_quantile_is_the_nearest_rank() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2
    assert quantile([1.0, 2.0], 0.5) == 1
    assert quantile([float(n) for n in range(1, 101)], 0.99) == 99
    assert quantile([float(n) for n in range(1, 51)], 0.99) == 50
    assert quantile([7.0], 0.0) == quantile([7.0], 1.0) == 7
    with pytest.raises(ValueError, match="cannot"):
        quantile([], 0.5)


def test_meter_sees_work_and_rest() -> None:
    work = "import time, sys\nwhile time.process_time() < 1.0: pass\nprint('done', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", work]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        meter = Meter(process.pid)
        assert meter.wait_for_rest(0.6) is False
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert meter.wait_for_rest(30) is True
        cpu = meter.cpu()
        assert cpu.all_s == pytest.approx(1, abs=0.2)
        assert (cpu.program_s, cpu.merges_s) == (pytest.approx(cpu.all_s), 0)
        assert 1 << 20 < meter.resident_bytes() <= meter.peak_bytes() < 1 << 30
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quick_run(tmp_path: Path) -> None:
    report, data = tmp_path / "report.json", tmp_path / "data"
    data.mkdir()
    arguments = ["--json", str(report), "--directory", str(data), "--serve-option", "segment_bytes_max=16MiB"]
    done = subprocess.run([*COMMAND, *arguments], check=False, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert list(data.iterdir()) == []
    assert processes_of(data) == []

    document = json.loads(report.read_text())
    assert document["arguments"] == ["--quick", *arguments]
    assert document["machine"]["cpus"] >= 1
    assert set(document["profiles"]) == set(PROFILES)
    for profile, measured in document["profiles"].items():
        assert f"| {profile} spans" in done.stdout
        check_figures(profile, measured)


def check_figures(profile: str, measured: dict) -> None:
    figures, ceiling, details = measured["figures"], measured["ceiling"], measured["details"]
    full = details["full"]
    assert full["sent"]["spans"] == pytest.approx(20_000, abs=20)
    sent = sum(details[phase]["sent"]["spans"] for phase in ("trickle", "full", "half"))
    assert details["acknowledged_spans"] == details["held"]["spans"] > sent
    assert details["ceiling"]["spans"] == details["ceiling"]["held"]["spans"] == full["sent"]["spans"]
    assert figures["accepted_spans_per_s"] >= figures["queryable_spans_per_s"] > 0
    assert 0 < figures["half_load_spans_per_s"] < figures["queryable_spans_per_s"] * 0.75
    assert 1 < figures["cpu_s_per_million_spans"] < 1000
    # What is stored is smaller than what came, and more than the ids, which do not compress.
    assert 24 < figures["stored_bytes_per_span"] < SHAPES[profile][0] / 4
    assert ceiling["stored_bytes_per_span"] == pytest.approx(figures["stored_bytes_per_span"], rel=0.25)
    assert figures["parts"] >= ceiling["parts"] > 0
    assert 0 < figures["ack_p50_ms"] <= figures["ack_p99_ms"]
    assert 0 < figures["fresh_p50_s"] <= figures["fresh_p99_s"] < 30
    assert 50 < figures["idle_mb"] <= figures["peak_mb"]
    for name, target in measured["targets"].items():
        assert measured["marks"][name] == ("ok" if figures[name] <= target else "over")


@pytest.mark.slow
def test_a_server_that_does_not_start_is_reported(tmp_path: Path) -> None:
    command = [*COMMAND, "--spans=10", "--profile=agent", f"--directory={tmp_path}", "--serve-option=nonsense=1"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "cannot measure agent spans" in done.stderr
    assert "nonsense" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_stops_its_server_when_it_is_told_to_end(tmp_path: Path) -> None:
    command = [*COMMAND, "--spans=10", "--profile=agent", f"--directory={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        assert any("idle" in line for line in iter(bench.stderr.readline, "")), "the server never started"
        assert processes_of(tmp_path)
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(ENDED_S_MAX) == 1
    deadline = time.monotonic() + ENDED_S_MAX
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert list(tmp_path.iterdir()) == []


def test_traces_that_expire_are_those_of_chatty_services_without_errors() -> None:
    """What benchmarks.expiry says that stays, against the policies that it sets."""
    traces, day = Traces(1), date(2026, 3, 1)
    spans, services, failed = Counter[bytes](), defaultdict[bytes, set[str]](set), set[bytes]()
    for count, data in traces.day(day, 20_000):
        message = ExportTraceServiceRequest.FromString(data)
        for resource in message.resource_spans:
            [service] = (a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for span in resource.scope_spans[0].spans:
                assert datetime.fromtimestamp(span.start_time_unix_nano // 10**9, UTC).date() == day
                spans[span.trace_id] += 1
                services[span.trace_id].add(service)
                if span.status.code == 2:
                    failed.add(span.trace_id)
        assert count == sum(len(r.scope_spans[0].spans) for r in message.resource_spans)
    stay = {t for t, of in services.items() if t in failed or not any(s.startswith("chatty-") for s in of)}
    assert set(spans.values()) == {TRACE_SPANS}
    assert traces.kept[day].spans == TRACE_SPANS * len(stay)
    assert traces.kept[day].ids == sum(TRACE_SPANS * int.from_bytes(t[:8], "little") for t in stay) % 2**64
    assert 0.08 < len(stay) / len(spans) < 0.12
    assert any(len(of) > 1 for of in services.values())
