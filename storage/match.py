"""What a rule asks of a span: policies and sampling rules match alike. Pure; in SQL: retention_sql.py."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.rules import BadRules, only

VALUES_MAX = 100
TEXT_BYTES_MAX = 256
STATUSES = {"unset": 0, "ok": 1, "error": 2}
TEXTS = ("tenant", "service", "environment", "operation", "agent", "model", "run", "session", "user")
"""What is matched by text: any of several, each with `*` for any characters."""
_KEYS = (*TEXTS, "status", "min_duration_ms", "max_duration_ms", "attributes")


@dataclass(frozen=True, slots=True)
class Match:
    """What a span has to be, all of it. Texts are alternatives; without any, everything will do."""

    texts: Mapping[str, tuple[str, ...]]
    status: tuple[str, ...] = ()
    min_duration_ms: float | None = None
    max_duration_ms: float | None = None
    attributes: Mapping[str, tuple[str, ...]] | None = None

    def json(self) -> dict[str, Any]:
        """As `parsed` takes it."""
        return dict(self._pairs())

    def _pairs(self) -> Iterator[tuple[str, Any]]:
        for key, values in self.texts.items():
            yield key, list(values)
        if self.status:
            yield "status", list(self.status)
        for key in ("min_duration_ms", "max_duration_ms"):
            if (value := getattr(self, key)) is not None:
                yield key, value
        if self.attributes:
            yield "attributes", {key: list(values) for key, values in self.attributes.items()}


def parsed(one: Any, where: str) -> Match:
    """A match as in a document, of what `where` names. Raises BadRules."""
    if not isinstance(one, Mapping):
        raise BadRules(f"cannot use the match of {where}: it has to be a table such as {{ service = 'crawler' }}")
    only(one, _KEYS, f"the match of {where}")
    texts = {key: _texts(one[key], f"{key} of {where}") for key in TEXTS if key in one}
    status = _texts(one["status"], f"status of {where}") if "status" in one else ()
    if unknown := next((text for text in status if text not in STATUSES), None):
        raise BadRules(f"cannot use {where}: status {unknown!r} is none of {', '.join(STATUSES)}")
    attributes = one.get("attributes", {})
    if not isinstance(attributes, Mapping) or len(attributes) > VALUES_MAX:
        raise BadRules(f"cannot use {where}: attributes has to be a table of at most {VALUES_MAX} keys")
    return Match(
        texts,
        status,
        _duration(one, "min_duration_ms", where),
        _duration(one, "max_duration_ms", where),
        {key: _texts(value, f"attribute {key!r} of {where}") for key, value in attributes.items()},
    )


def _duration(one: Mapping[str, Any], key: str, where: str) -> float | None:
    value = one.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1e12:
        raise BadRules(f"cannot use {where}: {key} is {value!r}; write milliseconds from 0 on")
    return float(value)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str | int | float | bool) else value
    if not isinstance(values, Sequence) or not 1 <= len(values) <= VALUES_MAX:
        raise BadRules(f"cannot use {where}: write a text, or a list of 1 to {VALUES_MAX} texts")
    return tuple(_text(one, where) for one in values)


def _text(value: Any, where: str) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, str | int | float) or not text or len(text.encode()) > TEXT_BYTES_MAX:
        raise BadRules(f"cannot use {where}: {value!r} is no text of 1 to {TEXT_BYTES_MAX} bytes")
    return text
