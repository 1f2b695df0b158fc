"""Room on the disks: what is refused, when, and that reads go on."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from otlp_building import body, span
from program import Program
from test_failures import MIB, small_disk  # noqa: F401 (a fixture)

from collector.disk_reserve import DiskReserve, Room
from collector.status import DiskLow
from storage.errors import StoreUnavailable


def reserve(rooms: list[Room], called: list[int], reserve_bytes: int = 50) -> DiskReserve:
    def disks() -> list[Room]:
        if not rooms:
            raise StoreUnavailable("away")
        return list(rooms)

    one = DiskReserve((), reserve_bytes, disks=disks, on_low=lambda: called.append(1))
    one._look()
    return one


def test_a_disk_elsewhere_counts_too() -> None:
    rooms, called = [("disk default of a", 60, 10_000), ("disk default of b", 49, 10_000)], list[int]()
    one = reserve(rooms, called)
    with pytest.raises(DiskLow, match="disk default of b has 49 bytes free, and 50 are kept"):
        one.allow("t", 1)
    assert called == [1]
    one._look()
    assert called == [1], "not at every look"
    rooms[1] = ("disk default of b", 50, 10_000)
    one._look()
    assert one.refusal(), "servers are not asked every second"
    one._asked_s = float("-inf")
    one._look()
    one.allow("t", 1)
    rooms.clear()
    one._asked_s = float("-inf")
    one._look()
    one.allow("t", 1)


def test_a_small_disk_keeps_a_twentieth() -> None:
    assert not reserve([("d", 5, 100)], [], 1 << 30).refusal()
    assert "4 bytes free, and 5 are kept" in reserve([("d", 4, 100)], [], 1 << 30).refusal()


def until(condition: Callable[[], Any], seconds_max: float = 30) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds_max} s"
        time.sleep(0.1)


@pytest.mark.slow
def test_before_the_disk_is_full_senders_wait_and_reads_go_on(small_disk: Path) -> None:  # noqa: F811
    numbers = iter(range(2, 250))

    def send(program: Program) -> httpx.Response:
        headers = {"content-type": "application/x-protobuf"}
        return httpx.post(f"{program.otlp_http}/v1/traces", content=body(span(next(numbers))), headers=headers)

    program = Program(small_disk, "--flush-interval-s=0.1", "--segment-bytes-max=1MiB")
    program.log_path = small_disk.parent / "log"
    with program:
        assert send(program).status_code == 200
        program.read_trace(span(2).trace_id.hex(), 1)
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            while free(small_disk) > 3 * MIB:
                file.write(bytes(MIB // 4))
                file.flush()
        until(lambda: send(program).status_code == 503)
        refused = send(program)
        assert refused.headers["retry-after"] == "10"
        assert b"are kept for merges and deletions" in refused.content
        assert httpx.get(f"{program.http}/readyz").is_success, "it answers"
        assert program.read_trace(span(2).trace_id.hex(), 1)["span_count"] == 1
        ballast.unlink()
        until(lambda: send(program).status_code == 200)
        assert "there is room on all disks again" in program.log()


def free(path: Path) -> int:
    return shutil.disk_usage(path).free
