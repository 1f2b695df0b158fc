"""The one table: what is permanent must not be sent again by OTLP clients, and what is retryable must."""

import grpc
import pytest

from collector import status
from collector.status import (
    BadRequest,
    Internal,
    Permanent,
    Refusal,
    Retryable,
    TooLarge,
    codes,
    google_status,
    grpc_status,
    http_body,
    refusal_of,
    retry_after,
)

# OTLP specification, "Failures" of both transports.
RETRYABLE_GRPC = {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
RETRYABLE_HTTP = {429, 502, 503, 504}


def leaves(cls: type[Refusal]) -> list[type[Refusal]]:
    return [leaf for sub in cls.__subclasses__() for leaf in leaves(sub)] or [cls]


@pytest.mark.parametrize("cls", leaves(Retryable))
def test_a_retryable_refusal_is_sent_again_by_clients(cls):
    refusal = cls("cannot now")
    # RESOURCE_EXHAUSTED is retryable where it carries RetryInfo.
    assert codes(refusal).grpc.name in {*RETRYABLE_GRPC, "RESOURCE_EXHAUSTED"}
    assert codes(refusal).http in RETRYABLE_HTTP
    assert refusal.retry_after_s > 0
    assert [detail.TypeName() for detail in google_status(refusal).details] == ["google.rpc.RetryInfo"]
    assert int(retry_after(refusal)) >= refusal.retry_after_s


@pytest.mark.parametrize("cls", leaves(Permanent))
def test_a_permanent_refusal_is_not(cls):
    refusal = cls("cannot ever")
    assert codes(refusal).grpc.name not in RETRYABLE_GRPC
    assert codes(refusal).http not in RETRYABLE_HTTP
    assert retry_after(refusal) is None
    # RESOURCE_EXHAUSTED is retryable as soon as there is RetryInfo.
    assert "google.rpc.RetryInfo" not in [detail.TypeName() for detail in google_status(refusal).details]


def test_every_class_of_the_module_is_one_or_the_other():
    classes = {value for value in vars(status).values() if isinstance(value, type) and issubclass(value, Refusal)}
    assert classes - {Refusal} == {cls for cls in classes if issubclass(cls, Permanent | Retryable)}


def test_too_large_is_the_code_that_grpc_itself_gives():
    assert codes(TooLarge("")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 413)


def test_a_message_is_bounded_in_every_form():
    refusal = BadRequest("é" * 1_000_000, place="x" * 1_000_000)
    assert len(refusal.message) == 1024
    assert len(http_body(refusal, json=False)) < 8000
    code, message, (trailer,) = grpc_status(refusal)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(message) == 1024
    assert len(trailer[1]) < 6000


def test_an_unforeseen_exception_is_internal_and_logged(caplog):
    refusal = refusal_of(KeyError("secret"))
    assert isinstance(refusal, Internal)
    assert "KeyError" in refusal.message
    assert "secret" not in refusal.message
    assert "secret" in caplog.text
    assert refusal_of(TooLarge("x")).reason == "TooLarge"
