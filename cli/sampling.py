"""`spanhouse sampling`: show the rules and what came of them, their versions, and change them by a file."""

import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.client import Trouble
from cli.retention import matched, since


def read(path: Path) -> dict[str, Any]:
    """The rules of a TOML file, as the API takes them. Raises Trouble."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise Trouble(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Trouble(f"cannot read {path}: {error}", "write it as docs/sampling.md has it") from error


def draw(console: Console, sampling: dict[str, Any]) -> None:
    """The rules, in their order, with what they did in the last day where the server says so."""
    by = f" by {sampling['changed_by']}" if sampling["changed_by"] else ""
    title = f"Version {sampling['version']}{by}; traces are decided after {sampling['wait_s']:g} s"
    table = Table(title=title, title_justify="left", box=None)
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
        table.add_row(name, asked, share.replace(".0000", ""), *counts)
    console.print(table)


def draw_versions(console: Console, versions: list[dict[str, Any]]) -> None:
    """Who changed them when."""
    table = Table(box=None)
    for name in ("version", "since", "by", "rules", "comment"):
        table.add_column(name)
    for one in versions:
        table.add_row(str(one["version"]), since(one), one["changed_by"], str(len(one["rules"])), one["comment"])
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
