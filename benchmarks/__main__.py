"""What Spanhouse costs on this machine: `make bench`, or `python -m benchmarks --help`.

The command line. Prints progress on standard error and a table a profile on standard output. Ends with 1 when nothing
could be measured or spans are missing, and with 0 however the figures stand to their targets.
"""

import argparse
import json
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

from benchmarks import report
from benchmarks.child import ChildFailed
from benchmarks.measure import FULL, QUICK, Plan, SpansMissing, measure
from benchmarks.payloads import Profile
from benchmarks.server import ServerFailed

PROFILES: tuple[Profile, ...] = get_args(Profile)


def main() -> int:
    """Measure what the arguments ask for."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped and the files removed
    profiles = PROFILES if given.profile == "both" else (given.profile,)
    measured = []
    machine = report.machine(given.directory)
    print("; ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n", flush=True)
    for profile in profiles:
        with tempfile.TemporaryDirectory(prefix="spanhouse-bench-", dir=given.directory) as directory:
            try:
                result = measure(Path(directory), profile, _plan(given), given.serve_option)
            except (ChildFailed, ServerFailed, SpansMissing) as error:
                print(f"cannot measure {profile} spans: {error}", file=sys.stderr)
                return 1
        measured.append(result)
        print(report.table(result), end="\n\n", flush=True)
    if given.json:
        document = report.document(machine, sys.argv[1:], measured)
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what Spanhouse costs.")
    parser.add_argument("--profile", choices=(*PROFILES, "both"), default="both")
    parser.add_argument("--spans", type=_count, help="spans at full load, for each profile")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it runs; its figures say little")
    parser.add_argument(
        "--serve-option",
        type=_serve_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of `spanhouse serve`, such as segment-bytes-max=16MiB; may be given again",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    parser.add_argument(
        "--directory",
        type=_directory,
        default=Path(tempfile.gettempdir()),
        help="where the data are written, some gigabytes, and removed; should be on a disk, not in memory",
    )
    return parser.parse_args()


def _plan(given: argparse.Namespace) -> Plan:
    plan = QUICK if given.quick else FULL
    return replace(plan, spans=dict.fromkeys(PROFILES, given.spans)) if given.spans else plan


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"cannot send {count} spans: 1 is the least")
    return count


def _directory(text: str) -> Path:
    if not (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: it is no directory")
    return path


def _serve_option(text: str) -> str:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"cannot take {text!r}: write NAME=VALUE")
    return f"--{name.lstrip('-').replace('_', '-')}={value}"


if __name__ == "__main__":
    sys.exit(main())
