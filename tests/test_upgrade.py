"""A data directory that an earlier program left behind, opened by this one.

tests/upgrade/make.py made it. The earlier program knew no canonical columns, no links and no facts; it was killed with
a trace in its log, and with another there that it had loaded already.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from program import COMMAND, Program
from settling_house import eventually
from typer.testing import CliRunner

from cli.commands import Here, app

FIXTURE = Path(__file__).with_name("upgrade") / "e12441b.tar.xz"
ACME = '[canonical]\nrun_id = ["acme.run"]\n'
"""Conventions of one's own."""
OF_RUN, OF_ACME, PLAIN, UNLOADED, LOADED = (f"{number:032x}" for number in (1, 2, 3, 4, 5))
"""The traces that make.py made by hand; the others were recorded from a real SDK."""


class Upgraded(NamedTuple):
    program: Program
    answers: dict[str, dict[str, Any]]
    """What the earlier program answered, by trace and format."""


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    directory = tmp_path_factory.mktemp("upgrade")
    with tarfile.open(FIXTURE) as tar:
        tar.extractall(directory, filter="data")
    (directory / "acme.toml").write_text(ACME)
    answers = json.loads((directory / "answers.json").read_text())
    with Program(directory / "data", f"--conventions={directory / 'acme.toml'}") as program:
        yield Upgraded(program, answers)


def get(program: Program, path: str, **parameters: str) -> dict[str, Any]:
    response = httpx.get(f"{program.http}/api/v1/{path}", params=parameters)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def missing(old: Any, new: Any, path: str = "") -> list[str]:
    """Where the new answer does not have what the old one has. It may have more members."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [found for key in old for found in missing(old[key], new.get(key, "nothing"), f"{path}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [found for i, one in enumerate(old) for found in missing(one, new[i], f"{path}[{i}]")]
    return [] if old == new else [f"{path}: {old!r} became {new!r}"]


def test_old_traces_read_back_as_before(upgraded: Upgraded) -> None:
    program, answers = upgraded
    assert len(answers) == 17
    listed = {one["trace_id"] for one in get(program, "traces", start="0", limit="500")["traces"]}
    assert listed >= answers.keys()
    for trace_id, forms in answers.items():
        for form, old in forms.items():
            assert missing(old, get(program, f"traces/{trace_id}", format=form)) == []


def test_what_was_in_the_log_is_loaded_and_understood(upgraded: Upgraded) -> None:
    program = upgraded.program
    trace = program.read_trace(UNLOADED, 2)
    [model_call] = [span for span in trace["spans"] if span["canonical"].get("operation_kind") == "llm"]
    assert model_call["canonical"]["input_tokens"] == 100
    assert trace["links"]["run"] == {"id": "run-of-old", "provenance": "span"}
    assert eventually(lambda: runs(program).get("run-of-old"))["traces"] == 1, "the older one is not linked yet"


def test_what_was_loaded_and_is_in_the_log_still_is_not_stored_again(upgraded: Upgraded) -> None:
    program = upgraded.program
    program.read_trace(UNLOADED, 2)  # which came after it in the log
    [listed] = [one for one in get(program, "traces", start="0", limit="500")["traces"] if one["trace_id"] == LOADED]
    assert listed["span_count"] == 2


def test_relink_fills_the_canonical_columns_and_links(upgraded: Upgraded) -> None:
    program, answers = upgraded
    [bare] = [span for span in program.read_trace(OF_RUN, 2)["spans"] if span["name"] == "span 2"]
    assert "operation_kind" not in bare["canonical"]
    assert "run" not in program.read_trace(OF_RUN, 2)["links"]

    here = Here(program.http, program.grpc, str(COMMAND))
    result = CliRunner().invoke(app, ["relink"], obj=lambda: here)
    assert result.exit_code == 0, result.output
    assert "19 traces are settled again" in result.output

    trace = program.read_trace(OF_RUN, 2)
    said = {span["name"]: span["canonical"] for span in trace["spans"]}
    assert said["span 1"]["run_id"] == "run-of-old"
    assert said["span 2"].items() >= {
        "operation_kind": "llm", "request_model": "priced-1", "input_tokens": 100, "output_tokens": 10,
        "model_name": "support", "model_version": "3", "environment": "prod",
    }.items()  # fmt: skip
    assert trace["links"]["run"] == {"id": "run-of-old", "provenance": "span"}
    assert trace["links"]["model_version"] == {"name": "support", "version": "3", "provenance": "resource"}
    assert program.read_trace(OF_ACME, 1)["links"]["run"] == {"id": "run-of-acme", "provenance": "span"}
    assert program.read_trace(PLAIN, 1)["links"] == {}
    recorded = [trace_id for trace_id in answers if trace_id not in {OF_RUN, OF_ACME, PLAIN}]
    kinds = {
        span["canonical"].get("operation_kind")
        for trace_id in recorded
        for span in program.read_trace(trace_id, 1)["spans"]
    }
    assert {"llm", "embedding"} <= kinds

    found = runs(program)
    assert {run: page["traces"] for run, page in found.items()} == {"run-of-old": 2, "run-of-acme": 1}
    assert get(program, "models/support/versions/3")["traces"] == 1


def runs(program: Program) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in get(program, "runs", start="0", end="2100-01-01T00:00:00Z")["items"]}
