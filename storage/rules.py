"""What documents that people write for Spanhouse have in common: policies, sampling rules, redaction, budgets. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any


class BadRules(ValueError):
    """A document of rules that cannot be used. The text says what in it, why, and what to write instead."""


def only(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise BadRules if a table has a key that is not known."""
    if unknown := sorted(set(given) - set(known)):
        raise BadRules(f"cannot use {unknown[0]!r} in {where}; known are {', '.join(known)}")
