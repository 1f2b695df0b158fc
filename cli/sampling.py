"""`spanhouse sampling`: show the rules and what came of them."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.terminal import _plain
from cli.versions import matched, title


def draw(console: Console, sampling: dict[str, Any]) -> None:
    """The rules, in their order, with what they did in the last day where the server says so."""
    more = f"; traces are decided after {sampling['wait_s']:g} s"
    table = Table(title=title(sampling, more), title_justify="left", box=None)
    for name, justify in (("rule", "left"), ("asks for", "left"), ("keeps", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    outcomes = {one["rule"]: one for one in sampling.get("last_day", [])}
    if outcomes:
        table.add_column("kept in a day", justify="right")
        table.add_column("left out", justify="right")
    rows = [(one["name"], _asked(one), f"{one['keep']:.4%}") for one in sampling["rules"]]
    rows.append(("default", "all else", f"{sampling['default']['keep']:.4%}"))
    rows += [(name, "", "") for name in outcomes if name not in {row[0] for row in rows}]
    for name, asked, share in rows:
        did = outcomes.get(name)
        counts = (f"{did['kept_traces']:,}", f"{did['left_out_traces']:,}") if did else ("", "") if outcomes else ()
        table.add_row(Text(_plain(name)), Text(_plain(asked)), share.replace(".0000", ""), *counts)
    console.print(table)


def _asked(rule: dict[str, Any]) -> str:
    words = [matched(rule["match"])] if rule.get("match") else []
    if rule.get("min_trace_ms") is not None:
        words.append(f"the trace from {rule['min_trace_ms']:g} ms")
    if rule.get("rare_below") is not None:
        words.append(f"an operation of fewer than {rule['rare_below']} traces")
    if rule.get("first_traces") is not None:
        words.append(f"the first {rule['first_traces']} traces of a version")
    return ", ".join(words) or "all"
