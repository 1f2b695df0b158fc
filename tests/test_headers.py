"""What headers say of a request: over real HTTP and gRPC, down to the frame."""

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from otlp_building import Intake, body, request, span

from collector.headers import context_of, context_of_http
from collector.otlp_grpc import OtlpGrpc
from collector.status import BadRequest

# headers -> context
SAID: list[tuple[dict[str, str], dict[str, str]]] = [
    ({}, {}),
    ({"authorization": "Bearer secret", "x-api-key": "secret"}, {}),
    ({"x-mlflow-run-id": "r1", "x-mlflow-experiment-id": "7"}, {"run_id": "r1", "experiment_id": "7"}),
    ({"x-spanhouse-run-id": "r2"}, {"run_id": "r2"}),
    ({"x-spanhouse-run-id": "ours", "x-mlflow-run-id": "theirs"}, {"run_id": "ours"}),
    ({"x-spanhouse-model": "bot/12"}, {"model_name": "bot", "model_version": "12"}),
    ({"x-spanhouse-model": "main.agents.bot/v/3"}, {"model_name": "main.agents.bot/v", "model_version": "3"}),
    ({"x-bt-parent": "experiment_id:e1"}, {"run_id": "e1", "experiment_id": "e1"}),
    ({"x-bt-parent": "project_id:p1"}, {"experiment_id": "p1"}),
    ({"x-bt-parent": "project_name:a: b"}, {"experiment_id": "a: b"}),
    ({"x-bt-parent": "eyJvYmplY3QiOiAxfQ=="}, {}),
    ({"x-bt-parent": "experiment_id:e1", "x-spanhouse-run-id": "ours"}, {"run_id": "ours", "experiment_id": "e1"}),
    ({"langsmith-project": "support bot"}, {"experiment_id": "support bot"}),
    ({"x-mlflow-experiment-id": "7", "langsmith-project": "p"}, {"experiment_id": "7"}),
    ({"x-mlflow-run-id": ""}, {}),
    ({"x-mlflow-run-id": "läuft"}, {"run_id": "läuft"}),
]


@pytest.mark.parametrize(("headers", "context"), SAID)
def test_what_headers_say(headers, context):
    encoded = {name.encode(): value.encode() for name, value in headers.items()}
    assert dict(context_of_http(encoded, "")) == context
    assert dict(context_of(headers)) == context


def test_a_project_is_named_on_the_paths_of_its_product_only():
    headers = {b"project_id": b"team/bot", b"projectname": b"support"}
    assert context_of_http(headers, "") == ()
    assert context_of_http(headers, "project_id") == (("experiment_id", "team/bot"),)
    assert context_of_http(headers, "projectname") == (("experiment_id", "support"),)


@pytest.mark.parametrize("model", ["bot", "bot/", "/3", "/"])
def test_a_model_without_a_version_is_a_bad_request(model):
    with pytest.raises(BadRequest, match="as x-spanhouse-model: write name/version"):
        context_of({"x-spanhouse-model": model})


def test_what_is_not_utf_8_is_a_bad_request():
    with pytest.raises(BadRequest, match="as x-mlflow-run-id: it is not UTF-8"):
        context_of_http({b"x-mlflow-run-id": b"\xff"}, "")


def test_the_context_is_in_the_frame_in_order_and_part_of_its_identity():
    intake = Intake()
    said = (("run_id", "r1"), ("model_name", "bot"), ("experiment_id", ""))
    data = body(span(1))
    intake.admission.admit(data, "default", said).result(5)
    intake.admission.admit(data, "default", said[::-1]).result(5)  # the same, in another order
    intake.admission.admit(data, "default", (("run_id", "r2"),)).result(5)
    intake.admission.admit(data, "default").result(5)
    assert [frame.context for frame in intake.sink.frames] == [
        (("model_name", "bot"), ("run_id", "r1")),
        (("run_id", "r2"),),
        (),
    ]
    assert intake.counts() == (4, 0, 1, 3)


def test_a_value_that_is_too_long_is_a_bad_request_and_nothing_is_stored():
    intake = Intake()
    intake.admission.admit(body(span(1)), "default", (("run_id", "ü" * 250),)).result(5)
    with pytest.raises(BadRequest, match="as run_id: 250 characters are the limit"):
        intake.admission.admit(body(span(2)), "default", (("run_id", "r" * 251),))
    assert intake.sink.names() == ["span 1"]


def test_metadata_of_a_call_are_headers():
    intake = Intake()
    receiver = OtlpGrpc(intake.admission, "127.0.0.1:0")
    receiver.start()
    with grpc.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
        stub = TraceServiceStub(channel)
        said = (("x-spanhouse-model", "bot/12"), ("x-mlflow-run-id", "r1"), ("x-spanhouse-tenant", "acme"))
        stub.Export(request(span(1)), metadata=said, timeout=20)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Export(request(span(1)), metadata=(("x-spanhouse-model", "bot"),), timeout=20)
    receiver.stop(1)
    (frame,) = intake.sink.frames
    assert frame.tenant == "acme"
    assert frame.context == (("model_name", "bot"), ("model_version", "12"), ("run_id", "r1"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "cannot take 'bot' as x-spanhouse-model: write name/version"
