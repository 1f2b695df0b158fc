"""Passing requests on to an MLflow server, and its answers back: what this store does not answer itself.

Runs on the event loop of the API. Bodies go through as they come, both ways, a piece at a time: an artifact may be of
any size and is never held. Headers go through but for those of a single connection; credentials are the caller's own
and appear in no log and no message.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from query.mlflow.refusals import MlflowRefused, invalid

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 300
"""For the server to begin its answer or to send the next piece of it, and to take the next piece of a body."""
CONNECTIONS_MAX = 100

Headers = list[tuple[bytes, bytes]]

# RFC 9110, 7.6.1; `expect` is met by the server that took the request.
_OF_ONE_CONNECTION = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade expect".split()
)


class Disconnected(Exception):
    """The caller left before its request was complete, and nobody is there to be answered."""


class Passthrough:
    """The MLflow server at `url`, http or https; None where none is configured.

    A user and password in the URL are used for callers that bring no credentials of their own.
    """

    def __init__(self, url: str | None) -> None:
        self._base: httpx.URL | None = None
        self._credentials: Headers = []
        self._client: httpx.AsyncClient | None = None
        if url:
            given = httpx.URL(url.rstrip("/"))
            if given.scheme not in ("http", "https") or not given.host:
                raise ValueError("cannot pass requests on to this MLflow server: give an address with http or https")
            self._base = given.copy_with(username="", password="", query=None, fragment=None)
            if given.userinfo:
                user = b64encode(f"{given.username}:{given.password}".encode())
                self._credentials = [(b"authorization", b"Basic " + user)]

    @property
    def configured(self) -> bool:
        """Whether there is a server."""
        return self._base is not None

    async def forward(self, scope: Scope, receive: Receive, send: Send, path: bytes, home: str) -> None:
        """Have the server answer a request. `path` is the path there, as it was sent; `home` is where it begins here.

        Raises MlflowRefused while nothing of the answer is out, and Disconnected; `send` bounds what it waits for.
        """
        request = self._request(scope, receive, path)
        try:
            answer = await self._http().send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._refusal(error) from error
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status_code,
                    "headers": self._answer_headers(answer, home),
                }
            )
            gone = asyncio.ensure_future(_gone(receive))
            try:
                async for piece in answer.aiter_raw():
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            finally:
                gone.cancel()
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()

    async def get(self, path: str, caller: Iterable[tuple[bytes, bytes]], timeout_s: float) -> httpx.Response | None:
        """What the server answers to a question of ours, asked with the caller's credentials; None if it does not."""
        if self._base is None:
            return None
        kept = [(name, value) for name, value in caller if name in (b"authorization", b"cookie", b"x-mlflow-workspace")]
        with suppress(httpx.HTTPError):
            headers = self._with_credentials(kept)
            return await self._http().get(self._url(path.encode()), headers=headers, timeout=timeout_s)
        return None

    def _request(self, scope: Scope, receive: Receive, path: bytes) -> httpx.Request:
        if self._base is None:
            raise MlflowRefused(
                "NOT_IMPLEMENTED",
                f"cannot {scope['method']} {path.decode('latin-1')[:200]}: runs, models and artifacts are an MLflow "
                "server's, and none is configured; start Spanhouse with --mlflow-url (SPANHOUSE_MLFLOW_URL)",
            )
        query = scope.get("query_string", b"")
        target = self._url(path + (b"?" + query if query else b""))
        given: Headers = [(name.lower(), value) for name, value in scope["headers"]]
        names = {name for name, _ in given}
        has_body = b"content-length" in names or b"transfer-encoding" in names
        headers = [pair for pair in _of_the_message(given) if pair[0] != b"host"]
        headers = self._own_origin(self._with_credentials(headers), dict(given).get(b"host", b""))
        return self._http().build_request(
            scope["method"], target, headers=headers, content=_body(receive) if has_body else None
        )

    def _with_credentials(self, headers: Headers) -> Headers:
        return headers if any(name == b"authorization" for name, _ in headers) else [*headers, *self._credentials]

    def _own_origin(self, headers: Headers, host: bytes) -> Headers:
        """The origin of a page that came from here is the server's own: the server takes no other's requests."""
        assert self._base is not None
        here = (b"http://" + host, b"https://" + host)
        port = f":{self._base.port}" if self._base.port else ""
        theirs = f"{self._base.scheme}://{self._base.host}{port}".encode()
        return [(name, theirs if name == b"origin" and value in here else value) for name, value in headers]

    def _answer_headers(self, answer: httpx.Response, home: str) -> Headers:
        raw: Headers = [(name.lower(), value) for name, value in answer.headers.raw]
        headers = [
            (name, self._moved(value, home) if name == b"location" else value) for name, value in _of_the_message(raw)
        ]
        if b"content-encoding" not in dict(headers):
            headers.append(
                (b"content-encoding", b"identity")
            )  # keeps our own middleware from compressing a range of it
        return headers

    def _moved(self, location: bytes, home: str) -> bytes:
        """Where a redirect of the server leads to here."""
        assert self._base is not None
        try:
            target = self._base.join(location.decode("latin-1"))
        except (httpx.InvalidURL, UnicodeError):
            return location
        same = (target.scheme, target.host, target.port) == (self._base.scheme, self._base.host, self._base.port)
        prefix = self._base.raw_path.rstrip(b"/")
        if not same or not target.raw_path.startswith(prefix):
            return location
        fragment = f"#{target.fragment}".encode() if target.fragment else b""
        return home.encode() + target.raw_path[len(prefix) :] + fragment

    def _url(self, path: bytes) -> httpx.URL:
        assert self._base is not None
        try:
            return self._base.copy_with(raw_path=self._base.raw_path.rstrip(b"/") + path)
        except httpx.InvalidURL as error:
            raise invalid(f"cannot pass on {path.decode('latin-1')[:200]!r}: {error}") from error

    def _http(self) -> httpx.AsyncClient:
        # Made here and not at start: it belongs to the loop that uses it, and ends with it.
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S),
                limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=20),
                follow_redirects=False,
            )
            self._client.headers.clear()  # what a caller did not send is not sent for it
            logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request with its query
        return self._client

    def _refusal(self, error: httpx.HTTPError) -> MlflowRefused:
        assert self._base is not None
        match error:
            case httpx.PoolTimeout():
                return MlflowRefused(
                    "TEMPORARILY_UNAVAILABLE",
                    f"cannot ask the MLflow server now: {CONNECTIONS_MAX} requests are under way to it",
                )
            case httpx.ConnectError() | httpx.ConnectTimeout():
                return MlflowRefused(
                    "TEMPORARILY_UNAVAILABLE",
                    f"cannot reach the MLflow server at {self._base}: {error or type(error).__name__}; traces are "
                    "taken all the same; start it, or correct --mlflow-url",
                )
            case httpx.TimeoutException():
                return MlflowRefused(
                    "DEADLINE_EXCEEDED",
                    f"cannot wait any longer for the MLflow server at {self._base}: {ANSWER_TIMEOUT_S} s",
                )
        return MlflowRefused("IO_ERROR", f"cannot understand the MLflow server at {self._base}: {type(error).__name__}")


def _of_the_message(headers: Headers) -> Headers:
    """Headers that belong to a message and not to the connection that it came by."""
    named = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    dropped = _OF_ONE_CONNECTION | {name.strip() for name in named}
    return [pair for pair in headers if pair[0] not in dropped]


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message: MutableMapping[str, Any] = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        if piece := message.get("body", b""):
            yield piece
        more = message.get("more_body", False)


async def _gone(receive: Receive) -> None:
    """Ends when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
