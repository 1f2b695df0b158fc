"""What the tests of the loader share: a WAL, a quarantine and a loader on one directory."""

from collections.abc import Callable
from pathlib import Path

from frame_samples import until

from collector.frames import Frame, encode_frame, read_frames
from collector.ledger import Ledger
from collector.loader import Load, Loader
from collector.quarantine import Quarantine
from collector.wal import Wal
from storage.disk import write_file
from storage.errors import DataError

SEGMENT_ID = "1700000000000000000-abcdef"


class House:
    """A WAL, a quarantine and a loader on one directory; `restart` is what happens after a crash."""

    def __init__(self, directory: Path, load: Load, **limits) -> None:
        self.directory = directory
        self._limits = {"flush_interval_s": 0.0, **limits}
        self.start(load)

    def start(self, load: Load) -> None:
        self.ledger = Ledger()
        self.quarantine = Quarantine(self.directory / "quarantine", self.ledger)
        self.wal = Wal(self.directory / "wal", self.ledger, **self._limits)
        self.loader = Loader(self.wal, load, self.quarantine, self.ledger, backoff_s_max=0.05)
        self.loader.start()

    def append(self, *frames: Frame) -> None:
        futures = [self.wal.append(each) for each in frames]
        for each, future in zip(frames, futures, strict=True):
            future.result(10)
            self.ledger.admitted(each.tenant, received=each.items, signal=each.signal)

    def wait_until_loaded(self) -> None:
        wal = self.directory / "wal"
        # In this order: a segment on its way from one name to the other is seen under one of them.
        until(lambda: not list(wal.glob("*.open")) and not list(wal.glob("*.wal")))

    def stop(self, drain_timeout_s: float = 10.0) -> bool:
        self.wal.close()
        ended = self.loader.stop(drain_timeout_s)
        self.wal.release()
        return ended

    def restart(self, load: Load) -> None:
        self.stop(0)
        self.start(load)

    @property
    def quarantined(self) -> list[str]:
        return [entry.id for entry in self.quarantine.page(limit=1000)]

    def leftovers(self) -> list[str]:
        return [path.name for path in (self.directory / "wal").iterdir() if path.suffix not in (".seen", "")]


def sealed_segment(directory: Path, frames: list[Frame]) -> None:
    """A segment as an earlier process left it."""
    (directory / "wal").mkdir(parents=True)
    encoded = [b"".join(encode_frame(each, 1_000 + number)) for number, each in enumerate(frames)]
    write_file(directory / "wal" / f"{SEGMENT_ID}.wal", encoded, durable=False)


def rejects(*bad: Frame) -> Callable[[Path, str], None]:
    """A store that cannot load these frames, nor any file that holds one."""
    digests = {each.digest for each in bad}

    def fail(path: Path, token: str) -> None:
        found = [stored.digest.hex() for stored in read_frames(path) if stored.digest in digests]
        if found:
            raise DataError(f"cannot parse {found[0]}")

    return fail
