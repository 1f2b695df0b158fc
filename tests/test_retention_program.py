"""Retention in the real program: what it says at its first start, the API of policies and plans, and the commands."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from otlp_building import request
from program import COMMAND, Program
from settling_house import NOW, SECOND, call, eventually, span

from query.retention_plan_api import PlanAnswer

POLICIES = """
[[policies]]
name = "errors"
match = { status = "error" }
skeleton_days = 90
content_days = 30

[[policies]]
name = "crawler [b]"
match = { service = "crawl*" }
skeleton_days = 3
content_days = 1
expire_early = true

[default]
skeleton_days = 14
content_days = 2
"""
HEADERS = {"content-type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Six days of twelve traces; a third of a crawler, a sixth failed."""
    with Program(tmp_path_factory.mktemp("retention") / "data") as program:
        for number in range(72):
            at = NOW - number // 12 * 86_400 * SECOND
            spans = [
                span(number + 1, 1, gen_ai__agent__name="planner"),
                call(number + 1, 2, 1, gen_ai__input__messages=f"why {number}? " * 50),
            ]
            for one in spans:
                one.start_time_unix_nano, one.end_time_unix_nano = at, at + SECOND
            spans[1].status.code = 2 if number % 6 == 0 else 0
            service = "crawl-2" if number % 3 == 1 else "support"
            body = request(*spans, service=service).SerializeToString()
            assert httpx.post(f"{program.otlp_http}/v1/traces", content=body, headers=HEADERS).status_code == 200
        eventually(lambda: httpx.get(f"{program.http}/api/v1/storage").json()["total"]["spans"] == 144)
        yield program


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "retention.toml"
    path.write_text(POLICIES)
    return path


def run(program: Program, *arguments: str | Path, code: int = 0) -> str:
    env = {**os.environ, "COLUMNS": "120", "SPANHOUSE_URL": program.http}
    done = subprocess.run(
        [COMMAND, "retention", *arguments], check=False, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def asked(program: Program, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{program.http}/api/v1/retention/plan", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    PlanAnswer.model_validate(answer)
    return answer


def test_a_new_store_says_what_it_keeps_and_how_to_change_that(tmp_path: Path) -> None:
    with Program(tmp_path / "data") as program:
        lines = eventually(lambda: [line for line in program.log().splitlines() if "retention:" in line])
        says = [json.loads(line)["message"] for line in lines]
        assert says == [
            "retention: everything keeps its skeleton for 30 days and its content for 7 (version 1, policies: 0); "
            "to change that: spanhouse retention apply --policy FILE"
        ]
        assert "from today alone" not in run(program, "plan", "--json")
        assert "from today alone, taken for a whole day" in run(program, "plan")


def test_a_plan_by_the_api(filled: Program) -> None:
    now = asked(filled)
    today = datetime.now(UTC).date()
    assert now["days"] == [str(today - timedelta(days=n)) for n in range(5, 0, -1)]
    assert (now["planned"], now["difference"], now["partial"]) == (None, None, False)
    assert [one["name"] for one in now["in_force"]["policies"]] == ["default", "pinned"]
    daily = now["in_force"]["policies"][0]["daily"]
    assert (daily["traces"], daily["spans"]) == (12, 24)
    assert [one["name"] for one in now["in_force"]["agents"]] in (["planner", ""], ["", "planner"])

    wanted = [
        {"name": "errors", "match": {"status": "error"}, "skeleton_days": 90, "content_days": 30},
        {"name": "crawler", "match": {"service": "crawl*"}, "skeleton_days": 3, "content_days": 1},
    ]
    then = asked(filled, policies=wanted, default={"skeleton_days": 14, "content_days": 2}, price_per_gb_month=1e6)
    planned = {one["name"]: one for one in then["planned"]["policies"]}
    assert {name: one["daily"]["traces"] for name, one in planned.items()} == {
        "errors": 2, "crawler": 4, "default": 6, "pinned": 0,
    }  # fmt: skip
    steady = then["planned"]["steady"]
    size = steady["skeleton_bytes"] + steady["content_bytes"]
    assert steady["cost_per_month"] == pytest.approx(size / 1e9 * 1e6, rel=1e-3)
    before = then["in_force"]["steady"]["cost_per_month"]
    assert then["difference"]["cost_per_month"] == pytest.approx(steady["cost_per_month"] - before, abs=1e-3)
    assert planned["errors"]["goes"] == {"skeleton_bytes": 0, "content_bytes": 0}
    assert planned["crawler"]["goes"]["skeleton_bytes"] > 0
    assert httpx.get(f"{filled.http}/api/v1/retention").json()["version"] == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"days": 0}, "days=0"),
        ({"days": 32}, "days=32"),
        ({"names": 101}, "names=101"),
        ({"price_per_gb_month": -1}, "price_per_gb_month=-1"),
        ({"colour": "red"}, "colour"),
        ({"default": {"skeleton_days": 1, "content_days": 2}}, "content for 2 days without its skeleton"),
        ({"policies": [{"name": "a"}]}, "skeleton_days is None"),
    ],
)
def test_what_cannot_be_planned_is_refused(filled: Program, body: dict[str, Any], says: str) -> None:
    response = httpx.post(f"{filled.http}/api/v1/retention/plan", json=body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_the_command_draws_a_plan(filled: Program, file: Path) -> None:
    text = run(filled, "plan", "--policy", file, "--price-per-gb-month", "0.1")
    lines = text.splitlines()
    assert re.split(r"  +", lines[1].strip()) == [
        "policy", "traces/day", "spans/day", "skeleton/day", "content/day", "steady", "in force", "a month", "goes now",
    ]  # fmt: skip
    [errors] = [line for line in lines if line.startswith("errors ") and "×" in line]
    assert re.search(r"errors +2 +4 .*B × 90 d .*B × 30 d", errors)
    assert re.search(r"^crawler \[b\] +4 +8 .* × 3 d .* × 1 d", text, re.MULTILINE)
    assert re.search(r"^errors +█+▏?", text, re.MULTILINE)
    assert re.search(r"^service +spans/day", text, re.MULTILINE)
    assert re.search(r"^agent +spans/day", text, re.MULTILINE)
    assert re.search(
        r"^steady state  .* (less|more) than by the policies in force \([+-]\d+%, [+-]0\.00 a month\)$",
        text,
        re.MULTILINE,
    )
    assert re.search(r"^stored now    .* of it would go at once, .* stay$", text, re.MULTILINE)
    assert re.search(
        rf"^Nothing is changed until you apply it: .* retention apply --policy {file}$", text, re.MULTILINE
    )
    answer = json.loads(run(filled, "plan", "--policy", file, "--json", "--days", "2"))
    PlanAnswer.model_validate(answer)
    assert len(answer["days"]) == 2
    assert "These are the policies in force" in run(filled, "plan")
    file.write_text("colour = 'red'\n" + POLICIES)
    assert "colour" in run(filled, "plan", "--policy", file, code=1)


def test_policies_are_applied_paused_and_resumed(filled: Program, file: Path) -> None:
    """In this order: the last test of this store."""
    assert "Paused" in run(filled, "pause", "--by", "ann")
    text = run(filled, "apply", "--policy", file, "--by", "ann")
    assert "Version 3 by ann" in text
    assert re.search(r"crawler \[b\] .* 3 days +1 day +goes early when the disk is full", text)
    assert "Paused: nothing expires until `spanhouse retention resume`." in text
    retention = httpx.get(f"{filled.http}/api/v1/retention").json()
    assert [one["expire_early"] for one in retention["policies"]] == [False, True]
    assert (retention["default"]["expire_early"], retention["paused"]) == (False, True)
    progress = json.loads(run(filled, "progress", "--json"))
    assert (progress["version"], progress["paused"], progress["days"]) == (3, True, 6)
    assert "Version 3 has reached" in run(filled, "progress")
    assert "Paused" in run(filled, "pause", "--by", "ann")  # a second time it makes no version

    text = run(filled, "resume", "--by", "bob", "--comment", "disk is there")
    assert "Version 4 by bob" in text
    assert "Paused" not in text
    assert [one["name"] for one in retention["policies"]] == ["errors", "crawler [b]"]

    def reached() -> bool:
        progress = json.loads(run(filled, "progress", "--json"))
        return bool(progress["days_done"] == progress["days"] and progress["rows_removed"])

    eventually(reached, 60)
    assert "Version 4" not in run(filled, "history", "--limit", "1")
    assert run(filled, "history").splitlines()[1].split()[:1] == ["4"]
