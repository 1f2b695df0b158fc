"""What a sender hears when a request is not taken: the refusals, and the one table from them to gRPC and to HTTP.

Owns the question that decides whether data survives: is it permanent? OTLP clients drop what is refused permanently and
send the rest again, so everything that is our trouble and not the request's must be Retryable, and an exception nobody
foresaw is too. No thread of its own; pure.

Source: OTLP specification, "Failures" of OTLP/gRPC and of OTLP/HTTP.
"""

import logging
import math
from collections import namedtuple
from typing import NamedTuple, Self

import grpc
from google.protobuf.json_format import MessageToJson
from google.rpc.error_details_pb2 import BadRequest as BadRequestDetail
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

_LOG = logging.getLogger(__name__)

# A gRPC client takes 8 KiB of trailers, and the message is in there three times, once percent-encoded.
MESSAGE_CHARS_MAX = 1024


class Refusal(Exception):
    """A request that is not taken. `message` is for a person: what cannot be done, with the value, and the way out."""

    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message[:MESSAGE_CHARS_MAX]
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """The label that counts it in metrics: the name of the class."""
        return type(self).__name__


class Permanent(Refusal):
    """Will be refused however often it is sent: the client drops the data."""


class Retryable(Refusal):
    """May be taken later: the client keeps the data and sends it again, not before `retry_after_s`."""

    retry_after_s = 1.0


class BadRequest(Permanent):
    """The request cannot be decoded. `place` says where, as a path of fields, when that is known."""

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__(f"{message} at {place}" if place else message)
        self.place = place[:MESSAGE_CHARS_MAX]


class TooLarge(Permanent):
    """The request is over a size limit, as it came or inflated."""


class UnsupportedMediaType(Permanent):
    """A Content-Type that is no OTLP."""


class MethodNotAllowed(Permanent):
    """An HTTP method other than POST."""


class NotFound(Permanent):
    """A path or method that nobody serves here, those of other signals included."""


class Overloaded(Retryable):
    """Too much is in flight."""


class TooManyTenants(Retryable):
    """A new tenant beyond the limit of tenants."""

    retry_after_s = 30.0


class SlowSender(Retryable):
    """The body did not arrive in time. (HTTP 408 says so better, but OTLP clients drop the data on 408.)"""


class AckTimeout(Retryable):
    """The request is in the queue of the WAL and was not durable in time; sent again it is still stored once."""

    @classmethod
    def after(cls, seconds: float) -> Self:
        """The refusal after a wait of `seconds`."""
        return cls(f"cannot make the request durable within {seconds:g} s: send it again, it will be stored once")


class WalFull(Retryable):
    """The WAL has reached its limit of bytes: the store is behind."""

    retry_after_s = 5.0


class WalUnavailable(Retryable):
    """The WAL could not be written."""

    retry_after_s = 5.0


class BudgetSpent(Retryable):
    """A tenant, or the whole store, has what its budget allows."""

    retry_after_s = 30.0


class DiskLow(Retryable):
    """A disk of the store or of the log has less free than is kept for merges and deletions."""

    retry_after_s = 10.0


class ShuttingDown(Retryable):
    """The process is about to end."""


class Internal(Retryable):
    """An exception of ours."""

    retry_after_s = 5.0


class Codes(NamedTuple):
    """How a class of refusal is said in each protocol."""

    grpc: grpc.StatusCode
    http: int


# Retryable by the specification are, for HTTP, 429, 502, 503 and 504 only; for gRPC, UNAVAILABLE among others, and
# RESOURCE_EXHAUSTED only when it carries RetryInfo, which a Permanent refusal never does.
TABLE: dict[type[Refusal], Codes] = {
    Permanent: Codes(grpc.StatusCode.INVALID_ARGUMENT, 400),
    BadRequest: Codes(grpc.StatusCode.INVALID_ARGUMENT, 400),
    TooLarge: Codes(grpc.StatusCode.RESOURCE_EXHAUSTED, 413),
    UnsupportedMediaType: Codes(grpc.StatusCode.INVALID_ARGUMENT, 415),
    MethodNotAllowed: Codes(grpc.StatusCode.UNIMPLEMENTED, 405),
    NotFound: Codes(grpc.StatusCode.UNIMPLEMENTED, 404),
    Retryable: Codes(grpc.StatusCode.UNAVAILABLE, 503),
    Overloaded: Codes(grpc.StatusCode.UNAVAILABLE, 429),
    TooManyTenants: Codes(grpc.StatusCode.UNAVAILABLE, 429),
    BudgetSpent: Codes(grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
}


def codes(refusal: Refusal) -> Codes:
    """The codes of the refusal's class, or of the nearest one above it that the table names."""
    return next(TABLE[cls] for cls in type(refusal).__mro__ if cls in TABLE)


def refusal_of(error: Exception) -> Refusal:
    """The refusal that answers `error`: itself, or Internal (and the traceback in our log) for what nobody foresaw."""
    if isinstance(error, Refusal):
        return error
    _LOG.error("cannot process a request", exc_info=error)
    return Internal(f"cannot process the request: {type(error).__name__} inside Spanhouse, see its log; send it again")


def google_status(refusal: Refusal) -> Status:
    """The google.rpc.Status of a refusal: RetryInfo for a retryable one, BadRequest for one that cannot be decoded."""
    status = Status(code=codes(refusal).grpc.value[0], message=refusal.message)
    if refusal.retry_after_s is not None:
        info = RetryInfo()
        info.retry_delay.FromMilliseconds(round(refusal.retry_after_s * 1000))
        status.details.add().Pack(info)
    if isinstance(refusal, BadRequest):
        violation = BadRequestDetail.FieldViolation(field=refusal.place, description=refusal.message)
        status.details.add().Pack(BadRequestDetail(field_violations=[violation]))
    return status


def http_body(refusal: Refusal, *, json: bool) -> bytes:
    """The body of a 4xx or 5xx response: google.rpc.Status as protobuf, or as its JSON."""
    status = google_status(refusal)
    return MessageToJson(status, indent=None).encode() if json else bytes(status.SerializeToString())


def retry_after(refusal: Refusal) -> bytes | None:
    """The value of Retry-After, whole seconds rounded up, or None when there is nothing to wait for."""
    return None if refusal.retry_after_s is None else b"%d" % math.ceil(refusal.retry_after_s)


class GrpcStatus(namedtuple("GrpcStatus", "code details trailing_metadata"), grpc.Status):
    """What `context.abort_with_status` takes."""


def grpc_status(refusal: Refusal) -> GrpcStatus:
    """Code, message and trailers of a refusal, for `context.abort_with_status`."""
    trailers = (("grpc-status-details-bin", google_status(refusal).SerializeToString()),)
    return GrpcStatus(codes(refusal).grpc, refusal.message, trailers)
