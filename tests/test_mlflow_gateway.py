"""The trace calls of MLflow's REST API, over HTTP against the gateway on a real store."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from mlflow_front import Client, Front, Upstream, fronts_of, tr
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from otlp_building import attribute, request, span
from recorded import CORPUS
from store import Store

from query.mlflow import arrivals, calls, gateway


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
def client(fronts, monkeypatch) -> Iterator[Client]:
    """A caller of a gateway in front of a server."""
    monkeypatch.setattr(arrivals, "UNKNOWN_WAIT_S_MAX", 0.3)
    monkeypatch.setattr(arrivals, "WAIT_S_MAX", 1.5)
    one = Client(*fronts["with"])
    yield one
    one.http.close()
    one.front.load_s = 0.0


@pytest.fixture
def alone(fronts) -> Client:
    """A caller of a gateway without a server."""
    return Client(*fronts["without"])


# Start, and what a TraceInfo says


def recorded_infos() -> list[dict[str, Any]]:
    """What a real client sent beside its spans."""
    return [
        json.loads(path.read_text()) for path in sorted((CORPUS / "mlflow_tracking_server" / "side").glob("*.json"))
    ]


def test_every_recorded_call_is_taken_and_given_back_as_it_came(client):
    recorded = recorded_infos()
    assert len(recorded) == 30
    for one in recorded:
        assert (one["method"], one["path"]) == ("POST", "/api/3.0/mlflow/traces")
        client.call("POST", "3.0/mlflow/traces", json=one["body"])
        info = one["body"]["trace"]["trace_info"]
        back = client.call("GET", f"3.0/mlflow/traces/{info['trace_id']}")["trace"]["trace_info"]
        tags = back.pop("tags")
        added = {"mlflow.trace.spansLocation", "mlflow.artifactLocation"}
        assert {key: value for key, value in tags.items() if key not in added} == info.pop("tags")
        assert back.pop("assessments") == []
        assert back == info


def test_what_a_trace_info_names_is_linked(client):
    client.start(
        1,
        trace_metadata={
            "mlflow.sourceRun": "run-1",
            "mlflow.modelId": "m-1",
            "mlflow.trace.session": "s-1",
            "mlflow.trace.user": "u-1",
            "mlflow.user": "nobody in particular",
        },
        tags={"mlflow.linkedPrompts": '[{"name": "greeting", "version": "2"}, {"name": "parting", "version": "1"}]'},
    )
    assert client.linked() == {
        ("experiment", "1", ""), ("run", "run-1", ""), ("logged_model", "m-1", ""), ("session", "s-1", ""),
        ("user", "u-1", ""), ("prompt", "greeting", "2"), ("prompt", "parting", "1"),
    }  # fmt: skip
    assert {(link[1], link[5]) for link in client.front.links if link[0] == client.tenant} == {
        ((span(1).trace_id,), "mlflow")
    }


def test_the_client_is_told_to_ask_here_for_spans_and_where_attachments_go(client):
    tags = client.start(1)["tags"]
    assert tags["mlflow.trace.spansLocation"] == "TRACKING_STORE"
    assert tags["mlflow.artifactLocation"] == f"mlflow-artifacts:/7/traces/{tr(1)}/artifacts"


def test_a_server_that_is_away_does_not_hold_up_the_start(fronts):
    away = Client(*fronts["away"])
    assert "mlflow.artifactLocation" not in away.start(1)["tags"]


def test_a_start_that_is_sent_again_changes_nothing(client):
    feedback = {"assessment_name": "good", "feedback": {"value": True}, "create_time": "2026-11-22T15:36:35.946Z"}
    for _ in range(2):
        client.start(1, assessments=[{**feedback, "source": {"source_type": "HUMAN", "source_id": "ann"}}])
        client.call("PATCH", f"2.0/mlflow/traces/{tr(1)}/tags", json={"key": "kept", "value": "yes"})
    info = client.start(1, assessments=[feedback | {"source": {"source_type": "HUMAN", "source_id": "ann"}}])
    assert info["tags"]["kept"] == "yes"
    assert [one["assessment_name"] for one in client.info(1)["assessments"]] == ["good"]


def test_camel_case_is_read_as_well(client):
    info = {
        "traceId": tr(1),
        "traceLocation": {"type": "MLFLOW_EXPERIMENT", "mlflowExperiment": {"experimentId": "1"}},
        "requestTime": "2026-11-22T15:36:35.946123456Z",
        "executionDuration": "1.500s",
        "state": "ERROR",
        "traceMetadata": {"a": "b"},
    }
    client.call("POST", "3.0/mlflow/traces", json={"trace": {"traceInfo": info}})
    back = client.info(1)
    assert (back["request_time"], back["execution_duration"]) == ("2026-11-22T15:36:35.946Z", "1.500s")
    assert (back["state"], back["trace_metadata"]) == ("ERROR", {"a": "b"})


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": "tr-1"},
        {"trace_id": "trace:/catalog.schema/1234"},
        {"request_time": "yesterday"},
        {"request_time": None},
        {"execution_duration": "long"},
    ],
)
def test_a_trace_info_that_says_nonsense_is_refused(client, fields):
    with pytest.raises(AssertionError, match="error_code"):
        client.start(1, **fields)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"trace": {}}', b'{"trace": {"trace_info": 5}}'])
def test_a_start_of_no_trace_is_refused(client, body):
    response = client.http.post(f"{client.url}/api/3.0/mlflow/traces", content=body)
    assert response.status_code in (400, 404)
    assert response.json()["error_code"] in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


def nonsense(json: Any) -> Iterator[Any]:
    """The same with something else in the place of each of its parts, one at a time."""
    for wrong in (5, "x", [[]], {"x": [1]}):
        if type(wrong) is not type(json):
            yield wrong
    if isinstance(json, dict):
        for key, value in json.items():
            yield from ({**json, key: other} for other in nonsense(value))
    if isinstance(json, list) and json:
        yield from ([other, *json[1:]] for other in nonsense(json[0]))


@pytest.mark.slow
def test_nonsense_in_any_place_is_refused_or_read_and_never_a_fault_of_ours(client):
    source = {"source_type": "HUMAN", "source_id": "ann"}
    assessment = {"assessment_name": "a", "feedback": {"value": 1, "error": {"error_code": "E"}}, "source": source}
    assessment |= {"span_id": "00000000000000ab", "metadata": {"k": "v"}, "create_time": "2026-11-22T15:36:35.946Z"}
    client.start(1)
    path = f"traces/{tr(1)}"
    put = client.call("POST", f"3.0/mlflow/{path}/assessments", json={"assessment": assessment})["assessment"]
    one = f"{path}/assessments/{put['assessment_id']}"
    info = {"trace_id": tr(1), "trace_location": {"mlflow_experiment": {"experiment_id": "1"}}, "state": "OK"}
    info |= {"request_time": "2026-11-22T15:36:35.946Z", "execution_duration": "1s", "trace_metadata": {"k": "v"}}
    info |= {"tags": {"k": "v"}, "assessments": [assessment]}
    pairs = [{"key": "k", "value": "v"}]
    search = {"locations": [{"mlflow_experiment": {"experiment_id": "1"}}], "filter": "name = 'a'", "max_results": 5}
    sent = {
        ("POST", "3.0/mlflow/traces"): {"trace": {"trace_info": info}},
        ("POST", "2.0/mlflow/traces"): {"timestamp_ms": 1, "request_metadata": pairs, "tags": pairs},
        ("PATCH", f"2.0/mlflow/{path}"): {"timestamp_ms": 1, "status": "OK", "tags": pairs},
        ("POST", "3.0/mlflow/traces/search"): {**search, "order_by": ["name"], "page_token": "eyJvZmZzZXQiOjB9"},
        ("POST", "3.0/mlflow/traces/batchGetInfos"): {"trace_ids": [tr(1)], "experiment_ids": ["1"]},
        ("POST", "3.0/mlflow/traces/delete-traces"): {"experiment_id": "9", "max_timestamp_millis": 1, "max_traces": 1},
        ("POST", "2.0/mlflow/traces/link-to-run"): {"trace_ids": [tr(1)], "run_id": "r"},
        ("POST", "2.0/mlflow/traces/link-prompts"): {
            "trace_id": tr(1), "prompt_versions": [{"name": "p", "version": "1"}],
        },
        ("PATCH", f"3.0/mlflow/{path}/tags"): {"key": "k", "value": "v"},
        ("POST", f"3.0/mlflow/{path}/assessments"): {"assessment": assessment},
        ("PATCH", f"3.0/mlflow/{one}"): {"assessment": assessment, "update_mask": "feedback,metadata"},
    }  # fmt: skip
    for (method, where), json_ in sent.items():
        assert client.http.request(method, f"{client.url}/api/{where}", json=json_).status_code == 200, where
        for wrong in nonsense(json_):
            answer = client.http.request(method, f"{client.url}/api/{where}", json=wrong)
            assert answer.status_code in (200, 400, 404), (where, wrong, answer.text)


def test_a_body_beyond_the_limit_is_refused(client, monkeypatch):
    monkeypatch.setattr(gateway, "BODY_BYTES_MAX", 1000)
    with pytest.raises(AssertionError, match="more than 1000 bytes"):
        client.start(1, request_preview="x" * 2000)


# Reading


def test_spans_and_trace_info_come_back_together(client):
    client.send(span(1), span(1, span_id=b"child--1", parent_span_id=span(1).span_id))
    client.start(1, trace_metadata={"mlflow.trace.sizeStats": '{"num_spans": 2}'})
    trace = client.get(1)["trace"]
    assert trace["trace_info"]["trace_id"] == tr(1)
    assert [one.get("parent_span_id", "") != "" for one in trace["spans"]] == [False, True]
    batch = client.call("GET", "3.0/mlflow/traces/batchGet", params={"trace_ids": [tr(1)], "experiment_ids": ["1"]})
    assert batch["traces"] == [trace]
    elsewhere = client.call("GET", "3.0/mlflow/traces/batchGet", params={"trace_ids": [tr(1)], "experiment_ids": ["2"]})
    assert elsewhere["traces"] == []
    assert client.call("GET", "3.0/mlflow/traces/batchGet", params={"trace_ids": [tr(9)]}) == {"traces": []}
    infos = client.call("POST", "3.0/mlflow/traces/batchGetInfos", json={"trace_ids": [tr(1), tr(9)]})
    assert infos["trace_infos"] == [trace["trace_info"]]


def test_a_trace_is_given_when_all_its_spans_have_arrived(client, monkeypatch):
    monkeypatch.setattr(arrivals, "WAIT_S_MAX", 10)
    client.front.load_s = 1.0
    client.send(span(1))
    client.start(1, trace_metadata={"mlflow.trace.sizeStats": '{"num_spans": 1}'})
    begun = time.monotonic()
    assert len(client.get(1)["trace"]["spans"]) == 1
    assert 0.5 < time.monotonic() - begun < 4


def test_a_trace_whose_spans_are_missing_is_given_in_part_or_later(client):
    client.send(span(1))
    client.start(1, trace_metadata={"mlflow.trace.sizeStats": '{"num_spans": 2}'})
    assert "still arriving" in client.get(1, 404)["message"]
    assert len(client.get(1, allow_partial="true")["trace"]["spans"]) == 1
    assert client.call("GET", "3.0/mlflow/traces/batchGet", params={"trace_ids": [tr(1)]})["traces"] == []


def test_a_trace_whose_spans_never_came_is_given_without_them_after_a_while(client, monkeypatch):
    client.send(span(1))
    client.start(1, trace_metadata={"mlflow.trace.sizeStats": '{"num_spans": 2}'})
    monkeypatch.setattr(calls, "RECENT_S", 0)
    monkeypatch.setattr(arrivals, "RECENT_S", 0)
    assert len(client.get(1)["trace"]["spans"]) == 1


def test_a_trace_that_is_not_there_is_waited_for_and_then_not_found(client):
    begun = time.monotonic()
    assert client.get(1, 404)["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    assert 0.3 < time.monotonic() - begun < 3
    for path in ("3.0/mlflow/traces/tr-xyz", "3.0/mlflow/traces/get?trace_id=", "3.0/mlflow/traces/get"):
        assert client.call("GET", path, 404)["error_code"] == "RESOURCE_DOES_NOT_EXIST"


def test_a_trace_of_another_tenant_is_not_there(client, fronts):
    client.start(1)
    assert Client(*fronts["with"]).call("POST", "3.0/mlflow/traces/batchGetInfos", json={"trace_ids": [tr(1)]}) == {
        "trace_infos": []
    }


def test_a_trace_of_another_sdk_reads_as_mlflow_would_show_it(client):
    broken = Status(code=Status.STATUS_CODE_ERROR, message="no")
    texts = {
        "openinference.span.kind": "LLM", "input.value": '{"q": "why?"}', "output.value": "because",
        "llm.model_name": "gpt-4o", "session.id": "s-1", "mlflow.traceTag.tier": "gold",
    }  # fmt: skip
    attributes = [attribute(key, AnyValue(string_value=value)) for key, value in texts.items()]
    attributes.append(attribute("llm.token_count.prompt", AnyValue(int_value=12)))
    client.send(span(1, name="root", status=broken, attributes=attributes))
    trace = client.get(1)["trace"]
    info, [only] = trace["trace_info"], trace["spans"]
    assert info["state"] == "ERROR"
    assert info["tags"] == {
        "mlflow.traceName": "root", "mlflow.trace.spansLocation": "TRACKING_STORE", "service.name": "test",
        "tier": "gold",
    }  # fmt: skip
    assert (info["request_preview"], info["response_preview"]) == ('{"q": "why?"}', '"because"')
    assert info["execution_duration"] == "1.000s"
    assert client.info(1) == info
    said = {pair["key"]: pair["value"] for pair in only["attributes"]}
    assert said["mlflow.spanType"] == {"string_value": "LLM"}
    assert said["mlflow.spanInputs"]["kvlist_value"]["values"] == [{"key": "q", "value": {"string_value": "why?"}}]
    assert said["mlflow.spanOutputs"] == {"string_value": "because"}
    assert said["mlflow.llm.model"] == {"string_value": "gpt-4o"}
    assert said["mlflow.traceRequestId"] == {"string_value": tr(1)}
    usage = {pair["key"]: pair["value"] for pair in said["mlflow.chat.tokenUsage"]["kvlist_value"]["values"]}
    assert usage["input_tokens"] == {"int_value": "12"}


def test_a_settled_trace_of_another_sdk_has_its_links_tokens_and_cost(client):
    client.send(span(1, name="root"))
    columns = (
        "Tenant",
        "TraceId",
        "Start",
        "RootName",
        "InputTokens",
        "OutputTokens",
        "TotalTokens",
        "CostUsd",
        "Links",
        "Settled",
    )
    links = [("experiment", "5", "", "header"), ("run", "r", "", "api"), ("session", "s", "", "span")]
    now = datetime.now(UTC)
    row = (client.tenant, span(1).trace_id, now, "root", 12, 7, 19, 0.5, links, now)
    client.front.store.engine.insert("facts", columns, [row])
    info = client.info(1)
    assert info["trace_location"]["mlflow_experiment"]["experiment_id"] == "5"
    said = info["trace_metadata"]
    assert (said["mlflow.sourceRun"], said["mlflow.trace.session"]) == ("r", "s")
    assert json.loads(said["mlflow.trace.tokenUsage"])["total_tokens"] == 19
    assert json.loads(said["mlflow.trace.cost"]) == {"total_cost": 0.5}
    # What it cost is added to what MLflow's client says, too: it leaves that to its server.
    client.start(1)
    assert json.loads(client.info(1)["trace_metadata"]["mlflow.trace.cost"]) == {"total_cost": 0.5}
    client.start(1, trace_metadata={"mlflow.trace.cost": '{"total_cost": 7}'})
    assert json.loads(client.info(1)["trace_metadata"]["mlflow.trace.cost"]) == {"total_cost": 7}


def test_a_trace_without_a_root_is_in_progress_until_it_comes(client):
    client.send(span(1, span_id=b"child--1", parent_span_id=span(1).span_id))
    assert client.info(1)["state"] == "IN_PROGRESS"
    client.send(span(1))
    assert client.info(1)["state"] == "OK"


def test_json_that_mlflows_exporter_wrote_is_read_as_values(client):
    one = span(1, attributes=[attribute("mlflow.spanType", AnyValue(string_value='"TOOL"'))])
    one.attributes.append(attribute("mlflow.spanInputs", AnyValue(string_value='{"a": [1, "b"]}')))
    one.attributes.append(attribute("n", AnyValue(string_value="3")))
    message = request(one)
    message.resource_spans[0].scope_spans[0].scope.name = "mlflow.tracing.provider"
    client.http.post(f"{client.url}/v1/traces", content=message.SerializeToString())
    said = {pair["key"]: pair["value"] for pair in client.get(1)["trace"]["spans"][0]["attributes"]}
    assert said["mlflow.spanType"] == {"string_value": "TOOL"}
    assert said["n"] == {"int_value": "3"}
    [pair] = said["mlflow.spanInputs"]["kvlist_value"]["values"]
    assert pair["value"]["array_value"]["values"] == [{"int_value": "1"}, {"string_value": "b"}]


def test_values_too_deep_for_the_client_come_as_text(client):
    deep = AnyValue(string_value="bottom")
    for _ in range(30):
        outer = AnyValue()
        outer.array_value.values.append(deep)
        deep = outer
    client.send(span(1, attributes=[attribute("deep", deep)]))
    said = {pair["key"]: pair["value"] for pair in client.get(1)["trace"]["spans"][0]["attributes"]}
    value, levels = said["deep"], 0
    while "array_value" in value:
        [value], levels = value["array_value"]["values"], levels + 1
    assert levels == 20
    assert value["string_value"].count("[") == 10


def test_values_that_json_has_no_words_for_are_given_all_the_same(client):
    values = {
        "deep text": AnyValue(string_value="[" * 900 + "]" * 900),
        "long number": AnyValue(string_value='{"n": 18446744073709551615, "m": 123456789012345678901234567890}'),
        "octets": AnyValue(bytes_value=b"\xff\x00"),
        "nothing": AnyValue(),
        "not a number": AnyValue(double_value=float("nan")),
        "half": AnyValue(string_value='{"a": '),
    }
    one = span(1, attributes=[attribute(key, value) for key, value in values.items()])
    one.events.add(name="seen", time_unix_nano=1).attributes.append(attribute("octets", values["octets"]))
    one.links.add(trace_id=b"l" * 16, span_id=b"k" * 8).attributes.append(attribute("octets", values["octets"]))
    client.send(one)
    [only] = client.get(1)["trace"]["spans"]
    said = {pair["key"]: pair["value"] for pair in only["attributes"]}
    assert said["deep text"] == {"string_value": "[" * 900 + "]" * 900}
    assert [pair["value"] for pair in said["long number"]["kvlist_value"]["values"]] == [
        {"double_value": 18446744073709551615.0}, {"double_value": 1.2345678901234568e29},
    ]  # fmt: skip
    assert said["octets"] == {"bytes_value": "/wA="}
    assert said["nothing"] == {}
    assert said["not a number"] == {"double_value": "NaN"}
    assert said["half"] == {"string_value": '{"a": '}
    assert only["links"][0]["trace_id"] == "bGxsbGxsbGxsbGxsbGxsbA=="
    url = f"{client.url}/ajax-api/3.0/mlflow/get-trace-artifact"
    [only] = client.http.get(url, params={"request_id": tr(1)}).json()["spans"]
    assert only["events"][0]["attributes"] == {"octets": "/wA="}
    assert client.info(1)["state"] == "OK"


def test_the_file_for_mlflows_pages(client):
    client.send(span(1, attributes=[attribute("mlflow.spanInputs", AnyValue(string_value="ü"))]))
    url = f"{client.url}/ajax-api/3.0/mlflow/get-trace-artifact"
    [only] = client.http.get(url, params={"request_id": tr(1)}).json()["spans"]
    assert only["attributes"]["mlflow.spanInputs"] == '"ü"'
    assert only["status"]["code"] == "STATUS_CODE_UNSET"
    assert only["parent_span_id"] is None
    assert client.http.get(url, params={"request_id": tr(1), "path": "x.png"}).status_code == 404


def test_search_over_http(client):
    for number in (1, 2, 3):
        client.start(number, tags={"n": str(number)}, request_time=f"2026-11-22T15:00:0{number}.000Z")
    places = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "1"}}]
    asked = {"locations": places, "filter": "tag.n != '9'", "max_results": 2, "order_by": ["timestamp_ms ASC"]}
    first = client.call("POST", "3.0/mlflow/traces/search", json=asked)
    assert [one["trace_id"] for one in first["traces"]] == [tr(1), tr(2)]
    rest = client.call("POST", "3.0/mlflow/traces/search", json={**asked, "page_token": first["next_page_token"]})
    assert [one["trace_id"] for one in rest["traces"]] == [tr(3)]
    assert "next_page_token" not in rest
    refused = client.call("POST", "3.0/mlflow/traces/search", 400, json={**asked, "filter": "a OR b"})
    assert refused["error_code"] == "INVALID_PARAMETER_VALUE"
    for wrong in ({}, {**asked, "max_results": 501}, {**asked, "order_by": "name"}, {**asked, "max_results": "many"}):
        client.call("POST", "3.0/mlflow/traces/search", 400, json=wrong)


# Tags, links, deletion


def test_tags_are_set_and_deleted_in_both_versions(client):
    client.start(1)
    for version in ("2.0", "3.0"):
        client.call("PATCH", f"{version}/mlflow/traces/{tr(1)}/tags", json={"key": "a b", "value": version})
        assert client.info(1)["tags"]["a b"] == version
        client.call("DELETE", f"{version}/mlflow/traces/{tr(1)}/tags", json={"key": "a b"})
        assert "a b" not in client.info(1)["tags"]
    client.call("DELETE", f"3.0/mlflow/traces/{tr(1)}/tags", 404, json={"key": "a b"})
    for key, value in (("mlflow.trace.spansLocation", "x"), ("", "x"), ("k" * 251, "x"), ("k", "x" * 8001)):
        client.call("PATCH", f"3.0/mlflow/traces/{tr(1)}/tags", 400, json={"key": key, "value": value})


def test_a_trace_of_another_sdk_takes_tags_and_keeps_its_own_state(client):
    client.send(span(1, span_id=b"child--1", parent_span_id=span(1).span_id))
    client.call("PATCH", f"3.0/mlflow/traces/{tr(1)}/tags", json={"key": "seen", "value": "yes"})
    client.send(span(1, name="root"))
    info = client.info(1)
    assert (info["tags"]["seen"], info["tags"]["mlflow.traceName"], info["state"]) == ("yes", "root", "OK")


def test_tags_that_are_set_at_once_are_all_kept(client):
    client.start(1)
    path = f"{client.url}/api/3.0/mlflow/traces/{tr(1)}/tags"
    threads = [
        threading.Thread(target=client.http.patch, args=(path,), kwargs={"json": {"key": f"t{n}", "value": "1"}})
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"t{n}" for n in range(12)} <= client.info(1)["tags"].keys()


def test_linking_to_a_run(client):
    client.start(1)
    client.call("POST", "2.0/mlflow/traces/link-to-run", json={"trace_ids": [tr(1), tr(2)], "run_id": "later"})
    assert ("run", "later", "") in client.linked()
    assert client.front.rows.of(client.tenant, [span(1).trace_id])[span(1).trace_id].runs == ("later",)
    client.start(1)
    assert client.front.rows.of(client.tenant, [span(1).trace_id])[span(1).trace_id].runs == ("later",)
    many = [f"tr-{number:032x}" for number in range(101)]
    client.call("POST", "2.0/mlflow/traces/link-to-run", 400, json={"trace_ids": many, "run_id": "later"})
    client.call("POST", "2.0/mlflow/traces/link-to-run", 400, json={"trace_ids": [tr(1)]})


def test_linking_prompts(client):
    client.start(1)
    prompts = [{"name": "greeting", "version": "1"}, {"name": "parting", "version": "2"}]
    client.call("POST", "2.0/mlflow/traces/link-prompts", json={"trace_id": tr(1), "prompt_versions": prompts})
    assert {("prompt", "greeting", "1"), ("prompt", "parting", "2")} <= client.linked()
    wrong = {"trace_id": tr(1), "prompt_versions": [{"name": "greeting"}]}
    client.call("POST", "2.0/mlflow/traces/link-prompts", 400, json=wrong)


def test_deleted_traces_are_hidden_here_and_stay_in_the_store(client):
    client.send(span(1))
    for number, second in ((1, 1), (2, 2), (3, 3), (4, 4)):
        client.start(number, request_time=f"2026-11-22T15:00:0{second}.000Z")

    def delete(**asked: Any) -> int:
        return int(client.call("POST", "3.0/mlflow/traces/delete-traces", json=asked)["traces_deleted"])

    def left() -> list[str]:
        places = [{"mlflow_experiment": {"experiment_id": "1"}}]
        found = client.call("POST", "3.0/mlflow/traces/search", json={"locations": places})
        return [one["trace_id"] for one in found["traces"]]

    assert delete(experiment_id="2", request_ids=[tr(1)]) == 0
    assert delete(experiment_id="1", request_ids=[tr(1)]) == 1
    assert client.call("GET", f"3.0/mlflow/traces/{tr(1)}", 404)
    assert left() == [tr(4), tr(3), tr(2)]
    until = 1_795_359_603_000  # 15:00:03
    assert delete(experiment_id="1", max_timestamp_millis=until, max_traces=1) == 1
    assert left() == [tr(4), tr(3)]
    assert delete(experiment_id="1", max_timestamp_millis=until) == 1
    assert left() == [tr(4)]
    client.call("POST", "3.0/mlflow/traces/delete-traces", 400, json={"experiment_id": "1"})
    client.call("PATCH", f"3.0/mlflow/traces/{tr(1)}/tags", 404, json={"key": "a", "value": "b"})
    assert len(client.front.store.traces.spans_of(client.tenant, span(1).trace_id, True, 10)) == 1


# Assessments


@pytest.mark.parametrize(
    "said",
    [
        {"feedback": {"value": True}},
        {"feedback": {"value": 0.5}},
        {"feedback": {"value": "good"}},
        {"feedback": {"value": None}},
        {"feedback": {"value": ["a", 1.0]}},
        {"feedback": {"value": {"a": False}}},
        {"feedback": {"value": None, "error": {"error_code": "E", "error_message": "no", "stack_trace": "there"}}},
        {"expectation": {"value": 18.0}},
        {"expectation": {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": '{"a":[1,2]}'}}},
        {"issue": {"issue_name": "slow answers"}},
    ],
)
def test_an_assessment_comes_back_as_it_came(client, said):
    client.start(1)
    given = {
        "assessment_name": "quality", "trace_id": tr(1), "source": {"source_type": "LLM_JUDGE", "source_id": "gpt"},
        "create_time": "2026-11-22T15:36:35.946Z", "span_id": "00000000000000ab", "rationale": "so it is",
        "metadata": {"mlflow.assessment.sourceRunId": "r"}, **said,
    }  # fmt: skip
    path = f"3.0/mlflow/traces/{tr(1)}/assessments"
    put = client.call("POST", path, json={"assessment": {**given, "last_update_time": given["create_time"]}})[
        "assessment"
    ]
    assert put["assessment_id"].startswith("a-")
    back = client.call("GET", f"{path}/{put['assessment_id']}")["assessment"]
    assert back == put
    assert {key: back[key] for key in given} == given
    assert back["valid"] is True


def test_assessments_are_updated_overridden_and_deleted(client):
    client.start(1)
    path = f"3.0/mlflow/traces/{tr(1)}/assessments"
    source = {"source": {"source_type": "HUMAN"}}
    first = client.call(
        "POST", path, json={"assessment": {"assessment_name": "a", "feedback": {"value": 1.0}, **source}}
    )
    id_ = first["assessment"]["assessment_id"]
    update = {"assessment_name": "b", "feedback": {"value": 2.0}, "rationale": "why", "metadata": {"k": "v"}}
    mask = "assessmentName,feedback,rationale,metadata"
    client.call("PATCH", f"{path}/{id_}", json={"assessment": update, "update_mask": mask})
    now = client.call("GET", f"{path}/{id_}")["assessment"]
    assert {key: now[key] for key in update} == update
    wrong = {"assessment": {"expectation": {"value": 1}}, "update_mask": "expectation"}
    client.call("PATCH", f"{path}/{id_}", 400, json=wrong)

    over = {"assessment_name": "b", "feedback": {"value": 3.0}, "overrides": id_, **source}
    second = client.call("POST", path, json={"assessment": over})["assessment"]
    assert second["overrides"] == id_
    assert client.call("GET", f"{path}/{id_}")["assessment"]["valid"] is False
    client.call("DELETE", f"{path}/{second['assessment_id']}")
    assert client.call("GET", f"{path}/{id_}")["assessment"]["valid"] is True
    client.call("DELETE", f"{path}/{id_}")
    client.call("DELETE", f"{path}/{id_}")
    client.call("GET", f"{path}/{id_}", 404)
    client.call("POST", path, 404, json={"assessment": {**over, "overrides": "a-none"}})
    for nonsense in (
        {},
        {"assessment": {}},
        {"assessment": {"assessment_name": "a"}},
        {"assessment": {**over, "span_id": "x"}},
    ):
        client.call("POST", path, 400, json=nonsense)


# Version 2


def test_clients_of_version_2_start_end_and_search(client):
    start = {
        "experiment_id": "1", "timestamp_ms": 1000, "request_metadata": [{"key": "mlflow.sourceRun", "value": "r"}],
        "tags": [{"key": "mlflow.traceName", "value": "old"}],
    }  # fmt: skip
    info = client.call("POST", "2.0/mlflow/traces", json=start)["trace_info"]
    assert info["status"] == "IN_PROGRESS"
    end = {"timestamp_ms": 1500, "status": "OK", "request_metadata": [], "tags": [{"key": "t", "value": "u"}]}
    client.call("PATCH", f"2.0/mlflow/traces/{info['request_id']}", json=end)
    ended = client.call("GET", f"2.0/mlflow/traces/{info['request_id']}/info")["trace_info"]
    assert (ended["execution_time_ms"], ended["status"]) == (500, "OK")
    assert {"key": "t", "value": "u"} in ended["tags"]
    # Their spans are in a file of the artifact store: they are not told to ask here.
    tags = {tag["key"]: tag["value"] for tag in ended["tags"]}
    assert tags["mlflow.artifactLocation"].startswith("mlflow-artifacts:/7/traces/tr-")
    assert "mlflow.trace.spansLocation" not in tags
    found = client.call("GET", "2.0/mlflow/traces", params={"experiment_ids": ["1"], "filter": "run_id = 'r'"})
    assert [one["request_id"] for one in found["traces"]] == [info["request_id"]]
