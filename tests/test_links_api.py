"""Links in bulk, deployments, metadata, and jobs that settle again, over the API, on the real engine."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from settling_house import SECOND, START, House, call, eventually, request, span, trace_id

from query import errors, link_answers, links_api
from query.link_bodies import METADATA_BYTES_MAX
from query.selection import Selection
from storage.errors import StoreUnavailable
from storage.resettling import Resettling


class Site(House):
    """A house with its API in front. `prices` is what a model's token costs."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.recanonicalized: list[tuple[str, tuple[int, int]]] = []
        self.held = threading.Event()
        self.held.set()
        self.resettling = Resettling(self.engine, self.settler, self.recanonicalize, self.reload)
        app = FastAPI()
        errors.install(app)
        app.include_router(
            links_api.router(
                self.annotations,
                self.deployments,
                Selection(self.engine),
                self.trace_links,
                self.store.traces,
                self.resettling,
            )
        )
        self.client = TestClient(app)

    def recanonicalize(self, tenant, times, goes_on) -> None:
        self.recanonicalized.append((tenant, times))
        while goes_on() and not self.held.wait(0.05):
            pass

    def reload(self) -> None:
        self.settler.settlement.price = lambda _: 42.0

    def send(self, method: str, path: str, tenant: str = "default", status: int = 200, body: Any = None) -> Any:
        headers = {"x-spanhouse-tenant": tenant}
        answer: httpx.Response = self.client.request(method, f"/api/v1/{path}", json=body, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def job(self, kind: str) -> dict[str, Any]:
        """The job when it has ended."""
        job = eventually(lambda: (job := self.send("GET", kind))["ended_unix_nano"] and job)
        link_answers.Job.model_validate(job)
        return job


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.start()
    yield made
    made.resettling.stop()
    made.close()


def linked(site: Site, number: int) -> list[tuple[str, str, str]]:
    return [link[:3] for link in site.linked(trace_id(number))]


def hexed(number: int) -> str:
    return trace_id(number).hex()


# Links


def test_links_of_single_traces(site: Site):
    site.load(request(call(1, 1, spanhouse__run__id="said")), request(call(2, 1)))
    site.settle()
    links = [
        {"trace_id": hexed(1), "run_id": "meant", "model": {"name": "m", "version": "3"}, "user_id": "u"},
        {"trace_id": hexed(2), "prompt": {"name": "p"}, "agent": {"name": "a", "version": "1"}},
        {"trace_id": hexed(2), "prompt": {"name": "q", "version": "2"}, "session_id": "s"},
    ]
    assert site.send("POST", "links", body={"links": links}) == {"traces": 2, "links": 7}
    answer = site.send("GET", f"traces/{hexed(1)}/links")
    link_answers.TraceLinksAnswer.model_validate(answer)
    assert answer["links"] == {
        "run": {"id": "meant", "provenance": "api"},
        "model_version": {"name": "m", "version": "3", "provenance": "api"},
        "user": {"id": "u", "provenance": "api"},
    }
    eventually(lambda: linked(site, 1) == [("model", "m", "3"), ("run", "meant", ""), ("user", "u", "")])
    eventually(lambda: ("agent", "a", "1") in linked(site, 2))
    assert linked(site, 2) == [("agent", "a", "1"), ("prompt", "p", ""), ("prompt", "q", "2"), ("session", "s", "")]
    back = [{"trace_id": hexed(1), "entities": ["run", "user"]}, {"trace_id": hexed(2), "id": "q"}]
    assert site.send("DELETE", "links", body={"links": back}) == {"links": 3}
    eventually(lambda: linked(site, 1) == [("model", "m", "3"), ("run", "said", "")])
    eventually(lambda: ("prompt", "q", "2") not in linked(site, 2))


def test_links_of_all_that_a_filter_finds(site: Site):
    for n in range(10, 20):
        said = {"session__id": f"s{n % 2}", "spanhouse__run__id": "first" if n < 15 else "second"}
        site.load(request(call(n, 1, start_s=n, **said), service="odd" if n % 2 else "even"), tenant="bulk")
    site.settle()

    def found(**conditions: Any) -> int:
        links = [{"filter": conditions, "experiment_id": "x"}]
        return site.send("POST", "links", "bulk", body={"links": links})["traces"]

    assert found(service="odd") == 5
    assert found(session_id="s1", run_id="first") == 2
    assert found(start=START + 12 * SECOND, end=str(START + 14 * SECOND)) == 2
    assert found(service="even", session_id="s1") == 0
    assert found(run_id="third") == 0
    assert found(start="1970-01-01T00:00:00Z") == 10
    moved = [{"filter": {"run_id": "first"}, "run_id": "second"}]
    assert site.send("POST", "links", "bulk", body={"links": moved}) == {"traces": 5, "links": 5}
    count = "SELECT count() FROM spanhouse.links FINAL WHERE Tenant = 'bulk' AND Entity = 'run' AND Id = 'second'"
    eventually(lambda: site.store.number(count) == 10)
    back = [{"filter": {"session_id": "s0"}, "entities": ["run"]}]
    assert site.send("DELETE", "links", "bulk", body={"links": back}) == {"links": 3}
    eventually(lambda: site.store.number(count) == 7)


def test_more_traces_than_one_filter_may_find(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.load(*(request(call(n, 1)) for n in range(1, 5)), tenant="more")
    monkeypatch.setattr(links_api, "SELECTED_TRACES_MAX", 3)
    links = [{"filter": {"service": "agent"}, "run_id": "r"}]
    refused = site.send("POST", "links", "more", 400, {"links": links})
    assert "more than 3 traces at once" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"links": []}, "links"),
        ({"links": [{"trace_id": "12", "run_id": "r"}]}, "trace_id"),
        ({"links": [{"run_id": "r"}]}, "say which traces"),
        ({"links": [{"trace_id": "a" * 32}]}, "say what the traces belong to"),
        ({"links": [{"trace_id": "a" * 32, "runid": "r"}]}, "runid"),
        ({"links": [{"filter": {}, "run_id": "r"}]}, "an empty filter means every trace"),
        ({"links": [{"filter": {"start": "soon"}, "run_id": "r"}]}, "a time is like"),
        ({"links": [{"trace_id": "a" * 32, "model": {"version": "1"}}]}, "model.name"),
        ({"links": [{"trace_id": "a" * 32, "run_id": "r"}] * 1001}, "links"),
    ],
)
def test_links_that_cannot_be_made(site: Site, body: dict, says: str):
    assert says in site.send("POST", "links", status=400, body=body)["error"]["message"]


def test_the_links_of_a_trace_that_is_not_there(site: Site):
    assert "cannot find trace" in site.send("GET", f"traces/{'f' * 32}/links", status=404)["error"]["message"]
    site.send("POST", "links", body={"links": [{"trace_id": "f" * 32, "run_id": "early"}]})
    assert site.send("GET", f"traces/{'f' * 32}/links")["links"]["run"]["id"] == "early"
    site.send("DELETE", "links", body={"links": [{"trace_id": "f" * 32}]})


# Deployments


def test_deployments(site: Site):
    body = {"service": "bot", "model": {"name": "m", "version": "4"}, "since": "2026-01-31T12:00:00Z"}
    made = site.send("PUT", "deployments/bot-4", "d", body=body)
    link_answers.Deployment.model_validate(made)
    noon = str(1_769_860_800 * SECOND)
    assert made == {
        "id": "bot-4", "service": "bot", "environment": "", "model": {"name": "m", "version": "4"},
        "since_unix_nano": noon, "until_unix_nano": None, "source": "api",
    }  # fmt: skip
    assert site.send("GET", "deployments/bot-4", "d") == made
    ended = site.send("PUT", "deployments/bot-4", "d", body={**body, "until": "2026-02-01T00:00:00Z"})
    assert site.send("GET", "deployments", "d") == {"deployments": [ended]}
    assert site.send("GET", "deployments", "other") == {"deployments": []}
    site.send("DELETE", "deployments/bot-4", "d", 204)
    for method in ("GET", "DELETE"):
        assert "cannot find deployment 'bot-4'" in site.send(method, "deployments/bot-4", "d", 404)["error"]["message"]
    wrong = {**body, "until": "2026-01-31T12:00:00Z"}
    assert "until lies before since" in site.send("PUT", "deployments/x", "d", 400, wrong)["error"]["message"]


def test_relink_links_stored_traces_to_what_was_deployed(site: Site):
    """A service that says nothing, and an agent whose trace a run's window does not reach."""
    site.load(
        request(span(40, 1), service="ranker"), request(call(41, 1, start_s=7200), service="ranker"), tenant="late"
    )
    site.settle()
    assert linked(site, 40) == []
    model = {"name": "ranking", "version": "12"}
    site.send("PUT", "deployments/r", "late", body={"service": "ranker", "model": model, "since": str(START)})
    started = site.send("POST", "relink", "late", 202, {"end": str(START + 3600 * SECOND)})
    link_answers.Job.model_validate(started)
    job = site.job("relink")
    assert (job["state"], job["traces"], job["share"], job["tenant"]) == ("done", 1, 1.0, "late")
    assert site.recanonicalized[-1] == ("late", (0, START + 3600 * SECOND))
    assert (linked(site, 40), linked(site, 41)) == ([("model", "ranking", "12")], [])
    site.send("POST", "relink", "late", 202, {})
    assert site.job("relink")["traces"] == 2
    assert linked(site, 41) == [("model", "ranking", "12")]
    site.send("DELETE", "deployments/r", "late", 204)
    site.send("POST", "relink", "late", 202, {})
    site.job("relink")
    assert linked(site, 40) == linked(site, 41) == []


def test_reprice(site: Site):
    site.load(*(request(call(n, 1, model="unknown", start_s=n * 1800)) for n in range(50, 60)), tenant="prices")
    site.settle()
    assert site.facts(trace_id(50), "prices")["Unpriced"] == 1
    before = site.settler.settlement.price
    try:
        site.send("POST", "reprice", "prices", 202, {})
        assert site.job("reprice")["traces"] == 10
        rows = site.engine.rows("SELECT CostUsd, Unpriced FROM spanhouse.facts FINAL WHERE Tenant = 'prices'")
        assert rows == [(42.0, 0)] * 10
    finally:
        site.settler.settlement.price = before


def test_one_job_at_a_time(site: Site):
    site.held.clear()
    try:
        site.send("POST", "relink", "busy", 202, {})
        refused = site.send("POST", "reprice", "busy", 409, {})
        assert "cannot reprice: a relink is running" in refused["error"]["message"]
        running = site.send("GET", "relink")
        assert (running["state"], running["stage"], running["ended_unix_nano"]) == ("running", "spans", None)
    finally:
        site.held.set()
    assert site.job("relink")["state"] == "done"
    refused = site.send("POST", "relink", "busy", 400, {"start": "2026-01-01T00:00:00Z", "end": "2025-01-01T00:00:00Z"})
    assert "is not after start" in refused["error"]["message"]


def test_a_job_that_fails_says_why(site: Site, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise StoreUnavailable("cannot link anew: no space left")

    monkeypatch.setattr(site.resettling, "_recanonicalize", fail)
    site.send("POST", "relink", "fails", 202, {})
    job = site.job("relink")
    assert (job["state"], job["error"]) == ("failed", "cannot link anew: no space left")


def test_a_job_ends_with_the_program(tmp_path: Path, site: Site):
    assert site.send("GET", "relink")["state"] != "none"
    resettling = Resettling(site.engine, site.settler, site.recanonicalize)
    site.held.clear()
    try:
        resettling.start("relink", "default", 0, 2**62)
        begun = time.monotonic()
        resettling.stop()
        assert time.monotonic() - begun < 10
        progress = resettling.progress("relink")
        assert progress is not None and progress.state == "stopped"
        assert resettling.progress("reprice") is None
    finally:
        site.held.set()


# Metadata


def test_metadata_of_runs_and_versions(site: Site):
    said = {"name": "sweep", "metrics": {"accuracy": 0.9}, "tags": {"team": "a"}, "url": "https://example.com/r"}
    assert site.send("PUT", "runs/r/1", "meta", body=said) == said
    assert site.send("PUT", "models/a/b/versions/3", "meta", body={"aliases": ["champion"]}) == {
        "aliases": ["champion"]
    }
    assert site.annotations.entity("meta", "run", "r/1", "") == said
    assert site.annotations.entity("meta", "model", "a/b", "3") == {"aliases": ["champion"]}
    site.load(
        request(call(70, 1, run__id="r/1", spanhouse__model__name="a/b", spanhouse__model__version="3")), tenant="meta"
    )
    links = site.send("GET", f"traces/{hexed(70)}/links", "meta")["links"]
    assert links["run"] == {"id": "r/1", "provenance": "span", "metadata": said}
    assert links["model_version"]["metadata"] == {"aliases": ["champion"]}
    assert site.send("PUT", "runs/r/1", "meta", body={"status": "FAILED"}) == {"status": "FAILED"}
    site.send("DELETE", "runs/r/1", "meta", 204)
    site.send("DELETE", "models/a/b/versions/3", "meta", 204)
    assert "cannot find metadata of run r/1" in site.send("DELETE", "runs/r/1", "meta", 404)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"stages": "x"}, 400, "stages"),
        ({"metrics": {"a": "high"}}, 400, "metrics"),
        ({"url": "javascript:alert(1)"}, 400, "url"),
        ({"description": "x" * METADATA_BYTES_MAX}, 413, "bytes of metadata"),
    ],
)
def test_metadata_that_is_refused(site: Site, body: dict, status: int, says: str):
    assert says in site.send("PUT", "runs/r", status=status, body=body)["error"]["message"]
