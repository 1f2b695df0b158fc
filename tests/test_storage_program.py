"""What is stored, asked of the real program: by HTTP, by `spanhouse storage`, and of a store that was there before."""

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from otlp_building import body
from program import COMMAND, Program
from prometheus_client.parser import text_string_to_metric_families
from settling_house import call, eventually, request
from settling_house import span as plain_span

from query.storage_api import StorageAnswer

FIXTURE = Path(__file__).with_name("upgrade") / "e12441b.tar.xz"
PROMPT = "how much is it? " * 200


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Spans of two tenants."""
    with Program(tmp_path_factory.mktemp("storage") / "data") as program:
        for tenant, traces in (("default", 6), ("acme", 2)):
            for trace in range(1, traces + 1):
                spans = [
                    plain_span(trace, 1, gen_ai__agent__name="triage"),
                    call(trace, 2, 1, model=f"model-{trace % 3}", gen_ai__input__messages=PROMPT + str(trace)),
                ]
                send(
                    program, request(*spans, service="support" if trace % 2 else "<script>").SerializeToString(), tenant
                )
        eventually(lambda: stored(program, all_tenants="true")["total"]["spans"] == 16)
        yield program


def send(program: Program, data: bytes, tenant: str) -> None:
    headers = {"content-type": "application/x-protobuf", "x-spanhouse-tenant": tenant}
    assert httpx.post(f"{program.otlp_http}/v1/traces", content=data, headers=headers).status_code == 200


def stored(program: Program, tenant: str = "default", **parameters: str) -> dict[str, Any]:
    headers = {"x-spanhouse-tenant": tenant}
    response = httpx.get(f"{program.http}/api/v1/storage", params=parameters, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    StorageAnswer.model_validate(answer)
    return answer


def run(program: Program, *arguments: str) -> str:
    env = {**os.environ, "COLUMNS": "110", "SPANHOUSE_URL": program.http}
    done = subprocess.run(
        [COMMAND, "storage", *arguments], check=False, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_tenant_is_told_of_its_own(filled: Program) -> None:
    answer = stored(filled)
    assert answer["tenant"] == "default"
    assert answer["store"] is None
    assert answer["counted"] == 1
    assert answer["total"]["spans"] == sum(group["spans"] for group in answer["groups"]) == 12
    assert {group["name"]: group["spans"] for group in answer["groups"]} == {"support": 6, "<script>": 6}
    assert answer["total"]["content"]["raw_bytes"] == 6 * (len(PROMPT) + 1)
    assert 0 < answer["total"]["content"]["stored_bytes"] < answer["total"]["content"]["raw_bytes"]
    assert [day["spans"] for day in answer["days"]] == [12]
    assert stored(filled, "acme")["total"]["spans"] == 4
    assert stored(filled, "nobody")["groups"] == []


def test_by_agent_and_model(filled: Program) -> None:
    agents = {group["name"]: group["spans"] for group in stored(filled, by="agent")["groups"]}
    assert agents == {"triage": 6, "": 6}
    models = {group["name"]: group["content"]["raw_bytes"] > 0 for group in stored(filled, by="model")["groups"]}
    assert models == {"model-0": True, "model-1": True, "model-2": True, "": False}
    few = stored(filled, by="model", limit="1")["groups"]
    assert {group["name"] for group in few} >= {"…"}
    assert sum(group["spans"] for group in few) == 12


def test_the_operator_is_told_of_all(filled: Program) -> None:
    def asked() -> dict[str, Any] | None:
        """An answer during which nothing was merged."""
        answer = stored(filled, by="tenant", all_tenants="true")
        tables = {table["table"]: table["stored_bytes"] for table in answer["store"]["tables"]}
        spread = sum(group[part]["stored_bytes"] for group in answer["groups"] for part in ("skeleton", "content"))
        return answer if abs(spread - tables["spans"] - tables["content"]) <= 4 else None

    answer = eventually(asked)
    assert answer["tenant"] is None
    assert {group["name"]: group["spans"] for group in answer["groups"]} == {"default": 12, "acme": 4}
    store = answer["store"]
    tables = {table["table"]: table for table in store["tables"]}
    assert tables["spans"]["rows"] == 16
    assert store["stored_bytes"] == sum(table["stored_bytes"] for table in store["tables"])
    assert store["log"].keys() == {"wal_bytes", "quarantine_bytes"}
    [disk] = store["disks"]
    assert 0 < disk["free_bytes"] < disk["total_bytes"]
    assert store["forecast"]["verdict"] == "cannot tell"
    assert len(eventually(lambda: stored(filled, all_tenants="true")["store"]["sizes"])) == 1


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"by": "tenant"}, "by=tenant needs all_tenants=true"),
        ({"by": "colour"}, "cannot take query parameter by=colour"),
        ({"days": "0"}, "cannot take query parameter days=0"),
        ({"limit": "1000000"}, "cannot take query parameter limit=1000000"),
        ({"dayz": "7"}, "cannot take the query parameter 'dayz'"),
    ],
)
def test_what_is_asked_wrongly_is_refused(filled: Program, parameters: dict[str, str], says: str) -> None:
    response = httpx.get(f"{filled.http}/api/v1/storage", params=parameters)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_the_command_draws_a_tenant(filled: Program) -> None:
    lines = run(filled).splitlines()
    assert re.split(r"  +", lines[0].strip()) == [
        "service", "spans", "logs", "skeleton", "content", "on disk", "of raw", "share",
    ]  # fmt: skip
    assert {line.split()[0] for line in lines[1:4]} == {"support", "<script>", "all"}
    assert lines[3].split()[1:3] == ["12", "0"]
    assert "█" in lines[5]
    assert lines[-1] == "of all tenants, with the disk and when it is full: --all-tenants"
    assert "(none)" in run(filled, "--by", "agent")
    assert "nothing is stored" in run(filled, "--tenant", "nobody")


def test_the_command_draws_the_store(filled: Program) -> None:
    text = run(filled, "--by", "tenant")
    assert re.search(r"^acme +4 +0 ", text, re.MULTILINE)
    assert re.search(r"^store  [\d.]+ kB in all tables$", text, re.MULTILINE)
    assert re.search(r"^disk   [\d.]+ GB free of [\d.]+ GB, ", text, re.MULTILINE)
    assert re.search(r"^full   cannot tell yet: 0 whole days of sizes", text, re.MULTILINE)
    answer = json.loads(run(filled, "--all-tenants", "--json", "--days", "1"))
    assert answer["total"]["spans"] == 16


def test_metrics_have_the_tables_and_the_disk(filled: Program) -> None:
    def gauges() -> dict[str, float]:
        families = text_string_to_metric_families(httpx.get(f"{filled.http}/metrics").text)
        return {
            f"{sample.labels['table']}/{sample.labels['holds']}"
            if family.name == "spanhouse_store_bytes"
            else family.name: sample.value
            for family in families
            if family.name in ("spanhouse_store_bytes", "spanhouse_disk_free_bytes")
            for sample in family.samples
        }

    found = eventually(gauges)
    assert found["spanhouse_disk_free_bytes"] > 0
    assert found.keys() >= {"migrations/other"}


def test_a_span_is_counted_once_over_a_kill(tmp_path: Path) -> None:
    program = Program(tmp_path / "data").start()
    for number in range(1, 40):
        send(program, body(*(call(number, n) for n in range(1, 11))), "default")
    program.kill()
    with program.start():
        answer = eventually(lambda: (a := stored(program))["total"]["spans"] == 390 and a)
        assert answer["counted"] == 1


@pytest.mark.timeout(120)
def test_an_older_store_is_counted_after_its_upgrade(tmp_path: Path) -> None:
    with tarfile.open(FIXTURE) as tar:
        tar.extractall(tmp_path, filter="data")
    with Program(tmp_path / "data") as program:

        def counted() -> dict[str, Any] | None:
            answer = stored(program, all_tenants="true", by="day")
            [spans] = [table["rows"] for table in answer["store"]["tables"] if table["table"] == "spans"]
            return answer if answer["total"]["spans"] == spans and answer["counted"] == 1 else None

        answer = eventually(counted, 60)
        assert answer["total"]["spans"] > 50
        assert answer["total"]["content"]["raw_bytes"] > 0
        assert "counted what tenant default has of" in program.log()
