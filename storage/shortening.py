"""Shortening: long content becomes a head and a tail, between them how long it was and the hash of it. Pure text.

It is done to what is stored as content and as attributes of events, after all else was read from it: canonical columns,
classes and the keys of log records are those of the whole text, so that a segment that is loaded again, with other
tenants to be shortened, has the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from storage.literals import literal
from storage.nested_sql import IS_NESTED, within

ATTRIBUTE = "spanhouse.shortened"
"""How many values of a span or log record were shortened."""
MARK = "[shortened by Spanhouse: "
BYTES_MIN = 512
HASH_HEX_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Shortening:
    """Of whom which texts are shortened: those of more than `bytes`, which is BYTES_MIN at least."""

    tenants: Sequence[str]
    bytes: int

    def texts(self, attributes: str) -> str:
        """A map of texts."""
        return f"mapApply((k, v) -> (k, if({self._is_long('v', self.bytes)}, {self._short('v')}, v)), {attributes})"

    def values(self, attributes: str) -> str:
        """A map of values with a letter for their type."""
        return (
            f"arrayElement(arrayMap(x -> mapFromArrays(mapKeys(x), {self._values('mapValues(x)', 'mapKeys(x)')}),"
            f" [{attributes}]), 1)"
        )

    def value(self, value: str) -> str:
        """One of them."""
        return f"arrayElement({self._values(f'[{value}]', '[toString(0)]')}, 1)"

    def marked(self, attributes: str, counted: Sequence[str], number: str = "toInt64({})") -> str:
        """A map with ATTRIBUTE, where any of these maps and texts holds a text that was shortened."""
        count = " + ".join(f"countSubstrings({text}, {literal(MARK)})" for text in counted)
        mark = f"map({literal(ATTRIBUTE)}, {number.format(count)})"
        return f"if({self._is_of('Tenant')} AND {count} > 0, mapUpdate({attributes}, {mark}), {attributes})"

    def _values(self, values: str, keys: str) -> str:
        long = f"{self._is_long('v', self.bytes + 1)} AND NOT ({IS_NESTED})"
        new = f"concat(substring(v, 1, 1), {self._short('substring(v, 2)')})"

        def shortened(of: str) -> str:
            return f"arrayMap(v -> if({long}, {new}, v), {of})"

        # Only what is long as a whole has something long within it.
        walked = within(
            f"arrayMap(v -> if({self._is_long('v', self.bytes)}, v, ''), u)", keys, lambda of, _: shortened(of)
        )
        whole = f"arrayMap((v, w) -> if(w = '', v, w), u, {walked})"
        return f"arrayElement(arrayMap(u -> {whole}, [{shortened(values)}]), 1)"

    def _is_of(self, tenant: str) -> str:
        return f"{tenant} IN ({', '.join(map(literal, self.tenants))})"

    def _is_long(self, text: str, length: int) -> str:
        return f"length({text}) > {length} AND {self._is_of('tenant')}"

    def _short(self, text: str) -> str:
        head, tail = self.bytes // 2, self.bytes // 4
        sha256 = f"substring(lower(hex(SHA256({text}))), 1, {HASH_HEX_DIGITS})"
        mark = f"concat(' … {MARK}', toString(length({text})), ' bytes, sha256 ', {sha256}, '] … ')"
        return (
            f"concat(toValidUTF8(substring({text}, 1, {head})), {mark},"
            f" toValidUTF8(substring({text}, length({text}) - {tail - 1})))"
        )
