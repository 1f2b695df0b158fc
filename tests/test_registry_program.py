"""A run that a traced program logged to a real MLflow server, as the pages of the real program show it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow_server import MlflowServer
from program import COMMAND, Program
from settling_house import eventually
from typer.testing import CliRunner

from cli.commands import Here, app

TRACED = Path(__file__).with_name("traced_program.py")
ACME = '[canonical]\nrun_id = ["acme.training"]\n'
"""Conventions of one's own, known from the second start on."""


class House:
    """The MLflow server, what the traced program made, and the program that is running."""

    def __init__(self, directory: Path, server: MlflowServer, program: Program) -> None:
        self.directory = directory
        self.server = server
        self.program = program
        self.made = json.loads(
            subprocess.run(
                [sys.executable, str(TRACED), server.url, program.otlp_http],
                cwd=directory,
                env={key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "OTEL_"))},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=240,
            ).stdout.splitlines()[-1]
        )

    def get(self, path: str) -> dict[str, Any]:
        response = httpx.get(f"{self.program.http}/api/v1/{path}")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def put(self, path: str, body: dict[str, Any]) -> None:
        response = httpx.request("PUT", f"{self.program.http}/api/v1/{path}", json=body)
        assert response.status_code < 300, response.text

    def traces_of(self, path: str) -> set[str]:
        return {one["trace_id"] for one in self.get(f"{path}/traces")["traces"]}

    @property
    def run(self) -> str:
        return f"runs/{self.made['run']}"

    @property
    def version(self) -> str:
        return f"models/support-bot/versions/{self.made['version']}"

    def settled(self, path: str, traces: list[str]) -> dict[str, Any]:
        """The page, as soon as it has these traces and was looked up."""

        def page() -> dict[str, Any] | None:
            response = httpx.get(f"{self.program.http}/api/v1/{path}")
            if response.status_code == 404:  # no trace is settled yet
                return None
            found: dict[str, Any] = response.json()
            complete = found["traces"] == len(traces) and "as_of_unix_nano" in (found.get("registry") or {})
            return found if complete else None

        found: dict[str, Any] = eventually(page)
        assert self.traces_of(path) == set(traces)
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("registry")
    (directory / "acme.toml").write_text(ACME)
    with MlflowServer(directory) as server:
        with Program(directory / "data", f"--registry-uri={server.url}") as first:
            house = House(directory, server, first)
            house.settled(house.run, house.made["of_run"])
            house.settled(house.version, house.made["of_run"])
        options = (f"--registry-uri={server.url}", f"--conventions={directory / 'acme.toml'}")
        with Program(directory / "data", *options) as second:
            house.program = second
            yield house


def test_the_page_of_a_run_has_its_name_metrics_traces_and_registered_version(house: House) -> None:
    registry = house.settled(house.version, house.made["of_run"])["registry"]
    assert registry["run"] == {"id": house.made["run"], "name": "evening", "status": "FINISHED"}
    assert registry["aliases"] == ["champion"]
    page = house.settled(house.run, house.made["of_run"])
    assert page["usage"]["total_tokens"] == 3 * 120
    assert page["links"]["models"] == [{"name": "support-bot", "version": "1", "traces": 3}]
    registry = page["registry"]
    assert (registry["name"], registry["status"]) == ("evening", "FINISHED")
    assert registry["metrics"] == {"accuracy": 0.93}
    assert registry["experiment"] == {"id": house.made["experiment"], "name": "support"}
    assert registry["model_versions"] == [
        {"name": "support-bot", "version": "1", "status": "READY", "stage": None, "aliases": ["champion"]}
    ]
    assert registry["url"] == f"{house.server.url}/#/experiments/{house.made['experiment']}/{house.run}"


def test_the_tree_names_the_run_and_the_version_with_what_mlflow_knows(house: House) -> None:
    links = house.get(f"traces/{house.made['of_run'][0]}")["links"]
    assert (links["run"]["id"], links["run"]["provenance"]) == (house.made["run"], "resource")
    assert links["run"]["registry"]["name"] == "evening"
    version = links["model_version"]
    assert (version["name"], version["version"], version["provenance"]) == ("support-bot", "1", "registry")
    assert version["registry"]["aliases"] == ["champion"]


def test_relink_links_older_traces_that_said_nothing_of_run_or_version(house: House) -> None:
    made = house.made
    older = made["deployed"] + made["own_key"] + made["silent"]
    assert not house.traces_of(house.run) & set(older)
    assert not house.traces_of(house.version) & set(older)

    model = {"name": "support-bot", "version": made["version"]}
    house.put("deployments/shop", {"service": "shop-bot", "model": model, "since": "2020-01-01T00:00:00Z"})
    here = Here(house.program.http, house.program.grpc, str(COMMAND))
    result = CliRunner().invoke(app, ["relink", "--start", "-1h"], obj=lambda: here)
    assert result.exit_code == 0, result.output

    # The key of one's own names the run, and the run's registered version follows from it.
    house.settled(house.run, made["of_run"] + made["own_key"])
    house.settled(house.version, made["of_run"] + made["own_key"] + made["deployed"])
    links = house.get(f"traces/{made['deployed'][0]}")["links"]
    assert (links["model_version"]["version"], links["model_version"]["provenance"]) == ("1", "deployment")
    assert "run" not in links

    entry = {"filter": {"service": "silent-bot", "start": "-1h"}, "run_id": made["run"]}
    answer = httpx.post(f"{house.program.http}/api/v1/links", json={"links": [entry]})
    assert answer.json() == {"traces": 1, "links": 1}
    house.settled(house.run, made["of_run"] + made["own_key"] + made["silent"])
    assert house.get(f"traces/{made['silent'][0]}")["links"]["run"]["provenance"] == "api"


def test_while_mlflow_is_away_pages_come_with_what_was_known_and_say_so(house: House) -> None:
    house.get(house.run)
    house.server.stop()
    with Program(house.directory / "away", f"--registry-uri={house.server.url}") as stranger:
        house_of_stranger = f"{stranger.http}/api/v1/registry"
        assert httpx.put(f"{stranger.http}/api/v1/{house.run}", json={"name": "put here"}).status_code < 300
        page = eventually(
            lambda: (
                (found := httpx.get(f"{stranger.http}/api/v1/{house.run}").json())["registry"].get("unavailable")
                and found
            )
        )
        assert page["registry"] == {"unavailable": f"the registry at {house.server.url} is away: connection refused"}
        assert page["metadata"]["name"] == "put here"
        assert "connection refused" in httpx.get(house_of_stranger).text
    assert house.get(house.run)["registry"]["name"] == "evening"
    house.server.start()
