"""What MLflow's gateway passes on to the MLflow server, and whose requests it takes."""

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from mlflow_front import Client, Front, Upstream, fronts_of, served, tr
from otlp_building import request, span
from store import Store

from query.mlflow import gateway, passthrough


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("mlflow_gateway"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def fronts(store: Store, upstream: Upstream) -> Iterator[dict[str, tuple[Front, str]]]:
    with fronts_of(store, upstream) as made:
        yield made


@pytest.fixture
def client(fronts) -> Iterator[Client]:
    """A caller of a gateway in front of a server."""
    one = Client(*fronts["with"])
    yield one
    one.http.close()
    one.front.load_s = 0.0


@pytest.fixture
def alone(fronts) -> Client:
    """A caller of a gateway without a server."""
    return Client(*fronts["without"])


def last(upstream: Upstream) -> dict[str, Any]:
    asked = upstream.asked[-1]
    return {**asked, "headers": {name.lower(): value for name, value in asked["headers"]}}


def test_a_request_goes_through_as_it_came(client, upstream):
    headers = {"Authorization": "Bearer secret", "X-Mlflow-Workspace": "w", "Connection": "close, x-hop", "X-Hop": "1"}
    url = f"{client.url}/api/2.0/mlflow/runs/cr%2Feate?a=b%20c&a=d"
    answer = client.http.patch(url, content=b'{"x": 1}', headers=headers)
    assert answer.status_code == 200
    asked = last(upstream)
    assert (asked["method"], asked["path"]) == ("PATCH", "/base/api/2.0/mlflow/runs/cr%2Feate?a=b%20c&a=d")
    assert asked["body"] == b'{"x": 1}'
    assert (asked["headers"]["authorization"], asked["headers"]["x-mlflow-workspace"]) == ("Bearer secret", "w")
    assert asked["headers"]["host"] == f"127.0.0.1:{upstream.port}"
    assert not {"x-hop"} & asked["headers"].keys()
    assert "x-private" not in answer.headers
    assert answer.headers["x-twice"] == "1"


def test_a_body_of_unknown_length_goes_through(client, upstream):
    pieces = (b"a" * 1000 for _ in range(20))
    client.http.put(f"{client.url}/api/2.0/mlflow-artifacts/artifacts/x", content=pieces)
    assert last(upstream)["body"] == b"a" * 20_000


def test_artifacts_are_never_held_in_memory(client, upstream, monkeypatch):
    largest = 0

    async def watched(receive: Any) -> AsyncIterator[bytes]:
        nonlocal largest
        async for piece in body(receive):
            largest = max(largest, len(piece))
            yield piece

    body = passthrough._body
    monkeypatch.setattr(passthrough, "_body", watched)
    sent = client.http.put(
        f"{client.url}/api/2.0/mlflow-artifacts/artifacts/y",
        content=(b"b" * (1 << 20) for _ in range(48)),
        headers={"content-length": str(48 << 20)},
    )
    assert sent.status_code == 200
    assert 0 < largest < 1 << 20
    assert last(upstream)["headers"]["content-length"] == str(48 << 20)
    size = 0
    with client.http.stream("GET", f"{client.url}/large") as answer:
        assert answer.headers["content-length"] == str(64 << 20)
        for piece in answer.iter_raw():
            size += len(piece)
    assert size == 64 << 20


def test_a_part_of_a_file_is_not_compressed_on_the_way(client):
    answer = client.http.get(f"{client.url}/part", headers={"accept-encoding": "gzip", "range": "bytes=0-4999"})
    assert answer.status_code == 206
    assert answer.headers["content-length"] == "5000"


def test_an_answer_that_breaks_off_is_not_made_whole(client):
    with pytest.raises(httpx.RemoteProtocolError):
        client.http.get(f"{client.url}/cut")
    assert client.http.get(f"{client.url}/version").status_code == 200


def test_redirects_of_the_server_stay_here(client):
    assert client.http.get(f"{client.url}/moved").headers["location"] == "/mlflow/there?a=b"
    assert client.http.get(f"{client.url}/x/moved").headers["location"] == "/mlflow/there"
    assert client.http.get(f"{client.url}/away/moved").headers["location"] == "https://elsewhere.example/x"
    assert client.http.get(f"{client.url}/t/a/moved").headers["location"] == "/mlflow/t/a/there?a=b"


def test_the_configured_user_stands_in_for_callers_without_one(store, upstream):
    front = Front(store, upstream.url.replace("//", "//ann:s%20cret@"))
    with served(front) as url:
        caller = Client(front, url)
        caller.http.get(f"{caller.url}/x")
        assert last(upstream)["headers"]["authorization"] == "Basic YW5uOnMgY3JldA=="
        caller.http.get(f"{caller.url}/x", headers={"authorization": "Bearer own"})
        assert last(upstream)["headers"]["authorization"] == "Bearer own"


def test_without_a_server_what_is_its_own_is_refused_with_the_way_out(alone):
    refused = alone.call("GET", "2.0/mlflow/runs/get", 501)
    assert refused["error_code"] == "NOT_IMPLEMENTED"
    assert "--mlflow-url" in refused["message"]
    assert alone.http.get(f"{alone.url}/health").text == "OK"
    assert alone.http.get(f"{alone.url}/version").text == gateway.VERSION
    alone.start(1)
    assert alone.info(1)["state"] == "OK"


def test_a_server_that_is_away_is_said_so(fronts):
    away = Client(*fronts["away"])
    refused = away.http.get(f"{away.url}/api/2.0/mlflow/runs/get")
    assert (refused.status_code, refused.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert "http://127.0.0.1:9" in refused.json()["message"]
    assert refused.headers["retry-after"] == "1"
    # Else MLflow's client takes this for a server that takes no spans, and sends none as long as it runs.
    assert away.http.get(f"{away.url}/version").text == gateway.VERSION


@pytest.mark.parametrize(
    ("theirs", "told"), [("3.20.1", "3.20.1"), ("3.3.2", gateway.VERSION), ("what?", gateway.VERSION)]
)
def test_the_version_is_the_servers_if_its_client_sends_spans_to_one(client, upstream, monkeypatch, theirs, told):
    monkeypatch.setattr(upstream, "version", theirs)
    assert client.http.get(f"{client.url}/version").text == told


def test_trace_calls_are_never_passed_on(client, upstream):
    before = len(upstream.asked)
    for method, path in (
        ("GET", "3.0/mlflow/traces"), ("POST", "3.0/mlflow/traces/unheard-of"), ("GET", "4.0/mlflow/traces/a/b/info"),
        ("DELETE", "3.0/mlflow/traces/tr-1"), ("POST", "2.0/mlflow/traces/search"),
    ):  # fmt: skip
        assert client.call(method, path, 404)["error_code"] == "ENDPOINT_NOT_FOUND"
    for path in ("metrics", "calculate-filter-correlation"):
        assert client.call("POST", f"3.0/mlflow/traces/{path}", 501)["error_code"] == "NOT_IMPLEMENTED"
    assert len(upstream.asked) == before


# Tenants


def test_spans_go_to_the_receiver_with_tenant_and_headers(client):
    client.send(span(1), **{"x-mlflow-experiment-id": "3", "x-mlflow-run-id": "r"})
    asked = client.front.otlp_asked[-1]
    assert (asked["path"], asked["method"], asked["root_path"]) == ("/v1/traces", "POST", "")
    assert asked["headers"][b"x-spanhouse-tenant"] == client.tenant.encode()
    assert asked["headers"][b"x-mlflow-experiment-id"] == b"3"


def test_the_address_may_name_the_tenant(client, upstream):
    tenant = uuid.uuid4().hex
    named = f"{client.root}/mlflow/t/{tenant}"
    httpx.post(f"{named}/v1/traces", content=request(span(1)).SerializeToString())
    assert client.front.otlp_asked[-1]["headers"][b"x-spanhouse-tenant"] == tenant.encode()
    assert httpx.get(f"{named}/api/3.0/mlflow/traces/{tr(1)}").json()["trace"]["trace_info"]["trace_id"] == tr(1)
    httpx.get(f"{named}/api/2.0/mlflow/runs/get?run_id=r")
    assert last(upstream)["path"] == "/base/api/2.0/mlflow/runs/get?run_id=r"
    assert httpx.get(f"{client.root}/mlflow/t/a%20b/version").status_code == 400
    assert httpx.get(f"{client.root}/mlflow/version", headers={"x-spanhouse-tenant": "a b"}).status_code == 400
