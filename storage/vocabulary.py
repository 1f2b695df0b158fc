"""The vocabulary: which attribute says what, whoever wrote it.

It is conventions.toml, with a file of the user's in front of it. Owns the table, its reading for a resource, of which
there are few, and the types of what was read; for spans the engine applies the table while it decodes (canonical.py).
Pure; no thread.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from storage.spans import Attributes, Canonical

CONVENTIONS = Path(__file__).with_name("conventions.toml")

KIND = "operation_kind"
MODEL_CALLS = ("llm", "embedding", "reranker")
INTEGERS = (
    "input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens",
)  # fmt: skip
FLOATS = ("cost_usd", "ttft_ms")
PLACES = ("trace", "resource", "header", "baggage")
"""Where else a field may be said, in order of precedence."""
NOTHING = ("", "{}", "[]", '""', '"{}"', "null", "None", "<REDACTED>", "N/A")
"""Placeholders that SDKs write for what they do not know."""
VALUE_BYTES_MAX = 1024
"""A longer value names nothing that anybody looks up."""

# What a rule may ask of its span. The order is that of the bits in canonical.py.
CONDITIONS = (
    "kind=agent",
    "kind=tool",
    "kind=task",
    "kind=llm",
    "call",
    "scope=mlflow.tracing.provider",
    "scope!=openinference.instrumentation.openai_agents",
    "scope!=opentelemetry.instrumentation.openai_agents",
)
UNITS = ("s", "ms", "s|ms", "at", "sum")
_RULE_KEYS = frozenset(("key", "when", "in", "take"))


class BadVocabulary(Exception):
    """A file of conventions that cannot be used. The text says which, where and what to write instead."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One key of a canonical field. Exactly one of an attribute's key, an event's, or the span's name ("@name")."""

    field: str
    key: str
    path: tuple[str, ...] = ()
    """Members of the JSON object that the attribute holds."""
    event: str | None = None
    when: str | None = None
    """Conditions, with commas between; all are to hold."""
    unit: str | None = None
    take: tuple[str, ...] = ()
    """Prefixes of which the value must have one; it is what follows."""


@dataclass(frozen=True)
class Vocabulary:
    """The table, in order of precedence."""

    rules: tuple[Rule, ...]
    resource: Mapping[str, tuple[str, ...]]
    """Field → keys of the resource."""
    kinds: Mapping[str, Mapping[str, str]]
    """Key → lower-case value → kind."""
    weak_kinds: Mapping[str, Mapping[str, str]]
    kinds_by_scope: Mapping[str, Mapping[str, str]]
    kinds_by_presence: Mapping[str, str]
    kinds_by_name: Mapping[str, str]
    providers: Mapping[str, str]

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """All canonical fields, those of other places (`trace.run_id`, `baggage.run_id`) too, in the table's order."""
        return tuple(dict.fromkeys(rule.field for rule in self.rules))

    def of_resource(self, attributes: Attributes) -> dict[str, str]:
        """What a resource says for its spans: canonical field → text."""
        said = {key: _text(value) for key, value in attributes}
        found = {}
        for name, keys in self.resource.items():
            value = next((said[key] for key in keys if said.get(key, "") not in NOTHING), "")
            if value and len(value.encode()) <= VALUE_BYTES_MAX:
                found[name] = value
        return found


def canonical(said: Mapping[str, str], by_resource: Mapping[str, str]) -> Canonical:
    """All that is known of a span in canonical words, typed: what it says itself, then what other places say."""
    places = {place: dict[str, str]() for place in PLACES}
    own = {}
    for name, text in said.items():
        place, _, elsewhere = name.partition(".")
        if elsewhere:
            places[place][elsewhere] = text
        else:
            own[name] = text
    places["resource"] = dict(by_resource)
    if "agent_name" not in own:
        places["resource"].pop("agent_version", None)  # the version of a service is that of its agents only
    for place in PLACES:
        own = {**places[place], **own}
    return {name: value for name, text in own.items() if (value := _typed(name, text)) is not None}


def _typed(name: str, text: str) -> str | int | float | list[str] | None:
    if name == "finish_reasons":
        return text.split(",")
    if name not in INTEGERS and name not in FLOATS:
        return text
    try:
        number = float(text)
        return int(number) if name in INTEGERS else number if math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        return ""
    text = str(value)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def load(extra: Path | None = None) -> Vocabulary:
    """The vocabulary, with the fields and kinds of `extra` before those that come with Spanhouse.

    Raises BadVocabulary.
    """
    table = tomllib.loads(CONVENTIONS.read_text())
    own = _own(extra, table) if extra else {}
    rules: dict[str, list[Rule]] = {}
    for name, keys in table["canonical"].items():
        rules[name] = [_rule(name, key) for key in (*own.get("canonical", {}).get(name, ()), *keys)]
    identity, places = table["places"]["identity"], table["places"]
    elsewhere = [rule for name in identity for rule in _elsewhere(rules[name], places)]
    resource = {
        name: tuple(
            dict.fromkeys(
                (
                    *own.get("resource", {}).get(name, ()),
                    *(rule.key for rule in rules.get(name, ()) if name in identity and _plain(rule)),
                    *table["resource"].get(name, ()),
                )
            )
        )
        for name in dict.fromkeys((*identity, *table["resource"], *own.get("resource", {})))
    }
    kinds = dict(table["kinds"])
    weak, by_scope, present, by_name = (kinds.pop(name) for name in ("weak", "scope", "present", "name"))
    for key, values in own.get("kinds", {}).items():
        kinds[key] = {**kinds.get(key, {}), **{value.lower(): kind for value, kind in values.items()}}
    return Vocabulary(
        rules=(*(rule for name in rules for rule in rules[name]), *elsewhere),
        resource=resource,
        kinds=kinds,
        weak_kinds=weak,
        kinds_by_scope=by_scope,
        kinds_by_presence=present,
        kinds_by_name=by_name,
        providers={**table["providers"], **own.get("providers", {})},
    )


def _plain(rule: Rule) -> bool:
    return not (rule.path or rule.event or rule.when or rule.take or rule.key == "@name")


def _elsewhere(rules: list[Rule], places: Mapping[str, list[str]]) -> Iterator[Rule]:
    """The same keys in what a vendor keeps for the whole trace, and in baggage written as attributes."""
    for place in ("trace", "baggage"):
        for rule in filter(_plain, rules):
            if rule.key.startswith(tuple(places["heads"])):
                yield from (Rule(f"{place}.{rule.field}", prefix + rule.key) for prefix in places[place])


def _rule(name: str, said: str | Mapping[str, str]) -> Rule:
    given = {"key": said} if isinstance(said, str) else said
    key, _, path = given["key"].partition("#")
    event, separator, attribute = key.partition("::")
    return Rule(
        field=name,
        key=attribute if separator else key,
        path=tuple(path.split(".")) if path else (),
        event=event if separator else None,
        when=given.get("when"),
        unit=given.get("in"),
        take=tuple(filter(None, given.get("take", "").split("|"))),
    )


def _own(path: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """The user's file: `[canonical]`, `[resource]`, `[kinds]` and `[providers]`, in the form of conventions.toml."""
    try:
        own = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadVocabulary(f"cannot read the conventions in {path}: {error}") from error
    known = ("canonical", "resource", "kinds", "providers")
    if unknown := sorted(set(own) - set(known)):
        raise BadVocabulary(f"cannot use [{unknown[0]}] in {path}: its tables are {', '.join(known)}")
    for section in ("canonical", "resource"):
        for name, keys in own.get(section, {}).items():
            if name not in table["canonical"]:
                fields = ", ".join(table["canonical"])
                raise BadVocabulary(f"cannot use {name!r} in {path}: the canonical fields are {fields}")
            if not isinstance(keys, list) or not all(_good(key, section) for key in keys):
                raise BadVocabulary(
                    f"cannot use {section}.{name} = {keys!r} in {path}: write a list of keys, such as "
                    f'["acme.{name}"], or {{ key = "acme.{name}", when = "kind=tool" }}'
                )
    for section in ("kinds", "providers"):
        values = own.get(section, {}).items()
        for key, value in values:
            good = isinstance(value, str) if section == "providers" else isinstance(value, dict)
            if not good:
                raise BadVocabulary(f"cannot use {section}.{key} = {value!r} in {path}; see docs/conventions.md")
    for key in own.get("kinds", {}):
        own.setdefault("canonical", {}).setdefault(KIND, []).insert(0, key)
    return own


def _good(said: object, section: str) -> bool:
    if isinstance(said, str):
        return bool(said)
    if section == "resource" or not isinstance(said, dict):
        return False
    return (
        isinstance(said.get("key"), str)
        and set(said) <= _RULE_KEYS
        and set(str(said.get("when", CONDITIONS[0])).split(",")) <= set(CONDITIONS)
        and said.get("in") in (None, *UNITS)
        and isinstance(said.get("take", ""), str)
    )
