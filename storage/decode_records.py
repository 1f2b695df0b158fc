"""The statement that reads the log records of a WAL segment: rows of `spanhouse.records`, inside the engine.

Pure text, no engine here; the tricks are those of decode.py. Frames of spans are skipped as bytes, as decode.py skips
those of log records: neither statement can fail for the other's frames. What each column means is written in
schema/0007_records.sql.
"""

from pathlib import Path

from storage.decode import (
    ATTRIBUTES,
    MEMBERS,
    NEAR_DAYS,
    START_MAX_UNIX_NANO,
    VALUE,
    Rows,
    aliases,
    content_rule,
    settings,
    tagged,
    unfold,
)
from storage.literals import literal
from storage.redaction_sql import RedactionSql
from storage.shortening import Shortening

_RECORD = f"""Tuple(
    time_unix_nano UInt64, observed_time_unix_nano UInt64, trace_id String, span_id String, event_name String,
    severity_number Int32, severity_text String, body {VALUE},
    attributes {ATTRIBUTES}, dropped_attributes_count UInt32)"""
_SCOPE_LOGS = f"Array(Tuple(log_records Array({_RECORD})))"
FRAME = f"received_unix_nano UInt64, tenant String, logs Tuple(resource_logs Array(Tuple(scope_logs {_SCOPE_LOGS})))"

_OF_RECORD = {
    "sent": "time_unix_nano",
    "observed": "observed_time_unix_nano",
    "trace_id": "trace_id",
    "span_id": "span_id",
    "event_name": "event_name",
    "severity_number": "severity_number",
    "severity_text": "severity_text",
    "attributes": "attributes",
    "dropped_attributes": "dropped_attributes_count",
    **{f"body_{member}": f"body.{member}" for member in MEMBERS},
}

_BODY = ", ".join(
    f"concat('{letter}', toString(body_{member}))" for letter, member in zip("sidbamy", MEMBERS, strict=True)
)
_EVENT_ATTRIBUTE = "all_attributes['event.name']"

_COLUMNS = {
    "Tenant": "tenant",
    "Day": f"if(abs(toDate(time) - toDate(arrival)) <= {NEAR_DAYS}, toDate(time), toDate(0))",
    "TraceId": "toFixedString(trace_id, 16)",
    "SpanId": "toFixedString(span_id, 8)",
    "Time": "happened",
    "EventName": f"multiIf(event_name != '', event_name, startsWith({_EVENT_ATTRIBUTE}, 's'),"
    f" substring({_EVENT_ATTRIBUTE}, 2), '')",
    "SeverityNumber": "severity_number",
    "SeverityText": "severity_text",
    "Attributes": f"mapFilter((k, s) -> NOT ({content_rule().sql()}), all_attributes)",
    "Content": f"mapFilter((k, s) -> {content_rule().sql()}, all_attributes)",
    "Body": "body",
    "DroppedAttributesCount": "dropped_attributes",
    "RecordKey": "cityHash64(span_id, happened, event_name, severity_number, severity_text, all_attributes, body,"
    " dropped_attributes)",
    "Received": "arrival",
    "Loaded": "now('UTC')",
}
"""Column of `records` → expression."""


def _records(path: str, redaction: RedactionSql | None) -> str:
    """One row a record, from arrays three deep."""
    fields = "logs.resource_logs.scope_logs.log_records"
    deep = {"tenant": "tenant", "received": "received_unix_nano"}
    deep |= {f"{name}3": f"{fields}.{field}" for name, field in _OF_RECORD.items()}
    rows = f"SELECT\n    {aliases(deep)}\nFROM file({path}, 'Protobuf', {literal(FRAME)})"
    for level in (3, 2, 1):
        names = ", ".join(f"{name}{level - 1 or ''}" for name in _OF_RECORD)
        rows = f"SELECT tenant, received, {names}\nFROM\n(\n{rows}\n)\nARRAY JOIN {unfold(_OF_RECORD, level)}"
    columns = {
        "all_attributes": tagged("attributes"),
        "body": f"coalesce({_BODY}, 'e')",
        "happened": "multiIf(sent > 0, sent, observed > 0, observed, received)",
        "time": f"fromUnixTimestamp64Nano(toInt64(least(happened, {START_MAX_UNIX_NANO})), 'UTC')",
        "arrival": "toDateTime(intDiv(received, 1000000000), 'UTC')",
    }
    plain = [name for name in _OF_RECORD if not name.startswith("body_")]
    if redaction is not None:
        # The resource of a log record is not read: rules for some services are for the records of all.
        columns["all_attributes"] = redaction.map(columns["all_attributes"], "")
        body = redaction.values(f"[{columns['body']}]", "['body']", "")
        columns["body"] = f"arrayElement({body}, 1)"
        for name in ("event_name", "severity_text"):
            plain[plain.index(name)] = f"arrayElement({redaction.texts(f'[{name}]', '')}, 1) AS {name}"
    return f"SELECT\n    tenant, {', '.join(plain)},\n    {aliases(columns)}\nFROM\n(\n{rows}\n)"


class RecordDecoder:
    """The statement, for these rules."""

    def __init__(self, redaction: RedactionSql | None = None, shortening: Shortening | None = None) -> None:
        columns = _COLUMNS
        if shortening is not None:
            columns = columns | {
                "Content": shortening.values(columns["Content"]),
                "Body": shortening.value(columns["Body"]),
            }
        self._select = f"SELECT\n    {aliases(columns)}\nFROM\n(\n{_records('{path}', redaction)}\n)"
        if shortening is not None:
            marked = shortening.marked(
                "Attributes", ("arrayStringConcat(mapValues(Content))", "Body"), "concat('i', toString({}))"
            )
            names = ", ".join(columns).replace("Attributes,", f"{marked} AS Attributes,", 1)
            self._select = f"SELECT\n    {names}\nFROM\n(\n{self._select}\n)"

    def rows(self, path: Path) -> Rows:
        """Of one segment: every log record of it is a row of `spanhouse.records`."""
        return Rows("records", tuple(_COLUMNS), self._select.replace("{path}", literal(str(path))), settings())
