"""`spanhouse retention plan` in the terminal: what policies come to, as tables and as bars, beside those in force."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.copying import _size
from cli.terminal import _plain

NAME_CELLS_MAX = 24
WIDE_CELLS = 100
"""Narrower terminals do without the traces of a day."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"

Answer = Mapping[str, Any]


def draw(console: Console, answer: Answer, command: str) -> None:
    """Draw the answer of `POST /api/v1/retention/plan`; `command` would apply the policies."""
    outcome, before = answer["planned"] or answer["in_force"], answer["in_force"] if answer["planned"] else None
    for line in _rests_on(answer):
        console.print(line, soft_wrap=True)
    console.print(_policies(outcome, before, wide=console.width >= WIDE_CELLS))
    console.print()
    for line in _bars(outcome["policies"], console.width):
        console.print(line, soft_wrap=True)
    for what in ("services", "agents"):
        console.print()
        console.print(_names(what[:-1], outcome[what], {one["name"]: one for one in before[what]} if before else None))
    console.print()
    for line in _sums(answer, outcome, command):
        console.print(line, soft_wrap=True)


def _rests_on(answer: Answer) -> Iterator[Text]:
    days = answer["days"]
    if answer["partial"]:
        yield Text("! from today alone, taken for a whole day: there is nothing of the days before", "yellow")
    else:
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        yield Text(f"From what was stored of {span}, by day of the spans; bytes on disk, of one copy", "dim")
    if answer["traces_share"] < 1 or answer["content_share"] < 1:
        traces, content = answer["traces_share"], answer["content_share"]
        yield Text(
            f"! of the largest day {traces:.2%} of the traces were looked at, {content:.2%} of payload", "yellow"
        )


def _policies(outcome: Answer, before: Answer | None, *, wide: bool) -> Table:
    priced = outcome["steady"]["cost_per_month"] is not None
    old = {one["name"]: one for one in before["policies"]} if before else {}
    headings = [*(["traces/day"] if wide else []), "spans/day", "skeleton/day", "content/day", "steady"]
    table = _table("policy", *headings, *(["in force"] if before else []), *(["a month"] if priced else []), "goes now")
    for one in outcome["policies"]:
        if one["name"] == "pinned" and not one["daily"]["spans"]:
            continue
        daily, keep = one["daily"], one["keep"]
        skeleton, content = (
            _size(daily[f"{part}_bytes"]) + (f" × {keep[f'{part}_days']} d" if keep else "")
            for part in ("skeleton", "content")
        )
        cells = [f"{daily['traces']:,.0f}"] if wide else []
        cells += [f"{daily['spans']:,.0f}", skeleton, content, _steady(one)]
        cells += [_steady(old[one["name"]]) if one["name"] in old else ""] if before else []
        cells += [_money(one["steady"])] if priced else []
        table.add_row(Text(_plain(one["name"])), *cells, _size(_bytes(one["goes"])) if _bytes(one["goes"]) else "")
    gone = [one for name, one in old.items() if name not in {each["name"] for each in outcome["policies"]}]
    for one in gone:
        table.add_row(Text(f"({_plain(one['name'])})", "dim"), *[""] * len(headings), _steady(one))
    whole = [_size(_bytes(outcome["steady"])), *([_size(_bytes(before["steady"]))] if before else [])]
    whole += [_money(outcome["steady"])] if priced else []
    table.add_row(Text("all", "bold"), *[""] * (len(headings) - 1), *whole, _size(_bytes(outcome["goes"])))
    return table


def _names(what: str, names: Sequence[Answer], before: Mapping[str, Answer] | None) -> Table:
    table = _table(what, "spans/day", "skeleton/day", "content/day", "steady", *(["in force"] if before else []))
    for one in names:
        daily, name = one["daily"], _plain(one["name"])
        cells = [f"{daily['spans']:,.0f}", _size(daily["skeleton_bytes"]), _size(daily["content_bytes"]), _steady(one)]
        cells += [_steady(before[one["name"]]) if one["name"] in before else ""] if before else []
        table.add_row(Text(name) if name else Text("(none)", "dim"), *cells)
    return table


def _bars(policies: Sequence[Answer], width: int) -> Iterator[Text]:
    """Of each policy a bar as long as its steady state, skeleton and content one after the other."""
    shown = [one for one in policies if one["steady"] is not None]
    most = max((_bytes(one["steady"]) for one in shown), default=0)
    label = min(max((cell_len(_plain(one["name"])) for one in shown), default=0), NAME_CELLS_MAX)
    cells = max(width - label - 12, 10)
    for one in shown:
        steady, name = one["steady"], Text(_plain(one["name"]))
        name.truncate(label, overflow="ellipsis", pad=True)
        skeleton = round(steady["skeleton_bytes"] / most * cells) if most else 0
        content = _bar(_bytes(steady) / most * cells - skeleton) if most else ""
        size = f" {_size(_bytes(steady))}"
        yield name.append(" ").append("█" * skeleton, "blue").append(content, "cyan").append(size, "dim")
    yield Text(" " * label).append(" steady state: ", "dim").append("█ skeleton ", "blue").append("█ content", "cyan")


def _bar(cells: float) -> str:
    eighths = round(max(cells, 0) * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _sums(answer: Answer, outcome: Answer, command: str) -> Iterator[Text]:
    steady = outcome["steady"]
    text = f"steady state  {_size(_bytes(steady))}{_a_month(steady)}"
    if (difference := answer["difference"]) is not None:
        change, now = _bytes(difference), _bytes(answer["in_force"]["steady"])
        money = difference["cost_per_month"]
        text += f": {_size(abs(change))} {'less' if change < 0 else 'more'} than by the policies in force"
        details = [f"{change / now:+.0%}"] if now else []
        details += [f"{money:+,.2f} a month"] if money is not None else []
        text += f" ({', '.join(details)})" if details else ""
    yield Text(text, "bold")
    stored, goes = _bytes(answer["stored"]), _bytes(outcome["goes"])
    yield Text(f"stored now    {_size(stored)}: {_size(goes)} of it would go at once, {_size(stored - goes)} stay")
    [pinned] = [one["daily"] for one in outcome["policies"] if one["name"] == "pinned"]
    if pinned["spans"]:
        yield Text(f"pinned        {_size(_bytes(pinned))} a day, which stay until they are unpinned")
    if answer["planned"] is not None:
        yield Text(f"Nothing is changed until you apply it: {command}")
    else:
        yield Text("These are the policies in force. To see what others come to: --policy FILE", "dim")


def _table(what: str, *headings: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(what, overflow="ellipsis", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    return table


def _steady(one: Answer) -> str:
    return "no end" if one["steady"] is None else _size(_bytes(one["steady"]))


def _money(steady: Answer | None) -> str:
    return "" if steady is None else f"{steady['cost_per_month']:,.2f}"


def _a_month(steady: Answer) -> str:
    return "" if steady["cost_per_month"] is None else f", {_money(steady)} a month"


def _bytes(of: Answer) -> int:
    return int(of["skeleton_bytes"] + of["content_bytes"])
