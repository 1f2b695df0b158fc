"""`spanhouse erase`: ask for an erasure, show how far it is, keep its certificate."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.client import Client, Trouble

POLL_S = 0.3


def asked(
    users: Sequence[str], sessions: Sequence[str], traces: Sequence[str], attributes: Sequence[str]
) -> dict[str, Any]:
    """The request for what the options say. Raises ValueError."""
    pairs = []
    for pair in attributes:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ValueError(f"cannot use {pair!r}: write KEY=VALUE")
        pairs.append({"key": key, "value": value})
    if not (users or sessions or traces or pairs):
        raise ValueError("cannot erase: say whom, by --user, --session, --trace or --attr")
    return {"users": list(users), "sessions": list(sessions), "traces": list(traces), "attributes": pairs}


def open_certificate(path: Path) -> int:
    """A new file for the certificate, before anything is removed. Raises Trouble, also if there is such a file."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    except OSError as error:
        raise Trouble(
            f"cannot write the certificate to {path}: {error.strerror}", "name a new file with --certificate"
        ) from error


def wait(client: Client, console: Console, erasure: dict[str, Any]) -> dict[str, Any]:
    """Show how far an erasure is until it ends. Raises Trouble if it fails."""
    with console.status("Waiting") as status:
        while erasure["state"] == "running":
            text = erasure["waiting_for"] or f"round {erasure['round'] + 1}"
            status.update(f"{erasure['stage'].capitalize()}: {erasure['traces']} traces, {text}")
            time.sleep(POLL_S)
            erasure = client.erasure(erasure["id"])
    if erasure["state"] == "failed":
        raise Trouble(f"cannot erase: {erasure['error']}")
    return erasure


def draw(console: Console, erasure: dict[str, Any], title: str) -> None:
    """What was found, by table."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("of")
    table.add_column("rows", justify="right")
    for name, rows in sorted(erasure["rows"].items()):
        table.add_row("frames of the quarantine" if name == "quarantine" else name, str(rows))
    console.print(table)


def write(descriptor: int, certificate: dict[str, Any]) -> None:
    """The certificate, as JSON. On return it is on disk."""
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(certificate, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
