"""Lists, pages and traces of runs, models, agents and so on, over the API, on the real engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from settling_house import SECOND, START, House, call, eventually, ids, request, span, trace_id

from query import entity_answers, errors
from query.entities import Entities
from query.entities_api import SORTS, router
from storage.assessments import Assessment

MILLISECOND = 1_000_000


class Site(House):
    """A house with its API in front."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.registry: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.entities = Entities(self.engine, self.annotations, lambda *key: self.registry.get(key))
        app = FastAPI()
        errors.install(app)
        app.include_router(router(self.entities))
        self.client = TestClient(app)

    def ask(self, path: str, tenant: str, **parameters: Any) -> httpx.Response:
        return self.client.get(f"/api/v1/{path}", params=parameters or None, headers={"x-spanhouse-tenant": tenant})

    def get(self, path: str, tenant: str, **parameters: Any) -> Any:
        answer = self.ask(path, tenant, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.start()
    yield made
    made.close()


def said(run: str = "r", model: str = "m", version: str = "1", **more: object) -> dict[str, object]:
    return {
        "spanhouse__run__id": run,
        "spanhouse__model__name": model,
        "spanhouse__model__version": version,
        **{key: value for key, value in more.items() if value is not None},
    }


@pytest.fixture(scope="module")
def ten(site: Site) -> str:
    """A tenant with ten traces of one run: the n-th lasts n seconds, version 1 has the first six, and two failed."""
    tool = {"gen_ai__operation__name": "execute_tool", "gen_ai__tool__name": "t"}
    for n in range(1, 11):
        site.load(
            request(
                span(
                    n, 1, start_s=n * 60, seconds=n, failed=n in (2, 9), name="answer",
                    **said(version="1" if n <= 6 else "2", session__id=f"s{n % 2}", user__id="u/1"),
                ),
                call(n, 2, 1, "priced-1" if n % 2 else "other", 100 * n, 10, start_s=n * 60),
                span(n, 3, 1, start_s=n * 60, failed=n == 9, **tool),
            ),
            tenant="ten",
        )  # fmt: skip
    for n in range(1, 5):
        score = Assessment(trace_id(n), "quality", n / 10, "code")
        word = Assessment(trace_id(n), "verdict", "good" if n < 4 else "bad", "human")
        site.assessments.put("ten", [score, word, Assessment(trace_id(n), "truth", 1, "human", kind="expectation")])
    site.settle()
    return "ten"


def test_the_page_of_a_run(site: Site, ten: str):
    page = site.get("runs/r", ten)
    entity_answers.EntityPage.model_validate(page)
    assert (page["id"], page["traces"], page["spans"], page["errors"], page["error_spans"]) == ("r", 10, 30, 2, 3)
    assert page["error_rate"] == 0.2
    assert page["usage"] == {
        "input_tokens": 5500, "output_tokens": 100, "total_tokens": 5600, "cached_input_tokens": 0,
        "reasoning_tokens": 0, "cost_usd": pytest.approx(2.55),
    }  # fmt: skip
    assert page["unpriced_traces"] == 5
    assert page["duration_nano"] == {
        "p50": str(6 * SECOND),
        "p90": str(10 * SECOND),
        "p95": str(10 * SECOND),
        "p99": str(10 * SECOND),
    }
    assert page["models_used"] == {"other": 5, "priced-1": 5}
    assert page["first_seen_unix_nano"] == str(START + 60 * SECOND)
    assert page["last_seen_unix_nano"] == str(START + 600 * SECOND)
    assert page["links"] == {
        "models": [{"name": "m", "version": "1", "traces": 6}, {"name": "m", "version": "2", "traces": 4}]
    }
    assert page["scores"] == {
        "quality": {"count": 4, "mean": pytest.approx(0.25), "p50": pytest.approx(0.3), "labels": {}},
        "verdict": {"count": 4, "mean": None, "p50": None, "labels": {"good": 3, "bad": 1}},
    }
    assert "metadata" not in page and "registry" not in page


def test_a_page_of_a_time(site: Site, ten: str):
    start, end = START + 120 * SECOND, START + 240 * SECOND
    page = site.get("runs/r", ten, start=start, end=end)
    assert (page["traces"], page["usage"]["input_tokens"], page["scores"]["quality"]["count"]) == (2, 500, 2)
    assert site.ask("runs/r", ten, end=START).status_code == 404


def test_the_versions_of_a_model(site: Site, ten: str):
    page = site.get("models/m", ten)
    entity_answers.NamedPage.model_validate(page)
    assert (page["name"], page["traces"]) == ("m", 10)
    assert [(row["version"], row["traces"], row["errors"]) for row in page["versions"]] == [("2", 4, 1), ("1", 6, 1)]
    one = site.get("models/m/versions/1", ten)
    entity_answers.VersionPage.model_validate(one)
    assert (one["version"], one["traces"], one["usage"]["input_tokens"]) == ("1", 6, 2100)
    assert one["links"] == {"runs": [{"id": "r", "traces": 6}]}


def test_a_trace_with_two_versions_counts_once_for_the_model(site: Site):
    site.load(request(span(1, 1, **said(version="1")), call(1, 2, 1, **said(version="2"))), tenant="twice")
    site.settle()
    page = site.get("models/m", "twice")
    assert (page["traces"], page["usage"]["input_tokens"], [v["traces"] for v in page["versions"]]) == (1, 100, [1, 1])
    assert site.get("models", "twice", end=START + SECOND)["items"][0]["traces"] == 1
    assert len(site.get("models/m/traces", "twice")["traces"]) == 1


def test_traces_newest_first_page_by_page(site: Site, ten: str):
    seen: list[int] = []
    cursor = None
    while True:
        page = site.get("runs/r/traces", ten, limit=4, **({"cursor": cursor} if cursor else {}))
        entity_answers.LinkedTraces.model_validate(page)
        seen += ids(page["traces"])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == list(range(10, 0, -1))
    trace = site.get("runs/r/traces", ten)["traces"][1]
    assert trace == {
        "trace_id": trace_id(9).hex(), "root": {"service": "agent", "name": "answer"},
        "start_time_unix_nano": str(START + 540 * SECOND), "duration_nano": str(9 * SECOND), "span_count": 3,
        "error_count": 2, "failed": True, "truncated": False,
        "usage": {
            "input_tokens": 900, "output_tokens": 10, "total_tokens": 910, "cached_input_tokens": 0,
            "reasoning_tokens": 0, "cost_usd": 0.91,
        },
        "unpriced_calls": 0, "models_used": ["priced-1"], "tools": ["t"], "provenance": "span",
        "weight": 1.0,
    }  # fmt: skip


def test_traces_by_status_and_version(site: Site, ten: str):
    assert ids(site.get("runs/r/traces", ten, status="error")["traces"]) == [9, 2]
    assert ids(site.get("runs/r/traces", ten, status="ok", limit=3)["traces"]) == [10, 8, 7]
    two = site.get("models/m/versions/2/traces", ten)["traces"]
    assert (ids(two), two[0]["version"]) == ([10, 9, 8, 7], "2")


def test_ids_with_slashes(site: Site, ten: str):
    assert site.get("users/u/1", ten)["traces"] == site.get("users/u%2F1", ten)["traces"] == 10
    assert len(site.get("users/u/1/traces", ten)["traces"]) == 10


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("runs/none", 404, "cannot find run 'none' of tenant 'ten'"),
        ("models/m/versions/9", 404, "cannot find model 'm' version '9'"),
        ("runs/r?ende=1", 400, "cannot take the query parameter 'ende'"),
        ("runs/r/traces?status=unset", 400, "status"),
        ("runs?limit=0", 400, "limit"),
        ("runs?cursor=abc", 400, "cannot read the cursor"),
        ("runs/r/traces?cursor=WzEsMiwzXQ==", 400, "cannot read the cursor"),
        ("runs/r/traces?start=yesterday", 400, "a time is like"),
    ],
)
def test_what_cannot_be_answered(site: Site, ten: str, path: str, status: int, says: str):
    answer = site.ask(path, ten)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
    assert says in answer.json()["error"]["message"]


def test_a_cursor_of_another_question(site: Site, ten: str):
    cursor = site.get("runs/r/traces", ten, limit=1)["next_cursor"]
    answer = site.ask("sessions/s1/traces", ten, cursor=cursor)
    assert answer.status_code == 400 and "another question" in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def many(site: Site) -> str:
    """A tenant with 30 runs: run n was last seen n minutes after the start."""
    site.load(*(request(call(n, 1, start_s=n * 60, **said(run=f"run-{n}"))) for n in range(30)), tenant="many")
    site.settle()
    return "many"


def test_lists_last_seen_first_page_by_page(site: Site, many: str):
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = site.get("runs", many, limit=7, end=START + 1800 * SECOND, **cursor)
        entity_answers.EntityList.model_validate(page)
        seen += [row["id"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [f"run-{n}" for n in range(29, -1, -1)]


def test_a_list_of_a_time(site: Site, many: str):
    page = site.get("runs", many, start=START + 600 * SECOND, end=START + 720 * SECOND)
    assert [(row["id"], row["traces"]) for row in page["items"]] == [("run-11", 1), ("run-10", 1)]
    month = 30 * 86_400 * SECOND
    assert len(site.get("runs", many, end=START + month)["items"]) == 30
    assert len(site.get("runs", many, end=START + month + 60 * SECOND)["items"]) == 29  # 30 days, if it says no more


def test_what_lost_its_traces_is_in_no_list(site: Site):
    site.load(*(request(call(n, 1, start_s=n, **said(run=f"run-{n}"))) for n in range(1, 10)), tenant="lost")
    site.settle()
    site.annotations.link("lost", [trace_id(n) for n in range(2, 9)], "run", "run-1")
    eventually(lambda: site.get("runs/run-1", "lost")["traces"] == 8)
    rows = site.get("runs", "lost", limit=2, end=START + 60 * SECOND)
    assert [(row["id"], row["traces"]) for row in rows["items"]] == [("run-9", 1), ("run-1", 8)]
    assert site.ask("runs/run-5", "lost").status_code == 404


def test_agents_have_their_own_share(site: Site):
    agent = {"gen_ai__operation__name": "invoke_agent"}
    site.load(
        request(
            span(1, 1, seconds=8, gen_ai__agent__name="boss", **agent),
            span(1, 2, 1, seconds=2, gen_ai__agent__name="aide", gen_ai__agent__version="1", **agent),
            call(1, 3, 2, sent=40),
            call(1, 4, 1, sent=2),
        ),
        request(span(2, 1, seconds=3, gen_ai__agent__name="aide", gen_ai__agent__version="2", **agent), call(2, 2, 1)),
        tenant="agents",
    )
    site.settle()
    aide, boss = site.get("agents/aide", "agents"), site.get("agents/boss", "agents")
    assert (aide["traces"], aide["spans"], aide["usage"]["input_tokens"]) == (2, 4, 140)
    assert [(row["version"], row["usage"]["input_tokens"]) for row in aide["versions"]] == [("2", 100), ("1", 40)]
    assert aide["duration_nano"]["p50"] == str(3 * SECOND)
    assert (boss["usage"]["input_tokens"], boss["duration_nano"]["p50"]) == (2, str(8 * SECOND))
    assert boss["links"] == {"agents": [{"name": "aide", "version": "1", "traces": 1}]}
    assert site.get("agents/aide/versions/1", "agents")["traces"] == 1


def test_metadata_and_registry(site: Site, ten: str):
    site.annotations.put_entity(ten, "run", "r", "", {"name": "sweep 4"})
    site.annotations.put_entity(ten, "model", "m", "3", {"stage": "Staging"})
    site.registry["run", "r", ""] = {"status": "FINISHED"}
    site.registry["model", "m", "1"] = {"aliases": ["champion"]}
    page = site.get("runs/r", ten)
    assert (page["metadata"], page["registry"]) == ({"name": "sweep 4"}, {"status": "FINISHED"})
    row = site.get("runs", ten, end=START + 3600 * SECOND)["items"][0]
    assert (row["metadata"], row["registry"]) == ({"name": "sweep 4"}, {"status": "FINISHED"})
    versions = site.get("models/m", ten)["versions"]
    assert [(v["version"], v["traces"], v.get("metadata"), v.get("registry")) for v in versions] == [
        ("2", 4, None, None),
        ("1", 6, None, {"aliases": ["champion"]}),
        ("3", 0, {"stage": "Staging"}, None),
    ]
    alone = site.get("models/m/versions/3", ten)
    entity_answers.VersionPage.model_validate(alone)
    assert (alone["traces"], alone["error_rate"], alone["duration_nano"]) == (0, None, None)


def test_tenants_are_apart(site: Site, ten: str, many: str):
    assert site.ask("runs/r", many).status_code == 404
    assert site.ask("runs/run-1", ten).status_code == 404
    assert [row["id"] for row in site.get("runs", ten, end=START + 3600 * SECOND)["items"]] == ["r"]


@pytest.mark.parametrize("sort", SORTS, ids=lambda sort: sort.path)
def test_every_sort_has_its_routes(site: Site, sort):
    keys = {
        "run": {"spanhouse__run__id": "x"}, "experiment": {"mlflow__experimentId": "x"},
        "session": {"session__id": "x"}, "user": {"user__id": "x"}, "logged_model": {"mlflow__modelId": "x"},
        "model": {"spanhouse__model__name": "x", "spanhouse__model__version": "1"},
        "agent": {"gen_ai__agent__name": "x", "gen_ai__agent__version": "1"},
        "prompt": {"spanhouse__prompt__name": "x", "spanhouse__prompt__version": "1"},
    }  # fmt: skip
    tenant = f"sort-{sort.path}"
    site.load(request(call(1, 1, **keys[sort.entity])), tenant=tenant)
    site.settle()
    (row,) = site.get(sort.path, tenant, end=START + 60 * SECOND)["items"]
    named = sort.entity in ("model", "agent", "prompt")
    (entity_answers.NamedRow if named else entity_answers.EntityRow).model_validate(row)
    assert row["name" if named else "id"] == "x"
    assert site.get(f"{sort.path}/x", tenant)["traces"] == 1
    assert ids(site.get(f"{sort.path}/x/traces", tenant)["traces"]) == [1]
    if named:
        assert site.get(f"{sort.path}/x/versions/1", tenant)["version"] == "1"
        assert ids(site.get(f"{sort.path}/x/versions/1/traces", tenant)["traces"]) == [1]
