"""Errors as MLflow's clients understand them: {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": …}. Pure.

The statuses are MLflow's own (mlflow/exceptions.py): its clients send again what is answered with 429, 500, 502, 503 or
504, and give up on the rest.
"""

import logging

import orjson

from query.errors import Refused
from storage.errors import QueryTimeout, QueryTooLarge, StoreError

STATUSES = {
    "INVALID_PARAMETER_VALUE": 400,
    "RESOURCE_DOES_NOT_EXIST": 404,
    "ENDPOINT_NOT_FOUND": 404,
    "NOT_IMPLEMENTED": 501,
    "IO_ERROR": 502,
    "TEMPORARILY_UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL_ERROR": 500,
}

_log = logging.getLogger(__name__)


class MlflowRefused(Exception):
    """An error answer. `error_code` is one of STATUSES; the text is for a person."""

    def __init__(self, error_code: str, message: str) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUSES[self.error_code]

    def body(self) -> bytes:
        """The answer."""
        return orjson.dumps({"error_code": self.error_code, "message": self.message})


def invalid(message: str) -> MlflowRefused:
    """The request cannot be understood."""
    return MlflowRefused("INVALID_PARAMETER_VALUE", message)


def not_found(message: str) -> MlflowRefused:
    """What it speaks of is not there."""
    return MlflowRefused("RESOURCE_DOES_NOT_EXIST", message)


def refusal_of(error: Exception) -> MlflowRefused:
    """The refusal that answers `error`; what nobody foresaw is written to the log."""
    match error:
        case MlflowRefused():
            return error
        case QueryTimeout():
            return MlflowRefused("DEADLINE_EXCEEDED", str(error))
        case QueryTooLarge():
            return invalid(str(error))
        case StoreError():
            return MlflowRefused("TEMPORARILY_UNAVAILABLE", str(error))
        case Refused() if error.status_code < 500:
            return invalid(str(error.detail))
    _log.error("cannot answer a call of MLflow's client", exc_info=error)
    return MlflowRefused("INTERNAL_ERROR", "cannot answer: Spanhouse itself failed, and wrote the reason to its log")
