"""Budgets as people write them: how many bytes on disk a tenant may have, and the whole store; what is done near that.

Pure. What happens by them is budgets.py's.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, TypeAdapter, ValidationError

from storage.rules import BadRules, only

BUDGETS_MAX = 10_000
EVERY = "*"
"""The tenant of the budget that each tenant has that is not named."""
STEPS = ("none", "warn", "shorten", "sample", "refuse")
"""What is done, the higher the more; each does what those before it do, too."""
LONG_BYTES_MIN = 512

Refuse = Literal["retryable", "partial_success"]
_REFUSE: tuple[Refuse, ...] = ("retryable", "partial_success")
_SIZE = TypeAdapter(ByteSize)


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes on disk, and how a sender hears that they are spent."""

    bytes: int
    refuse: Refuse = "retryable"


@dataclass(frozen=True, slots=True)
class Rules:
    """All budgets. `shares` are the parts of a budget at which the steps after "none" begin, in their order.

    A step ends when less than its share minus `hysteresis` is used. Content longer than `long_bytes` is shortened;
    `keep` is the part of ordinary traces that is kept when they are sampled.
    """

    tenants: Mapping[str, Budget]
    whole: Budget | None = None
    shares: tuple[float, float, float, float] = (0.7, 0.8, 0.9, 1.0)
    hysteresis: float = 0.05
    long_bytes: int = 4096
    keep: float = 0.1

    def of(self, tenant: str) -> Budget | None:
        """What a tenant may have; None: as much as the whole allows."""
        return self.tenants.get(tenant) or self.tenants.get(EVERY)

    def step(self, share: float, now: int = 0) -> int:
        """The step, a number in STEPS, at this share of a budget, coming from another one."""
        up = sum(share >= begin for begin in self.shares)
        down = sum(share >= begin - self.hysteresis for begin in self.shares)
        return max(up, min(now, down))


NONE = Rules({})


def load(path: Path | None) -> Rules:
    """The budgets of a file. Raises BadRules."""
    if path is None:
        return NONE
    try:
        return parsed(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadRules(f"cannot read the budgets in {path}: {error}") from error
    except BadRules as error:
        raise BadRules(f"{error} (in {path})") from error


def parsed(document: Mapping[str, Any]) -> Rules:
    """Budgets as in a file. Raises BadRules."""
    only(document, ("budgets", "whole", "steps", "shorten", "sample"), "the file")
    entries = document.get("budgets", [])
    if not isinstance(entries, list) or len(entries) > BUDGETS_MAX:
        raise BadRules(f"cannot use budgets: write [[budgets]] with two brackets, {BUDGETS_MAX} at most")
    tenants: dict[str, Budget] = {}
    for number, entry in enumerate(entries, 1):
        where = f"budget {number}"
        only(_table(entry, where), ("tenant", "bytes", "refuse"), where)
        tenant = entry.get("tenant")
        if not isinstance(tenant, str) or not tenant:
            raise BadRules(f'cannot use {where}: it needs a tenant, such as "team-a", or "{EVERY}" for each other one')
        if tenant in tenants:
            raise BadRules(f"cannot use {where}: there is another one of tenant {tenant!r}")
        tenants[tenant] = _budget(entry, where)
    whole = _table(document.get("whole", {}), "[whole]")
    only(whole, ("bytes", "refuse"), "[whole]")
    steps = _table(document.get("steps", {}), "[steps]")
    only(steps, (*STEPS[1:], "hysteresis"), "[steps]")
    shorten, sample = _table(document.get("shorten", {}), "[shorten]"), _table(document.get("sample", {}), "[sample]")
    only(shorten, ("longer_than",), "[shorten]")
    only(sample, ("keep",), "[sample]")
    return Rules(
        tenants,
        _budget(whole, "[whole]") if whole else None,
        _shares(steps),
        _number(steps, "hysteresis", NONE.hysteresis, 0.5, "[steps]"),
        _bytes(shorten["longer_than"], LONG_BYTES_MIN, "longer_than of [shorten]") if shorten else NONE.long_bytes,
        _number(sample, "keep", NONE.keep, 1, "[sample]"),
    )


def _shares(steps: Mapping[str, Any]) -> tuple[float, float, float, float]:
    warn, shorten, sample, refuse = (
        _number(steps, name, share, 10, "[steps]") for name, share in zip(STEPS[1:], NONE.shares, strict=True)
    )
    if not 0 < warn <= shorten <= sample <= refuse:
        raise BadRules(
            f"cannot use [steps] warn {warn:g}, shorten {shorten:g}, sample {sample:g}, refuse {refuse:g}: none may be "
            "less than the one before it, and warn has to be more than 0"
        )
    return warn, shorten, sample, refuse


def _budget(entry: Mapping[str, Any], where: str) -> Budget:
    refuse = entry.get("refuse", "retryable")
    if refuse not in _REFUSE:
        raise BadRules(f"cannot use refuse = {refuse!r} of {where}: write one of {', '.join(_REFUSE)}")
    return Budget(_bytes(entry.get("bytes"), 1, f"bytes of {where}"), refuse)


def _bytes(value: Any, least: int, what: str) -> int:
    try:
        size = 0 if isinstance(value, bool) else int(_SIZE.validate_python(value))
    except ValidationError:
        size = 0
    if size < least:
        raise BadRules(f'cannot use {what}: {value!r} is no size of at least {least} bytes, such as "50 GB"')
    return size


def _number(given: Mapping[str, Any], name: str, default: float, most: float, where: str) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise BadRules(f"cannot use {name} = {value!r} of {where}: write a number from 0 to {most:g}")
    return float(value)


def _table(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise BadRules(f"cannot use {where}: it has to be a table of names and values")
    return given
