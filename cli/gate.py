"""`spanhouse gate`: what it asks the server for, how it shows the verdict, and the exit code that tells a pipeline.

On the main thread. The server judges; what a person reads of each limit is its sentence.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from cli.terminal import _plain

CANNOT_TELL = 2
EXIT_CODES = {"pass": 0, "fail": 1, "cannot_tell": CANNOT_TELL}
"""1 is a candidate that got worse and nothing else, so that a pipeline never takes an outage for a regression."""

_MARKS = {"pass": ("✓", "green"), "fail": ("✗", "bold red"), "cannot_tell": ("?", "yellow")}
_WORDS = {"pass": "PASS", "fail": "FAIL", "cannot_tell": "CANNOT TELL"}


def asked(given: Mapping[str, str | int | None], scores: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str]]:
    """Query parameters of the server's gate: those of `given` that are set, and `NAME=VALUE` for each score's limit.

    `scores` has the values of min_score and max_score_drop. Raises ValueError.
    """
    yield from ((name, str(value)) for name, value in given.items() if value is not None)
    for limit, pairs in scores.items():
        for pair in pairs:
            name, equals, value = pair.rpartition("=")
            if not equals or not name:
                raise ValueError(f"cannot use {pair!r} for --{limit.replace('_', '-')}: write NAME=VALUE")
            yield f"{limit}.{name}", value


def draw(console: Console, answer: Mapping[str, Any]) -> None:
    """Draw the server's answer: the verdict, a line for each limit, and where to look if one failed."""
    verdict = answer["verdict"]
    before, after = answer["baseline"], answer["candidate"]
    console.print(
        Text.assemble(
            (_WORDS[verdict], _MARKS[verdict][1]),
            f"  {_plain(answer['model'])} {_side(after)} against {_side(before)}: {_plain(answer['reason'])}",
        ),
        soft_wrap=True,
    )
    for check in answer["checks"]:
        mark, style = _MARKS[check["verdict"]]
        console.print(Text.assemble((mark, style), f" {_plain(check['reason'])}"), soft_wrap=True)
        if check["verdict"] == "pass" and check["found_from"] is not None:
            found = f"  with so many traces, a change of {check['found_from'] * 100:.0f} % is found 19 times of 20"
            console.print(Text(found, "dim"), soft_wrap=True)
    if verdict == "fail":
        for line in _examples(after):
            console.print(line, soft_wrap=True)
    if (written := answer["written_back"]) and not written["ok"]:
        console.print(
            Text(f"! the verdict is not in the registry: {_plain(written['message'])}", "yellow"), soft_wrap=True
        )


def _side(side: Mapping[str, Any]) -> str:
    newest = f"newest {side['sampled']:,} of " if side["sampled"] < side["traces"] else ""
    return f"{_plain(side['version'])} ({newest}{side['traces']:,} {'trace' if side['traces'] == 1 else 'traces'})"


def _examples(side: Mapping[str, Any]) -> Iterator[Text]:
    for word, title in (("slowest", "slowest"), ("failed", "failed"), ("most_expensive", "most expensive")):
        if ids := side["examples"][word]:
            yield Text(f"{title} of {_plain(side['version'])}: {' '.join(map(_plain, ids))}", "dim")
