"""Every answer that is not a success has one shape: {"error": {"code", "message", …}}, as answers.ErrorAnswer says.

Handlers for the web framework, on its event loop.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from query.answers import json_response
from storage.errors import QueryTimeout, QueryTooLarge, StoreUnavailable

RETRY_AFTER = {"Retry-After": "1"}


class Refused(HTTPException):
    """An error answer of the given status; `more` stands beside code and message."""

    def __init__(
        self, status_code: int, message: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(status_code, message, headers)
        self.more = more


def install(app: FastAPI) -> None:
    """Answer in the one shape whatever goes wrong: our refusals, the framework's, the store's, and our own faults."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    for kind, status_code in ((StoreUnavailable, 503), (QueryTimeout, 504), (QueryTooLarge, 400)):
        app.add_exception_handler(kind, _of_store(status_code))
    app.add_exception_handler(Exception, _fault)


def error_response(
    code: int, message: str, *, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
) -> Response:
    """The one shape."""
    return json_response({"error": {"code": code, "message": message, **(more or {})}}, code, headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, path = str(error.detail), request.url.path
    more = error.more if isinstance(error, Refused) else {}
    if message == "Not Found":  # the router's, not ours
        message = f"cannot find {path}: /docs and /openapi.json list the paths there are"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        message = f"cannot {request.method} {path}: it takes {allowed}"
    return error_response(error.status_code, message, headers=error.headers, more=more)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [_described(one) for one in error.errors()]
    return error_response(400, "; ".join(detail["message"] for detail in details), more={"details": details})


def _described(error: Mapping[str, Any]) -> dict[str, str]:
    where, *names = (str(part) for part in error["loc"])
    name = ".".join(names)
    given = "" if error["type"] == "missing" else f"={str(error.get('input'))[:200]}"
    reason = str(error["msg"]).removeprefix("Value error, ")
    return {"in": where, "name": name, "message": f"cannot take {where} parameter {name}{given}: {reason}"}


def _of_store(status_code: int) -> Any:
    headers = RETRY_AFTER if status_code == 503 else None

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(status_code, str(error), headers=headers)

    return answer


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours. The framework raises it again after this answer; the server logs it and ends the connection."""
    message = "cannot answer: Spanhouse itself failed, and wrote the reason to its log"
    return error_response(500, message, headers={"Connection": "close"})
