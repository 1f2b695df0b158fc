"""Request bodies of the API: JSON of a bounded size, read before anything looks into it. Runs on the event loop.

A router takes them with `APIRouter(route_class=JsonRoute)`; its endpoints name the models of their bodies as always.

The content type must say JSON: what a page of another site may send to this address without asking says something else.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Scope

from query.errors import Refused

BODY_BYTES_MAX = 8 << 20
_JSON = re.compile(r"application/([\w.+-]+\+)?json(\s*;.*)?", re.IGNORECASE)


class JsonRoute(APIRoute):
    """A route whose body, if it has one, is JSON of at most BODY_BYTES_MAX."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, behind the reading of the body."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_and_handle(request: Request) -> Response:
            content_type = request.headers.get("content-type", "")
            if not _JSON.fullmatch(content_type):
                raise Refused(415, f"cannot take a body of the type {content_type[:100]!r}: send application/json")
            return await handle(_JsonRequest(request.scope, await _read(request)))

        return read_and_handle


class _JsonRequest(Request):
    """A request whose body has been read."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        super().__init__(scope)
        self._body = body

    async def json(self) -> Any:
        """The body. Raises Refused."""
        try:
            return orjson.loads(self._body)
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"cannot read the body: it is not JSON: {error}") from error


async def _read(request: Request) -> bytes:
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) > BODY_BYTES_MAX:
            raise Refused(413, f"cannot take a body of more than {BODY_BYTES_MAX} bytes: send it in several requests")
    return bytes(pieces)
