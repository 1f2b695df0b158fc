"""The HTTP API over spans made by hand: parameters, errors, forms, streaming and its bounds."""

import asyncio
import contextlib
import gzip
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import HTTPException
from make_spans import START, TRACE_ID, span
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from query import answers
from query.api import CHUNK_BYTES, create_app, in_chunks
from query.model import BadCursor, TraceFilter, TracePage, TraceSummary
from storage.errors import QueryTimeout, QueryTooLarge, StoreUnavailable
from storage.spans import Span

TRACE = f"/api/v1/traces/{TRACE_ID.hex()}"
LIST = "/api/v1/traces"
SUMMARY = TraceSummary(TRACE_ID.hex(), "shop", "span 1", START, 1000, 3, 1, ["bank", "shop"])


@dataclass
class Reader:
    """Holds what it gives, remembers what it was asked, and fails when told to."""

    traces: dict[tuple[str, bytes], list[Span]] = field(default_factory=dict)
    asked: list[tuple] = field(default_factory=list)
    failure: Exception | None = None

    def spans_of(self, tenant: str, trace_id: bytes, content: bool, limit: int, records: bool = True) -> list[Span]:
        self.asked.append((tenant, trace_id, content, limit))
        if self.failure:
            raise self.failure
        return self.traces.get((tenant, trace_id), [])[:limit]

    def list_traces(self, tenant: str, filters: TraceFilter, limit: int, cursor: str | None) -> TracePage:
        self.asked.append((tenant, filters, limit, cursor))
        if self.failure:
            raise self.failure
        return TracePage([SUMMARY], "next")


@contextlib.contextmanager
def serving(app):
    """The application in a real server on a real socket."""
    listening = socket.create_server(("127.0.0.1", 0))
    # A small buffer, so that a client which does not read is felt soon.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield "http://{}:{}".format(*listening.getsockname())
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def connected(url):
    return httpx.Client(base_url=url, timeout=60)


@pytest.fixture
def reader():
    spans = [span(1), span(2, 1, start=START + 5), span(3, 9, start=START + 9)]
    return Reader({("default", TRACE_ID): spans, ("acme", TRACE_ID): spans[:1]})


@pytest.fixture
def parts():
    return {}


class OfThisTest:
    """Stands for the reader and the readiness of the test that runs, so that one server can serve them all."""

    reader: Reader
    parts: dict[str, str]

    def spans_of(self, *asked):
        return self.reader.spans_of(*asked)

    def list_traces(self, *asked):
        return self.reader.list_traces(*asked)


@pytest.fixture(scope="module")
def server():
    of_this_test = OfThisTest()
    with serving(create_app(of_this_test, lambda: of_this_test.parts)) as url, connected(url) as client:
        yield of_this_test, client


@pytest.fixture
def client(server, reader, parts):
    of_this_test, client = server
    of_this_test.reader, of_this_test.parts = reader, parts
    return client


def error_of(response, code):
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    answers.ErrorAnswer.model_validate(body)
    assert list(body) == ["error"]
    assert body["error"]["code"] == code
    return body["error"]


# One trace


def test_a_trace_as_a_tree_is_the_default(client, reader):
    answer = client.get(TRACE).json()
    answers.Trace.model_validate(answer)
    assert [len(one["children"]) for one in answer["spans"]] == [1, 0]
    assert answer["integrity"]["orphans"] == {"0000000000000009": ["0000000000000003"]}
    assert client.get(TRACE, params={"format": "tree"}).json() == answer
    assert reader.asked[0] == ("default", TRACE_ID, True, 200_001)


def test_a_trace_flat(client):
    answer = client.get(TRACE, params={"format": "flat"}).json()
    answers.Trace.model_validate(answer)
    assert [one["span_id"][-1] for one in answer["spans"]] == ["1", "2", "3"]
    assert not any("children" in one for one in answer["spans"])


def test_a_trace_as_otlp_in_json_and_in_protobuf(client):
    as_json = client.get(TRACE, params={"format": "otlp"})
    assert as_json.headers["content-type"] == "application/json"
    assert len(as_json.json()["resourceSpans"][0]["scopeSpans"][0]["spans"]) == 3
    for accept in ("application/x-protobuf", "text/html, application/protobuf;q=0.9"):
        answer = client.get(TRACE, params={"format": "otlp"}, headers={"accept": accept})
        assert answer.headers["content-type"] == "application/x-protobuf"
        assert "Accept" in answer.headers["vary"]
        data = TracesData.FromString(answer.content)
        assert [one.name for one in data.resource_spans[0].scope_spans[0].spans] == ["span 1", "span 2", "span 3"]


def test_content_can_be_left_out(client, reader):
    assert client.get(TRACE, params={"content": "false"}).status_code == 200
    assert reader.asked[0][2] is False


def test_an_id_may_be_upper_case(client):
    assert client.get(f"/api/v1/traces/{TRACE_ID.hex().upper()}").json()["trace_id"] == TRACE_ID.hex()


def test_tenants_are_apart(client, reader):
    assert client.get(TRACE, headers={"x-spanhouse-tenant": "acme"}).json()["span_count"] == 1
    error = error_of(client.get(TRACE, headers={"x-spanhouse-tenant": "other"}), 404)
    assert f"cannot find trace {TRACE_ID.hex()} of tenant 'other'" in error["message"]
    assert client.get(LIST, headers={"x-spanhouse-tenant": "acme"}).status_code == 200
    assert [asked[0] for asked in reader.asked] == ["acme", "other", "acme"]


@pytest.mark.parametrize("tenant", ["", "a b", "x" * 65, "ü".encode(), "a/b", "'; DROP"])
def test_a_name_that_is_no_tenant_is_refused(client, reader, tenant):
    for path in (TRACE, LIST):
        error = error_of(client.get(path, headers={"x-spanhouse-tenant": tenant}), 400)
        assert "x-spanhouse-tenant" in error["message"]
    assert reader.asked == []


@pytest.mark.parametrize(
    ("trace_id", "reason"),
    [
        ("abc", "a trace id has 32 hex digits, and this has 3"),
        ("0" * 33, "and this has 33"),
        ("g" * 32, "and this has 32 characters that are not all hex digits"),
        ("0" * 31 + "٣", "and this has 32 characters that are not all hex digits"),
    ],
)
def test_an_id_that_is_none_says_what_is_wrong(client, reader, trace_id, reason):
    error = error_of(client.get(f"/api/v1/traces/{trace_id}"), 400)
    assert reason in error["message"]
    assert trace_id in error["message"]
    assert reader.asked == []


def test_a_trace_larger_than_the_bound_is_cut_and_says_so(reader):
    with serving(create_app(reader, dict, trace_spans_max=2)) as url, connected(url) as client:
        answer = client.get(TRACE).json()
        assert (answer["span_count"], answer["integrity"]["truncated"], answer["integrity"]["complete"]) == (
            2,
            True,
            False,
        )
        assert reader.asked[0][3] == 3
        as_otlp = client.get(TRACE, params={"format": "otlp"})
        assert len(as_otlp.json()["resourceSpans"][0]["scopeSpans"][0]["spans"]) == 2
        assert as_otlp.headers["x-spanhouse-truncated"] == "true"
    with serving(create_app(reader, dict, trace_spans_max=3)) as url, connected(url) as client:
        answer = client.get(TRACE)
        assert answer.json()["integrity"]["truncated"] is False
        assert "x-spanhouse-truncated" not in answer.headers


# The list


def test_a_list(client, reader):
    answer = client.get(LIST).json()
    answers.TraceList.model_validate(answer)
    assert answer == {
        "traces": [
            {
                "trace_id": TRACE_ID.hex(),
                "root": {"service": "shop", "name": "span 1"},
                "start_time_unix_nano": str(START),
                "duration_nano": "1000",
                "span_count": 3,
                "error_count": 1,
                "services": ["bank", "shop"],
                "weight": 1.0,
            }
        ],
        "next_cursor": "next",
    }
    assert reader.asked == [("default", TraceFilter(), 50, None)]


def test_every_filter_reaches_the_reader(client, reader):
    query = (
        "start=1764000000000000000&end=2026-01-31T12:00:00.123456789%2B01:00&service=a%26b&name=&status=error"
        "&min_duration=250ms&max_duration=1.5s&attr.http.status_code=200&attr.k=a&attr.k=b=c&limit=7&cursor=x"
    )
    assert client.get(f"{LIST}?{query}").status_code == 200
    expected = TraceFilter(
        start_unix_nano=1764000000000000000,
        end_unix_nano=1769857200123456789,
        service="a&b",
        name="",
        status="error",
        min_duration_nano=250_000_000,
        max_duration_nano=1_500_000_000,
        attributes=[("http.status_code", "200"), ("k", "a"), ("k", "b=c")],
    )
    assert reader.asked == [("default", expected, 7, "x")]


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("1764000000000000001", 1764000000000000001),
        ("2026-01-31T12:00:00Z", 1769860800000000000),
        ("2026-01-31t12:00:00.5z", 1769860800500000000),
        ("2026-01-31T12:00:00.000000001-00:30", 1769862600000000001),
        ("2026-01-31T12:00:00+01:00", 1769857200000000000),  # "+" unescaped, which a server reads as a space
    ],
)
def test_times(client, reader, text, nano):
    assert client.get(f"{LIST}?start={text}").status_code == 200
    assert reader.asked[0][1].start_unix_nano == nano


@pytest.mark.parametrize(
    ("text", "ago_s"), [("now", 0), ("-1h", 3600), ("now-15m", 900), ("-1h30m", 5400), ("-2d", 172800)]
)
def test_relative_times(client, reader, text, ago_s):
    before = time.time_ns()
    assert client.get(LIST, params={"end": text}).status_code == 200
    assert before <= reader.asked[0][1].end_unix_nano + ago_s * 10**9 <= time.time_ns()


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("5", 5),
        ("0s", 0),
        ("1ns", 1),
        ("2us", 2000),
        ("2µs", 2000),
        ("1.000000001s", 1_000_000_001),
        ("1m0.5s", 60_500_000_000),
    ],
)
def test_durations(client, reader, text, nano):
    assert client.get(LIST, params={"min_duration": text}).status_code == 200
    assert reader.asked[0][1].min_duration_nano == nano


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("start=yesterday", "cannot take query parameter start=yesterday: a time is like 2026-01-31T12:00:00Z, -1h"),
        ("start=2026-01-31T12:00:00", "a time is like 2026-01-31T12:00:00Z"),
        ("start=2026-13-31T12:00:00Z", "month must be in 1..12"),
        ("start=1764000000", "looks like seconds; a time is in nanoseconds since 1970: 1764000000000000000"),
        ("start=1764000000000", "looks like milliseconds"),
        ("end=1764000000000000", "looks like microseconds"),
        ("end=1969-12-31T23:59:59Z", "between 1970-01-01 and 2262-04-11"),
        ("end=9999-12-31T23:59:59-23:00", "between 1970-01-01 and 2262-04-11"),
        ("end=99999999999999999999", "between 1970-01-01 and 2262-04-11"),
        ("start=-300000d", "a duration is at most"),
        ("start=2026-01-02T00:00:00Z&end=2026-01-01T00:00:00Z", "cannot list traces: start ("),
        ("min_duration=2s&max_duration=1s", "cannot list traces: min_duration ("),
        ("min_duration=fast", "a duration is like 250ms, 1.5s"),
        ("min_duration=-1s", "a duration is like 250ms, 1.5s"),
        ("min_duration=1e9", "a duration is like 250ms, 1.5s"),
        ("max_duration=9999999999999999999d", "a duration is at most"),
        ("status=bad", "cannot take query parameter status=bad: Input should be 'error', 'ok' or 'unset'"),
        ("limit=0", "cannot take query parameter limit=0"),
        ("limit=1001", "cannot take query parameter limit=1001: Input should be less than or equal to 1000"),
        ("limit=x", "cannot take query parameter limit=x"),
        ("limit=1&limit=2", "cannot take the query parameter 'limit' twice"),
        ("cursor=" + "x" * 4097, "cannot take query parameter cursor=xxx"),
        ("attr.=1", "cannot take the query parameter 'attr.'"),
        ("&".join(f"attr.k{number}=1" for number in range(33)), "cannot filter by 33 attributes"),
        (
            "servcie=shop",
            "cannot take the query parameter 'servcie': this path knows start, end, service, name, status, "
            "min_duration, max_duration, limit, cursor, attr.<key>",
        ),
    ],
)
def test_a_list_parameter_that_cannot_be_taken(client, reader, query, message):
    assert message in error_of(client.get(f"{LIST}?{query}"), 400)["message"]
    assert reader.asked == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("format=xml", "cannot take query parameter format=xml: Input should be 'tree', 'flat' or 'otlp'"),
        ("content=maybe", "cannot take query parameter content=maybe"),
        ("limit=5", "cannot take the query parameter 'limit': this path knows format, content"),
        ("attr.a=5", "cannot take the query parameter 'attr.a'"),
        ("format=flat&format=tree", "cannot take the query parameter 'format' twice"),
    ],
)
def test_a_trace_parameter_that_cannot_be_taken(client, reader, query, message):
    assert message in error_of(client.get(f"{TRACE}?{query}"), 400)["message"]
    assert reader.asked == []


def test_a_cursor_of_another_list(client, reader):
    reader.failure = BadCursor("cannot use this cursor with other filters")
    error = error_of(client.get(LIST, params={"cursor": "x"}), 400)
    assert error["message"] == "cannot use this cursor with other filters"


# Errors of all kinds


@pytest.mark.parametrize("path", [TRACE, LIST])
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StoreUnavailable("cannot reach it"), 503),
        (QueryTimeout("cannot end in 10 s"), 504),
        (QueryTooLarge("cannot"), 400),
    ],
)
def test_the_store_fails(client, reader, path, failure, code):
    reader.failure = failure
    response = client.get(path)
    assert error_of(response, code)["message"] == str(failure)
    assert response.headers.get("retry-after") == ("1" if code == 503 else None)


def test_a_fault_of_ours_is_a_500_without_its_secrets(client, reader):
    reader.failure = RuntimeError("secret")
    assert "secret" not in error_of(client.get(TRACE), 500)["message"]


def test_what_cannot_be_written_is_an_error_answer_and_no_broken_stream(client, reader):
    reader.traces["default", TRACE_ID] = [span(1, attributes=[("surrogate", "\ud800")])]
    for form in ("tree", "flat", "otlp"):
        error_of(client.get(TRACE, params={"format": form}), 500)


def test_paths_and_methods_that_there_are_not(client):
    assert "cannot find /nowhere" in error_of(client.get("/nowhere"), 404)["message"]
    response = client.post(LIST)
    assert error_of(response, 405)["message"] == "cannot POST /api/v1/traces: it takes GET"
    assert response.headers["allow"] == "GET"


def test_routers_of_other_parts_answer_errors_in_the_same_shape(reader):
    app = create_app(reader, dict)

    @app.get("/other")
    def other():
        raise HTTPException(409, "cannot do it twice", {"Retry-After": "3"})

    with serving(app) as url, connected(url) as client:
        response = client.get("/other")
    assert error_of(response, 409)["message"] == "cannot do it twice"
    assert response.headers["retry-after"] == "3"


# Health


def test_health(client, parts):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    parts.update(store="still starting", wal="directory is full")
    response = client.get("/readyz")
    error = error_of(response, 503)
    assert error["parts"] == {"store": "still starting", "wal": "directory is full"}
    assert error["message"] == "not ready: store: still starting; wal: directory is full"
    assert response.headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == 200


# Documentation


def test_openapi_is_complete(client):
    document = client.get("/openapi.json").json()
    assert sorted(document["paths"]) == ["/api/v1/traces", "/api/v1/traces/{trace_id}", "/healthz", "/readyz"]
    for path in document["paths"].values():
        for parameter in path["get"].get("parameters", []):
            assert parameter.get("description"), parameter
        assert path["get"]["summary"]
        assert "422" not in path["get"]["responses"]
    listing = document["paths"][LIST]["get"]
    assert [one["name"] for one in listing["parameters"] if one["in"] == "query"] == [
        "start", "end", "service", "name", "status", "min_duration", "max_duration", "limit", "cursor", "attr.<key>",
        "assessment.<name>",
    ]  # fmt: skip
    trace = document["paths"]["/api/v1/traces/{trace_id}"]["get"]
    assert set(trace["responses"]) == {"200", "4XX", "5XX"}
    assert set(trace["responses"]["200"]["content"]) == {"application/json", "application/x-protobuf"}
    assert trace["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Trace"}
    assert document["components"]["schemas"]["Span"]["properties"]["children"]["items"] == {
        "$ref": "#/components/schemas/Span"
    }


def test_the_examples_in_the_documentation_are_true(client, reader):
    page = (Path(__file__).parent.parent / "docs" / "query.md").read_text()
    reader.traces["team-a", TRACE_ID] = reader.traces["default", TRACE_ID]
    urls = re.findall(r"curl [^\n]*'http://127.0.0.1:4320(/[^']*)'", page)
    assert len(urls) == page.count("curl -s")
    for url in urls:
        assert client.get(url, headers={"x-spanhouse-tenant": "team-a"}).status_code == 200, url
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    for block, model in zip(shown, (answers.Trace, answers.TraceList, answers.ErrorAnswer), strict=True):
        model.model_validate(block)
    assert list(shown[0]) == list(client.get(TRACE).json())
    assert list(shown[0]["spans"][0]) == list(client.get(TRACE).json()["spans"][0])


# Streaming


def test_pieces_are_joined_to_chunks():
    pieces = [b"x" * 1000] * 1000
    chunks = list(in_chunks(pieces))
    assert b"".join(chunks) == b"".join(pieces)
    assert len(chunks) == 4
    assert all(CHUNK_BYTES <= len(chunk) < CHUNK_BYTES + 1000 for chunk in chunks[:-1])


def big_trace(count=20_000):
    return [span(number, number - 1 or None, attributes=[("text", "x" * 500)]) for number in range(1, count + 1)]


def test_a_large_answer_is_streamed_and_compressed(reader):
    reader.traces["default", TRACE_ID] = big_trace()
    with serving(create_app(reader, dict)) as url, connected(url) as client:
        plain = client.get(TRACE, params={"format": "flat"}, headers={"accept-encoding": "identity"})
        assert plain.headers["transfer-encoding"] == "chunked"
        assert "content-encoding" not in plain.headers
        with client.stream("GET", TRACE, params={"format": "flat"}, headers={"accept-encoding": "gzip"}) as response:
            raw = b"".join(response.iter_raw())
        assert response.headers["content-encoding"] == "gzip"
        assert len(raw) < len(plain.content) / 10
        assert gzip.decompress(raw) == plain.content
        assert json.loads(plain.content)["span_count"] == 20_000


def stuck_client(url):
    """A client that asks for the trace and never reads the answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(f"GET {TRACE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def wait_until_asked(reader):
    until = time.monotonic() + 10
    while not reader.asked:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_traces_in_memory_are_bounded_and_liveness_is_not_blocked(reader):
    reader.traces["default", TRACE_ID] = big_trace()
    app = create_app(reader, dict, trace_reads_max=1, trace_read_wait_s=0.2, send_stall_s=60)
    with serving(app) as url, contextlib.closing(stuck_client(url)) as stuck:
        wait_until_asked(reader)
        response = httpx.get(url + TRACE, timeout=30)
        assert "cannot read the trace now" in error_of(response, 503)["message"]
        assert response.headers["retry-after"] == "1"
        assert httpx.get(url + "/healthz").status_code == 200
        assert httpx.get(url + LIST).status_code == 200
        stuck.close()  # a client that goes gives its place back
        until = time.monotonic() + 20
        while httpx.get(url + TRACE, timeout=30).status_code != 200:
            assert time.monotonic() < until


def test_a_client_that_takes_nothing_loses_its_place_and_gets_no_whole_answer(reader):
    reader.traces["default", TRACE_ID] = big_trace()
    app = create_app(reader, dict, trace_reads_max=1, trace_read_wait_s=20, send_stall_s=0.3)
    with serving(app) as url, contextlib.closing(stuck_client(url)) as stuck:
        wait_until_asked(reader)
        assert httpx.get(url + TRACE, timeout=30).status_code == 200
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := stuck.recv(65536):
                received += part
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert not received.endswith(b"0\r\n\r\n"), "a reader must be able to tell that it was cut"


def test_a_place_is_given_back_after_every_kind_of_answer(reader):
    app = create_app(reader, dict, trace_reads_max=1, trace_read_wait_s=1)
    with serving(app) as url, connected(url) as client:
        for _ in range(3):
            assert client.get(TRACE).status_code == 200
            assert client.get(f"{TRACE}?format=xml").status_code == 400
            assert client.get("/api/v1/traces/abc").status_code == 400
            assert client.get("/api/v1/traces/" + "0" * 32).status_code == 404
            reader.failure = RuntimeError("x")
            assert client.get(TRACE).status_code == 500
            reader.failure = None
