"""Whom an erasure is about: selectors, and the statements that find the traces they mean. Pure text, no engine here.

A trace is meant if any of its spans says so: in its attributes, payload or canonical words, in those of its events,
links and log records, in its resource or scope, or in a link to a user or session. Attributes are compared whole; of an
array or a map each text in it is.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from storage.vocabulary import Vocabulary

Kind = Literal["user", "session", "trace", "attribute"]

VALUE_BYTES_MAX = 4096
SELECTORS_MAX = 100
PAGE_TRACES_MAX = 500_000
"""Traces that one statement finds, and a round about; their ids are in memory while rows are removed."""

_PLACES = ("", "trace.", "header.", "baggage.")
_MLFLOW = {"user": "mlflow.trace.user", "session": "mlflow.trace.session"}
_MEMORY = (
    "max_memory_usage = 536870912, max_threads = 2, max_block_size = {rows}, max_execution_time = 0, log_queries = 0,"
    " max_insert_threads = 1, async_insert = 0"
)

_ROWS = {"content": 128}
"""Rows at once, if not 8192: payload is put together from its pieces."""


class BadSelector(ValueError):
    """It does not say whom an erasure is about. The text is a sentence for a person."""


@dataclass(frozen=True, slots=True)
class Selector:
    """`value` is a user's or a session's name, a trace's id in lower-case hex, or that of the attribute `key`."""

    kind: Kind
    value: str
    key: str = ""

    def __post_init__(self) -> None:
        for text in (self.value, self.key):
            size = len(text.encode(errors="replace"))
            if size > VALUE_BYTES_MAX:
                raise BadSelector(f"cannot erase by a {self.kind} of {size} bytes: {VALUE_BYTES_MAX} are the most")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise BadSelector(f"cannot erase by a {self.kind} that is not Unicode text") from None
        if self.kind == "attribute" and not self.key:
            raise BadSelector("cannot erase by an attribute without a key: write KEY=VALUE")
        if not self.value:
            raise BadSelector(f"cannot erase by an empty {self.kind}: nobody is called so")
        if self.kind == "trace" and not (len(self.value) == 32 and set(self.value) <= set("0123456789abcdef")):
            raise BadSelector(f"cannot erase the trace {self.value[:80]!r}: an id has 32 hexadecimal digits")

    @property
    def text(self) -> str:
        """What its hash in a certificate is made of."""
        return f"{self.key}={self.value}" if self.kind == "attribute" else self.value

    def hashed(self) -> dict[str, str]:
        """What a certificate says of it: SHA-256 of a random salt and then the text in UTF-8."""
        salt = secrets.token_bytes(16)
        return {
            "kind": self.kind,
            "salt": salt.hex(),
            "sha256": hashlib.sha256(salt + self.text.encode()).hexdigest(),
        }

    def to_json(self) -> str:
        """As it is kept while the erasure runs."""
        return json.dumps({"kind": self.kind, "value": self.value, "key": self.key})

    @staticmethod
    def from_json(text: str) -> "Selector":
        """The selector that was kept."""
        return Selector(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Statement:
    """INSERT of the traces that a table has of a selector. `paged`: it takes a `day` besides."""

    table: str
    sql: str
    parameters: Mapping[str, Any]
    paged: bool


def keys_of(selector: Selector, vocabulary: Vocabulary) -> list[str]:
    """Keys of attributes whose value is the user or the session, or the one that was asked for."""
    if selector.kind == "attribute":
        return [selector.key]
    field = f"{selector.kind}_id"
    plain = {rule.key for rule in vocabulary.rules if rule.field == field and not rule.path and rule.key != "@name"}
    return sorted(plain | set(vocabulary.resource.get(field, ())))


def statements(selectors: Iterable[Selector], vocabulary: Vocabulary) -> Iterator[Statement]:
    """All of them. Each takes the parameters `erasure`, `round` and `tenant` besides its own."""
    for selector in selectors:
        if selector.kind == "trace":
            continue
        keys = keys_of(selector, vocabulary)
        parameters = {"value": selector.value, "keys": keys}
        named = selector.kind != "attribute"
        spans = [_typed(), _in_maps("EventAttributes"), _in_links(keys, selector.value), _ORIGINS]
        if named:
            said = ", ".join(f"'{place}{selector.kind}_id'" for place in _PLACES)
            spans.insert(0, _exists(f"k IN ({said}) AND v = {{value:String}}", "Canonical"))
        yield _found("spans", " OR ".join(spans).replace("{wire}", _wire(selector.value)), parameters)
        texts = f"{_exists(_EQUAL, 'WholeContent')} OR {_exists(_EQUAL_PIECES, 'ContentPieces')}"
        content = f"{texts} OR {_exists(_TAGGED, 'OtherContent')}"
        yield _found("content", content.replace("{wire}", _wire(selector.value)), parameters)
        records = f"{_exists(_TAGGED, 'Attributes')} OR {_exists(_TAGGED, 'Content')} OR {_exists(_EQUAL, 'Content')}"
        yield _found("records", records.replace("{wire}", _wire(selector.value)), parameters)
        if named:
            linked = {"entity": selector.kind, "value": selector.value}
            by_link = "Entity = {entity:String} AND Id = {value:String} AND Deleted = 0"
            yield _found("links FINAL", by_link, linked, paged=False)
            yield _found("explicit_links FINAL", by_link, linked, paged=False)
            metadata = {"name": _MLFLOW[selector.kind], "value": selector.value}
            yield _found("mlflow_traces FINAL", "Metadata[{name:String}] = {value:String}", metadata, paged=False)


_EQUAL = "has({keys:Array(String)}, k) AND v = {value:String}"
# One letter for the type, then the text; of an array or a map the wire bytes, where a text has its length before it.
_EQUAL_PIECES = "has({keys:Array(String)}, k) AND arrayStringConcat(v) = {value:String}"
_TAGGED = (
    "has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String}"
    " OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0)"
    " OR substring(v, 1, 1) IN ('a', 'm') AND position(v, {wire}) > 0)"
)


def _exists(condition: str, column: str) -> str:
    return f"arrayExists((k, v) -> {condition}, mapKeys({column}), mapValues({column}))"


def _in_maps(column: str) -> str:
    return f"arrayExists(m -> {_exists(_TAGGED, 'm')}, {column})"


_ORIGINS = (
    "OriginId IN (SELECT OriginId FROM spanhouse.origins WHERE Tenant = {tenant:String} AND ("
    f"{_exists(_TAGGED, 'ResourceAttributes')} OR {_exists(_TAGGED, 'ScopeAttributes')}))"
)


def _typed() -> str:
    known = "has({keys:Array(String)}, k)"
    return " OR ".join(
        (
            _exists(_EQUAL, "StringAttributes"),
            _exists(f"{known} AND toString(v) = {{value:String}}", "IntAttributes"),
            _exists(f"{known} AND ifNull(v = toFloat64OrNull({{value:String}}), 0)", "FloatAttributes"),
            _exists(f"{known} AND toString(v) = {{value:String}}", "BoolAttributes"),
            _exists(_TAGGED, "OtherAttributes"),
        )
    )


def _in_links(keys: Sequence[str], value: str) -> str:
    """Links of spans are kept in wire bytes: a KeyValue with this key and text."""
    size = len(value.encode())
    any_value = len(_varint(size)) + 1 + size
    found = [
        f"position(l, concat({_char(10, len(key.encode()))}, {{keys:Array(String)}}[{number}],"
        f" {_char(18, any_value)}, {_wire(value)})) > 0"
        for number, key in enumerate(keys, 1)
    ]
    return f"arrayExists(l -> {' OR '.join(found)}, Links)"


def _wire(value: str) -> str:
    """A text as it lies in an AnyValue, in SQL."""
    return f"concat({_char(10, len(value.encode()))}, {{value:String}})"


def _char(tag: int, size: int) -> str:
    return f"char({', '.join(map(str, (tag, *_varint(size))))})"


def _varint(value: int) -> list[int]:
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return [*out, value]


def _found(table: str, condition: str, parameters: Mapping[str, Any], *, paged: bool = True) -> Statement:
    day = " AND Day = toDate({day:UInt16})" if paged else ""
    sql = (
        "INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)\n"
        "SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId\n"
        f"FROM spanhouse.{table}\n"
        f"WHERE Tenant = {{tenant:String}}{day} AND ({condition})\n"
        f"LIMIT {PAGE_TRACES_MAX}\nSETTINGS {_MEMORY.format(rows=_ROWS.get(table, 8192))}"
    )
    return Statement(table.split(maxsplit=1)[0], sql, parameters, paged)
