"""The program under measurement: `spanhouse serve` as its users start it, on free ports, in a directory of its own.

Used from the main thread. The server does not outlive its `with` block.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.meter import Meter

COMMAND = Path(sys.executable).with_name("spanhouse")
READY_S_MAX = 60
STOP_S_MAX = 120
ASK_EVERY_S = 0.1


class ServerFailed(Exception):
    """The server did not start, answer or stop as it should. The text has the end of its log."""


class Server:
    """`options` are further arguments of the role. `stop` ends it in peace; leaving the block kills what still runs."""

    def __init__(self, directory: Path, options: Sequence[str] = (), role: str = "serve") -> None:
        self.data_dir = directory / "data"
        self._log_path = directory / "server.log"
        receives = [f"--data-dir={self.data_dir}", "--otlp-grpc-port=0", "--otlp-http-port=0"]
        self._arguments = [
            str(COMMAND), role, "--log-format=json", "--http-port=0", *(receives if role != "query" else ()), *options,
        ]  # fmt: skip

    def __enter__(self) -> Self:
        # Settings come from `options` alone: a run says itself what it measured.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SPANHOUSE_")}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._arguments,
                cwd=self.data_dir.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            assert self._process.stdout is not None
            line = _first_line(self._process.stdout, READY_S_MAX)
            if not line:
                raise self._failure("no ready line")
            ready = json.loads(line)
            self.grpc, self.url = str(ready.get("otlp_grpc")), str(ready["http"])
            self._http = httpx.Client(base_url=self.url, timeout=30)
            self.meter = Meter(self._process.pid)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._kill()

    def stored_spans(self) -> int:
        """What its metrics say is in the store, of all tenants."""
        return sum(
            int(sample.value)
            for family in text_string_to_metric_families(self._get("/metrics").text)
            for sample in family.samples
            if sample.name == "spanhouse_spans_stored_total"
        )

    def wait_until_queryable(self, spans: int, seconds_max: float) -> None:
        """Return when so many spans are stored and the list of traces answers. Raises ServerFailed."""
        deadline = time.monotonic() + seconds_max
        while (stored := self.stored_spans()) < spans:
            if time.monotonic() > deadline:
                raise self._failure(f"only {stored} of {spans} spans are stored after {seconds_max:.0f} s")
            time.sleep(ASK_EVERY_S)
        if not self._get("/api/v1/traces?limit=1").json()["traces"]:
            raise self._failure("spans are stored, and the list of traces is empty")

    def stop(self) -> None:
        """SIGTERM, and wait until it has drained. Raises ServerFailed."""
        self._process.terminate()
        try:
            code = self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            raise self._failure(f"it did not stop within {STOP_S_MAX} s") from None
        if code:
            raise self._failure(f"exit code {code} after SIGTERM")

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._http.get(path).raise_for_status()
        except httpx.HTTPError as error:
            raise self._failure(f"no answer from {path}: {error}") from error

    def _failure(self, what: str) -> ServerFailed:
        return ServerFailed(f"cannot measure the server: {what}\n{self._log_path.read_text(errors='replace')[-4000:]}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _first_line(stream: IO[bytes], seconds_max: float) -> bytes:
    """The first line of the stream, or nothing when it ends or `seconds_max` pass before there is one."""
    deadline = time.monotonic() + seconds_max
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while b"\n" not in received and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                chunk = os.read(stream.fileno(), 65536)
                if not chunk:
                    return b""
                received += chunk
    line, newline, _ = received.partition(b"\n")
    return line if newline else b""
