"""The connector to MLflow, against a real server with what the real client logged: there, away, slow, and back."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mlflow_server import MlflowServer
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from store import Store

from query import registry_api
from query.implied import ImpliedLinks
from query.registry import TRACES_TAG, Pace, Registry
from query.registry_lookup import pages_of
from query.registry_messages import cleaned, shown, why
from storage.deployments import Deployments
from storage.linking import Link
from storage.settling import Settler

FAST = Pace(
    fresh_s=0.2, missing_fresh_s=0.2, watch_s=0.5, slow_s=0.3, backoff_s=0.1, backoff_s_max=0.3, write_wait_s=20
)
FRESH = replace(FAST, fresh_s=3600, missing_fresh_s=3600)


@dataclass
class Logged:
    """What the real client logged to the server."""

    server: MlflowServer
    client: Any
    experiment: str
    run: str
    logged_model: str
    other_run: str


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    with pytest.MonkeyPatch.context() as patch, MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=server.url, registry_uri=server.url)
        experiment = client.create_experiment("support")
        run = client.create_run(experiment, run_name="train-1", tags={"team": "blue"}).info.run_id
        client.log_metric(run, "accuracy", 0.93)
        client.log_metric(run, "loss", float("nan"))
        client.log_param(run, "lr", "0.1")
        client.set_terminated(run)
        model = client.create_logged_model(experiment, name="bot", source_run_id=run).model_id
        client.create_registered_model("support-bot", description="answers customers")
        client.create_model_version(
            "support-bot", f"models:/{model}", run, tags={"reviewed": "yes"}, model_id=model, await_creation_for=0
        )
        client.set_registered_model_alias("support-bot", "champion", "1")
        other = client.create_run(experiment, run_name="train-2").info.run_id
        for _ in range(2):
            client.create_model_version("support-bot", "s3://user:secret@bucket/x?sig=1", other, await_creation_for=0)
        client.register_prompt("greet", "Hello {{name}}", commit_message="the first")
        client.set_prompt_alias("greet", "production", 1)
        yield Logged(server, client, experiment, run, model, other)


@pytest.fixture
def registries() -> Iterator[Callable[..., Registry]]:
    """Makes registries that are started, and stops them."""
    made: list[Registry] = []

    def make(uri: str, **options: Any) -> Registry:
        registry = Registry(uri, **{"pace": FAST, **options})
        made.append(registry)
        registry.start()
        return registry

    yield make
    for registry in made:
        registry.stop()


def until(condition: Callable[[], Any], seconds_max: float = 30) -> Any:
    deadline = time.monotonic() + seconds_max
    while not (holds := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return holds


def described(registry: Registry, *key: str) -> dict[str, Any] | None:
    """What is known of it as soon as it was looked up."""

    def looked_up() -> bool:
        answer = registry.describe(*key)
        return answer is None or "as_of_unix_nano" in answer

    until(looked_up)
    return registry.describe(*key)


# What MLflow knows


def test_a_run_has_its_name_its_metrics_and_its_registered_version(logged: Logged, registries) -> None:
    registry = registries(logged.server.url)
    assert registry.describe("run", logged.run) == {"pending": True}
    answer = described(registry, "run", logged.run)
    assert int(answer.pop("as_of_unix_nano")) == pytest.approx(time.time_ns(), abs=60e9)
    assert int(answer.pop("start_time_unix_nano")) <= int(answer.pop("end_time_unix_nano"))
    assert answer.pop("tags").items() >= {"team": "blue"}.items()
    assert answer == {
        "name": "train-1",
        "status": "FINISHED",
        "experiment": {"id": logged.experiment, "name": "support"},
        "metrics": {"accuracy": 0.93, "loss": "NaN"},
        "params": {"lr": "0.1"},
        "model_versions": [
            {"name": "support-bot", "version": "1", "status": "READY", "stage": None, "aliases": ["champion"]}
        ],
        "logged_models": [],
        "url": f"{logged.server.url}/#/experiments/{logged.experiment}/runs/{logged.run}",
    }
    assert registry.implied("run", logged.run) == (
        ("experiment", logged.experiment, ""),
        ("model", "support-bot", "1"),
    )


@pytest.mark.parametrize("version", ["1", "champion"])
def test_a_model_version_is_found_by_number_and_by_alias(logged: Logged, registries, version: str) -> None:
    answer = described(registries(logged.server.url), "model", "support-bot", version)
    assert answer.pop("tags").keys() >= {"reviewed"}
    del answer["as_of_unix_nano"]
    assert answer == {
        "name": "support-bot",
        "version": "1",
        "status": "READY",
        "stage": None,
        "aliases": ["champion"],
        "description": None,
        "source": f"models:/{logged.logged_model}",
        "run": {"id": logged.run, "name": "train-1", "status": "FINISHED"},
        "metrics": {"accuracy": 0.93, "loss": "NaN"},
        "logged_model": logged.logged_model,
        "url": f"{logged.server.url}/#/models/support-bot/versions/1",
    }


def test_the_rest_is_found_as_well(logged: Logged, registries) -> None:
    registry = registries(logged.server.url)
    model = described(registry, "model", "support-bot")
    assert (model["aliases"], model["latest_version"]) == ({"champion": "1"}, "3")
    assert model["description"] == "answers customers"
    bot = described(registry, "logged_model", logged.logged_model)
    assert (bot["name"], bot["run_id"], bot["status"]) == ("bot", logged.run, "PENDING")
    assert [(one["version"], one["aliases"]) for one in bot["model_versions"]] == [("1", ["champion"])]
    assert registry.implied("logged_model", logged.logged_model) == (
        ("experiment", logged.experiment, ""),
        ("model", "support-bot", "1"),
        ("run", logged.run, ""),
    )
    assert described(registry, "experiment", logged.experiment)["name"] == "support"
    for version in ("1", "production"):
        prompt = described(registry, "prompt", "greet", version)
        assert (prompt["version"], prompt["aliases"], prompt["description"]) == ("1", ["production"], "the first")
        assert "Hello" not in json.dumps(prompt)
    assert described(registry, "prompt", "greet")["name"] == "greet"


def test_of_two_versions_that_a_run_made_nobody_knows_which(logged: Logged, registries) -> None:
    registry = registries(logged.server.url)
    answer = described(registry, "run", logged.other_run)
    assert [one["version"] for one in answer["model_versions"]] == ["3", "2"]
    assert registry.implied("run", logged.other_run) == (("experiment", logged.experiment, ""),)
    assert described(registry, "model", "support-bot", "2")["source"] == "s3://bucket/x"


@pytest.mark.parametrize(
    "key",
    [
        ("run", "0" * 32), ("run", "' OR run_id != '"), ("experiment", "999"), ("experiment", "x"), ("model", "none"),
        ("model", "support-bot", "99"), ("model", "support-bot", "challenger"), ("logged_model", "m-" + "0" * 32),
        ("prompt", "greet", "9"), ("prompt", "support-bot", "1"), ("session", "s-1"), ("run", ""),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_mlflow_does_not_have_is_none(logged: Logged, registries, key: tuple[str, ...]) -> None:
    registry = registries(logged.server.url)
    assert described(registry, *key) is None
    assert registry.state()["unavailable"] is None


def test_what_changes_is_seen(logged: Logged, registries) -> None:
    registry = registries(logged.server.url)
    run = logged.client.create_run(logged.experiment).info.run_id
    assert described(registry, "run", run)["metrics"] == {}
    logged.client.log_metric(run, "accuracy", 0.5)
    until(lambda: registry.describe("run", run)["metrics"] == {"accuracy": 0.5})
    assert "unavailable" not in registry.describe("run", run)


def test_a_run_that_comes_after_its_traces_is_found(tmp_path: Path, registries, monkeypatch) -> None:
    """Also: any tracking URI will do, and the registry may be elsewhere."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    tracking, models = f"sqlite:///{tmp_path}/runs.db", f"sqlite:///{tmp_path}/models.db"
    client = MlflowClient(tracking_uri=tracking, registry_uri=models)
    experiment = client.create_experiment("late", artifact_location=str(tmp_path))
    registry = registries(tracking, registry_uri=models)
    assert described(registry, "model", "late-bot") is None
    client.create_registered_model("late-bot")
    assert until(lambda: registry.describe("model", "late-bot"))["name"] == "late-bot"
    run = described(registry, "run", client.create_run(experiment, run_name="local").info.run_id)
    assert (run["name"], run["url"]) == ("local", None)


# Away, slow, and back


def test_away_and_back(logged: Logged, registries) -> None:
    registry = registries(logged.server.url)
    known = described(registry, "run", logged.run)
    logged.server.stop()
    try:
        reason = f"the registry at {logged.server.url} is away: connection refused"
        answer = until(lambda: a if (a := registry.describe("run", logged.run)).get("unavailable") else None)
        assert answer["unavailable"] == reason
        assert {key: answer[key] for key in known if key != "as_of_unix_nano"}.items() <= known.items()
        assert registry.describe("model", "support-bot", "1") == {"unavailable": reason}
        assert registry.state()["unavailable"] == reason
    finally:
        logged.server.start()
    until(lambda: "name" in (registry.describe("model", "support-bot", "1") or {}))
    until(lambda: "unavailable" not in registry.describe("run", logged.run))
    assert registry.state()["unavailable"] is None


def test_a_registry_that_never_answers_holds_nobody_up(registries) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        registry = registries(uri)
        longest = 0.0
        answers = []
        deadline = time.monotonic() + 30
        while not (answers and "slow" in answers[-1].get("unavailable", "")):
            assert time.monotonic() < deadline
            began = time.perf_counter()
            answers.append(registry.describe("run", f"{len(answers):032x}"))
            longest = max(longest, time.perf_counter() - began)
            time.sleep(0.01)
        assert longest < 0.1
        assert answers[0] == {"pending": True}
        assert answers[-1]["unavailable"].startswith(f"the registry at {uri} is slow: no answer for")
        assert registry.state()["waiting"] <= 1_000
        began = time.perf_counter()
        registry.stop(timeout_s=0.2)
        assert time.perf_counter() - began < 1


def test_what_is_remembered_and_what_waits_is_bounded(logged: Logged, registries) -> None:
    registry = registries(logged.server.url, entries_max=3, pace=FRESH)
    keys = [("experiment", "0"), ("experiment", logged.experiment), ("run", logged.run), ("run", logged.other_run)]
    for key in keys:
        described(registry, *key)
    assert registry.state()["remembered"] == 3
    assert registry.describe(*keys[0]) == {"pending": True}  # forgotten first
    away = Registry("http://127.0.0.1:9", pace=FAST)  # not started: nothing is taken from the queue
    for number in range(2_500):
        away.describe("run", str(number))
        away.watch("run", str(number))
    assert away.state()["waiting"] == 1_000


def test_the_api_says_how_it_is_doing(registries) -> None:
    registry = registries("http://ann:s3cret@127.0.0.1:9")
    registry.describe("run", "0" * 32)
    until(lambda: registry.state()["unavailable"])
    app = FastAPI()
    app.include_router(registry_api.router(registry))
    answer = TestClient(app).get("/api/v1/registry").json()
    assert answer["configured"]
    assert (answer["uri"], answer["unavailable"]) == (
        "http://127.0.0.1:9",
        "the registry at http://127.0.0.1:9 is away: connection refused",
    )
    app = FastAPI()
    app.include_router(registry_api.router(None))
    assert not TestClient(app).get("/api/v1/registry").json()["configured"]


def test_no_secret_is_told(registries) -> None:
    registry = registries("http://ann:s3cret@127.0.0.1:9/path?token=t0p")
    answer = until(lambda: a if "unavailable" in (a := registry.describe("run", "0" * 32)) else None)
    assert answer["unavailable"] == "the registry at http://127.0.0.1:9/path is away: connection refused"
    assert registry.state()["uri"] == "http://127.0.0.1:9/path"
    error = ValueError("cannot open postgresql://ann:s3cret@db/x?password=s3cret&sslmode=on\nand more")
    assert cleaned(error) == "cannot open postgresql://db/x?password=…&sslmode=on"
    assert "s3cret" not in why(error)
    assert shown("databricks://profile") == "databricks://profile"


def test_mlflow_is_imported_only_when_it_is_needed() -> None:
    code = (
        "import sys, query.registry as r, query.implied; registry = r.Registry('http://127.0.0.1:9');"
        " registry.describe('run', '1'); sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_without_mlflow_the_answer_says_what_to_install(registries, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    registry = registries("http://127.0.0.1:9")
    answer = until(lambda: a if "unavailable" in (a := registry.describe("run", "0" * 32)) else None)
    assert "install spanhouse[mlflow]" in answer["unavailable"]


def test_pages_are_where_mlflow_has_them() -> None:
    def host(uri: str) -> str:
        return f"https://{uri.rpartition('/')[2]}.cloud.example/"

    assert pages_of("https://ann:pw@mlflow.example/sub/", host) == "https://mlflow.example/sub/#"
    assert pages_of("databricks://prod", host) == "https://prod.cloud.example/ml"
    assert pages_of("sqlite:///x.db", host) == pages_of("file:/tmp/x", host) == ""


# Writing


def test_a_verdict_is_written_as_tags(logged: Logged, registries) -> None:
    registry = registries(logged.server.url, write=True, pace=FRESH)
    before = described(registry, "model", "support-bot", "1")
    assert (
        registry.write_tags("model", "support-bot", "1", {"spanhouse.gate": "fail", "spanhouse.gate.reason": "p95"})
        is None
    )
    tags = logged.client.get_model_version("support-bot", "1").tags
    assert (tags["spanhouse.gate"], tags["spanhouse.gate.reason"]) == ("fail", "p95")
    until(lambda: registry.describe("model", "support-bot", "1")["tags"] != before["tags"])  # it is looked up again
    assert registry.write_tags("run", logged.run, "", {"spanhouse.gate": "pass"}) is None
    assert logged.client.get_run(logged.run).data.tags["spanhouse.gate"] == "pass"


def test_what_cannot_be_written_is_said(logged: Logged, registries) -> None:
    assert "--registry-write" in registries(logged.server.url).write_tags("model", "support-bot", "1", {"a": "b"})
    registry = registries(logged.server.url, write=True)
    missing = registry.write_tags("model", "support-bot", "99", {"a": "b"})
    assert missing.startswith("cannot write to model support-bot 99: ")
    assert "not found" in missing
    for key in (("model", "support-bot", ""), ("model", "support-bot", "champion"), ("session", "s", "")):
        assert registry.write_tags(*key, {"a": "b"}).startswith("cannot write to this ")
    assert registry.state()["unavailable"] is None


def test_a_tag_is_written_when_the_registry_is_back(logged: Logged, registries) -> None:
    registry = registries(logged.server.url, write=True, pace=replace(FAST, write_wait_s=1, write_for_s=300))
    logged.server.stop()
    try:
        said = registry.write_tags("run", logged.other_run, "", {"spanhouse.gate": "late"})
        assert said.startswith("not written yet: the registry at")
        assert registry.state()["writes_waiting"] == 1
    finally:
        logged.server.start()
    until(lambda: logged.client.get_run(logged.other_run).data.tags.get("spanhouse.gate") == "late")


def test_a_tag_that_was_tried_for_long_enough_is_given_up(registries) -> None:
    registry = registries("http://127.0.0.1:9", write=True, pace=replace(FAST, write_wait_s=0.1, write_for_s=0.5))
    assert registry.write_tags("run", "1", "", {"a": "b"}).startswith("not written yet")
    until(lambda: registry.state()["writes_waiting"] == 0 and registry.state()["unavailable"])


def test_what_traces_are_linked_to_is_told_where_they_are(logged: Logged, registries) -> None:
    registry = registries(logged.server.url, write=True, public_url="https://traces.example/")
    registry.watch("run", logged.run)
    registry.watch("model", "support-bot", "1")
    registry.watch("model", "support-bot")
    url = f"https://traces.example/api/v1/runs/{logged.run}/traces"
    until(lambda: logged.client.get_run(logged.run).data.tags.get(TRACES_TAG) == url)
    url = "https://traces.example/api/v1/models/support-bot/versions/1/traces"
    until(lambda: logged.client.get_model_version("support-bot", "1").tags.get(TRACES_TAG) == url)
    described(registry, "run", logged.other_run)  # which nobody watches
    assert TRACES_TAG not in logged.client.get_run(logged.other_run).data.tags


# Links through the registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


def linked(store: Store, tenant: str, trace_id: bytes, entity: str, id_: str) -> None:
    row = {"Tenant": tenant, "Entity": entity, "Id": id_, "TraceId": trace_id}
    store.engine.insert("links", list(row), [list(row.values())])


def test_a_trace_of_a_logged_model_belongs_to_its_registered_version(logged: Logged, registries, store: Store) -> None:
    touched: list[tuple[str, set[bytes]]] = []
    registry = Registry(logged.server.url, pace=FAST)
    implied = ImpliedLinks(store.engine, registry, lambda tenant, ids: touched.append((tenant, set(ids))))
    new, old = b"n" * 16, b"o" * 16
    linked(store, "default", old, "logged_model", logged.logged_model)
    linked(store, "other", old, "logged_model", logged.logged_model)
    links = [Link("logged_model", logged.logged_model, "", "span"), Link("session", "s", "", "span")]
    assert implied("default", new, links) == []
    registry.start()
    try:
        assert until(lambda: touched) == [("default", {old, new})]
        wanted = [
            Link("experiment", logged.experiment, "", "registry"),
            Link("model", "support-bot", "1", "registry"),
            Link("run", logged.run, "", "registry"),
        ]
        assert implied("default", new, links) == wanted
        said = [*links, Link("model", "mine", "7", "span")]
        assert implied("default", new, said) == [wanted[0], wanted[2]]  # what is said is not overruled
        time.sleep(1.5)  # it was looked up again, and nothing is new
        assert len(touched) == 1

        logged.client.create_registered_model("second-bot")
        source = f"models:/{logged.logged_model}"
        logged.client.create_model_version(
            "second-bot", source, logged.run, model_id=logged.logged_model, await_creation_for=0
        )
        until(lambda: len(touched) > 1)
        assert Link("model", "second-bot", "1", "registry") in implied("default", new, links)
    finally:
        registry.stop()
        logged.client.delete_registered_model("second-bot")


def test_links_are_kept_over_a_restart_and_while_the_registry_is_away(logged: Logged, store: Store) -> None:
    touched: list[bytes] = []
    registry = Registry(logged.server.url, pace=FAST)
    implied = ImpliedLinks(store.engine, registry, lambda _, ids: touched.extend(ids))
    links = [Link("run", logged.run, "", "resource")]
    implied("default", b"t" * 16, links)
    registry.start()
    until(lambda: touched)
    known = implied("default", b"t" * 16, links)
    registry.stop()
    assert {link.entity for link in known} == {"experiment", "model"}

    away = ImpliedLinks(store.engine, Registry("http://127.0.0.1:9"), lambda _, ids: None)
    assert away("default", b"t" * 16, links) == known
    assert away("default", b"t" * 16, [Link("run", logged.other_run, "", "span")]) == []


def test_settled_traces_count_for_the_registered_version(logged: Logged, store: Store) -> None:
    settler = Settler(store.engine, store.vocabulary, Deployments(store.engine), lambda _: None, interval_s=0.1)
    registry = Registry(logged.server.url, pace=FAST)
    settler.settlement.imply = ImpliedLinks(store.engine, registry, settler.touch)
    spans = [
        span(
            number,
            trace_id=bytes(15) + bytes([number]),
            attributes=[attribute("mlflow.modelId", AnyValue(string_value=id_))],
        )
        for number, id_ in ((1, logged.logged_model), (2, logged.logged_model), (3, "m-" + "0" * 32))
    ]
    store.load([request(*spans)], received=time.time_ns())
    settler.start()
    registry.start()
    count = (
        "SELECT count() FROM spanhouse.links FINAL WHERE Entity = 'model' AND Id = 'support-bot' AND Version = '1'"
        " AND Deleted = 0 AND Provenance = 'registry'"
    )
    try:
        until(lambda: store.number(count) == 2, seconds_max=60)
        assert store.number("SELECT uniqExact(TraceId) FROM spanhouse.links FINAL WHERE Entity = 'logged_model'") == 3
    finally:
        settler.stop()
        registry.stop()
