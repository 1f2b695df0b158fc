"""Runs a function in a fresh process: a sender that shares no lock with what it measures, an engine of its own.

Used from the main thread. A child never outlives its `with` block: it is killed when its result is in, because chDB
leaves threads behind that have nothing more to say.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_FRESH = multiprocessing.get_context("spawn")


class ChildFailed(Exception):
    """The function raised, the process died, or took too long. The text has the child's traceback."""


class Child(Generic[T]):
    """`function(*args)` in a process of its own, whose working directory is `directory`.

    with Child(work, send, address, payload) as sender:
        … what is measured meanwhile …
        sent = sender.result(60)
    """

    def __init__(self, directory: Path, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self._name = function.__name__
        self._receiver, self._sender = _FRESH.Pipe(duplex=False)
        self._process = _FRESH.Process(
            target=_run, args=(self._sender, directory, function, args, kwargs), name=self._name, daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._sender.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._receiver.close()

    def result(self, seconds_max: float) -> T:
        """What the function returned. Raises ChildFailed, at the latest after `seconds_max`."""
        if not self._receiver.poll(seconds_max):
            raise ChildFailed(f"cannot wait longer than {seconds_max:.0f} s for {self._name}")
        try:
            failure, result = self._receiver.recv()
        except EOFError:
            self._process.join(5)
            raise ChildFailed(f"cannot finish {self._name}: exit code {self._process.exitcode}") from None
        if failure:
            raise ChildFailed(f"cannot finish {self._name}:\n{failure}")
        value: T = result
        return value


def call(directory: Path, seconds_max: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the function in a child and wait for what it returns. Raises ChildFailed."""
    with Child(directory, function, *args, **kwargs) as child:
        return child.result(seconds_max)


def _run(
    sender: Connection, directory: Path, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    os.chdir(directory)  # chDB writes `__cache__` into the working directory
    try:
        sender.send(("", function(*args, **kwargs)))
    except BaseException:
        sender.send((traceback.format_exc(), None))
