"""How bytes get to a disk and stay there: the log, the quarantine and files beside them. No thread of its own."""

import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)


def write_all(fd: int, buffers: Sequence[bytes], offset: int) -> int:
    """Write all buffers one after another from `offset` on; returns the bytes written. Raises OSError.

    After an error an unknown part of them has been written.
    """
    pending: list[bytes | memoryview] = list(buffers)
    first, end = 0, offset
    while first < len(pending):
        chunk = pending[first : first + _IOV_MAX]
        written = os.pwritev(fd, chunk, end)
        if written == 0 and any(chunk):
            raise OSError(errno.EIO, "the disk took no bytes and gave no reason")
        end += written
        for buffer in chunk:
            if written < len(buffer):  # a short write ends within this buffer
                pending[first] = memoryview(buffer)[written:]
                break
            written -= len(buffer)
            first += 1
    return end - offset


def sync_data(fd: int) -> None:
    """Make what was written to the file, and the length it has now, survive a power cut. Raises OSError.

    After an error it must not be tried again on the same file: the kernel may have marked the lost pages clean, and a
    second call would succeed without them.
    """
    if sys.platform == "darwin":  # fsync there stops at the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory (created, renamed, removed) survive a power cut. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, buffers: Sequence[bytes], *, durable: bool) -> None:
    """Write a whole file that is seen complete or not at all. Raises OSError.

    Durable means its bytes; its name needs a `sync_directory` afterwards.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        write_all(fd, buffers, 0)
        if durable:
            sync_data(fd)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    temporary.replace(path)
