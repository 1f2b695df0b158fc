"""Redaction by the real program: a marker in every place of a request, and afterwards in no file."""

import json
import time
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute, logs, record, request, span
from program import NotReady, Program
from store_files import found_in
from test_logs_program import wait_until_stored

MARKER, KEY = "zanzibar-7731", "the key of the house 0123456789"
RULES = """
[[rules]]
name = "words"
pattern = '(?i)zanzibar-\\d+'
with = "<word>"

[[rules]]
name = "people"
keys = ["user.id", "enduser.*"]
hash = true
"""
PROTOBUF = {"content-type": "application/x-protobuf"}


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def marked(key: str) -> list[KeyValue]:
    nested = AnyValue(kvlist_value=KeyValueList(values=[attribute("in", text(MARKER))]))
    listed = AnyValue(array_value=ArrayValue(values=[text(MARKER), nested]))
    long = text(MARKER + " and much more text " * 200)
    return [attribute(key, text(MARKER)), *map(attribute, ("deep", "gen_ai.input.messages"), (listed, long))]


def requests() -> tuple[bytes, bytes]:
    one = span(
        1,
        name=f"say {MARKER}",
        trace_state=f"a={MARKER}",
        attributes=[*marked("a"), attribute("enduser.pseudo", text("kilimanjaro-5895"))],
        events=[Span.Event(name=MARKER, attributes=marked("b"))],
        links=[Span.Link(trace_id=b"l" * 16, span_id=b"l" * 8, attributes=marked("c"))],
    )
    one.status.message = MARKER
    spans = request(one)
    spans.resource_spans[0].resource.attributes.extend(marked("d"))
    spans.resource_spans[0].scope_spans[0].scope.attributes.extend(marked("e"))
    return spans.SerializeToString(), logs(
        record(1, body=text(MARKER), attributes=marked("f")), record(2, body=marked("g")[1].value)
    ).SerializeToString()


def rules(tmp_path: Path, said: str = RULES) -> list[str]:
    (tmp_path / "redaction.toml").write_text(said)
    (tmp_path / "redaction.key").write_text(KEY)
    return [f"--redaction={tmp_path / 'redaction.toml'}", f"--redaction-key-file={tmp_path / 'redaction.key'}"]


def test_no_file_holds_what_is_redacted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Program(data, *rules(tmp_path)) as program:
        spans, records = requests()
        for path, body in {"/v1/traces": spans, "/v1/logs": records}.items():
            sent = httpx.post(f"{program.otlp_http}{path}", content=body, headers={
                **PROTOBUF, "baggage": f"session.id={MARKER}"})  # fmt: skip
            assert sent.status_code == 200, sent.text
        wait_until_stored(program, "default")
        trace = json.dumps(program.read_trace(span(1).trace_id.hex(), 1, seconds_max=20))
        assert MARKER not in trace
        assert trace.count("<word>") >= 10
        assert "hmac:" in trace
        deadline = time.monotonic() + 20
        while any((data / "wal").glob("*.wal")) or any((data / "wal").glob("*.open")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        found = found_in(data, (MARKER, "kilimanjaro", KEY, "<word>"))
        assert found.pop("<word>"), "the files can be read"
        assert not any(found.values()), found
        assert KEY not in program.log()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ('[[rules]]\nname = "a"\npattern = "("\nwith = ""', "cannot use the pattern '(' of rule 'a'"),
        ('[[rules]]\nname = "a"\nhash = true', "needs keys, a pattern, or both"),
    ],
)
def test_it_does_not_start_with_rules_that_cannot_be_used(tmp_path: Path, said: str, says: str) -> None:
    with pytest.raises(NotReady) as error:
        Program(tmp_path / "data", *rules(tmp_path, said)).start()
    assert says in str(error.value)
