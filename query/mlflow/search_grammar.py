"""The filter and order of MLflow's trace search, from text to clauses. Pure.

    filter    := clause (AND clause)*                      no OR, NOT or parentheses around clauses
    clause    := name operator value | name IS [NOT] NULL | name [NOT] IN (text, …)
    name      := [attribute|attributes|trace].<attribute>, <attribute>, tag[s].<key>, [request_]metadata.<key>,
                 span.<name|type|status|content>, span.attributes.<key>, feedback.<name>, expectation.<name>, issue.id
    order_by  := name [ASC|DESC]

Keys with other characters stand in backticks or double quotes. Keywords are in any case.
Source: mlflow 3.17, mlflow/utils/search_utils.py (SearchTraceUtils).
"""

import re
from dataclasses import dataclass
from typing import Literal

from query.mlflow.refusals import MlflowRefused, invalid
from query.mlflow.trace_info import NAME, PROMPTS, RUN

FILTER_CHARS_MAX = 20_000
CLAUSES_MAX = 50

Kind = Literal[
    "attribute", "tag", "metadata", "span", "span_attribute", "feedback", "expectation", "issue", "run", "prompt"
]
Value = str | int | float | tuple[str, ...] | None

TEXT = ("=", "!=", "LIKE", "ILIKE", "RLIKE")
SET = ("IN", "NOT IN")
NULL = ("IS NULL", "IS NOT NULL")
NUMERIC = ("=", "!=", ">", ">=", "<", "<=")

_NUMBERS = {
    "timestamp": "timestamp_ms", "timestamp_ms": "timestamp_ms", "execution_time": "execution_time_ms",
    "execution_time_ms": "execution_time_ms", "end_time": "end_time_ms", "end_time_ms": "end_time_ms",
}  # fmt: skip
_TEXTS = ("request_id", "status", "client_request_id")
_ORDERS = (*_NUMBERS, "experiment_id", "status", "request_id", "name", "run_id")
_PREFIXES = {
    "attribute": "attribute", "attributes": "attribute", "trace": "attribute", "tag": "tag", "tags": "tag",
    "metadata": "metadata", "request_metadata": "metadata", "span": "span", "feedback": "feedback",
    "expectation": "expectation", "issue": "issue",
}  # fmt: skip
_OPERATORS: dict[str, tuple[str, ...]] = {
    "tag": (*TEXT, *SET, *NULL), "metadata": (*TEXT, *SET, *NULL), "span": (*TEXT, *SET),
    "span_attribute": (*TEXT, *SET), "feedback": (*TEXT, *NUMERIC[2:], *NULL),
    "expectation": (*TEXT, *NUMERIC[2:], *NULL), "issue": ("=",), "prompt": ("=",), "run": (*TEXT, *SET, *NULL),
}  # fmt: skip

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*")
      | (?P<name>(?:[A-Za-z_]\w*|`[^`]+`)(?:\.(?:[\w-]+|`[^`]+`|"[^"]+"))*)
      | (?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)
      | (?P<operator>!=|<>|>=|<=|=|>|<)
      | (?P<other>\S)
    )""",
    re.VERBOSE,
)
_PART = re.compile(r"""`([^`]+)`|"([^"]+)"|([^.`"]+)""")


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition. `key` is an attribute (timestamp_ms, execution_time_ms, end_time_ms, request_id, status,
    client_request_id), a key of a tag, of metadata or of a span, or the name of an assessment; it is empty for a run
    and a prompt."""

    kind: Kind
    key: str
    operator: str
    value: Value = None


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to sort by: an attribute, a tag or metadata."""

    kind: Kind
    key: str
    ascending: bool


def parse_filter(text: str) -> list[Clause]:
    """The clauses of a filter; all must hold. Raises MlflowRefused."""
    if len(text) > FILTER_CHARS_MAX:
        raise invalid(f"cannot read a filter of {len(text)} characters: {FILTER_CHARS_MAX} are the most")
    tokens = _Tokens(text)
    clauses: list[Clause] = []
    while not tokens.at_end():
        if clauses:
            tokens.expect_word("AND")
        clauses.append(_clause(tokens))
        if len(clauses) > CLAUSES_MAX:
            raise invalid(f"cannot read a filter of more than {CLAUSES_MAX} conditions")
    return clauses


def parse_order(text: str) -> Order:
    """One element of order_by. Raises MlflowRefused."""
    name, _, direction = text.strip().rpartition(" ")
    if direction.upper() not in ("ASC", "DESC") or not name:
        name, direction = text.strip(), "ASC"
    match = _TOKEN.fullmatch(name.strip())
    if match is None or match["name"] is None:
        raise invalid(f"cannot order by {text[:200]!r}: write a name, and ASC or DESC behind it")
    kind, key = _name(match["name"], text)
    ascending = direction.upper() == "ASC"
    if kind == "run":
        return Order("metadata", RUN, ascending)
    if kind not in ("attribute", "tag", "metadata") or (
        kind == "attribute" and key not in (*_ORDERS, *_NUMBERS.values())
    ):
        raise invalid(f"cannot order by {text[:200]!r}: order by {', '.join(_ORDERS)}, or by a tag or metadata")
    return Order(kind, key, ascending)


class _Tokens:
    """The words of a filter, one after the other."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found = list(_TOKEN.finditer(text.rstrip()))
        self._at = 0

    def at_end(self) -> bool:
        return self._at == len(self._found)

    def next(self, what: str) -> re.Match[str]:
        if self.at_end():
            raise self.refusal(f"it ends where {what} should stand")
        self._at += 1
        return self._found[self._at - 1]

    def word(self, *words: str) -> bool:
        """Take the words that follow, if they are these."""
        following = [match[0].strip().upper() for match in self._found[self._at : self._at + len(words)]]
        if following != list(words):
            return False
        self._at += len(words)
        return True

    def expect_word(self, word: str) -> None:
        found = self.next(word)[0].strip()
        if found.upper() == "OR":
            raise self.refusal("conditions are joined by AND only; search twice instead of OR")
        if found.upper() != word:
            raise self.refusal(f"{found[:100]!r} stands where {word} should")

    def refusal(self, why: str) -> MlflowRefused:
        return invalid(f"cannot read the filter {self._text[:500]!r}: {why}")


def _clause(tokens: _Tokens) -> Clause:
    found = tokens.next("a name")
    if found["name"] is None:
        raise tokens.refusal(f"{found[0].strip()[:100]!r} stands where a name should")
    kind, key = _name(found["name"], found["name"])
    operator = _operator(tokens)
    allowed = _allowed(kind, key)
    if operator not in allowed:
        raise tokens.refusal(f"{found['name'][:200]} compares by {', '.join(allowed)}, not by {operator}")
    if operator in NULL:
        return Clause(kind, key, operator)
    value = _list(tokens) if operator in SET else _value(tokens)
    numeric = (kind == "attribute" and key in _NUMBERS.values()) or operator in (">", ">=", "<", "<=")
    if numeric and isinstance(value, str):
        raise tokens.refusal(f"{found['name'][:200]} {operator} takes a number, not {value[:100]!r}")
    if not numeric and isinstance(value, (int, float)) and kind not in ("feedback", "expectation"):
        raise tokens.refusal(f"{found['name'][:200]} takes a text in quotes, not {value}")
    if kind == "prompt" and (not isinstance(value, str) or value.count("/") != 1):
        raise tokens.refusal("a prompt is written as 'name/version'")
    return Clause(kind, key, operator, value)


def _allowed(kind: Kind, key: str) -> tuple[str, ...]:
    if kind == "attribute":
        return NUMERIC if key in _NUMBERS.values() else (*TEXT, *SET)
    if kind == "span" and key == "content":
        return ("LIKE", "ILIKE")
    return _OPERATORS[kind]


def _name(text: str, shown: str) -> tuple[Kind, str]:
    """Kind and key of a name."""
    parts = [quoted or double or plain for quoted, double, plain in _PART.findall(text)]
    head, rest = parts[0], ".".join(parts[1:])
    kind = _PREFIXES.get(head.lower()) if rest else "attribute"
    key = rest or head
    match kind:
        case "attribute":
            return _attribute(key, shown)
        case "tag" | "metadata":
            return _kept_elsewhere(kind, key)
        case "span" if key.lower().startswith("attributes."):
            return "span_attribute", key[len("attributes.") :]
        case "span" if key in ("name", "type", "status", "content"):
            return "span", key
        case "feedback" | "expectation":
            return kind, key
        case "issue" if key == "id":
            return "issue", key
    raise invalid(f"cannot search by {shown[:200]!r}: there is no such name")


def _attribute(key: str, shown: str) -> tuple[Kind, str]:
    if key in _NUMBERS:
        return "attribute", _NUMBERS[key]
    match key:
        case "name":
            return "tag", NAME
        case "run_id":
            return "run", ""
        case "prompt":
            return "prompt", ""
        case "text":
            return "span", "content"
    if key in (*_TEXTS, "experiment_id"):
        return "attribute", key
    known = ", ".join((*_NUMBERS, *_TEXTS, "name", "run_id", "prompt", "text"))
    raise invalid(f"cannot search by {shown[:200]!r}: attributes are {known}")


def _kept_elsewhere(kind: Literal["tag", "metadata"], key: str) -> tuple[Kind, str]:
    """The run and the prompts are looked up among all links of a trace, whoever made them."""
    if kind == "metadata" and key == RUN:
        return "run", ""
    if kind == "tag" and key == PROMPTS:
        return "prompt", ""
    return kind, key


def _operator(tokens: _Tokens) -> str:
    for words in (("IS", "NOT", "NULL"), ("IS", "NULL"), ("NOT", "IN"), ("IN",), ("LIKE",), ("ILIKE",), ("RLIKE",)):
        if tokens.word(*words):
            return " ".join(words)
    found = tokens.next("an operator")
    if found["operator"] is None:
        raise tokens.refusal(f"{found[0].strip()[:100]!r} stands where an operator should")
    return "!=" if found["operator"] == "<>" else found["operator"]


def _value(tokens: _Tokens) -> str | int | float:
    found = tokens.next("a value")
    if found["text"] is not None:
        return _unquoted(found["text"])
    if found["number"] is not None:
        number = found["number"]
        return int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
    raise tokens.refusal(f"{found[0].strip()[:100]!r} stands where a value should: a number, or a text in quotes")


def _list(tokens: _Tokens) -> tuple[str, ...]:
    tokens.expect_word("(")
    values: list[str] = []
    while not tokens.word(")"):
        if values:
            tokens.expect_word(",")
        value = _value(tokens)
        if not isinstance(value, str):
            raise tokens.refusal("a list holds texts in quotes")
        values.append(value)
    return tuple(values)


def _unquoted(text: str) -> str:
    return text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]
