"""What the paths of the API are asked with: the tenant, a trace's id, times and durations as people write them.

A ValueError says what would be right; FastAPI makes a 400 of it.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

from fastapi import Header, Path, Request
from pydantic import BaseModel, BeforeValidator, WithJsonSchema

from query.errors import Refused

TIME_MAX_NANO = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_NANO = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # micro sign
    "μs": 10**3,  # Greek mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_PART = r"(\d{1,19}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|μs|ms|s|m|h|d)"
_PARTS = re.compile(rf"(?:{_PART}){{1,8}}", re.ASCII)
_INTEGER = re.compile(r"\d{1,20}", re.ASCII)
# A "+" of an offset arrives as a space when the sender did not escape it.
_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+ -])(\d\d):(\d\d))", re.ASCII)


def duration_nano(text: str) -> int:
    """Nanoseconds of "250ms", "1.5s", "1h30m", or of a bare integer, which is nanoseconds already."""
    if _INTEGER.fullmatch(text):
        nano = int(text)
    elif _PARTS.fullmatch(text):
        nano = int(sum(Decimal(number) * _UNITS_NANO[unit] for number, unit in re.findall(_PART, text)))
    else:
        raise ValueError("a duration is like 250ms, 1.5s, 2m or 1h30m, or an integer of nanoseconds")
    if nano > TIME_MAX_NANO:
        raise ValueError("a duration is at most 2^63 - 1 nanoseconds, 292 years")
    return nano


def time_unix_nano(text: str) -> int:
    """Nanoseconds since 1970 of an integer of them, of an RFC 3339 time, or of a time before now ("-1h", "now-15m")."""
    if _INTEGER.fullmatch(text):
        nano = _checked_integer(int(text))
    elif text == "now":
        nano = time.time_ns()
    elif text.startswith(("-", "now-")):
        nano = time.time_ns() - duration_nano(text.partition("-")[2])
    elif match := _RFC_3339.fullmatch(text):
        nano = _rfc_3339_nano(match)
    else:
        raise ValueError(
            "a time is like 2026-01-31T12:00:00Z, -1h, now-15m or now, or an integer of nanoseconds since 1970"
        )
    if not 0 <= nano <= TIME_MAX_NANO:
        raise ValueError("a time lies between 1970-01-01 and 2262-04-11")
    return nano


def _checked_integer(nano: int) -> int:
    """Seconds, milliseconds or microseconds of our days would silently mean the year 1970."""
    for unit, nano_each in (("seconds", 10**9), ("milliseconds", 10**6), ("microseconds", 10**3)):
        if 10**17 <= nano * nano_each < 10**19 and nano < 10**17:
            raise ValueError(f"{nano} looks like {unit}; a time is in nanoseconds since 1970: {nano * nano_each}")
    return nano


def _rfc_3339_nano(match: re.Match[str]) -> int:
    date, clock, fraction, sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes)) if sign else timedelta()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}+00:00") - (-offset if sign == "-" else offset)
    except OverflowError:  # the first or the last day of the calendar
        return -1
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def _trace_id(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        other = "" if re.fullmatch(r"[0-9a-fA-F]*", text) else " characters that are not all hex digits"
        raise ValueError(f"a trace id has 32 hex digits, and this has {len(text)}{other}")
    return bytes.fromhex(text)


TraceId = Annotated[
    bytes,
    Path(description="32 hex digits.", examples=["5b8efff798038103d269b633813fc60c"]),
    BeforeValidator(_trace_id),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-fA-F]{32}$"}),
]
TIME_FORMATS = "RFC 3339, relative to now (`-1h`, `now-15m`, `now`), or integer nanoseconds since 1970."
DURATION_FORMATS = "`250ms`, `1.5s`, `1h30m`, or integer nanoseconds."
Time = Annotated[
    int,
    BeforeValidator(time_unix_nano),
    WithJsonSchema({"type": "string", "examples": ["2026-01-31T12:00:00Z", "-1h", "1764000000000000000"]}),
]
Duration = Annotated[
    int,
    BeforeValidator(duration_nano),
    WithJsonSchema({"type": "string", "examples": ["250ms", "1.5s", "250000000"]}),
]
Tenant = Annotated[
    str,
    Header(alias="x-spanhouse-tenant", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Whose traces."),
]


class NoParameters(BaseModel):
    """A path without query parameters."""


def only_known(parameters: type[BaseModel], *prefixes: str) -> Callable[[Request], None]:
    """Refuse a misspelt filter: an answer to another question would look like an answer to this one."""
    known = [*parameters.model_fields, *(f"{prefix}<key>" for prefix in prefixes)]

    def check(request: Request) -> None:
        seen: set[str] = set()
        for name, _ in request.query_params.multi_items():
            if name.startswith(prefixes) and name not in prefixes:
                continue
            if name not in parameters.model_fields:
                raise Refused(
                    400,
                    f"cannot take the query parameter {name[:200]!r}: this path knows {', '.join(known)}",
                    known=known,
                )
            if name in seen:
                raise Refused(400, f"cannot take the query parameter {name!r} twice")
            seen.add(name)

    return check
