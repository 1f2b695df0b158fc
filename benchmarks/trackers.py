"""Other stores of agents' traces, each as its makers start it with SQLite on loopback: MLflow and Phoenix.

Spans are sent over OTLP/HTTP. What is stored are the pages of its database that are in use, so that neither free pages
nor SQLite's log count, and all other files below its directory. Used from the main thread; none outlives its `with`
block.
"""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

READY_S_MAX = 120
STORED_S_MAX = 300
SEND_S_MAX = 120
STOP_S_MAX = 15


class TrackerFailed(Exception):
    """It is not installed, did not start, or did not take or store what was sent. The text says which."""


class Tracker:
    """A server as a process, with its database in `directory`."""

    name = ""
    headers: tuple[tuple[str, str], ...] = ()
    database = ""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / self.name
        self._directory.mkdir()
        self._log_path = directory / f"{self.name}.log"
        self._ports = [_free_port(), _free_port()]
        self._url = f"http://127.0.0.1:{self._ports[0]}"

    def command(self) -> list[str]:
        """Arguments of the process."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What is added to the environment of the process."""
        return {}

    def version(self) -> str:
        """What it says of itself."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PHOENIX_", "PYTHONPATH"))}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self._directory, env=kept | self.environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,  # its workers end with the group
            )  # fmt: skip
        try:
            self._wait_until(self._answers, READY_S_MAX, "answer")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def send(self, body: bytes) -> None:
        """One request. Raises TrackerFailed."""
        headers = {"content-type": "application/x-protobuf", **dict(self.headers)}
        try:
            answer = httpx.post(f"{self._url}/v1/traces", content=body, headers=headers, timeout=SEND_S_MAX)
        except httpx.HTTPError as error:
            raise self._failure(f"it did not take a request: {error!r}") from error
        if answer.status_code != httpx.codes.OK:
            raise self._failure(f"it answered {answer.status_code} {answer.text[:500]}")

    def stored_bytes(self, spans: int) -> int:
        """What it holds once it has so many spans. Raises TrackerFailed."""
        self._wait_until(lambda: self._stored_spans() == spans, STORED_S_MAX, f"have {spans} spans")
        with closing(self._open()) as database:
            pages, free, size = (
                int(database.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        files = [path for path in self._directory.rglob("*") if path.is_file()]
        others = [path for path in files if not path.name.startswith(self.database)]
        return (pages - free) * size + sum(path.stat().st_size for path in others)

    def _stored_spans(self) -> int:
        try:
            with closing(self._open()) as database:
                [found] = database.execute("SELECT count(*) FROM spans").fetchone()
        except sqlite3.OperationalError:  # it is writing
            return -1
        return int(found)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self._directory / self.database}?mode=ro", uri=True, timeout=60)

    def _answers(self) -> bool:
        try:
            return httpx.get(self._url, timeout=5).status_code < httpx.codes.INTERNAL_SERVER_ERROR
        except httpx.TransportError:
            return False

    def _wait_until(self, done: Callable[[], bool], seconds_max: float, what: str) -> None:
        deadline = time.monotonic() + seconds_max
        while not done():
            if self._process.poll() is not None:
                raise self._failure(f"it ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"it did not {what} within {seconds_max} s")
            time.sleep(0.2)

    def _failure(self, what: str) -> TrackerFailed:
        return TrackerFailed(f"cannot run {self.name}: {what}\n{self._log_path.read_text(errors='replace')[-2000:]}")

    def _kill(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(STOP_S_MAX)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


class Mlflow(Tracker):
    """`mlflow server` of this environment."""

    name = "mlflow"
    headers = (("x-mlflow-experiment-id", "0"),)
    database = "mlflow.db"

    def command(self) -> list[str]:
        """Arguments of the process. Raises TrackerFailed where it is not installed."""
        return [
            _found("mlflow", None), "server", "--host=127.0.0.1", f"--port={self._ports[0]}", "--workers=1",
            f"--backend-store-uri=sqlite:///{self._directory}/mlflow.db",
            f"--artifacts-destination={self._directory}/artifacts",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Without jobs and telemetry."""
        return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def version(self) -> str:
        """Of its package."""
        return _version(_found("mlflow", None), "mlflow")


class Phoenix(Tracker):
    """`phoenix serve` of the environment that `binary` is in, or the path has."""

    name = "phoenix"
    database = "phoenix.db"

    def __init__(self, directory: Path, binary: str | None = None) -> None:
        super().__init__(directory)
        self._binary = binary

    def command(self) -> list[str]:
        """Arguments of the process. Raises TrackerFailed where it is not installed."""
        return [_found("phoenix", self._binary), "serve"]

    def environment(self) -> dict[str, str]:
        """Where it listens and keeps its data, and no telemetry."""
        return {
            "PHOENIX_WORKING_DIR": str(self._directory),
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(self._ports[0]),
            "PHOENIX_GRPC_PORT": str(self._ports[1]),
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }

    def version(self) -> str:
        """Of its package."""
        return _version(_found("phoenix", self._binary), "arize-phoenix")


def _found(command: str, binary: str | None) -> str:
    beside = Path(sys.executable).with_name(command)
    path = binary or (str(beside) if beside.is_file() else shutil.which(command))
    if path is None or not Path(path).is_file():
        raise TrackerFailed(f"cannot find {binary or command}: install it, or give its path with --{command}")
    return path


def _version(program: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    python = Path(program).with_name("python")
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
