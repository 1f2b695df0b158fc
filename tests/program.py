"""The real program as a process: start it, learn its addresses from the ready line, stop it or kill it.

    with Program(tmp_path / "data") as spanhouse:
        httpx.get(f"{spanhouse.http}/readyz")

Leaving the block stops the program with SIGTERM and insists on exit code 0, unless it was killed or stopped before.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx

COMMAND = Path(sys.executable).with_name("spanhouse")
"""The command as it was installed beside this Python."""


class NotReady(Exception):
    """The program ended or stayed silent instead of printing its ready line. The text holds what it logged."""


class Program:
    """`spanhouse serve`, or another role, on free ports of 127.0.0.1, run in the directory that holds `data_dir`.

    `options` are further arguments of the role; `env` adds to this process's environment, from which every
    SPANHOUSE_ variable is removed first.
    """

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        ready_s_max: float = 60,
        role: str = "serve",
    ) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self._arguments = [
            str(COMMAND), role, "--log-format=json", "--http-port=0",
            *([] if role == "query" else [f"--data-dir={data_dir}", "--otlp-grpc-port=0", "--otlp-http-port=0"]),
            *options,
        ]  # fmt: skip
        self._env = {key: value for key, value in os.environ.items() if not key.startswith("SPANHOUSE_")}
        self._env.update(env or {})
        self._ready_s_max = ready_s_max
        self._process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def start(self) -> Self:
        """Start the process and wait until it says that it is ready. Raises NotReady."""
        assert self._process is None or self._process.poll() is not None, "the program is running already"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                cwd=self.data_dir.parent,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = _first_line(self._process.stdout, self._ready_s_max)
        if not line:
            self._process.kill()
            code = self._process.wait()
            raise NotReady(f"no ready line from process {self._process.pid} (exit code {code}):\n{self.log()[-4000:]}")
        self.ready = json.loads(line)
        return self

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def grpc(self) -> str:
        """OTLP/gRPC as `host:port`."""
        return str(self.ready["otlp_grpc"])

    @property
    def otlp_http(self) -> str:
        """OTLP/HTTP as a URL without a path."""
        return str(self.ready["otlp_http"])

    @property
    def http(self) -> str:
        """The query API as a URL without a path."""
        return str(self.ready["http"])

    def read_trace(
        self, trace_id: str, spans: int, seconds_max: float = 10, tenant: str = "default", **parameters: str
    ) -> dict[str, Any]:
        """The trace in the API's flat form (or as `parameters` ask), as soon as it has so many spans."""
        url = f"{self.http}/api/v1/traces/{trace_id}"
        headers = {"x-spanhouse-tenant": tenant}
        deadline = time.monotonic() + seconds_max
        while True:
            response = httpx.get(url, params={"format": "flat"}, headers=headers)
            if response.status_code == 200 and response.json()["span_count"] >= spans:
                break
            assert time.monotonic() < deadline, f"after {seconds_max} s: {response.status_code} {response.text[:2000]}"
            time.sleep(0.05)
        answer: dict[str, Any] = (
            httpx.get(url, params=parameters, headers=headers).json() if parameters else response.json()
        )
        return answer

    def log(self) -> str:
        """What the program wrote to standard error, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds_max: float = 60) -> int:
        """Wait for the process to end by itself, and return its exit code."""
        assert self._process is not None
        return self._process.wait(seconds_max)

    def stop(self) -> int:
        """SIGTERM, then wait; returns the exit code."""
        self.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill it as a power cut would (kill -9), and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        if error is not None:  # the test failed: its own error is the one to see
            self.kill()
            return
        code = self.stop()
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.log()[-4000:]}"


def _first_line(stream: IO[str], seconds_max: float) -> str:
    """The first line of the stream, or an empty string when it ends or `seconds_max` pass before there is one."""
    deadline = time.monotonic() + seconds_max
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while b"\n" not in received and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                chunk = os.read(stream.fileno(), 65536)
                if not chunk:
                    return ""
                received += chunk
    return received.partition(b"\n")[0].decode() if b"\n" in received else ""
