"""The HTTP API of a running Spanhouse, as the commands use it. Blocking, on the caller's thread."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import orjson

TIMEOUT_S = 60
PLAN_TIMEOUT_S = 600
READABLE_S_MAX = 10
WRONG_URL = "name Spanhouse's HTTP API with --url or SPANHOUSE_URL: port 4320 unless set otherwise"


class Trouble(Exception):
    """Something that a person has to know about: what went wrong and, if we know it, what to do now."""

    def __init__(self, message: str, way_out: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out


class NotFound(Trouble):
    """The server has no such thing."""


class Client:
    """One server and one tenant. Every method raises Trouble when the server is away or refuses."""

    def __init__(self, url: str, tenant: str) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise Trouble(f"cannot use {url!r} as the server's URL", "write it like http://127.0.0.1:4320")
        try:
            self._http = httpx.Client(
                base_url=self.url, headers={"x-spanhouse-tenant": tenant}, timeout=TIMEOUT_S, follow_redirects=True
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Trouble(f"cannot use {url!r} as the server's URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def ready(self) -> None:
        """Return when the server says that all its parts answer."""
        self._ask("GET", "/readyz")

    def trace(self, trace_id: str, *, content: bool = False) -> dict[str, Any]:
        """One trace with its spans in a flat list, parents before children."""
        answer: dict[str, Any] = self._ask(
            "GET", f"/api/v1/traces/{trace_id}", (("format", "flat"), ("content", "true" if content else "false"))
        )
        return answer

    def wait_for_trace(self, trace_id: str, spans: int) -> None:
        """Return when the trace can be read whole; raises Trouble after READABLE_S_MAX seconds."""
        deadline = time.monotonic() + READABLE_S_MAX
        seen = 0
        while time.monotonic() < deadline:
            try:
                seen = self.trace(trace_id)["span_count"]
            except NotFound:
                seen = 0
            if seen >= spans:
                return
            time.sleep(0.1)
        raise Trouble(
            f"cannot read trace {trace_id} yet: {seen} of its {spans} spans arrived within {READABLE_S_MAX} s",
            f"look at the server's log and at {self.url}/metrics",
        )

    def begin(self, job: str, times: dict[str, str]) -> dict[str, Any]:
        """Begin a `relink` or a `reprice` of the traces of that time."""
        answer: dict[str, Any] = self._ask("POST", f"/api/v1/{job}", json=times)
        return answer

    def progress(self, job: str) -> dict[str, Any]:
        """How far the last one is."""
        answer: dict[str, Any] = self._ask("GET", f"/api/v1/{job}")
        return answer

    def erase(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin an erasure."""
        answer: dict[str, Any] = self._ask("POST", "/api/v1/erasures", json=request)
        return answer

    def erasure(self, id: str) -> dict[str, Any]:
        """How far an erasure is."""
        answer: dict[str, Any] = self._ask("GET", f"/api/v1/erasures/{id}")
        return answer

    def traces(self, filters: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """One page of the list of traces. `filters` are the API's query parameters."""
        answer: dict[str, Any] = self._ask("GET", "/api/v1/traces", tuple(filters))
        return answer

    def gate(self, model: str, parameters: Iterable[tuple[str, str]], *, write_back: bool) -> dict[str, Any]:
        """The verdict on a version. `parameters` are the API's; with `write_back` the registry gets it, too."""
        path = f"/api/v1/models/{quote(model, safe='')}/gate"
        answer: dict[str, Any] = self._ask("POST" if write_back else "GET", path, tuple(parameters))
        return answer

    def storage(self, parameters: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """What is stored, and what it costs. `parameters` are the API's."""
        answer: dict[str, Any] = self._ask("GET", "/api/v1/storage", tuple(parameters))
        return answer

    def retention(self) -> dict[str, Any]:
        """The retention policies."""
        answer: dict[str, Any] = self._ask("GET", "/api/v1/retention")
        return answer

    def retention_versions(self, limit: int) -> list[dict[str, Any]]:
        """The newest versions of the policies."""
        answer = self._ask("GET", "/api/v1/retention/versions", (("limit", str(limit)),))
        versions: list[dict[str, Any]] = answer["versions"]
        return versions

    def change_retention(self, change: dict[str, Any]) -> dict[str, Any]:
        """Replace the policies, and give the new version."""
        answer: dict[str, Any] = self._ask("PUT", "/api/v1/retention", json=change)
        return answer

    def plan_retention(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What policies would come to. It takes a while."""
        answer: dict[str, Any] = self._ask("POST", "/api/v1/retention/plan", json=asked, timeout_s=PLAN_TIMEOUT_S)
        return answer

    def retention_progress(self) -> dict[str, Any]:
        """How far the policies in force have reached what is stored."""
        answer: dict[str, Any] = self._ask("GET", "/api/v1/retention/progress")
        return answer

    def pins(self) -> list[dict[str, Any]]:
        """What is pinned."""
        pins: list[dict[str, Any]] = self._ask("GET", "/api/v1/pins")["pins"]
        return pins

    def pin(self, pin: dict[str, Any]) -> None:
        """Pin something."""
        self._ask("PUT", "/api/v1/pins", json=pin)

    def unpin(self, which: dict[str, str]) -> None:
        """Take a pin back."""
        self._ask("DELETE", "/api/v1/pins", tuple(which.items()))

    def sampling(self) -> dict[str, Any]:
        """The sampling rules, and what came of them."""
        answer: dict[str, Any] = self._ask("GET", "/api/v1/sampling")
        return answer

    def sampling_versions(self, limit: int) -> list[dict[str, Any]]:
        """The newest versions of the rules."""
        answer = self._ask("GET", "/api/v1/sampling/versions", (("limit", str(limit)),))
        versions: list[dict[str, Any]] = answer["versions"]
        return versions

    def change_sampling(self, change: dict[str, Any]) -> dict[str, Any]:
        """Replace the rules, and give the new version."""
        answer: dict[str, Any] = self._ask("PUT", "/api/v1/sampling", json=change)
        return answer

    def snapshot(self) -> str:
        """Make a snapshot of the server's store, and give its name."""
        return str(self._ask("POST", "/api/v1/snapshots")["name"])

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """Every frame in quarantine, oldest first, page by page."""
        cursor = ""
        while cursor is not None:
            page = self._ask("GET", "/api/v1/quarantine", (("limit", "1000"), ("cursor", cursor)))
            yield from page["frames"]
            cursor = page["next_cursor"]

    def quarantined(self, frame_id: str) -> dict[str, Any]:
        """One frame in quarantine: why it is there, and what is in it."""
        answer: dict[str, Any] = self._ask("GET", f"/api/v1/quarantine/{frame_id}")
        return answer

    def replay(self, frame_id: str) -> None:
        """Give one frame to the loader again."""
        self._ask("POST", f"/api/v1/quarantine/{frame_id}/replay")

    def drop(self, frame_id: str) -> None:
        """Delete one frame for good."""
        self._ask("DELETE", f"/api/v1/quarantine/{frame_id}")

    def _ask(
        self,
        method: str,
        path: str,
        parameters: tuple[tuple[str, str], ...] = (),
        json: dict[str, Any] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        try:
            response = self._http.request(method, path, params=parameters, json=json, timeout=timeout_s)
        except httpx.TimeoutException as error:
            raise Trouble(f"cannot get an answer from {self.url} within {timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise Trouble(
                f"cannot reach {self.url}: {error}",
                "start the server with `spanhouse serve`, or name its address with --url or SPANHOUSE_URL",
            ) from error
        if response.is_error:
            raise _refusal(response)
        if not response.content:
            return None
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise Trouble(
                f"cannot use {response.url}: it does not answer with JSON, as Spanhouse would", WRONG_URL
            ) from error


def _refusal(response: httpx.Response) -> Trouble:
    """The sentence in an error's body, or that whoever answered is no Spanhouse."""
    try:
        message = str(orjson.loads(response.content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return Trouble(
            f"cannot use {response.url}: it answers with status {response.status_code}, and not as Spanhouse would",
            WRONG_URL,
        )
    return NotFound(message) if response.status_code == httpx.codes.NOT_FOUND else Trouble(message)
