"""Pins: who may pin what, by the API and the commands of the real program."""

import json
import os
import subprocess
from typing import Any

import httpx
import pytest
from program import COMMAND, Program

TRACE = "00000000000000000000000000000a0b"
NANO = 1_000_000_000


def ask(program: Program, method: str, tenant: str, **more: Any) -> httpx.Response:
    return httpx.request(method, f"{program.http}/api/v1/pins", headers={"x-spanhouse-tenant": tenant}, **more)


def pinned(program: Program, tenant: str) -> list[tuple[str, str, str]]:
    answer = ask(program, "GET", tenant).json()
    return [(pin["entity"], pin["id"], pin["version"]) for pin in answer["pins"]]


# --- the API ---


def test_pins_are_made_changed_listed_and_taken_back(spanhouse: Program) -> None:
    wanted = {"entity": "trace", "id": TRACE.upper(), "pinned_by": "ann", "comment": "case 7"}
    answer = ask(spanhouse, "PUT", "pin-a", json=wanted)
    assert answer.status_code == 200, answer.text
    [pin] = answer.json()["pins"]
    since = int(pin.pop("since_unix_nano"))
    assert pin == {"entity": "trace", "id": TRACE, "version": "", "pinned_by": "ann", "comment": "case 7"}
    assert since > 1_700_000_000 * NANO
    assert ask(spanhouse, "PUT", "pin-a", json={**wanted, "comment": "case 8"}).json()["pins"][0]["comment"] == "case 8"
    ask(spanhouse, "PUT", "pin-a", json={"entity": "model", "id": "triage", "version": "3"})
    assert pinned(spanhouse, "pin-a") == [("model", "triage", "3"), ("trace", TRACE, "")]

    not_that = ask(spanhouse, "DELETE", "pin-a", params={"entity": "model", "id": "triage"})
    assert not_that.status_code == 404
    assert "cannot find a pin of 'model triage' of tenant 'pin-a'" in not_that.json()["error"]["message"]
    gone = ask(spanhouse, "DELETE", "pin-a", params={"entity": "model", "id": "triage", "version": "3"})
    assert (gone.status_code, gone.content) == (204, b"")
    assert ask(spanhouse, "DELETE", "pin-a", params={"entity": "trace", "id": TRACE.upper()}).status_code == 204
    assert pinned(spanhouse, "pin-a") == []


def test_tenants_do_not_see_each_others(spanhouse: Program) -> None:
    ask(spanhouse, "PUT", "pin-b", json={"entity": "run", "id": "r1"})
    assert pinned(spanhouse, "pin-c") == []
    assert ask(spanhouse, "DELETE", "pin-c", params={"entity": "run", "id": "r1"}).status_code == 404
    assert pinned(spanhouse, "pin-b") == [("run", "r1", "")]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"entity": "trace", "id": "0b"}, "a trace id has 32 hex digits"),
        ({"entity": "trace", "id": "g" * 32}, "a trace id has 32 hex digits"),
        ({"entity": "colour", "id": "red"}, "entity=colour"),
        ({"entity": "run", "id": ""}, "id="),
        ({"entity": "run", "id": "r" * 1025}, "id="),
        ({"entity": "run"}, "id"),
        ({"entity": "run", "id": "r", "why": "x"}, "why"),
        ({"entity": "run", "id": "r", "comment": "x" * 2001}, "comment"),
    ],
)
def test_what_cannot_be_pinned_is_refused(spanhouse: Program, wanted: dict[str, str], says: str) -> None:
    response = ask(spanhouse, "PUT", "pin-d", json=wanted)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert pinned(spanhouse, "pin-d") == []


@pytest.mark.parametrize("hostile", ["'; DROP TABLE spanhouse.pins --", "ünï\u202e\n\\'", "a\x00b"])
def test_hostile_ids_are_ids(spanhouse: Program, hostile: str) -> None:
    which = {"entity": "session", "id": hostile}
    assert ask(spanhouse, "PUT", "pin-e", json=which).status_code == 200
    assert pinned(spanhouse, "pin-e") == [("session", hostile, "")]
    assert ask(spanhouse, "DELETE", "pin-e", params=which).status_code == 204
    assert pinned(spanhouse, "pin-e") == []


# --- the commands ---


def run(program: Program, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "110", "SPANHOUSE_URL": program.http, "SPANHOUSE_TENANT": "pin-f"}
    return subprocess.run([COMMAND, *arguments], check=False, env=env, capture_output=True, text=True, timeout=120)


def test_the_commands(spanhouse: Program) -> None:
    assert "nothing is pinned" in run(spanhouse, "pins").stdout
    said = run(spanhouse, "pin", "model", "team/triage@3", "plain", "--by", "ann", "--comment", "the [best]")
    assert (said.returncode, said.stderr) == (0, "")
    assert "team/triage" in said.stdout
    assert "the [best]" in said.stdout
    found = json.loads(run(spanhouse, "pins", "--json").stdout)
    assert {(pin["id"], pin["version"], pin["pinned_by"]) for pin in found} == {
        ("team/triage", "3", "ann"), ("plain", "", "ann"),
    }  # fmt: skip
    assert run(spanhouse, "unpin", "model", "team/triage@3", "plain").stdout.strip() == "nothing is pinned"
    missing = run(spanhouse, "unpin", "run", "r@1")
    assert missing.returncode == 1
    assert "cannot find a pin of 'run r@1' of tenant 'pin-f'" in missing.stderr
    assert "a trace id has 32 hex digits" in run(spanhouse, "pin", "trace", "0b").stderr
