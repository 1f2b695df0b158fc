"""Budgets: their file, what a sender hears, and the real program under a tenant that sends far more than it may."""

import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from program import Program
from sender import GrpcDoor, Refused

from collector.admission import NotKept
from collector.budget_rules import Budget, Rules, parsed
from collector.budgets import USABLE, Budgets, Stored
from collector.status import BudgetSpent
from storage.errors import StoreUnavailable
from storage.rules import BadRules

PROTOBUF = {"content-type": "application/x-protobuf"}
MIB = 1 << 20


class Log:
    """What the WAL says, to be set."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.held: dict[str, int] = {}

    def appended(self, tenant: str) -> int:
        return self.sent.get(tenant, 0)

    def traffic(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return dict(self.sent), dict(self.held)


class House:
    """Budgets over a store and a log that are numbers."""

    def __init__(self, rules: Rules) -> None:
        self.log, self.stored = Log(), {"a": 0.0}
        self.away = False
        self.short: set[str] = set()
        self.sampled: dict[str, float] = {}
        self.budgets = Budgets(rules, self.log, self.measure, shorten=self.shorten, sample=self.sample)

    def measure(self) -> Stored:
        if self.away:
            raise StoreUnavailable("cannot read")
        return Stored(dict(self.stored), sum(self.stored.values()))

    def shorten(self, tenants: Any, _: int) -> None:
        self.short = set(tenants)

    def sample(self, keep: Mapping[str, float]) -> None:
        self.sampled = dict(keep)

    def step(self, share: float, tenant: str = "a") -> str:
        """The step once the store has this share of 1000 bytes."""
        self.stored[tenant] = share * USABLE * 1000 + 0.01
        self.budgets._look(measure=True)
        return next((c.after for c in self.budgets.changes() if c.tenant == tenant), "none")


def test_steps_come_one_after_the_other_and_go_when_there_is_room() -> None:
    house = House(Rules({"a": Budget(1000)}))
    assert [house.step(share) for share in (0.1, 0.7, 0.8)] == ["none", "warn", "shorten"]
    assert (house.short, house.sampled) == ({"a"}, {})
    assert house.step(0.95) == "sample"
    assert house.sampled == {"a": 0.1}
    assert house.step(1.0) == "refuse"
    assert house.step(0.96) == "refuse", "not before there is some room"
    with pytest.raises(BudgetSpent, match="91% of its 1000 bytes, and 95% may be full"):
        house.budgets.allow("a", 1)
    assert house.step(0.94) == "sample"
    house.budgets.allow("a", 1)
    house.budgets.allow("b", 10_000)
    assert house.step(0.2) == "none"
    assert (house.short, house.sampled) == (set(), {})
    assert next((c.before, c.after) for c in house.budgets.changes()) == ("sample", "none")


def test_what_is_in_the_log_counts_and_so_does_the_request_itself() -> None:
    house = House(Rules({"*": Budget(1000, "partial_success")}))
    house.step(0.1)
    house.budgets.allow("a", 800)
    with pytest.raises(NotKept, match="tenant 'a' has"):
        house.budgets.allow("a", 901)
    house.log.sent["a"] = house.log.held["a"] = 730  # at 1.25 bytes on disk for one sent
    with pytest.raises(NotKept):
        house.budgets.allow("a", 1)
    house.budgets._look(measure=False)
    assert house.budgets.figures()[0][4].step == 4
    house.log.held["a"], house.stored["a"] = 0, 150.0
    house.budgets._look(measure=True)
    house.budgets.allow("a", 1)


def test_the_whole_is_for_all() -> None:
    house = House(Rules({}, Budget(1000)))
    assert house.step(0.85) == "none"
    assert house.budgets.changes()[0].tenant == ""
    assert house.short == {"a"}
    house.step(1.1)
    with pytest.raises(BudgetSpent, match="the store has 105%"):
        house.budgets.allow("b", 1)


def test_a_store_that_is_away_changes_no_step() -> None:
    house = House(Rules({"a": Budget(1000)}))
    house.step(0.85)
    house.away = True
    house.budgets._look(measure=True)
    assert house.budgets.figures()[0][4].step == 2


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"budgets": [{"bytes": "1 GB"}]}, "needs a tenant"),
        ({"budgets": [{"tenant": "a", "bytes": "much"}]}, "'much' is no size"),
        ({"budgets": [{"tenant": "a", "bytes": 5}, {"tenant": "a", "bytes": 5}]}, "another one of tenant 'a'"),
        ({"whole": {"bytes": 5, "refuse": "maybe"}}, "refuse = 'maybe'"),
        ({"steps": {"warn": 0.9, "shorten": 0.8}}, "none may be less than the one before it"),
        ({"sample": {"keep": 2}}, "a number from 0 to 1"),
        ({"shorten": {"longer_than": 10}}, "at least 512 bytes"),
        ({"budget": []}, "cannot use 'budget'"),
    ],
)
def test_files_that_cannot_be_used(document: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRules) as error:
        parsed(document)
    assert says in str(error.value)


# --- the real program ---

FILE = """
[steps]
warn = 0.2
shorten = 0.4
sample = 0.6
refuse = 0.9

[[budgets]]
tenant = "loud"
bytes = "6 MiB"

[[budgets]]
tenant = "told"
bytes = "1 KiB"
refuse = "partial_success"
"""


def body(number: int) -> bytes:
    """64 spans of 4 KiB each that do not compress, in one trace, the first one an error."""
    noise = random.Random(number)
    spans = [
        span(
            number * 64 + i,
            trace_id=number.to_bytes(16, "big"),
            attributes=[
                attribute("gen_ai.input.messages", AnyValue(string_value=noise.randbytes(3072).hex()[:6000])),
                attribute("sent.by", AnyValue(string_value="loud")),
            ],
        )
        for i in range(1, 65)
    ]
    spans[0].status.code = 2
    return request(*spans).SerializeToString()


def post(program: Program, tenant: str, number: int) -> httpx.Response:
    headers = {**PROTOBUF, "x-spanhouse-tenant": tenant}
    return httpx.post(f"{program.otlp_http}/v1/traces", content=body(number), headers=headers)


def budget(program: Program, tenant: str) -> dict[str, Any]:
    answer = httpx.get(f"{program.http}/api/v1/budgets").json()
    return next(one for one in answer["budgets"] if one["tenant"] == tenant)


def until(condition: Callable[[], Any], seconds_max: float = 60) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds_max} s"
        time.sleep(0.2)


def stored(program: Program, tenant: str) -> int:
    total = httpx.get(f"{program.http}/api/v1/storage", headers={"x-spanhouse-tenant": tenant}).json()["total"]
    return sum(total[of]["stored_bytes"] for of in ("skeleton", "content"))


def test_a_tenant_that_sends_too_much_is_kept_within_its_budget(tmp_path: Path) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text(FILE)
    acknowledged: list[int] = []
    refused: list[Refused] = []
    with Program(tmp_path / "data", f"--budgets={file}", "--budget-interval-s=1", "--flush-interval-s=0.2") as program:
        ended = threading.Event()

        def send() -> None:
            door, number = GrpcDoor(program.grpc, "loud"), 0
            while not ended.is_set():
                number += 1
                try:
                    door.export(body(number))
                    acknowledged.append(number)
                except Refused as error:
                    refused.append(error)
                time.sleep(0.05)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            until(lambda: len(refused) > 20)
            quiet = post(program, "quiet", 1)
            assert (quiet.status_code, quiet.content) == (200, b"")
            told = post(program, "told", 1)
            partial = ExportTraceServiceResponse.FromString(told.content).partial_success
            assert (told.status_code, partial.rejected_spans) == (200, 64)
            assert "tenant 'told' has" in partial.error_message
            numbers = iter(range(1_000_000, 2_000_000))
            until(
                lambda: (
                    (http := post(program, "loud", next(numbers))).status_code == 429
                    and http.headers["retry-after"] == "30"
                )
            )
        finally:
            ended.set()
            sender.join()
        assert (refused[0].code, refused[0].retry_after_s) == ("RESOURCE_EXHAUSTED", 30)

        until(lambda: budget(program, "loud")["coming_bytes"] == 0)
        now = budget(program, "loud")
        assert now["used_bytes"] <= now["bytes"]
        assert stored(program, "loud") <= now["bytes"]
        assert now["requests"]["refuse"] >= len(refused)
        assert now["requests"]["shorten"] > 0, "it was shortened before it was refused"
        steps = [c for c in httpx.get(f"{program.http}/api/v1/budgets").json()["changes"] if c["tenant"] == "loud"]
        assert {"warn", "shorten"} & {change["after"] for change in steps}
        metrics = httpx.get(f"{program.http}/metrics").text
        assert 'spanhouse_budget_step{tenant="loud"}' in metrics
        assert 'spanhouse_refusals_total{reason="BudgetSpent"}' in metrics
        assert "budget of tenant 'loud'" in program.log()
        short = set()
        for number in acknowledged:
            trace = program.read_trace(number.to_bytes(16, "big").hex(), 64, 30, "loud")
            assert sum(one["status"]["code"] == "error" for one in trace["spans"]) == 1, "acknowledged errors are there"
            short |= {number for one in trace["spans"] if "spanhouse.shortened" in one["attributes"]}
        assert short, "a trace says that it was shortened"
        # There is room again when something goes: the steps are undone by themselves.
        asked = {"attributes": [{"key": "sent.by", "value": "loud"}], "by": "test"}
        gone = httpx.post(f"{program.http}/api/v1/erasures", headers={"x-spanhouse-tenant": "loud"}, json=asked)
        assert gone.status_code < 300, gone.text
        until(lambda: budget(program, "loud")["step"] == "none", 90)
        GrpcDoor(program.grpc, "loud").export(body(3_000_000))
