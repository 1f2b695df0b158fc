"""A real MLflow tracking server as a process, from the installed package, with SQLite and artifacts below a directory.

    with MlflowServer(tmp_path) as mlflow_server:
        httpx.get(f"{mlflow_server.url}/health")

Leaving the block ends the server and what it started; so does the end of the tests, should the block never be left.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx


class MlflowServer:
    """`mlflow server` on a free port of 127.0.0.1. `url` is its tracking URI and holds after a restart."""

    def __init__(self, directory: Path, *, start_s_max: float = 120) -> None:
        self._directory = directory
        self._start_s_max = start_s_max
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = directory / "mlflow_server.log"

    def start(self) -> Self:
        """Start the server and wait until it answers. May be called again after `stop`: runs and models are kept."""
        home = self._directory / "mlflow_server"
        home.mkdir(parents=True, exist_ok=True)
        arguments = [
            sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1",
            f"--backend-store-uri=sqlite:///{home}/mlflow.db", f"--artifacts-destination={home}/artifacts",
        ]  # fmt: skip
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "SPANHOUSE_"))}
        env = kept | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                cwd=home,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its worker is a process of its own, and ends with the group
            )
        atexit.register(self.stop)
        deadline = time.monotonic() + self._start_s_max
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"the MLflow server does not answer:\n{self.log_path.read_text()[-4000:]}")
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """End the server and its workers. May be called twice."""
        process, self._process = self._process, None
        atexit.unregister(self.stop)
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(10)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=1).status_code == 200
        except httpx.TransportError:
            return False


def _free_port() -> int:
    """A port that is free now. Somebody may take it before the server does; then the server says so in its log."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
