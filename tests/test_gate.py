"""Compare and gate over the real engine and the HTTP API, and `spanhouse gate` as a pipeline runs it."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from program import COMMAND, Program
from pydantic import TypeAdapter
from rich.console import Console
from store import Store

from cli import gate
from query.api import create_app
from query.compare_api import GateAnswer, router
from query.comparison import Comparison
from query.samples import Samples
from storage.engine import Engine

NOW = datetime(2027, 1, 15, 8, tzinfo=UTC)
LINKS = (
    "Tenant", "Entity", "Id", "Version", "TraceId", "Provenance", "Start", "DurationNano", "Spans", "Errors", "Failed",
    "InputTokens", "OutputTokens", "TotalTokens", "CachedInputTokens", "ReasoningTokens", "CostUsd", "Unpriced",
    "Models", "Tools", "Deleted", "Settled",
)  # fmt: skip
ASSESSMENTS = (
    "Tenant", "TraceId", "AssessmentId", "SpanId", "Name", "Kind", "Number", "Text", "Value", "SourceType", "SourceId",
    "Rationale", "Error", "Metadata", "Created", "Deleted", "Updated",
)  # fmt: skip


def insert(
    engine: Engine,
    version: str,
    count: int,
    *,
    slower: float = 1,
    failed: int = 0,
    tools: tuple[str, ...] = ("search", "answer"),
    entity: str = "model",
    id_: str = "bot",
    tenant: str = "default",
) -> list[bytes]:
    """Rows of `links` as the settling thread writes them: a trace a minute, the newest now; the newest failed."""
    generator = random.Random(f"{id_} {version}")
    traces = [generator.randbytes(16) for _ in range(count)]
    rows = [
        (
            tenant, entity, id_, version, trace, "span", NOW - timedelta(minutes=i),
            int(1e9 * slower * math.exp(generator.gauss(0, 0.3))), 5, int(i < failed), int(i < failed),
            900, 100, 1000, 0, 0, 0.01 * slower, 0, ["m"], list(tools), 0, NOW,
        )
        for i, trace in enumerate(traces)
    ]  # fmt: skip
    engine.insert("links", LINKS, rows)
    return traces


def assessment(trace: bytes, name: str, number: float, text: str, kind: str = "feedback") -> tuple[Any, ...]:
    """A row of `assessments`."""
    return (
        "default", trace, f"a-{trace.hex()}-{name}", bytes(8), name, kind, number, text, "null", "human", "", "", "",
        "{}", NOW, 0, NOW,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A model of four versions: 3, a slower 4, a 5 like 3, and a 6 that has hardly run."""
    store = Store(tmp_path_factory.mktemp("gate"))
    fill(store.engine)
    yield store
    store.close()


def fill(engine: Engine) -> None:
    insert(engine, "3", 500)
    insert(engine, "4", 500, slower=1.2, failed=40, tools=("search", "refund"))
    insert(engine, "5", 500)
    insert(engine, "6", 20)


@pytest.fixture(scope="module")
def tags() -> list[tuple[str, str, str, Mapping[str, str]]]:
    """What the registry was given."""
    return []


@pytest.fixture(scope="module")
def api(store: Store, tags: list[tuple[str, str, str, Mapping[str, str]]]) -> TestClient:
    def write(entity: str, id_: str, version: str, given: Mapping[str, str]) -> str | None:
        tags.append((entity, id_, version, given))
        return "cannot reach the registry" if version == "5" else None

    app = create_app(store.traces, dict)
    app.include_router(router(Samples(store.engine), write))
    return TestClient(app)


def gated(api: TestClient, candidate: str, **limits: str) -> dict[str, Any]:
    response = api.get("/api/v1/models/bot/gate", params={"baseline": "3", "candidate": candidate, **limits})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    TypeAdapter(GateAnswer).validate_python(answer)
    return answer


# The API


def test_compare(api: TestClient) -> None:
    response = api.get("/api/v1/models/bot/compare", params={"baseline": "3", "candidate": "4"})
    assert response.status_code == 200, response.text
    answer = response.json()
    TypeAdapter(Comparison).validate_python(answer)
    p95 = answer["latency_ms"]["p95"]
    assert p95["baseline"]["low"] < 1000 * math.exp(0.3 * 1.645) < p95["baseline"]["high"]
    assert p95["ratio"]["low"] < 1.2 < p95["ratio"]["high"]
    assert answer["latency_ms"]["all"]["ratio"]["low"] > 1.1
    assert answer["error_rate"]["baseline"]["value"] == 0
    assert answer["error_rate"]["candidate"]["value"] == pytest.approx(0.08)
    assert answer["tokens"]["input"]["candidate"]["value"] == 900
    assert answer["cost_usd"]["ratio"]["value"] == pytest.approx(1.2)
    assert answer["traces_per_hour"]["baseline"]["value"] == pytest.approx(60)
    assert [(path["tools"], path["change"]) for path in answer["tool_paths"]] == [
        (["search", "answer"], "vanished"),
        (["search", "refund"], "new"),
    ]
    assert answer["candidate"] == {
        "id": "bot", "version": "4", "traces": 500, "sampled": 500, "effective": 500.0,
        "unpriced_traces": 0,
        "first_start_unix_nano": str(int((NOW - timedelta(minutes=499)).timestamp()) * 10**9),
        "last_start_unix_nano": str(int(NOW.timestamp()) * 10**9), "examples": answer["candidate"]["examples"],
    }  # fmt: skip
    assert all(len(ids) == 3 for ids in answer["candidate"]["examples"].values())


def test_compare_within_a_time_and_of_the_newest(api: TestClient) -> None:
    asked = {"baseline": "3", "candidate": "4", "start": (NOW - timedelta(minutes=99)).isoformat(), "limit": "50"}
    answer = api.get("/api/v1/models/bot/compare", params=asked).json()
    assert (answer["baseline"]["traces"], answer["baseline"]["sampled"]) == (100, 50)
    assert answer["baseline"]["last_start_unix_nano"] == str(int(NOW.timestamp()) * 10**9)


def test_compare_scores(api: TestClient, store: Store) -> None:
    before = insert(store.engine, "1", 40, id_="scored")
    after = insert(store.engine, "2", 40, id_="scored")
    rows = []
    for i, trace in enumerate(before + after):
        rows.append(assessment(trace, "helpful", float(i % 2), "true" if i % 2 else "false"))
        rows.append(assessment(trace, "tone", math.nan, "kind" if i < 60 else "rude"))
        rows.append(assessment(trace, "answer", 42, "42", kind="expectation"))
    store.engine.insert("assessments", ASSESSMENTS, rows)
    asked = {"baseline": "1", "candidate": "2"}
    scores = api.get("/api/v1/models/scored/compare", params=asked).json()["scores"]
    assert [score["name"] for score in scores] == ["helpful", "tone"]
    helpful, tone = scores
    assert helpful["mean"]["baseline"]["value"] == helpful["mean"]["candidate"]["value"] == 0.5
    assert helpful["labels"] == []
    assert tone["mean"] is None
    assert [(label["label"], label["share"]["difference"]["value"]) for label in tone["labels"]] == [
        ("kind", -0.5),
        ("rude", 0.5),
    ]
    asked = {"baseline": "1", "candidate": "2", "min_traces": "20", "min_score.helpful": "0.9"}
    answer = api.get("/api/v1/models/scored/gate", params=asked).json()
    assert (answer["verdict"], answer["checks"][0]["name"]) == ("fail", "min_score helpful")


def test_compare_runs(api: TestClient, store: Store) -> None:
    insert(store.engine, "", 100, entity="run", id_="run-a")
    insert(store.engine, "", 100, entity="run", id_="run-b", slower=2)
    asked = {"entity": "run", "baseline": "run-a", "candidate": "run-b"}
    answer = api.get("/api/v1/compare", params=asked).json()
    assert answer["latency_ms"]["p50"]["ratio"]["low"] > 1.7
    assert (answer["candidate"]["id"], answer["candidate"]["version"]) == ("run-b", "")


def test_tenants_do_not_see_each_other(api: TestClient, store: Store) -> None:
    insert(store.engine, "3", 7, tenant="other")
    asked = {"baseline": "3", "candidate": "4"}
    answer = api.get("/api/v1/models/bot/compare", params=asked, headers={"x-spanhouse-tenant": "other"}).json()
    assert (answer["baseline"]["traces"], answer["candidate"]["traces"]) == (7, 0)


def test_a_model_with_a_path_for_a_name(api: TestClient, store: Store) -> None:
    for version in ("1", "2"):
        insert(store.engine, version, 10, id_="main.agents/bot")
    asked = {"baseline": "1", "candidate": "2"}
    assert api.get("/api/v1/models/main.agents%2Fbot/compare", params=asked).json()["baseline"]["traces"] == 10


@pytest.mark.parametrize(
    ("path", "asked", "status", "words"),
    [
        ("models/bot/compare", {"baseline": "3"}, 400, "candidate"),
        ("models/bot/compare", {"baseline": "3", "candidate": "3"}, 400, "cannot compare '3' with itself"),
        ("models/bot/compare", {"baseline": "8", "candidate": "9"}, 404, "neither 'bot' version '8' nor"),
        ("models/bot/compare", {"baseline": "3", "candidate": "4", "canditate": "5"}, 400, "'canditate'"),
        ("models/bot/gate", {"baseline": "3", "candidate": "4"}, 400, "cannot judge without a limit"),
        ("models/bot/gate", {"baseline": "3", "candidate": "4", "max_p95_regression": "10"}, 400, "write 10%"),
        ("models/bot/gate", {"baseline": "3", "candidate": "4", "max_error_rate": "-1%"}, 400, "0%"),
        ("models/bot/gate", {"baseline": "3", "candidate": "4", "min_score.x": "nan"}, 400, "min_score.x=nan"),
        ("models/bot/gate", {"baseline": "3", "candidate": "4", "min_score.": "1"}, 400, "'min_score.'"),
        ("compare", {"entity": "model", "baseline": "3", "candidate": "4"}, 400, "give it as id"),
        ("compare", {"entity": "run", "id": "x", "baseline": "3", "candidate": "4"}, 400, "a run has no version"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(api: TestClient, path: str, asked: dict[str, str], status: int, words: str) -> None:
    response = api.get(f"/api/v1/{path}", params=asked)
    assert (response.status_code, response.json()["error"]["code"]) == (status, status)
    assert words in response.json()["error"]["message"]


def test_gate_fails_passes_and_cannot_tell(api: TestClient) -> None:
    limits = {"max_p95_regression": "10%", "max_error_rate": "2%"}
    slower = gated(api, "4", **limits)
    assert [(check["name"], check["verdict"]) for check in slower["checks"]] == [
        ("max_p95_regression", "fail"),
        ("max_error_rate", "fail"),
    ]
    assert (slower["verdict"], slower["reason"]) == ("fail", "2 of 2 limits failed")
    assert slower["candidate"]["examples"]["failed"]
    alike = gated(api, "5", **limits)
    assert (alike["verdict"], alike["reason"]) == ("pass", "within all 2 limits")
    young = gated(api, "6", **limits)
    assert (young["verdict"], young["checks"]) == ("cannot_tell", [])
    assert "candidate 6 has 20 traces, and 200 are needed" in young["reason"]
    unknown = gated(api, "7", **limits)
    assert "candidate 7 has 0 traces" in unknown["reason"]


def test_the_verdict_is_written_back(api: TestClient, tags: list[tuple[str, str, str, Mapping[str, str]]]) -> None:
    asked = {"baseline": "3", "candidate": "4", "max_p95_regression": "0.1"}
    answer = api.post("/api/v1/models/bot/gate", params=asked).json()
    assert answer["written_back"] == {"ok": True, "message": ""}
    entity, id_, version, given = tags.pop()
    assert (entity, id_, version) == ("model", "bot", "4")
    assert (given["spanhouse.gate"], given["spanhouse.gate.baseline"]) == ("fail", "3")
    assert "p95 latency rose by" in given["spanhouse.gate.reason"]
    away = api.post("/api/v1/models/bot/gate", params=asked | {"candidate": "5"}).json()
    assert (away["verdict"], away["written_back"]["message"]) == ("pass", "cannot reach the registry")
    gated(api, "4", max_p95_regression="10%")
    assert len(tags) == 1, "reading writes nothing"


def test_without_a_registry_nothing_is_written_back(store: Store) -> None:
    app = create_app(store.traces, dict)
    app.include_router(router(Samples(store.engine), None))
    asked = {"baseline": "3", "candidate": "4", "max_p95_regression": "0.1"}
    response = TestClient(app).post("/api/v1/models/bot/gate", params=asked)
    assert response.status_code == 409
    assert "no registry is configured" in response.json()["error"]["message"]


# What the command shows


def drawn(answer: Mapping[str, Any]) -> str:
    console = Console(record=True, width=80, file=Path("/dev/null").open("w"))  # noqa: SIM115
    gate.draw(console, answer)
    return console.export_text()


def test_the_verdict_is_drawn(api: TestClient) -> None:
    answer = gated(api, "4", max_p95_regression="10%", max_error_rate="50%")
    lines = drawn(answer).splitlines()
    assert lines[0] == "FAIL  bot 4 (500 traces) against 3 (500 traces): 1 of 2 limits failed"
    assert lines[1].startswith("✗ p95 latency rose by ")
    assert lines[2].startswith("✓ error rate 8 % ")
    assert lines[3] == f"slowest of 4: {' '.join(answer['candidate']['examples']['slowest'])}"
    assert "\n  with so many traces, a change of 1" in drawn(gated(api, "5", max_p95_regression="10%"))
    short = gated(api, "6", max_p95_regression="10%") | {"written_back": {"ok": False, "message": "it is\x1b[2J away"}}
    assert drawn(short).startswith(
        "CANNOT TELL  bot 6 (20 traces) against 3 (500 traces): cannot tell: candidate 6 has"
    )
    assert "! the verdict is not in the registry: it is␛[2J away" in drawn(short)


def test_options_become_parameters() -> None:
    given: dict[str, str | int | None] = {"baseline": "3", "max_error_rate": None, "min_traces": 50}
    scores = {"min_score": ["helpful=0.8", "a=b=1"], "max_score_drop": []}
    assert list(gate.asked(given, scores)) == [
        ("baseline", "3"),
        ("min_traces", "50"),
        ("min_score.helpful", "0.8"),
        ("min_score.a=b", "1"),
    ]
    with pytest.raises(ValueError, match="cannot use 'helpful' for --min-score: write NAME=VALUE"):
        list(gate.asked({}, {"min_score": ["helpful"]}))


# The command itself


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program over a store that holds the versions already. One engine a process: this one is closed again."""
    data_dir = tmp_path_factory.mktemp("house") / "data"
    data_dir.mkdir()
    here = Path(__file__).parent
    script = f"""
import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]
import pathlib, store, test_gate
filled = store.Store(pathlib.Path({str(data_dir)!r}))
test_gate.fill(filled.engine)
filled.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=data_dir, timeout=120)
    with Program(data_dir) as program:
        yield program


def run(house_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "110", "LANG": "C.UTF-8", "SPANHOUSE_URL": house_url}
    return subprocess.run(
        [COMMAND, "gate", *arguments], check=False, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("candidate", "code", "word"),
    [("5", 0, "PASS"), ("4", 1, "FAIL"), ("6", 2, "CANNOT TELL"), ("7", 2, "CANNOT TELL")],
)
def test_exit_codes(house: Program, candidate: str, code: int, word: str) -> None:
    limits = ("--max-p95-regression", "10%", "--max-error-rate", "2%", "--min-traces", "200")
    result = run(house.http, "bot", "--baseline", "3", "--candidate", candidate, *limits)
    assert (result.returncode, result.stderr) == (code, "")
    assert result.stdout.startswith(f"{word}  bot {candidate} ")


def test_json_for_programs(house: Program) -> None:
    result = run(
        house.http, "bot", "--baseline=3", "--candidate=4", "--max-p95-regression=10%", "--format=json"
    )  # fmt: skip
    assert result.returncode == 1
    assert json.loads(result.stdout)["checks"][0]["verdict"] == "fail"


@pytest.mark.parametrize(
    ("url", "arguments", "words"),
    [
        ("http://127.0.0.1:9", ["--max-p95-regression=10%"], "cannot reach http://127.0.0.1:9"),
        ("", [], "cannot judge without a limit"),
        ("", ["--max-p95-regression=10"], "write 10%"),
        ("", ["--min-score=helpful"], "write NAME=VALUE"),
        ("", ["--max-p95-regression=10%", "--write-back"], "no registry is configured"),
    ],
)
def test_what_is_no_regression_is_not_taken_for_one(house: Program, url: str, arguments: list[str], words: str) -> None:
    result = run(url or house.http, "bot", "--baseline=3", "--candidate=5", *arguments)
    assert result.returncode == 2, "1 is for a candidate that got worse"
    assert words in " ".join(result.stderr.replace("│", " ").split())
