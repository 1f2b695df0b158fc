"""kill -9 at random moments under load, fifty times on one data directory: what was acknowledged is stored once."""

import os
import random
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from exactly_once import (
    LOADED_S_MAX,
    check_ledger,
    check_stored_once,
    exporters,
    under_load,
    wait_until_loaded,
)
from program import NotReady, Program
from sender import Exporter

ROUNDS = int(os.environ.get("SPANHOUSE_TEST_KILLS", "50"))
AFTER_FIRST_S_MAX = 1.5
IN_START_EVERY_ROUNDS = 5
CHECKED_EVERY_ROUNDS = 10


def options(chance: random.Random) -> list[str]:
    """Settings that move what a kill can meet: how often segments are sealed, and how large they are."""
    interval_s, segment_bytes = chance.choice((0.05, 0.2, 0.5, 2)), chance.choice(("1MiB", "4MiB", "64MiB"))
    return [f"--flush-interval-s={interval_s}", f"--segment-bytes-max={segment_bytes}"]


def kill_in_start(program: Program, after_s: float) -> None:
    """Start it and kill it so soon that it may be recovering, or about to load what it recovered."""
    timer = threading.Timer(after_s, program.kill)
    timer.start()
    with suppress(NotReady):
        program.start()
    timer.join()


def check_traces(program: Program, senders: list[Exporter], chance: random.Random) -> None:
    """The last acknowledged trace of each sender and another one, as the API shows them."""
    for sender in senders:
        for request in (sender.acknowledged[-1], chance.choice(sender.acknowledged)):
            trace = program.read_trace(request.trace_id.hex(), request.spans, LOADED_S_MAX, sender.tenant)
            found = sorted(int(span["span_id"], 16) for span in trace["spans"])
            assert found == list(range(1, request.spans + 1))
            assert trace["integrity"]["duplicate_span_ids"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_acknowledged_is_stored_once_after_fifty_kills(tmp_path: Path) -> None:
    seed = int(os.environ.get("SPANHOUSE_TEST_SEED", secrets.randbelow(1 << 32)))
    print(f"SPANHOUSE_TEST_SEED={seed}")
    chance = random.Random(seed)
    data_dir = tmp_path / "data"
    senders = exporters(seed)
    for number in range(1, ROUNDS + 1):
        if number % IN_START_EVERY_ROUNDS == 0:
            kill_in_start(Program(data_dir, *options(chance)), chance.uniform(0.3, 3))
        program = Program(data_dir, *options(chance)).start()
        if number % CHECKED_EVERY_ROUNDS == 0:
            check_traces(program, senders, chance)
            check_ledger(program)
        with under_load(program, senders) as acknowledged:
            assert acknowledged.wait(30), program.log()[-4000:]
            time.sleep(chance.uniform(0, AFTER_FIRST_S_MAX))
            program.kill()
    with Program(data_dir) as program:
        with under_load(program, senders) as acknowledged:
            assert acknowledged.wait(30), program.log()[-4000:]
        wait_until_loaded(program)
        check_ledger(program)
    print(
        f"{ROUNDS} kills under load, {ROUNDS // IN_START_EVERY_ROUNDS} in the start:",
        check_stored_once(data_dir, senders),
    )
