"""What goes on beside what benchmarks.expiry measures: a sender, and one who asks.

Each is a thread of whoever measures, from `with` to the end of the block.
"""

import random
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import date
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.expiry_traces import REQUEST_TRACES, ROUTES, SERVICES, TRACE_SPANS, Traces
from benchmarks.load import Client
from benchmarks.server import ServerFailed

KINDS = ("list", "trace", "attribute", "storage")
ASK_EVERY_S = 0.05
SEND_S_MAX = 60


class Thread(AbstractContextManager[Any]):
    """Does `step` until the block is left. What it raises is raised there."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def step(self, stop: threading.Event) -> None:
        """Once, with a pause."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(2 * SEND_S_MAX)
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.step(self._stop)
        except Exception as error:
            self._error = error


class Sender(Thread):
    """Sends traces of now at a steady rate; `late_s` is the most that a request was late."""

    def __init__(self, address: str, traces: Traces, spans_per_s: float) -> None:
        super().__init__()
        self._client, self._traces = Client(address), traces
        self._every_s = REQUEST_TRACES * TRACE_SPANS / spans_per_s
        self._due_s = time.monotonic()
        self.spans, self.late_s = 0, 0.0

    def step(self, stop: threading.Event) -> None:
        """One request, until it is taken."""
        stop.wait(max(self._due_s - time.monotonic(), 0))
        self.late_s = max(self.late_s, time.monotonic() - self._due_s)
        self._due_s += self._every_s
        spans, body = self._traces.now(time.time_ns())
        give_up_s = time.monotonic() + SEND_S_MAX
        while (wait_s := self._client.export(body)) is not None:
            if time.monotonic() > give_up_s:
                raise ServerFailed(f"cannot send: nothing was taken for {SEND_S_MAX} s")
            time.sleep(wait_s)
        self.spans += spans


class Asker(Thread):
    """Asks one kind after the other: of the hours of a past day, and of what the policies keep, so that answers stay.

    A list reads all spans since the hour it is asked for, so that the day is the youngest one that loses spans: of
    older ones most of the time would go into days that become ever smaller. `waits_s` has what each answer took, by
    kind. Two with the same seed ask the same.
    """

    def __init__(self, url: str, day: date, ids: Sequence[str], seed: int) -> None:
        super().__init__()
        self._http, self._day, self._ids = httpx.Client(base_url=url, timeout=60), day, ids
        self._random, self._number = random.Random(f"ask {seed}"), 0
        self.waits_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.refused = 0

    def step(self, stop: threading.Event) -> None:
        """One question."""
        kind = KINDS[self._number % len(KINDS)]
        self._number += 1
        path, parameters = self._question(kind)
        begun_s = time.perf_counter()
        answer = self._http.get(path, params=parameters)
        self.waits_s[kind].append(time.perf_counter() - begun_s)
        if answer.status_code in (503, 504):
            self.refused += 1
        elif answer.status_code != 200 or (kind == "trace" and answer.json()["span_count"] != TRACE_SPANS):
            raise ServerFailed(f"cannot ask {answer.url}: {answer.status_code} {answer.text[:300]}")
        stop.wait(ASK_EVERY_S)

    def _question(self, kind: str) -> tuple[str, dict[str, str]]:
        draw = self._random
        hour = f"{self._day}T{draw.randrange(24):02}"
        within = {"start": f"{hour}:00:00Z", "end": f"{hour}:59:59Z"}
        of_hour = {**within, "service": f"steady-{draw.randrange(SERVICES)}"}
        match kind:
            case "list":
                return "/api/v1/traces", of_hour
            case "trace":
                return f"/api/v1/traces/{draw.choice(self._ids)}", {}
            case "attribute":
                route = f"/api/resource/{draw.randrange(ROUTES)}"
                return "/api/v1/traces", {**of_hour, "attr.http.route": route, "limit": "20"}
            case _:
                return "/api/v1/storage", {"by": draw.choice(("service", "agent", "model"))}
