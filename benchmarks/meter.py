"""What a process costs, read from /proc: processor time, resident memory, and whether it has come to rest.

Used from the main thread of whoever measures. Processor time is the figure to compare: on a machine that others use
too, it changes by a tenth where seconds on the clock double.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
REST_S = 3.0
REST_CPU_SHARE = 0.02
"""A process rests when it used less than this share of one core for REST_S."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LOOK_S = 0.5
_MERGE_THREAD = "MergeMutate"
_ENGINE_THREADS = frozenset(
    {"ThreadPool", "BgSchPool", "BgStrmSchPool", "MemoryWorker", "PoolDelayExec", "Move", "Fetch", "Common"}
    | {"QueryPool", "QueryCompPipe", "QueryPullPipe", "RuntimeData", "jemalloc_bg_thd"}
)


@dataclass(frozen=True)
class Cpu:
    """Processor seconds: all, those of the engine's threads that merge, and those of the program's own threads.

    The rest went into loads and queries: the engine's threads for these come and go.
    """

    all_s: float
    merges_s: float
    program_s: float

    @property
    def loads_s(self) -> float:
        """Of loads and queries."""
        return self.all_s - self.merges_s - self.program_s

    def __sub__(self, before: "Cpu") -> "Cpu":
        """Between two moments."""
        return Cpu(self.all_s - before.all_s, self.merges_s - before.merges_s, self.program_s - before.program_s)


class Meter:
    """Reads one process. All its threads count, those that have ended too."""

    def __init__(self, pid: int) -> None:
        self._proc = Path("/proc", str(pid))

    def cpu_s(self) -> float:
        """Processor seconds since it started, user and system."""
        return _cpu_s(self._proc / "stat")

    def cpu(self) -> Cpu:
        """The same, by what it went into."""
        merges_s = program_s = 0.0
        for task in (self._proc / "task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                name = (task / "comm").read_text().rstrip("0123456789\n")
                if name == _MERGE_THREAD:
                    merges_s += _cpu_s(task / "stat")
                elif name not in _ENGINE_THREADS:
                    program_s += _cpu_s(task / "stat")
        return Cpu(self.cpu_s(), merges_s, program_s)

    def resident_bytes(self) -> int:
        """Memory that it has now."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """The most that it ever had."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Have `peak_bytes` be the most from now on."""
        (self._proc / "clear_refs").write_text("5")

    @contextlib.contextmanager
    def largest_resident_bytes(self) -> Iterator[list[int]]:
        """Look at its memory during the block; the list then holds the most that was seen."""
        most, done = [self.resident_bytes()], threading.Event()

        def look() -> None:
            while not done.wait(_LOOK_S):
                most[0] = max(most[0], self.resident_bytes())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield most
        finally:
            done.set()
            thread.join()

    def wait_for_rest(self, seconds_max: float) -> bool:
        """Return when it rests, so that merges are done; False when it did not within `seconds_max`."""
        deadline = time.monotonic() + seconds_max
        samples = [(time.monotonic(), self.cpu_s())]
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            now_s = time.monotonic()
            samples.append((now_s, self.cpu_s()))
            old = [sample for sample in samples if sample[0] <= now_s - REST_S]
            if old and samples[-1][1] - old[-1][1] < REST_CPU_SHARE * (now_s - old[-1][0]):
                return True
        return False

    def _status(self, key: str) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0]) * 1024
        raise ValueError(f"cannot find {key} of process {self._proc.name}")


def _cpu_s(stat: Path) -> float:
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS_PER_S


@dataclass(frozen=True)
class MachineCpu:
    """Processor seconds of the whole machine since it started: used by anyone (or stolen by its host), and idle."""

    used_s: float
    idle_s: float

    @classmethod
    def now(cls) -> "MachineCpu":
        """Read the clock of all processors."""
        ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = ticks[3] + ticks[4]
        return cls((sum(ticks) - idle) / _TICKS_PER_S, idle / _TICKS_PER_S)


def share_of_others(before: MachineCpu, after: MachineCpu, ours_s: float) -> float:
    """The share (0 to 1) of the machine that processes other than ours used between two moments."""
    whole_s = after.used_s + after.idle_s - before.used_s - before.idle_s
    return max(0.0, after.used_s - before.used_s - ours_s) / whole_s if whole_s else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed. Raises ValueError when there are none."""
    if not values:
        raise ValueError("cannot tell a quantile of nothing")
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
