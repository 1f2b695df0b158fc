"""Traces drawn in a terminal with rich: one trace as a tree with a waterfall, many as a table.

Everything that came from outside passes `_plain`, so that a span's name cannot move the cursor or hide its neighbours.
Loops, no recursion: a chain of a million spans is drawn as far as the limit goes.
"""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

DEPTH_MAX = 16
"""Deeper spans are not indented further; a number tells their depth."""
BAR_CELLS_MIN, BAR_CELLS_MAX = 12, 40
CONTENT_CHARACTERS_MAX = 400

_EIGHTHS = "▏▎▍▌▋▊▉█"

_HIDDEN = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    0x7F: "\u2421",
    **dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
}
"""Control and text-direction characters, as symbols that stay where they are."""

_CONTENT = (
    ("in", ("gen_ai.input.messages", "gen_ai.tool.call.arguments", "input.value")),
    ("out", ("gen_ai.output.messages", "gen_ai.tool.call.result", "output.value")),
)
_MODEL = ("response_model", "request_model")
_BELONGS_TO = (("model_version", "model"), ("run", "run"), ("session", "session"))
"""Links that the head names: in the answer, and for a person."""


def draw_trace(console: Console, trace: Mapping[str, Any], *, spans_max: int) -> None:
    """Draw the answer of `GET /api/v1/traces/{trace_id}?format=flat`, at most `spans_max` of its spans."""
    console.print(_head(trace, console.width), soft_wrap=True)
    if about := _about(trace):
        console.print(about, soft_wrap=True)
    rows = [_row(branch) for branch in islice(_branches(trace["spans"]), spans_max)]
    whole = _Whole(console, rows, int(trace["start_time_unix_nano"]), int(trace["duration_nano"]))
    for row in rows:
        console.print(whole.line(row), soft_wrap=True)
        for note, style in row.notes:
            for line in Text(note, style).wrap(console, max(console.width - cell_len(row.below), 20)):
                console.print(Text().append(row.below, "dim").append(line), soft_wrap=True)
    if (hidden := len(trace["spans"]) - len(rows)) > 0:
        console.print(Text(f"… {_count(hidden, 'more span')}: --spans-max draws more", "dim"))
    for warning in _warnings(trace["integrity"]):
        console.print(Text(f"! {warning}", "yellow"))


def picture(console: Console, title: str) -> str:
    """All that a recording console has drawn, as SVG that looks the same everywhere.

    rich's own asks a host of others for its font, and indents with blanks, which some viewers leave out.
    """
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)
    return re.sub(r'x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)" ([^>]*)>((?:&#160;)+)([^<]+)', _indented, svg)


def _indented(match: re.Match[str]) -> str:
    """A text of the picture with its leading blanks turned into a place further to the right."""
    x, y, length, rest, blanks, text = match.groups()
    cells = blanks.count(";")
    shift = float(length) * cells / (cells + cell_len(html.unescape(text)))
    return f'x="{float(x) + shift:g}" y="{y}" textLength="{float(length) - shift:g}" {rest}>{text}'


def draw_traces(console: Console, page: Mapping[str, Any]) -> None:
    """Draw the answer of `GET /api/v1/traces`."""
    if not page["traces"]:
        console.print(Text("no traces match", "dim"))
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("trace", no_wrap=True, min_width=32)
    table.add_column("started", no_wrap=True, style="dim", min_width=14)
    for heading in ("duration", "spans", "errors"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    table.add_column("root", overflow="ellipsis", no_wrap=True)
    for trace in page["traces"]:
        root = trace["root"]
        errors = int(trace["error_count"])
        table.add_row(
            trace["trace_id"],
            _brief_moment(int(trace["start_time_unix_nano"])),
            _duration(int(trace["duration_nano"])),
            str(trace["span_count"]),
            Text(str(errors), "bold red") if errors else Text("0", "dim"),
            Text.assemble(_plain(root["name"]), "  ", (_plain(root["service"]), "cyan"))
            if root
            else Text(f"(root missing)  {_plain(', '.join(trace['services']))}", "dim"),
        )
    console.print(table)
    if page["next_cursor"]:
        console.print(Text(f"more: --cursor {page['next_cursor']}", "dim"), soft_wrap=True)


def draw_quarantine(console: Console, frames: Sequence[Mapping[str, Any]]) -> None:
    """Draw the frames in quarantine as a table."""
    if not frames:
        console.print(Text("the quarantine is empty", "dim"))
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("frame", "received", "tenant", "holds", "reason"):
        table.add_column(heading, no_wrap=heading != "reason")
    for frame in frames:
        table.add_row(
            frame["id"],
            _brief_moment(int(frame["received_unix_nano"])),
            _plain(frame["tenant"]),
            _count(frame["log_records"], "log record") if frame["log_records"] else _count(frame["spans"], "span"),
            _plain(frame["reason"]),
        )
    console.print(table)


def _head(trace: Mapping[str, Any], width: int) -> Text:
    errors = int(trace["error_count"])
    facts = [
        (_moment(int(trace["start_time_unix_nano"])), "dim"),
        (_duration(int(trace["duration_nano"])), ""),
        (_count(int(trace["span_count"]), "span"), ""),
        (_count(len(trace["services"]), "service"), ""),
        *([(_count(errors, "error"), "bold red")] if errors else []),
    ]
    said = Text("  ").join(Text(fact, style) for fact, style in facts)
    head = Text().append(str(trace["trace_id"]), "bold")
    return head.append("  " if head.cell_len + 2 + said.cell_len <= width else "\n").append(said)


def _about(trace: Mapping[str, Any]) -> Text:
    """What the trace belongs to and what it spent; empty if neither is known."""
    facts = []
    for name, word in _BELONGS_TO:
        if link := trace["links"].get(name):
            others = len(link.get("others", ()))
            what = " ".join(filter(None, (link.get("name", link.get("id")), link.get("version"))))
            more = f" and {others} more" if others else ""
            facts.append(Text.assemble((f"{word} ", "dim"), (_plain(what), "green"), (more, "dim")))
    usage = trace["usage"]
    if usage["total_tokens"]:
        facts.append(Text(f"{usage['input_tokens']}→{usage['output_tokens']} tokens", "magenta"))
    if usage["cost_usd"] is not None:
        facts.append(Text(_cost(usage["cost_usd"])))
    return Text("  ").join(facts)


@dataclass(frozen=True, slots=True)
class _Branch:
    """A span and its place in the drawing: the guides to its left, without and below its own name."""

    span: Mapping[str, Any]
    guides: str
    below: str


@dataclass(frozen=True, slots=True)
class _Row:
    """What is drawn of a span: the cells of its line, and the lines below it."""

    name: Text
    service: Text
    tokens: Text
    duration: Text
    start_unix_nano: int
    end_unix_nano: int
    failed: bool
    below: str
    notes: list[tuple[str, str]]


def _row(branch: _Branch) -> _Row:
    span = branch.span
    failed = span["status"]["code"] == "error"
    name = (
        Text()
        .append(branch.guides, "dim")
        .append(_plain(span["name"]) or "(no name)", "bold red" if failed else "bold")
    )
    model = _first(span["canonical"], _MODEL)
    if model and model not in span["name"]:
        name.append(f" {_plain(model)}", "green")
    return _Row(
        name,
        Text(_plain(span["service"]), "cyan"),
        _tokens(span),
        Text(_duration(int(span["duration_nano"]))),
        int(span["start_time_unix_nano"]),
        int(span["end_time_unix_nano"]),
        failed,
        branch.below,
        list(_notes(span, failed)),
    )


class _Whole:
    """The columns of the drawing, as wide as all rows together need them, and the time that the waterfall spans."""

    def __init__(self, console: Console, rows: Sequence[_Row], start_unix_nano: int, duration_nano: int) -> None:
        def widest(cells: Iterable[Text], cells_max: int) -> int:
            return min(max((cell.cell_len for cell in cells), default=0), cells_max)

        self._service = widest((row.service for row in rows), 20)
        self._tokens = widest((row.tokens for row in rows), 16)
        self._duration = widest((row.duration for row in rows), 10)
        self._bar = min(max(console.width - 72, BAR_CELLS_MIN), BAR_CELLS_MAX)
        used = self._service + self._tokens + self._duration + self._bar + 4
        self._name = min(max(console.width - used, 20), widest((row.name for row in rows), console.width))
        self._start_unix_nano, self._duration_nano = start_unix_nano, max(duration_nano, 1)

    def line(self, row: _Row) -> Text:
        """One span: name, service, tokens, duration, bar."""
        name, service, tokens, duration = row.name.copy(), row.service.copy(), row.tokens.copy(), row.duration.copy()
        name.truncate(self._name, overflow="ellipsis", pad=True)
        service.truncate(self._service, overflow="ellipsis", pad=True)
        for cell, width in ((tokens, self._tokens), (duration, self._duration)):
            cell.truncate(width)
            cell.pad_left(width - cell.cell_len)
        return Text(" ").join((name, service, tokens, duration, self._waterfall(row)))

    def _waterfall(self, row: _Row) -> Text:
        """The span's time in the trace's, in eighths of a cell; it always shows, however short it is."""
        eighths = self._bar * 8
        first = (row.start_unix_nano - self._start_unix_nano) * eighths // self._duration_nano
        first = min(max(first, 0), eighths - 1)
        last = (row.end_unix_nano - self._start_unix_nano) * eighths // self._duration_nano
        last = min(max(last, first + 1), eighths)
        left, right = first // 8, (last - 1) // 8
        if left == right:
            cells = _EIGHTHS[last - first - 1]
        else:  # only the half block grows from the right, so the first cell is a whole or a half
            cells = ("█" if first % 8 < 4 else "▐") + "█" * (right - left - 1) + _EIGHTHS[(last - 1) % 8]
        return Text(" " * left).append(cells, "red" if row.failed else "blue")


def _notes(span: Mapping[str, Any], failed: bool) -> Iterator[tuple[str, str]]:
    """The lines below a span: why it failed, what was said."""
    if failed:
        message = span["status"]["message"]
        kind = _first(span["attributes"], ("error.type",))
        for event in span["events"]:
            if event["name"] == "exception":
                kind = kind or event["attributes"].get("exception.type")
                message = message or event["attributes"].get("exception.message")
        if text := ": ".join(_plain(part) for part in (kind, message) if part):
            yield f"✗ {text}", "red"
    for label, keys in _CONTENT:
        if (content := _first(span["attributes"], keys)) is not None:
            text = _plain(_said(content))
            cut = "…" if len(text) > CONTENT_CHARACTERS_MAX else ""
            yield f"{label} {text[:CONTENT_CHARACTERS_MAX]}{cut}", "italic dim"


def _said(content: Any) -> Any:
    """The last message of a conversation in the GenAI conventions' form; anything else as it is."""
    try:
        message = orjson.loads(content)[-1]
        return f"{message['role']}: {' '.join(map(_part, message['parts']))}"
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return content


def _part(part: Mapping[str, Any]) -> str:
    match part.get("type"):
        case "text":
            return str(part["content"])
        case "tool_call":
            return f"{part['name']}({orjson.dumps(part.get('arguments')).decode()})"
        case "tool_call_response":
            return orjson.dumps(part.get("response", part.get("result"))).decode()
        case _:
            return orjson.dumps(part).decode()


def _branches(spans: Sequence[Mapping[str, Any]]) -> Iterator[_Branch]:
    """The spans in drawing order: under their parents, by start; those without one stand at the left edge."""
    first_with: dict[str, int] = {}
    for place, span in enumerate(spans):
        first_with.setdefault(span["span_id"], place)
    parents = [first_with.get(span["parent_span_id"]) for span in spans]
    children: dict[int, list[int]] = {}
    for place, parent in enumerate(parents):
        if parent is not None and parent != place:
            children.setdefault(parent, []).append(place)
    roots = [place for place, span in enumerate(spans) if not span["parent_span_id"]]
    orphans = [place for place, span in enumerate(spans) if span["parent_span_id"] and parents[place] is None]
    drawn: set[int] = set()
    for top in (*roots, *orphans, *range(len(spans))):  # what is left after roots and orphans is in cycles
        waiting = [(top, 0, "", "")]
        while waiting:
            place, depth, guides, below = waiting.pop()
            if place in drawn:
                continue
            drawn.add(place)
            own = [child for child in children.get(place, ()) if child not in drawn]
            yield _Branch(spans[place], guides, below + ("│  " if own else "   "))
            for child in reversed(own):
                last = child == own[-1]
                if depth < DEPTH_MAX:
                    step = (below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))
                else:
                    step = (f"{below}({depth + 1}) ", below)
                waiting.append((child, depth + 1, *step))


def _warnings(integrity: Mapping[str, Any]) -> Iterator[str]:
    """What the API doubts about the tree, a sentence each."""
    counts = integrity["counts"]
    if integrity["root"] != "present":
        yield "the root span has not arrived yet" if integrity["root"] == "late" else "the root span is missing"
    if counts["roots"] > 1:
        yield f"{counts['roots']} spans have no parent, where a whole trace has one"
    if counts["orphans"]:
        missing = _count(counts["missing_parents"], "missing parent")
        yield f"{_count(counts['orphans'], 'span')} of {missing}, drawn without it"
    if counts["duplicate_span_ids"]:
        yield f"{_count(counts['duplicate_span_ids'], 'span id')} used by more than one span"
    if counts["cycles"]:
        yield f"{_count(counts['spans_in_cycles'], 'span')} in a cycle of parents; it is cut at the earliest"
    if counts["clock_skew"]:
        yield f"{_count(counts['clock_skew'], 'span')} before the parent's start: the clocks of two senders disagree"
    if counts["times"]:
        problems = ", ".join(sorted({entry["problem"] for entry in integrity["times"]}))
        yield f"{_count(counts['times'], 'time')} that cannot be right ({problems})"
    if integrity["truncated"]:
        yield "the trace has more spans than the server gives in one answer"


def _tokens(span: Mapping[str, Any]) -> Text:
    """What the span says, dim where it only repeats what other spans spent."""
    asked, answered = (span["canonical"].get(field) for field in ("input_tokens", "output_tokens"))
    if asked is None and answered is None:
        return Text()
    counts = span["usage"] is not None and span["usage"]["counts"]
    return Text(
        f"{'?' if asked is None else asked}→{'?' if answered is None else answered}", "magenta" if counts else "dim"
    )


def _first(attributes: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((attributes[key] for key in keys if attributes.get(key) is not None), None)


def _plain(value: Any) -> str:
    return str(value).translate(_HIDDEN)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(nanoseconds: int) -> str:
    """Three digits and a unit."""
    sign, left = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for unit, size in (("h", 3_600_000_000_000), ("min", 60_000_000_000), ("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if left >= size:
            amount = left / size
            digits = 0 if amount >= 99.95 else 1 if amount >= 9.995 else 2
            return f"{sign}{amount:.{digits}f} {unit}"
    return f"{sign}{left} ns"


def _cost(usd: float) -> str:
    """Cents; for small sums hundredths of them."""
    if 0 < usd < 0.0001:
        return "<$0.0001"
    return f"${usd:.4f}" if 0 < usd < 1 else f"${usd:,.2f}"


def _moment(unix_nano: int) -> str:
    """A time in this machine's zone, to the millisecond."""
    moment = datetime.fromtimestamp(unix_nano // 10**9, UTC).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}.{unix_nano % 10**9 // 10**6:03d}"


def _brief_moment(unix_nano: int) -> str:
    """A time to the second, or one of another year to the minute."""
    moment = datetime.fromtimestamp(unix_nano // 10**9, UTC).astimezone()
    return f"{moment:%m-%d %H:%M:%S}" if moment.year == datetime.now(UTC).year else f"{moment:%Y-%m-%d %H:%M}"
