"""Whether the rows of a segment are stored, told by the rows themselves and not by their token. Text alone, no engine.

A table that is not replicated has a log of tokens, and until 2026 ClickHouse wrote a token there before the part of
that token had its name. A server that is killed in between takes the block for stored ever after, and it is not. So
after a server's start the token of an older segment says nothing, and is looked behind.
"""

import re
from pathlib import Path

from storage.decode import Rows

SENT = "sent"
"""The external table of the statement: what the segment has, once each."""
_BORN = re.compile(r"(\d{19})-")
_OF = {
    "ingest": (
        "DISTINCT TraceId, cityHash64(SpanId, Timestamp, Duration, SpanName) AS SpanKey, OriginId,"
        " toUInt8(notEmpty(Content) OR notEmpty(OtherContent)) AS HasContent,"
        " toUnixTimestamp(toDateTime(Timestamp, 'UTC')) AS Second",
        "TraceId FixedString(16), SpanKey UInt64, OriginId UInt64, HasContent UInt8, Second UInt32",
        Path(__file__).with_name("unstored_spans.sql").read_text(),
    ),
    "records": (
        "DISTINCT TraceId, RecordKey",
        "TraceId FixedString(16), RecordKey UInt64",
        Path(__file__).with_name("unstored_records.sql").read_text(),
    ),
}


def born_unix_nano(token: str) -> int | None:
    """When the segment of a token was begun; None if the token does not say."""
    match = _BORN.match(token)
    return int(match[1]) if match else None


def sent(rows: Rows) -> str:
    """SELECT of what a segment has."""
    return f"SELECT {_OF[rows.table][0]} FROM\n(\n{rows.query}\n)\nSETTINGS {rows.settings}"


def structure(rows: Rows) -> str:
    """Columns of SENT."""
    return _OF[rows.table][1]


def unstored(rows: Rows) -> str:
    """SELECT of how many of them the store does not have."""
    return _OF[rows.table][2]
