"""What a conversation costs that is sent again at every turn: `python -m benchmarks.repetition`.

Many conversations take their turns at the same time; after some turns all is merged and the bytes on disk are read, of
Spanhouse's own engine and, from the same requests, of MLflow and Phoenix with SQLite. Prints a table, bytes of one
conversation by turns, with the share of it that grows with the square of the turns: of a + b·n + c·n², fitted to the
curve, c·n² at the last turn. A tracker that is not installed is left out, and said so.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from xxhash import xxh3_128_digest

from benchmarks import report
from benchmarks.ceiling import held
from benchmarks.child import ChildFailed, call
from benchmarks.conversations import Conversations, Shape
from benchmarks.curves import drawing
from benchmarks.meter import Meter
from benchmarks.trackers import Mlflow, Phoenix, Tracker, TrackerFailed
from collector.frames import Frame, encode_frame
from storage.embedded import Embedded
from storage.engine import Engine
from storage.migrate import migrated
from storage.vocabulary import load

SHAPES: tuple[Shape, ...] = get_args(Shape)
TURNS = (1, 2, 5, 10, 15, 20, 25, 30)
SEED = 1
SECONDS_MAX = 3600
MERGED = ("content", "spans", "traces", "origins", "volumes")


@dataclass(frozen=True)
class Point:
    """One conversation after some turns: bytes sent, said (each message once) and stored, these by table."""

    turns: int
    sent: float
    said: float
    stored: float
    by_table: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """What one store takes for one shape; `cpu_s` of all loads, where it is measured."""

    store: str
    shape: Shape
    conversations: int
    points: list[Point]
    cpu_s: float | None = None

    @property
    def square_share(self) -> float:
        """The share of the last point that grows with the square of its turns."""
        _, _, c = fit([(point.turns, point.stored) for point in self.points])
        return c * self.points[-1].turns ** 2 / self.points[-1].stored


def main() -> int:
    """Measure what the arguments ask for."""
    given = _arguments()
    machine = report.machine(given.directory)
    print("; ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n", flush=True)
    turns = [n for n in TURNS if n < given.turns] + [given.turns]
    try:
        curves = list(_curves(given, turns))
    except ChildFailed as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 1
    print(table(curves))
    if given.svg:
        shown = [(f"{c.store}, {c.shape}", [(p.turns, p.stored) for p in c.points]) for c in curves]
        given.svg.write_text(drawing(shown, "turns of the conversation", "bytes stored of it"))
    if given.json:
        figures = {"machine": machine, "arguments": sys.argv[1:], "curves": [asdict(curve) for curve in curves]}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def table(curves: Sequence[Curve]) -> str:
    """Markdown: a row a number of turns, a column a curve, in kilobytes (1000 bytes) of one conversation."""
    first = curves[0]
    heads = ["turns", "sent", "said, each message once", *(f"{c.store}, {c.shape}" for c in curves)]
    lines = [heads, ["---:"] * len(heads)]
    for i, point in enumerate(first.points):
        stored = [curve.points[i].stored for curve in curves]
        lines.append([str(point.turns), *(f"{size / 1000:,.1f}" for size in (point.sent, point.said, *stored))])
    lines.append(["share of c·n²", "", "", *(f"{curve.square_share:.0%}" for curve in curves)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Coefficients a, b, c of the least squares a + b·x + c·x²; three different x at least."""
    rows = [
        [sum(x ** (i + j) for x, _ in points) for j in range(3)] + [sum(y * x**i for x, y in points)] for i in range(3)
    ]
    for i in range(3):
        pivot = max(range(i, 3), key=lambda row: abs(rows[row][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(3):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return rows[0][3], rows[1][3], rows[2][3]


def _curves(given: argparse.Namespace, turns: Sequence[int]) -> Iterator[Curve]:
    for shape in given.shape or SHAPES:
        with tempfile.TemporaryDirectory(prefix="spanhouse-bench-", dir=given.directory) as directory:
            _say(f"spanhouse, {shape}: {given.conversations} conversations")
            yield call(Path(directory), SECONDS_MAX, measure, Path(directory), shape, given.conversations, turns)
    first: tuple[Shape, ...] = ("json",)
    for shape in given.tracker_shape or first:
        for kind in given.tracker or ("mlflow", "phoenix"):
            with tempfile.TemporaryDirectory(prefix="spanhouse-bench-", dir=given.directory) as directory:
                work = Path(directory)
                tracker = Mlflow(work) if kind == "mlflow" else Phoenix(work, given.phoenix)
                try:
                    _say(f"{kind} {tracker.version()}, {shape}: {given.conversations} conversations")
                    yield track(tracker, shape, given.conversations, turns)
                except TrackerFailed as error:
                    _say(f"left out: {error}")


def measure(directory: Path, shape: Shape, count: int, turns: Sequence[int]) -> Curve:
    """Bytes of Spanhouse's own store: each turn of all conversations is a load. For a process of its own."""
    engine: Engine = migrated(lambda: Embedded(directory / "store", load()))
    conversations, meter = Conversations(count, shape, SEED), Meter(os.getpid())
    points, sent, cpu_s = [], 0, 0.0
    for turn in range(1, turns[-1] + 1):
        segment = directory / f"{turn:06d}.wal"
        sent += _write_segment(segment, conversations)
        before = meter.cpu_s()
        engine.load(segment, segment.stem)
        cpu_s += meter.cpu_s() - before
        segment.unlink()
        if turn in turns:
            for name in MERGED:
                engine.command(f"OPTIMIZE TABLE spanhouse.{name} FINAL")
            by_table = {name: size / count for name, size in held(engine).bytes_by_table.items()}
            points.append(Point(turn, sent / count, conversations.said_bytes / count, sum(by_table.values()), by_table))
    return Curve("spanhouse", shape, count, points, cpu_s)


def _write_segment(segment: Path, conversations: Conversations) -> int:
    sent = 0
    with segment.open("wb") as file:
        for spans, body in conversations.turn():
            file.writelines(encode_frame(Frame("default", xxh3_128_digest(body), spans, body), time.time_ns()))
            sent += len(body)
    return sent


def track(tracker: Tracker, shape: Shape, count: int, turns: Sequence[int]) -> Curve:
    """Bytes of a tracker, without those that it has before the first span. Raises TrackerFailed."""
    conversations = Conversations(count, shape, SEED)
    points, sent, spans = [], 0, 0
    with tracker:
        empty = tracker.stored_bytes(0)
        for turn in range(1, turns[-1] + 1):
            for of_request, body in conversations.turn():
                tracker.send(body)
                spans += of_request
                sent += len(body)
            if turn in turns:
                stored = (tracker.stored_bytes(spans) - empty) / count
                points.append(Point(turn, sent / count, conversations.said_bytes / count, stored, {}))
    return Curve(tracker.name, shape, count, points)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repetition", description="Measure repeated messages.")
    parser.add_argument("--turns", type=int, default=TURNS[-1], help="of a conversation, 6 at least")
    parser.add_argument("--conversations", type=int, default=100, help="that are held at the same time")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="may be given again; all by default")
    parser.add_argument("--tracker", choices=("mlflow", "phoenix"), action="append", help="may be given again; both")
    parser.add_argument("--tracker-shape", choices=SHAPES, action="append", help="what they are sent; json by default")
    parser.add_argument("--phoenix", metavar="PATH", help="the program `phoenix`, if it is in another environment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the curves into this file")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="where the data are written"
    )
    given = parser.parse_args()
    if given.turns <= TURNS[2]:
        parser.error(f"cannot fit a curve to {given.turns} turns: {TURNS[2] + 1} are the least")
    return given


if __name__ == "__main__":
    sys.exit(main())
