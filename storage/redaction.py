"""Redaction rules: what of spans and log records is replaced, or hashed with a key, before it is stored.

A rule names attributes by their keys, or a pattern of text, or both: then the pattern within those attributes. Rules
apply in their order, each to what the one before it left. Pure; what they come to in SQL is redaction_sql.py's.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.rules import BadRules, only

RULES_MAX = 50
VALUES_MAX = 200
TEXT_BYTES_MAX = 1024
KEY_BYTES_MIN, KEY_BYTES_MAX = 16, 4096
_FIELDS = ("name", "tenant", "service", "keys", "pattern", "with", "hash")


@dataclass(frozen=True, slots=True)
class Rule:
    """What is replaced by `text`, or by a keyed hash where that is None. Texts are alternatives, `*` any characters.

    Without tenants or services it is for all of them; without keys, for every text. Without a pattern, whole values.
    """

    name: str
    text: str | None
    keys: tuple[str, ...] = ()
    pattern: str = ""
    tenants: tuple[str, ...] = ()
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Redaction:
    """Rules, and the file of the key with which they hash; None if none does."""

    rules: tuple[Rule, ...]
    key_file: Path | None = None


def load(path: Path | None, key_file: Path | None) -> Redaction | None:
    """The rules of a file; None without one. Raises BadRules, which never quotes the key."""
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadRules(f"cannot read the redaction rules in {path}: {error}") from error
    only(table, ("rules",), f"{path}")
    entries = table.get("rules", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadRules(f"cannot use rules in {path}: write [[rules]] with two brackets above every rule")
    if len(entries) > RULES_MAX:
        raise BadRules(f"cannot use {len(entries)} rules in {path}: {RULES_MAX} are the most")
    rules = tuple(_rule(entry, f"rule {number} in {path}") for number, entry in enumerate(entries, 1))
    if not rules:
        return None
    hashing = next((rule.name for rule in rules if rule.text is None), None)
    if hashing is None:
        return Redaction(rules)
    if key_file is None:
        raise BadRules(f"cannot hash by rule {hashing!r} in {path}: give the file of a key by --redaction-key-file")
    _check_key(key_file)
    return Redaction(rules, key_file.absolute())


def _check_key(path: Path) -> None:
    try:
        size = len(path.read_bytes().strip())
    except OSError as error:
        raise BadRules(f"cannot read the redaction key in {path}: {error.strerror}") from error
    if not KEY_BYTES_MIN <= size <= KEY_BYTES_MAX:
        raise BadRules(
            f"cannot use the redaction key in {path}: it has {size} bytes; {KEY_BYTES_MIN} to {KEY_BYTES_MAX} will do, "
            "such as those of `openssl rand -hex 32`"
        )


def _rule(entry: Mapping[str, Any], where: str) -> Rule:
    only(entry, _FIELDS, where)
    name = _text(entry.get("name"), f"the name of {where}")
    where = f"rule {name!r}"
    keys = _texts(entry, "keys", where)
    pattern = _text(entry["pattern"], f"the pattern of {where}") if "pattern" in entry else ""
    if not keys and not pattern:
        raise BadRules(f"cannot use {where}: it needs keys, a pattern, or both")
    text, hashed = entry.get("with"), entry.get("hash", False)
    if not isinstance(hashed, bool) or (text is None) is not hashed:
        raise BadRules(f'cannot use {where}: write either with = "…" or hash = true')
    if text is not None and (not isinstance(text, str) or len(text.encode()) > TEXT_BYTES_MAX):
        raise BadRules(f"cannot use {where}: `with` has to be a text of at most {TEXT_BYTES_MAX} bytes")
    return Rule(name, text, keys, pattern, _texts(entry, "tenant", where), _texts(entry, "service", where))


def _texts(entry: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    if field not in entry:
        return ()
    given = entry[field]
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list) or not 1 <= len(values) <= VALUES_MAX:
        raise BadRules(f"cannot use {field} of {where}: write a text, or a list of 1 to {VALUES_MAX} texts")
    return tuple(_text(value, f"{field} of {where}") for value in values)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value or len(value.encode()) > TEXT_BYTES_MAX:
        raise BadRules(f"cannot use {what}: {value!r} is no text of 1 to {TEXT_BYTES_MAX} bytes")
    return value
