"""An unchanged MLflow program, and its own client, against the real program with a real MLflow server behind it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_openai import ANSWER, USAGE, FakeOpenai
from mlflow_server import MlflowServer
from program import Program

PROGRAM = Path(__file__).with_name("mlflow_program.py")


def started(uri: str, openai_url: str, directory: Path, experiment: str) -> subprocess.Popen[str]:
    """A program of MLflow's users, under way."""
    directory.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "OTEL_", "OPENAI_"))}
    env = kept | {"MLFLOW_TRACKING_URI": uri, "OPENAI_BASE_URL": openai_url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), experiment, str(directory)],
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(directory / "log").open("w"),
        text=True,
    )


def said(program: subprocess.Popen[str], directory: Path) -> dict[str, Any]:
    """What it read, when it has ended well."""
    out, _ = program.communicate(timeout=240)
    assert program.returncode == 0, (directory / "log").read_text()[-6000:]
    answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A program run twice: against an MLflow server, and against Spanhouse with that server behind it."""
    directory = tmp_path_factory.mktemp("mlflow")
    with (
        MlflowServer(directory) as server,
        FakeOpenai() as openai,
        Program(directory / "data", f"--mlflow-url={server.url}") as spanhouse,
    ):
        programs = {
            name: started(uri, openai.url, directory / name, name)
            for name, uri in (("direct", server.url), ("through", f"{spanhouse.http}/mlflow"))
        }
        read = {name: said(program, directory / name) for name, program in programs.items()}
        yield {**read, "spanhouse": spanhouse, "server": server}


def without_ids(read: dict[str, Any], name: str) -> dict[str, Any]:
    """What a program read, with its ids and times replaced by words."""
    text = json.dumps(read["seen"])
    for word, id_ in read["ids"].items():
        if len(id_) > 3:
            text = text.replace(id_, f"<{word}>")
    text = text.replace(name, "<name>")
    for pattern, word in (
        (r'"a-[0-9a-f]{32}"', '"<assessment>"'),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
        (r'"((?:start_|end_|)time_unix_nano|execution_duration_ms)": \d+', r'"\1": 0'),
        (r'"((?:trace|span|parent_span)_id)": "([A-Za-z0-9+/=]{12}|[A-Za-z0-9+/=]{24}|[0-9a-f]{16})"', r'"\1": "<id>"'),
        (r'(mlflow-artifacts:/|"experiment_id": ")\d+', r"\1<experiment>"),
    ):  # fmt: skip
        text = re.sub(pattern, word, text)
    answer: dict[str, Any] = json.loads(text)
    for trace in (answer[key] for key in ("at once", "agent", "broken", "openai")):
        # Sizes of a few bytes more or less, since names differ; what MLflow's server alone adds; prices are our own.
        for key in ("sizeStats", "sizeBytes", "infoFinalized", "cost"):
            trace["info"]["trace_metadata"].pop(f"mlflow.trace.{key}", None)
        for each in trace["data"]["spans"]:
            each["attributes"].pop("mlflow.llm.cost", None)
        trace["info"].get("assessments", []).sort(key=lambda one: one["assessment_name"])
    return answer


@pytest.mark.slow
def test_the_client_reads_what_it_reads_from_mlflow_itself(house):
    direct, through = (without_ids(house[name], name) for name in ("direct", "through"))
    # MLflow's grammar has it, its server has not.
    assert direct["search"].pop("name IN ('agent')") == "INVALID_PARAMETER_VALUE"
    assert through["search"].pop("name IN ('agent')") == ["agent"]
    assert through == direct
    # And that is not because both read nothing.
    assert through["search"]["span.name = 'look up'"] == ["agent"]
    assert through["search by run"] == through["search by model"][-1:] == ["agent"]
    assert through["artifact"] == [2_200_000, True]
    assert through["evaluation"][0] == {"exact/mean": 0.5, "spans/mean": 1.0}
    assert through["at once"]["info"]["response_preview"] == json.dumps(ANSWER)


@pytest.mark.slow
def test_the_traces_are_here_and_not_in_mlflow(house):
    ids = house["through"]["ids"]
    asked = {"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": ids["experiment"]}}]}
    there = httpx.post(f"{house['server'].url}/api/3.0/mlflow/traces/search", json=asked)
    assert there.json() == {}
    trace = house["spanhouse"].read_trace(ids["agent"].removeprefix("tr-"), 3)
    assert [one["name"] for one in trace["spans"]] == ["agent", "look up", "Completions"]
    assert trace["spans"][1]["attributes"]["mlflow.spanInputs"]["list"] == [1, 2.5, None, True, {"deep": "ü"}]


@pytest.mark.slow
def test_our_own_api_has_the_links_the_feedback_and_the_tokens(house):
    ids, spanhouse = house["through"]["ids"], house["spanhouse"]
    prompt = (ids["prompt"], "1")
    expected = {
        ("run", ids["run"], ""), ("run", ids["later"], ""), ("experiment", ids["experiment"], ""),
        ("logged_model", ids["model"], ""), ("session", "session-1", ""), ("user", "user-1", ""),
        ("prompt", *prompt),
    }  # fmt: skip
    trace = spanhouse.read_trace(ids["agent"].removeprefix("tr-"), 3)
    assert expected <= links_of(trace)
    usage = trace["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (USAGE["prompt_tokens"], USAGE["completion_tokens"])
    deadline = time.monotonic() + 30
    while ids["agent"].removeprefix("tr-") not in httpx.get(f"{spanhouse.http}/api/v1/runs/{ids['run']}/traces").text:
        assert time.monotonic() < deadline, "the run's page does not show its trace"
        time.sleep(0.2)
    assessed = httpx.get(f"{spanhouse.http}/api/v1/traces/{ids['agent'].removeprefix('tr-')}/assessments").json()
    assert {(one["name"], json.dumps(one["value"])) for one in assessed["assessments"]} >= {
        ("good", "false"), ("speed", "0.5"), ("degrees", "18.0")
    }  # fmt: skip


def links_of(trace: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Entity, id and version of each link in the `links` of a tree."""
    found = set()
    for entity, first in trace["links"].items():
        for link in (first, *first.get("others", ())):
            found.add((entity, link.get("id") or link["name"], link.get("version") or ""))
    return found


@pytest.mark.slow
def test_the_pages_of_mlflow_are_served(house):
    url = f"{house['spanhouse'].http}/mlflow"
    assert httpx.get(url).headers["location"].endswith("/mlflow/")
    page = httpx.get(f"{url}/").text
    script = re.search(r'src="(?:\./)?(static-files/[^"]+\.js)"', page)
    assert script is not None
    assert len(httpx.get(f"{url}/{script[1]}").content) > 100_000
    asked = {"max_results": 5}
    # As a page that came from here asks: its origin is ours.
    answer = httpx.post(f"{url}/ajax-api/2.0/mlflow/experiments/search", json=asked, headers={"Origin": origin_of(url)})
    assert answer.status_code == 200
    elsewhere = {"Origin": "http://elsewhere.example"}
    assert httpx.post(f"{url}/ajax-api/2.0/mlflow/experiments/search", json=asked, headers=elsewhere).status_code == 403


def origin_of(url: str) -> str:
    return url.removesuffix("/mlflow")


@pytest.mark.slow
def test_traces_are_taken_while_the_mlflow_server_is_away(tmp_path):
    with Program(tmp_path / "data", "--mlflow-url=http://127.0.0.1:9") as spanhouse:
        code = (
            "import mlflow\n"
            "with mlflow.start_span('alone') as span:\n    span.set_inputs({'a': 1})\n"
            "mlflow.flush_trace_async_logging()\n"
            "print(mlflow.get_trace(mlflow.get_last_active_trace_id()).data.spans[0].inputs)\n"
        )
        env = os.environ | {"MLFLOW_TRACKING_URI": f"{spanhouse.http}/mlflow", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.strip() == "{'a': 1}", done.stderr[-3000:]
