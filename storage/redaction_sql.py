"""Redaction rules as SQL, over arrays of values with a letter for their type, as `tagged` in decode.py has them.

Pure text. Each rule is one arrayMap over what the rule before it left. Hashes are HMAC-SHA256, whose key stands in no
statement: the engine reads it from its file, and ClickHouse writes `[HIDDEN]` for the key of `HMAC` wherever it quotes
a function. Texts within lists and maps are taken out and put back by nested_texts.py, and the rules apply to those.
"""

from collections.abc import Iterable
from pathlib import Path

from storage.literals import literal
from storage.nested_sql import IS_NESTED, within
from storage.redaction import Redaction, Rule

HASH_HEX_DIGITS = 32
_FLAGS = "(?-s)"
"""ClickHouse's functions do not agree on whether a dot is a line break, too: here it is none."""


class RedactionSql:
    """What the rules come to."""

    def __init__(self, redaction: Redaction) -> None:
        self._rules = redaction.rules
        self._key = _key(redaction.key_file) if redaction.key_file else ""

    def probes(self) -> list[tuple[Rule, str]]:
        """For each rule with a pattern a SELECT that fails if the pattern is none, and says 1 if nothing matches it."""
        return [
            (rule, f"SELECT match('', {_pattern(rule)}), extractAll('', {_whole(rule)})")
            for rule in self._rules
            if rule.pattern
        ]

    def values(self, values: str, keys: str, service: str = "service") -> str:
        """Values of attributes with these keys, what is within lists, maps and links (letter `l`) included."""
        plain = self._plain(values, keys, service)
        return within(plain, keys, lambda of, named: self._plain(of, named, service))

    def texts(self, texts: str, service: str = "service") -> str:
        """Texts that are no attributes: patterns without keys apply."""
        tagged = f"arrayMap(x -> concat('s', x), {texts})"
        return f"arrayMap(x -> substring(x, 2), {self._plain(tagged, None, service)})"

    def map(self, attributes: str, service: str = "service") -> str:
        """A map as `tagged` makes it."""
        values = self.values("mapValues(x)", "mapKeys(x)", service.format("x"))
        return f"arrayElement(arrayMap(x -> mapFromArrays(mapKeys(x), {values}), [{attributes}]), 1)"

    def _plain(self, values: str, keys: str | None, service: str) -> str:
        for rule in self._rules:
            if not rule.keys:
                values = f"arrayMap(v -> {self._changed(rule, self._of_whom(rule, service))}, {values})"
            elif keys is not None:
                where = [_any("k", rule.keys), *self._of_whom(rule, service)]
                values = f"arrayMap((k, v) -> {self._changed(rule, where)}, {keys}, {values})"
        return values

    def _of_whom(self, rule: Rule, service: str) -> list[str]:
        where = [_any("tenant", rule.tenants)] if rule.tenants else []
        return [*where, _any(service, rule.services)] if rule.services and service else where

    def _changed(self, rule: Rule, where: Iterable[str]) -> str:
        """A value v by one rule, if all of these hold."""
        text = "substring(v, 2)"
        if not rule.pattern:
            new = literal(f"s{rule.text}") if rule.text is not None else f"concat('s', {self._hash(text)})"
            return f"if({' AND '.join(where)}, {new}, v)"
        conditions = " AND ".join([*where, f"NOT ({IS_NESTED})", f"match({text}, {_pattern(rule)})"])
        return f"if({conditions}, concat(if(startsWith(v, 'y'), 'y', 's'), {self._replaced(rule, text)}), v)"

    def _replaced(self, rule: Rule, text: str) -> str:
        if rule.text is not None:
            return f"replaceRegexpAll({text}, {_pattern(rule)}, {literal(rule.text.replace(chr(92), chr(92) * 2))})"
        hashes = f"arrayPushBack(arrayMap(m -> {self._hash('m')}, extractAll({text}, {_whole(rule)})), '')"
        between = f"splitByRegexp({literal(_FLAGS + rule.pattern)}, {text})"
        return f"arrayStringConcat(arrayMap((p, m) -> concat(p, m), {between}, {hashes}))"

    def _hash(self, text: str) -> str:
        digest = f"lower(hex(assumeNotNull(HMAC('sha256', {text}, {self._key}))))"
        return f"concat('hmac:', substring({digest}, 1, {HASH_HEX_DIGITS}))"


def _key(path: Path) -> str:
    """A scalar that the engine reads. Python's `strip`, which the length was measured with, leaves out the same."""
    line = "replaceRegexpAll(line, '^[ \\\\t\\\\n\\\\r\\\\v\\\\f]+|[ \\\\t\\\\n\\\\r\\\\v\\\\f]+$', '')"
    return f"(SELECT {line} FROM file({literal(str(path))}, 'RawBLOB', 'line String'))"


def _pattern(rule: Rule) -> str:
    return literal(_FLAGS + rule.pattern)


def _whole(rule: Rule) -> str:
    """The pattern as one group: extractAll gives the first one."""
    return literal(f"{_FLAGS}({rule.pattern})")


def _any(text: str, globs: Iterable[str]) -> str:
    """Whether a text is one of these, in which `*` is any characters."""
    globs = list(globs)
    exact = [glob for glob in globs if "*" not in glob]
    found = [f"{text} IN ({', '.join(map(literal, exact))})"] if exact else []
    for glob in globs:
        if "*" in glob:
            escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
            found.append(f"{text} LIKE {literal(escaped)}")
    return f"({' OR '.join(found)})"
