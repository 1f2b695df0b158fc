"""What the tests of the WAL share: WALs on one directory, and what lies there."""

from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from collector.frames import Frame
from collector.ledger import Ledger
from collector.status import Refusal
from collector.wal import Wal

NEVER_S = 3600.0


class Log:
    """Opens WALs on one directory, and closes what is open at the end of the test."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.ledger = Ledger()
        self._stack = stack

    def open(self, directory: Path | None = None, **limits) -> Wal:
        self.ledger = Ledger()
        wal = Wal(directory or self.directory, self.ledger, **{"flush_interval_s": NEVER_S, **limits})
        self._stack.callback(wal.release)
        return wal

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.directory.glob(pattern))

    def segments(self) -> list[Path]:
        return self.files("*.open") + self.files("*.wal")

    def crashed(self, into: Path) -> Path:
        """The directory as kill -9 would leave it now."""
        into.mkdir()
        for path in self.directory.iterdir():
            (into / path.name).write_bytes(path.read_bytes())
        return into


def append(wal: Wal, *frames: Frame) -> None:
    for future in [wal.append(each) for each in frames]:
        future.result(10)


def refusal_of(future: Future[None]) -> Refusal:
    error = future.exception(10)
    assert isinstance(error, Refusal)
    return error
