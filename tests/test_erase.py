"""Erasure over the real program: after it no file of the data directory holds what a person left anywhere.

tests/store_files.py unpacks what ClickHouse keeps. Every place is found before, so that to find nothing says something.
"""

import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from frame_samples import until
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute
from program import COMMAND, Program
from settling_house import call, request, span, trace_id
from store_files import found_in
from xxhash import xxh3_128_digest

from collector.frames import Frame, encode_frame

STORED = (
    "user", "session", "prompt", "attribute", "array", "bytes", "event", "eventname", "link", "status", "name", "child",
    "resource", "scope", "record", "recordattr", "rationale", "tag", "run",
)  # fmt: skip
MARKERS = {place: f"{place}-5f1c9e07" for place in (*STORED, "quarantine")}
USER = MARKERS["user"]
PERSON, LATE, SECOND = 0xA1, 0xA2, 0xA3
OTHERS = range(1, 9)
PATIENCE_S = 120


def text(of: str) -> AnyValue:
    return AnyValue(string_value=of)


def persons(number: int = PERSON) -> ExportTraceServiceRequest:
    """A trace that says in every place what must be gone. One span of two says whose it is."""
    first = call(number, 1, name=MARKERS["name"], user__id=USER, session__id=MARKERS["session"])
    first.attributes.extend(
        [
            attribute(
                "gen_ai.input.messages", text(json.dumps([{"role": "user", "content": MARKERS["prompt"]}] * 500))
            ),
            attribute("note", text(MARKERS["attribute"])),
            attribute("notes", AnyValue(array_value=ArrayValue(values=[text("x"), text(MARKERS["array"])]))),
            attribute("raw", AnyValue(bytes_value=MARKERS["bytes"].encode())),
        ]
    )
    first.events.append(Span.Event(name=MARKERS["eventname"], attributes=[attribute("said", text(MARKERS["event"]))]))
    link = Span.Link(trace_id=trace_id(7), span_id=b"12345678", attributes=[attribute("why", text(MARKERS["link"]))])
    first.links.append(link)
    first.status.message = MARKERS["status"]
    message = request(first, span(number, 2, 1, note=MARKERS["child"]), desk=MARKERS["resource"])
    scope = message.resource_spans[0].scope_spans[0].scope
    scope.attributes.append(attribute("part", text(MARKERS["scope"])))
    return message


def logs(number: int, body: str, note: str) -> ExportLogsServiceRequest:
    message = ExportLogsServiceRequest()
    scope = message.resource_logs.add().scope_logs.add()
    scope.log_records.append(
        LogRecord(
            trace_id=trace_id(number),
            span_id=(1).to_bytes(8, "big"),
            time_unix_nano=time.time_ns(),
            body=text(body),
            attributes=[attribute("note", text(note))],
        )
    )
    return message


def others(number: int) -> ExportTraceServiceRequest:
    return request(call(number, 1, user__id=f"someone {number}", session__id="shared"), span(number, 2, 1))


def post(program: Program, message: Any, tenant: str = "default") -> None:
    path = "/v1/logs" if isinstance(message, ExportLogsServiceRequest) else "/v1/traces"
    headers = {"content-type": "application/x-protobuf", "x-spanhouse-tenant": tenant}
    response = httpx.post(program.otlp_http + path, content=message.SerializeToString(), headers=headers, timeout=30)
    assert response.status_code == 200, response.text


def quarantined_segment(data_dir: Path) -> None:
    """A segment whose only frame the store cannot load, as if it had been acknowledged before the start."""
    bad = request(span(PERSON, 9, note=MARKERS["quarantine"], user__id=USER))
    bad.resource_spans[0].scope_spans[0].spans[0].trace_id += b"!"
    body = bad.SerializeToString()
    wal = data_dir / "wal"
    wal.mkdir(parents=True)
    received = time.time_ns()
    frame = Frame("default", xxh3_128_digest(body), 1, body)
    (wal / f"{received}-00beef.wal").write_bytes(b"".join(encode_frame(frame, received)))


def fill(program: Program) -> None:
    """Everybody's traces, and what is said of the person's besides."""
    for number in OTHERS:
        post(program, others(number))
        if number == 4:
            post(program, persons())
            post(program, logs(PERSON, MARKERS["record"], MARKERS["recordattr"]))
    post(program, logs(1, "somebody's record", "somebody's"))
    program.read_trace(trace_id(PERSON).hex(), 2)
    program.read_trace(trace_id(max(OTHERS)).hex(), 2)
    api, traced = program.http, trace_id(PERSON).hex()
    said = {
        "name": "helpful",
        "value": True,
        "source": {"type": "human", "id": "ann"},
        "rationale": MARKERS["rationale"],
    }
    assert httpx.post(f"{api}/api/v1/traces/{traced}/assessments", json=said).is_success
    link = {"trace_id": traced, "run_id": MARKERS["run"]}
    linked = httpx.post(f"{api}/api/v1/links", json={"links": [link]})
    assert linked.is_success, linked.text
    tag = {"key": "k", "value": MARKERS["tag"]}
    tagged = httpx.patch(f"{api}/mlflow/api/2.0/mlflow/traces/tr-{traced}/tags", json=tag)
    assert tagged.is_success, tagged.text
    until(lambda: httpx.get(f"{api}/api/v1/sessions/shared").json().get("traces") == len(OTHERS), 30)
    until(lambda: httpx.get(f"{api}/api/v1/runs/{MARKERS['run']}").json().get("traces") == 1, 30)


def answers_of_others(program: Program, tenant: str = "default") -> list[Any]:
    """What the API says of everybody else."""
    headers = {"x-spanhouse-tenant": tenant}
    paths = [f"traces/{trace_id(number).hex()}?format=flat" for number in OTHERS]
    answers = [httpx.get(f"{program.http}/api/v1/{path}", headers=headers).json() for path in paths]
    session = httpx.get(f"{program.http}/api/v1/sessions/shared", headers=headers).json()
    return [*answers, session["traces"], session["spans"], session["usage"]]


def wait(program: Program, erasure_id: str, tenant: str = "default") -> dict[str, Any]:
    """The erasure when it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = httpx.get(
            f"{program.http}/api/v1/erasures/{erasure_id}", headers={"x-spanhouse-tenant": tenant}, timeout=30
        ).json()
        if answer["state"] != "running":
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def begin(program: Program, tenant: str = "default", **asked: Any) -> str:
    response = httpx.post(f"{program.http}/api/v1/erasures", json=asked, headers={"x-spanhouse-tenant": tenant})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    data_dir = tmp_path / "data"
    quarantined_segment(data_dir)
    with Program(data_dir) as running:
        fill(running)
        yield running


def assert_is_gone(program: Program) -> None:
    assert {marker: files for marker, files in found_in(program.data_dir, MARKERS.values()).items() if files} == {}


def test_after_erase_no_file_holds_anything_of_the_person(program: Program, tmp_path: Path) -> None:
    before = answers_of_others(program)
    found = found_in(program.data_dir, MARKERS.values())
    assert [marker for marker, files in found.items() if not files] == [], "the scan must see what is there"
    assert any(name.startswith("quarantine/") for name in found[MARKERS["quarantine"]])
    packed = [
        name
        for marker, files in found.items()
        for name in files
        if (path := program.data_dir / name).is_file() and marker.encode() not in path.read_bytes()
    ]
    assert packed, "some of it is seen only when it is unpacked"

    file = tmp_path / "certificate.json"
    command = [
        COMMAND,
        "erase",
        "--user",
        USER,
        "--yes",
        "--by",
        "case 1",
        "--certificate",
        file,
        "--url",
        program.http,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    assert_is_gone(program)
    assert answers_of_others(program) == before
    assert httpx.get(f"{program.http}/api/v1/traces/{trace_id(PERSON).hex()}").status_code == 404
    assert httpx.get(f"{program.http}/api/v1/sessions/{MARKERS['session']}").status_code == 404
    assert USER not in program.log()

    certificate = json.loads(file.read_text())
    rest = {key: value for key, value in certificate.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == certificate["sha256"]
    [asked] = certificate["asked"]
    assert hashlib.sha256(bytes.fromhex(asked["salt"]) + USER.encode()).hexdigest() == asked["sha256"]
    assert USER not in file.read_text()
    removed = certificate["removed"]
    assert (removed["spans"], removed["records"], removed["assessments"], removed["mlflow_traces"]) == (2, 1, 1, 1)
    assert removed["explicit_links"] == 1
    assert removed["origins"] >= 1
    assert certificate["quarantined_frames_removed"] == 1
    assert set(certificate["checked"]["rows_left"].values()) == {0}
    assert certificate["by"] == "case 1"

    [settings] = {
        path.read_text().count("old_parts_lifetime")
        for path in (program.data_dir / "store" / "metadata").rglob("spans.sql")
    } or {0}
    assert settings == 0, "the tables are as they were"


def test_a_dry_run_counts_and_leaves_everything(program: Program) -> None:
    answer = wait(program, begin(program, users=[USER], dry_run=True))
    assert (answer["state"], answer["traces"]) == ("counted", 1)
    assert (answer["rows"]["spans"], answer["rows"]["quarantine"]) == (2, 1)
    assert answer["certificate"] is None
    assert program.read_trace(trace_id(PERSON).hex(), 2)["span_count"] == 2
    [selector] = [USER]
    assert all(not name.endswith("erasing") for name in found_in(program.data_dir, [selector])[selector])


def test_what_arrives_meanwhile_goes_too(program: Program) -> None:
    """Of the person's new traces, and late spans of the one that goes, which say nothing of whose they are."""
    before = answers_of_others(program)
    stop = threading.Event()

    def send() -> None:
        number = 100
        while not stop.is_set():
            number += 1
            post(program, request(call(1000 + number, 1, user__id=USER, session__id=MARKERS["session"])))
            post(program, request(span(PERSON, number, note=MARKERS["child"])))
            time.sleep(0.02)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        erasure = begin(program, users=[USER])
        time.sleep(4)
    finally:
        stop.set()
        sender.join()
    answer = wait(program, erasure)
    assert answer["state"] == "done"
    assert answer["certificate"]["rounds"] > 2
    assert answer["traces"] > 10
    assert_is_gone(program)
    assert answers_of_others(program) == before


def test_it_goes_on_after_a_crash(program: Program) -> None:
    before = answers_of_others(program)
    erasure = begin(program, users=[USER])
    for seconds in (0.1, 0.4, 0.9, 1.3, 1.8, 2.5):
        time.sleep(seconds)
        program.kill()
        program.start()
    answer = wait(program, erasure)
    assert answer["state"] == "done"
    assert answer["certificate"]["removed"]["spans"] == 2
    assert_is_gone(program)
    assert answers_of_others(program) == before


def test_tenants_are_kept_apart(program: Program) -> None:
    post(program, persons(SECOND), "other")
    program.read_trace(trace_id(SECOND).hex(), 2, tenant="other")
    mine = wait(program, begin(program, users=[USER], traces=[trace_id(SECOND).hex()]))
    assert mine["state"] == "done"
    assert program.read_trace(trace_id(SECOND).hex(), 2, tenant="other")["span_count"] == 2
    assert (
        httpx.get(
            f"{program.http}/api/v1/sessions/{MARKERS['session']}", headers={"x-spanhouse-tenant": "other"}
        ).json()["traces"]
        == 1
    )
    theirs = {"x-spanhouse-tenant": "other"}
    assert httpx.get(f"{program.http}/api/v1/erasures/{mine['id']}", headers=theirs).status_code == 404
    assert httpx.get(f"{program.http}/api/v1/erasures", headers=theirs).json() == {"erasures": []}
    wait(program, begin(program, "other", users=[USER]), "other")
    assert_is_gone(program)


@pytest.mark.parametrize(
    ("number", "value"),
    list(
        enumerate(
            ["nobody", "' OR 1 = 1 --", "{tenant:String}", "\\", "\\'", "%", "\x00", "\n", "ünï 🦆", "*", "x" * 4096]
        )
    ),
    ids=lambda value: repr(value)[:20],
)
def test_hostile_names_are_names(spanhouse: Program, number: int, value: str) -> None:
    """Whoever is called so goes, and nobody else."""
    number += 0x500
    post(spanhouse, request(span(number, 1, odd=value)))
    post(spanhouse, request(span(number + 0x10000, 1, odd=f"{value}!")))
    for one in (number, number + 0x10000):
        spanhouse.read_trace(trace_id(one).hex(), 1)
    answer = wait(spanhouse, begin(spanhouse, attributes=[{"key": "odd", "value": value}], users=[value]))
    assert (answer["state"], answer["rows"]["spans"], answer["traces"]) == ("done", 1, 1)
    assert httpx.get(f"{spanhouse.http}/api/v1/traces/{trace_id(number).hex()}").status_code == 404
    assert spanhouse.read_trace(trace_id(number + 0x10000).hex(), 1)["span_count"] == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "say whom"),
        ({"users": [""]}, "empty user"),
        ({"users": ["x" * 4097]}, "4097 bytes: 4096 are the most"),
        ({"users": ["x"] * 101}, "101 selectors at once: 100 are the most"),
        ({"traces": ["xyz"]}, "32 hexadecimal digits"),
        ({"attributes": [{"key": "", "value": "x"}]}, "without a key"),
        ({"users": ["x"], "by": "a\nb"}, "printable"),
        ({"users": ["x"], "surprise": 1}, "surprise"),
    ],
)
def test_what_makes_no_sense_is_refused(spanhouse: Program, asked: dict[str, Any], says: str) -> None:
    response = httpx.post(f"{spanhouse.http}/api/v1/erasures", json=asked)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert httpx.get(f"{spanhouse.http}/api/v1/erasures/{'0' * 32}").status_code == 404


def test_one_at_a_time_and_not_beside_a_snapshot(program: Program) -> None:
    api = f"{program.http}/api/v1"
    name = httpx.post(f"{api}/snapshots").json()["name"]
    refused = httpx.post(f"{api}/erasures", json={"users": [USER]})
    assert refused.status_code == 409
    assert f"DELETE /api/v1/snapshots/{name}" in refused.json()["error"]["message"]
    httpx.delete(f"{api}/snapshots/{name}")
    erasure = begin(program, users=[USER])
    second = httpx.post(f"{api}/erasures", json={"users": ["x"]})
    assert (second.status_code, erasure in second.json()["error"]["message"]) == (409, True)
    taken = httpx.post(f"{api}/snapshots").json()["name"]
    until(lambda: taken in httpx.get(f"{api}/erasures/{erasure}").json()["waiting_for"], 60)
    httpx.delete(f"{api}/snapshots/{taken}")
    assert wait(program, erasure)["state"] == "done"
    assert_is_gone(program)
