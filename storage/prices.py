"""What a model call costs by its tokens: the user's own prices first, then those that the genai-prices package ships.

The package's data has prices by provider, model and time; nothing here reaches for the network. A model is looked up
once, in about a millisecond, after which a call takes microseconds. `cost` may be called from any thread.
"""

import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from genai_prices.data_snapshot import find_provider_by_id, get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from storage.usage import Call

MODELS_KEPT = 4096
"""Looked-up pairs of provider and model. Beyond it all are forgotten: only who makes up names gets there."""
NAME_CHARACTERS_MAX = 256
"""No model has a longer name; longer text is not looked up."""
MILLION = 1_000_000
NANO = 1_000_000_000
USD_PER_MILLION_MAX = 1e9

# Names of OpenTelemetry that genai-prices does not know or takes for another provider's.
_PROVIDERS = {
    "x_ai": "x-ai",
    "azure.ai.openai": "azure",
    "az.ai.openai": "azure",
    "azure.ai.inference": "azure",
    "az.ai.inference": "azure",
}
# Who answers on one's own machine. A model of that name has a price elsewhere, not here.
_OWN_MACHINES = frozenset(
    ("ollama", "vllm", "lmstudio", "lm_studio", "lm-studio", "llamacpp", "llama_cpp", "llama.cpp", "localai", "sglang",
     "tgi", "transformers", "mlx")
)  # fmt: skip
_DATE = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8})$")
_FIELDS = (
    "provider", "model", "since", "until",
    "input_usd_per_million", "output_usd_per_million", "cached_input_usd_per_million", "cache_write_usd_per_million",
)  # fmt: skip


class BadPrices(Exception):
    """A file of prices that cannot be used. The text says which, where and what to write instead."""


@dataclass(frozen=True, slots=True)
class Rate:
    """USD for one token. Some providers charge more for every token of a call with a long input: tiers.

    `starts` has the input tokens beyond which the further tiers begin; each rate has one value more than that. Output
    is None for models that have none.
    """

    starts: tuple[int, ...]
    input: tuple[float, ...]
    output: tuple[float, ...] | None
    cached: tuple[float, ...]
    cache_write: tuple[float, ...]
    request: float = 0.0

    def cost(self, call: Call) -> float | None:
        """USD for a call, or None if it does not say which of its tokens are input and which output."""
        sent, answered = call.input_tokens, call.output_tokens
        if sent is None and answered is None and self.output is None:
            sent = call.total
        if sent is None and answered is None:
            return None
        sent, answered = sent or 0, answered or 0
        cached, written = call.cached_input_tokens or 0, call.cache_write_tokens or 0
        fresh = sent - cached - written
        if fresh < 0:  # a sender that leaves cached tokens out of its input
            fresh, sent = sent, sent + cached + written
        tier = bisect_left(self.starts, sent)
        usd = fresh * self.input[tier] + cached * self.cached[tier] + written * self.cache_write[tier] + self.request
        return usd + answered * self.output[tier] if self.output is not None else usd


@dataclass(frozen=True, slots=True)
class Override:
    """A price of the user's own. `model` is lower-case; `prefix` says that it ended in an asterisk."""

    provider: str
    model: str
    prefix: bool
    since_unix_nano: int
    until_unix_nano: int | None
    rate: Rate

    def fits(self, provider: str, names: Sequence[str]) -> bool:
        """Whether it is the price of a model with one of these names, at some time."""
        if self.provider and self.provider != provider:
            return False
        return any(name.startswith(self.model) if self.prefix else name == self.model for name in names)


class Prices:
    """Prices by provider, model and time. `overrides` is a TOML file; raises BadPrices."""

    def __init__(self, overrides: Path | None) -> None:
        self._providers = get_snapshot().providers
        self.reload(overrides)

    def reload(self, overrides: Path | None) -> None:
        """Read the overrides again. Raises BadPrices, and then all is as before."""
        self._overrides = read_overrides(overrides) if overrides else ()
        self._known: dict[tuple[str, str], tuple[tuple[Override, ...], ModelInfo | None]] = {}
        self._rates: dict[int, Rate | None] = {}  # by identity of the package's prices, which live as long as this

    def cost(self, call: Call) -> float | None:
        """USD for a call by its tokens, at the price of the time it began. None if nobody knows the price."""
        if not call.model or len(call.model) > NAME_CHARACTERS_MAX or len(call.provider) > NAME_CHARACTERS_MAX:
            return None
        key = (call.provider, call.model)
        found = self._known.get(key)
        if found is None:
            found = self._look_up(*key)
            if len(self._known) >= MODELS_KEPT:
                self._known.clear()
            self._known[key] = found
        overrides, model = found
        began = call.start_unix_nano
        for own in overrides:
            if own.since_unix_nano <= began and (own.until_unix_nano is None or began < own.until_unix_nano):
                return own.rate.cost(call)
        rate = self._rate(model, began) if model else None
        return rate.cost(call) if rate else None

    def _look_up(self, provider: str, model: str) -> tuple[tuple[Override, ...], ModelInfo | None]:
        provider = provider.strip().lower()
        names = list(_names(model.strip().lower()))
        overrides = tuple(own for own in self._overrides if own.fits(provider, names))
        return overrides, None if provider in _OWN_MACHINES else self._shipped(provider, names)

    def _shipped(self, provider: str, names: Sequence[str]) -> ModelInfo | None:
        """By the provider that the span says; else the one that the model's name is routed to; else the model's maker.

        The provider may be missing, be a framework, or be the client of another one's service (openai for anything
        that speaks its protocol): then the model's name decides.
        """
        said = self._provider(provider)
        routed = (self._provider(part) for part in names[0].split("/")[:-1])
        makers = (maker for maker in self._providers if maker.model_match is not None)
        for each in (said, *routed, *makers):
            if each is not None:
                for name in names:
                    if found := each.find_model(name, all_providers=self._providers):
                        return found
        return None

    def _provider(self, name: str) -> Provider | None:
        return find_provider_by_id(self._providers, _PROVIDERS.get(name, name)) if name else None

    def _rate(self, model: ModelInfo, began_unix_nano: int) -> Rate | None:
        if isinstance(model.prices, ModelPrice):
            price = model.prices
        else:
            price = model.get_prices(datetime.fromtimestamp(min(began_unix_nano, _END) / NANO, UTC))
        if id(price) not in self._rates:
            self._rates[id(price)] = _rate_of(price)
        return self._rates[id(price)]


_END = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp()) * NANO


def _names(model: str) -> Iterator[str]:
    """A model's name as it was said, then without its routing prefixes, each of these then without its date."""
    while True:
        yield model
        if (dateless := _DATE.sub("", model)) != model:
            yield dateless
        _, slash, model = model.partition("/")
        if not slash:
            return


def _rate_of(price: ModelPrice) -> Rate | None:
    """What text tokens and the request itself cost. None if tokens are not what the model is charged by."""
    into, out = price.input_mtok, price.output_mtok
    if into is None and out is None:
        return None
    cached = into if price.cache_read_mtok is None else price.cache_read_mtok
    written = into if price.cache_write_mtok is None else price.cache_write_mtok
    request = price.requests_kcount
    tiered = [one for one in (into, out, cached, written) if isinstance(one, TieredPrices)]
    starts = tuple(sorted({tier.start for one in tiered for tier in one.tiers}))
    return Rate(
        starts=starts,
        input=_by_tier(into, starts),
        output=None if out is None else _by_tier(out, starts),
        cached=_by_tier(cached, starts),
        cache_write=_by_tier(written, starts),
        request=float(request) / 1000 if isinstance(request, Decimal) else 0.0,
    )


def _by_tier(price: Decimal | TieredPrices | None, starts: Sequence[int]) -> tuple[float, ...]:
    if not isinstance(price, TieredPrices):
        return (float(price or 0) / MILLION,) * (len(starts) + 1)
    values = [price.base]
    for start in starts:
        values.append(next((tier.price for tier in reversed(price.tiers) if tier.start <= start), price.base))
    return tuple(float(value) / MILLION for value in values)


def read_overrides(path: Path) -> tuple[Override, ...]:
    """The `[[price]]` entries of a file, in their order. Raises BadPrices."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadPrices(f"cannot read the prices in {path}: {error}") from error
    if unknown := sorted(set(table) - {"price"}):
        raise BadPrices(f"cannot use {unknown[0]!r} in {path}: it may hold [[price]] entries only")
    entries = table.get("price", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadPrices(f"cannot use price in {path}: write [[price]] with two brackets above every price")
    return tuple(_override(entry, f"price {number} in {path}") for number, entry in enumerate(entries, 1))


def _override(entry: dict[str, Any], where: str) -> Override:
    if unknown := sorted(set(entry) - set(_FIELDS)):
        raise BadPrices(f"cannot use {unknown[0]!r} of {where}: its fields are {', '.join(_FIELDS)}")
    provider, model = entry.get("provider", ""), entry.get("model", "")
    if not isinstance(provider, str):
        raise BadPrices(f'cannot use provider = {provider!r} of {where}: write its name, such as "openai"')
    stem = model.removesuffix("*") if isinstance(model, str) else ""
    if not (stem.strip() or model == "*") or "*" in stem:
        raise BadPrices(
            f"cannot use model = {model!r} of {where}: "
            'write a name, such as "gpt-4o-mini", or how names begin and an asterisk, such as "gpt-4o-mini*"'
        )
    since, until = _moment(entry, "since", where), _moment(entry, "until", where)
    if until is not None and until <= (since or 0):
        raise BadPrices(f"cannot use until = {entry['until']} of {where}: it must be later than since")
    dollars = {name: _dollars(entry, name, where) for name in _FIELDS if name.endswith("_usd_per_million")}
    into, out, cached, written = dollars.values()
    if into is None or out is None:
        missing = "input_usd_per_million" if into is None else "output_usd_per_million"
        raise BadPrices(f"cannot use {where}: it lacks {missing} (0 is allowed)")
    rate = Rate((), (into,), (out,), (into if cached is None else cached,), (into if written is None else written,))
    return Override(provider.strip().lower(), stem.strip().lower(), model.endswith("*"), since or 0, until, rate)


def _dollars(entry: dict[str, Any], name: str, where: str) -> float | None:
    """USD for one token, from USD for a million."""
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= USD_PER_MILLION_MAX:
        raise BadPrices(
            f"cannot use {name} = {value!r} of {where}: write US dollars for a million tokens, such as 0.15"
        )
    return value / MILLION


def _moment(entry: dict[str, Any], name: str, where: str) -> int | None:
    """Nanoseconds since 1970 of a date, whose day begins in UTC, or of a time with its offset from UTC."""
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time(), UTC)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise BadPrices(
            f"cannot use {name} = {value!s} of {where}: write a date, such as 2026-01-31, or a time in UTC, "
            "such as 2026-01-31T12:00:00Z, without quotes"
        )
    return round(value.timestamp() * MILLION) * 1000
