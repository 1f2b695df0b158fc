"""What was measured, as a table for people and as JSON for programs. Owns the targets. Pure, no thread of its own."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.load import Sent
from benchmarks.measure import TRICKLE_SPANS_PER_S, Measured
from benchmarks.meter import Cpu, quantile
from benchmarks.payloads import Profile

MILLION = MB = 1_000_000
QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Figure:
    """One row: its name in JSON and in words, and how to read it from what was measured.

    `most` is the target where there is one: "ok" up to it, "over" beyond. `ceiling` reads the engine alone.
    """

    name: str
    meaning: str
    of: Callable[[Measured], float]
    digits: int = 0
    most: dict[Profile, float] | None = None
    ceiling: Callable[[Measured], float] | None = None

    def mark(self, measured: Measured) -> str:
        """Ok or over, or nothing where there is no target."""
        if self.most is None:
            return ""
        return "ok" if self.of(measured) <= self.most[measured.profile] else "over"


def _both(most: float) -> dict[Profile, float]:
    return {"agent": most, "service": most}


def _ms(share: float, seconds: Callable[[Measured], list[float]]) -> Callable[[Measured], float]:
    return lambda m: 1000 * quantile(seconds(m), share)


def _per_million(part: Callable[[Cpu], float]) -> Callable[[Measured], float]:
    return lambda m: part(m.full.cpu) / m.full.sent.spans * MILLION


def _alone_per_million(part: Callable[[Cpu], float]) -> Callable[[Measured], float]:
    return lambda m: part(m.ceiling.cpu) / m.ceiling.spans * MILLION


def _vocabulary_ratio(measured: Measured) -> float:
    with_words, without = (alone.cpu.all_s / alone.spans for alone in (measured.ceiling, measured.wordless))
    return with_words / without


FIGURES = (
    Figure("accepted_spans_per_s", "accepted spans/s", lambda m: m.full.sent.spans / m.full.sent.seconds),
    Figure(
        "queryable_spans_per_s",
        "queryable spans/s",
        lambda m: m.full.queryable_spans_per_s,
        ceiling=lambda m: m.ceiling.spans / m.ceiling.load_s,
    ),
    Figure(
        "cpu_s_per_million_spans",
        "CPU s a million spans, socket to merged",
        _per_million(lambda cpu: cpu.all_s),
        1,
        {"agent": 25, "service": 7},
        _alone_per_million(lambda cpu: cpu.all_s),
    ),
    Figure(
        "cpu_s_of_program",
        "- the program's own threads",
        _per_million(lambda cpu: cpu.program_s),
        1,
        ceiling=_alone_per_million(lambda cpu: cpu.program_s),
    ),
    Figure(
        "cpu_s_of_loads",
        "- loads",
        _per_million(lambda cpu: cpu.loads_s),
        1,
        ceiling=_alone_per_million(lambda cpu: cpu.loads_s),
    ),
    Figure(
        "cpu_s_of_merges",
        "- merges",
        _per_million(lambda cpu: cpu.merges_s),
        1,
        ceiling=_alone_per_million(lambda cpu: cpu.merges_s),
    ),
    Figure(
        "vocabulary_cpu_ratio",
        "CPU of the engine alone, to that without the vocabulary",
        _vocabulary_ratio,
        2,
        most=_both(1.25),
    ),
    Figure(
        "stored_bytes_per_span",
        "stored bytes a span",
        lambda m: m.held.bytes / m.held.spans,
        1,
        {"agent": 175, "service": 36},
        lambda m: m.ceiling.held.bytes / m.ceiling.held.spans,
    ),
    Figure("parts", "active parts at the end", lambda m: m.held.parts, ceiling=lambda m: m.ceiling.held.parts),
    Figure("ack_p50_ms_full_load", "ack p50, full load, ms", _ms(0.5, lambda m: m.full.sent.ack_s), 1),
    Figure("ack_p99_ms_full_load", "ack p99, full load, ms", _ms(0.99, lambda m: m.full.sent.ack_s), 1),
    Figure("half_load_spans_per_s", "half load, spans/s", lambda m: m.half.sent.spans / m.half.sent.seconds),
    Figure("ack_p50_ms", "ack p50, half load, ms", _ms(0.5, lambda m: m.half.sent.ack_s), 1),
    Figure("ack_p99_ms", "ack p99, half load, ms", _ms(0.99, lambda m: m.half.sent.ack_s), 1, _both(50)),
    Figure("fresh_p50_s", "ack to queryable p50, half load, s", lambda m: quantile(m.half.fresh_s, 0.5), 2),
    Figure("fresh_p99_s", "ack to queryable p99, half load, s", lambda m: quantile(m.half.fresh_s, 0.99), 2, _both(2)),
    Figure("idle_mb", "memory idle, MB", lambda m: m.idle_resident_bytes / MB, 0, _both(600)),
    Figure(
        "trickle_mb",
        f"memory at {TRICKLE_SPANS_PER_S} spans/s, MB",
        lambda m: m.trickle.resident_bytes / MB,
        0,
        _both(600),
    ),
    Figure(
        "peak_mb",
        "memory at full load, peak, MB",
        lambda m: m.full.peak_bytes / MB,
        0,
        _both(2000),
        lambda m: m.ceiling.peak_bytes / MB,
    ),
    Figure("rested_mb", "memory after full load, at rest, MB", lambda m: m.full.rested_resident_bytes / MB),
    Figure(
        "trickle_cpu_percent",
        f"CPU at {TRICKLE_SPANS_PER_S} spans/s, % of a core",
        lambda m: 100 * m.trickle.cpu_share,
        1,
    ),
    Figure("start_s", "start, s", lambda m: m.start_s, 1),
)


def table(measured: Measured) -> str:
    """A table in Markdown, and below it what one has to know to trust it."""
    rows = [(f"{measured.profile} spans", "Spanhouse", "target", "", "engine alone")]
    rows += [
        (
            figure.meaning,
            _number(figure.of(measured), figure.digits),
            f"≤ {figure.most[measured.profile]:g}" if figure.most else "",
            figure.mark(measured),
            _number(figure.ceiling(measured), figure.digits) if figure.ceiling else "",
        )
        for figure in FIGURES
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    head, *body = [f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])]
    return "\n".join([head, *body, "", *(f"- {note}" for note in _notes(measured))])


def document(machine: dict[str, Any], arguments: list[str], profiles: list[Measured]) -> dict[str, Any]:
    """All of it for a program: figures, targets and marks by name, and under `details` whatever they are made of."""
    return {
        "machine": machine,
        "arguments": arguments,
        "profiles": {measured.profile: _profile(measured) for measured in profiles},
    }


def machine(directory: Path) -> dict[str, Any]:
    """Where this ran. `directory` is where the data were."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _after_colon(Path("/proc/cpuinfo"), "model name"),
        "memory": _after_colon(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "filesystem": _filesystem(directory),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: version(package) for package in ("spanhouse", "chdb", "grpcio")},
    }


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def _notes(measured: Measured) -> list[str]:
    full, half, held, alone = measured.full, measured.half, measured.held, measured.ceiling
    notes = [
        f"{full.sent.spans:,} spans of {measured.payload_bytes_per_span:.0f} bytes at full load; all"
        f" {measured.acknowledged_spans:,} that were acknowledged in the run are in the store, once",
        f"at full load the sender took {full.sent.cpu_s:.1f} CPU s, and other processes"
        f" {100 * full.others_share:.0f} % of the machine; {full.sent.retries} requests were sent again",
        f"at half load requests were sent {1000 * quantile(half.sent.late_s, 0.99):.0f} ms late (p99);"
        f" {half.sent.retries} were sent again",
        "stored bytes: " + ", ".join(f"{table} {size:,}" for table, size in sorted(held.bytes_by_table.items())),
    ]
    if not (full.rested and alone.rested):
        notes.append("merges were not done in the time allowed: CPU seconds, bytes and parts are not final")
    return notes


def _profile(measured: Measured) -> dict[str, Any]:
    figures = {figure.name: round(figure.of(measured), 3) for figure in FIGURES}
    details = asdict(measured)
    for phase in ("trickle", "full", "half"):
        details[phase]["sent"] = _sent(getattr(measured, phase).sent)
    details["half"]["fresh_s"] = _quantiles(measured.half.fresh_s)
    return {
        "figures": figures,
        "targets": {figure.name: figure.most[measured.profile] for figure in FIGURES if figure.most},
        "marks": {figure.name: figure.mark(measured) for figure in FIGURES if figure.most},
        "ceiling": {figure.name: round(figure.ceiling(measured), 3) for figure in FIGURES if figure.ceiling},
        "details": details,
    }


def _sent(sent: Sent) -> dict[str, Any]:
    return {
        "spans": sent.spans,
        "requests": len(sent.ack_s),
        "seconds": sent.seconds,
        "retries": sent.retries,
        "cpu_s": sent.cpu_s,
        "ack_s": _quantiles(sent.ack_s),
        "late_s": _quantiles(sent.late_s),
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    return {name: quantile(values, share) for name, share in QUANTILES.items()} if values else {}


def _after_colon(path: Path, key: str) -> str:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "unknown")


def _filesystem(directory: Path) -> str:
    """Its type: a sync costs nothing in memory (tmpfs), and on some network disks a lot."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if directory.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"
