"""What calls cost: the shipped prices by provider, model and time, and the user's own before them."""

import socket
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from genai_prices import Usage, calc_price

from storage.prices import BadPrices, Prices
from storage.usage import Call

SPRING_2026 = datetime(2026, 4, 1, 12, tzinfo=UTC)


def call(
    model: str,
    provider: str = "",
    input: int | None = 1000,
    output: int | None = 100,
    cached: int | None = None,
    written: int | None = None,
    at: datetime = SPRING_2026,
    total: int | None = None,
) -> Call:
    start = int(at.timestamp()) * 1_000_000_000
    return Call(0, "llm", "", "", provider, model, start, start, input, output, total, cached, written)


@pytest.fixture(scope="module")
def shipped() -> Prices:
    return Prices(None)


# Dollars a million tokens, from the providers' price lists.
MINI = (1000 * 0.15 + 100 * 0.60) / 1e6
SONNET = (1000 * 3 + 100 * 15) / 1e6


@pytest.mark.parametrize(
    ("model", "provider", "usd"),
    [
        ("gpt-4o-mini", "openai", MINI),
        ("gpt-4o-mini-2024-07-18", "openai", MINI),
        ("GPT-4o-mini", "OpenAI", MINI),
        ("openai/gpt-4o-mini", "", MINI),
        ("openai/gpt-4o-mini", "litellm", MINI),
        ("openrouter/openai/gpt-4o-mini", "", MINI),
        ("gpt-4o-mini", "", MINI),
        ("gpt-4o-mini", "langchain", MINI),
        ("gpt-4o-mini", "strands-agents", MINI),
        ("gpt-4o-mini", "azure.ai.openai", MINI),
        ("claude-sonnet-4-5", "anthropic", SONNET),
        ("claude-sonnet-4-5-20250929", "anthropic", SONNET),
        ("anthropic/claude-sonnet-4-5-20250929", "", SONNET),
        ("claude-sonnet-4-5@20250929", "gcp.vertex_ai", SONNET),
        ("claude-sonnet-4-5", "openai", SONNET),  # by OpenAI's client, through a proxy
        ("models/gemini-2.5-pro", "gcp.gemini", (1000 * 1.25 + 100 * 10) / 1e6),
        ("grok-4", "x_ai", (1000 * 3 + 100 * 15) / 1e6),
        ("text-embedding-3-small", "fake", 1000 * 0.02 / 1e6),
    ],
)
def test_models_are_found_by_the_names_that_spans_give_them(shipped, model, provider, usd):
    output = None if "embedding" in model else 100
    assert shipped.cost(call(model, provider, output=output)) == pytest.approx(usd)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("", "openai"),
        ("support-bot-7b", ""),
        ("support-bot-7b", "openai"),
        ("gpt-4o-mini", "ollama"),
        ("gpt-4o-mini", "vLLM"),
        ("whisper-1", "openai"),  # by the hour
        ("x" * 1000, ""),
        ("gpt-4o-mini", "x" * 1000),
    ],
)
def test_a_price_that_nobody_knows_is_no_price(shipped, model, provider):
    assert shipped.cost(call(model, provider)) is None


def test_cached_and_written_tokens_are_parts_of_the_input_with_prices_of_their_own(shipped):
    assert shipped.cost(call("gpt-4o-mini", cached=400)) == pytest.approx((600 * 0.15 + 400 * 0.075 + 60) / 1e6)
    usd = (500 * 3 + 300 * 0.30 + 200 * 3.75 + 100 * 15) / 1e6
    assert shipped.cost(call("claude-sonnet-4-5", cached=300, written=200)) == pytest.approx(usd)
    # More cached than sent: a sender that leaves them out of its input.
    usd = (1000 * 3 + 5000 * 0.30 + 100 * 15) / 1e6
    assert shipped.cost(call("claude-sonnet-4-5", cached=5000)) == pytest.approx(usd)


def test_a_total_alone_is_priced_where_all_of_it_is_input(shipped):
    embedded = call("text-embedding-3-small", input=None, output=None, total=500)
    assert shipped.cost(embedded) == pytest.approx(500 * 0.02 / 1e6)
    assert shipped.cost(call("gpt-4o-mini", input=None, output=None, total=500)) is None


@pytest.mark.parametrize(
    ("model", "provider"), [("gemini-2.5-pro", "google"), ("claude-sonnet-4-5", "anthropic"), ("gpt-4o", "openai")]
)
@pytest.mark.parametrize("tokens", [0, 1, 199_999, 200_000, 200_001, 900_000])
def test_long_inputs_cost_what_the_package_itself_computes(shipped, model, provider, tokens):
    usage = Usage(input_tokens=tokens, output_tokens=777, cache_read_tokens=tokens // 3)
    expected = calc_price(usage, model, provider_id=provider, genai_request_timestamp=SPRING_2026).total_price
    cost = shipped.cost(call(model, provider, tokens, 777, tokens // 3))
    assert cost == pytest.approx(float(expected))


@pytest.mark.parametrize(
    "at", [datetime(2024, 6, 1, 3, tzinfo=UTC), datetime(2025, 1, 10, 17, 30, tzinfo=UTC), SPRING_2026]
)
@pytest.mark.parametrize(("model", "provider"), [("o3", "openai"), ("deepseek-chat", "deepseek")])
def test_prices_are_those_of_the_time_of_the_call(shipped, model, provider, at):
    usage = Usage(input_tokens=1000, output_tokens=100)
    expected = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at).total_price
    assert shipped.cost(call(model, provider, at=at)) == pytest.approx(float(expected))


def test_a_price_changed_over_time(shipped):
    """OpenAI cut the price of o3 by four fifths on 10 June 2025."""
    before, after = datetime(2025, 6, 9, tzinfo=UTC), datetime(2025, 6, 11, tzinfo=UTC)
    assert shipped.cost(call("o3", "openai", at=before)) == pytest.approx((1000 * 10 + 100 * 40) / 1e6)
    assert shipped.cost(call("o3", "openai", at=after)) == pytest.approx((1000 * 2 + 100 * 8) / 1e6)


def test_no_network_is_asked(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    prices = Prices(None)
    for model in ("gpt-4o-mini", "support-bot-7b"):
        prices.cost(call(model))


def test_made_up_names_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("storage.prices.MODELS_KEPT", 3)
    prices = Prices(None)
    for number in range(10):
        prices.cost(call(f"model {number}"))
        assert len(prices._known) <= 3
    assert prices.cost(call("gpt-4o-mini")) == pytest.approx(MINI)


def test_many_threads_get_the_same_answer():
    prices, seen = Prices(None), set()
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        seen.update(prices.cost(call(model)) for model in ("gpt-4o-mini", "o3", "claude-sonnet-4-5") * 50)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 3


# Prices of the user's own.


def own(tmp_path: Path, text: str) -> Prices:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    return Prices(path)


def test_the_first_own_price_that_fits_counts(tmp_path):
    prices = own(
        tmp_path,
        """
        [[price]]
        provider = "ollama"
        model = "*"
        input_usd_per_million = 0
        output_usd_per_million = 0

        [[price]]
        model = "support-bot*"
        until = 2026-01-01
        input_usd_per_million = 1.0
        output_usd_per_million = 10

        [[price]]
        model = "support-bot*"
        since = 2026-01-01
        input_usd_per_million = 2.0
        output_usd_per_million = 20
        cached_input_usd_per_million = 0.5
        cache_write_usd_per_million = 4

        [[price]]
        model = "gpt-4o-mini"
        since = 2026-01-01T12:00:00+02:00
        input_usd_per_million = 7
        output_usd_per_million = 7
        """,
    )
    assert prices.cost(call("llama3", "Ollama")) == 0
    assert prices.cost(call("llama3", "")) is None
    old, new = datetime(2025, 12, 31, 23, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    assert prices.cost(call("acme/Support-Bot-7b", at=old, cached=400)) == pytest.approx(2000e-6)
    assert prices.cost(call("support-bot-7b", at=new, cached=400, written=100)) == pytest.approx(
        (500 * 2 + 400 * 0.5 + 100 * 4 + 100 * 20) / 1e6
    )
    dated = "openai/gpt-4o-mini-2024-07-18"
    for at, usd in ((9, MINI), (10, 1100 * 7e-6)):
        assert prices.cost(call(dated, "openai", at=datetime(2026, 1, 1, at, tzinfo=UTC))) == pytest.approx(usd)
    assert prices.cost(call("gpt-4o-mini-tts", "openai", at=new)) != pytest.approx(1100 * 7e-6)


def test_the_example_of_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "usage.md").read_text()
    prices = own(tmp_path, page.partition("```toml\n")[2].partition("```")[0])
    assert prices.cost(call("support-bot-7b")) == pytest.approx((1000 * 1.2 + 100 * 4.8) / 1e6)
    assert prices.cost(call("gpt-4o-mini", "openai", cached=500)) == pytest.approx((60 + 500 * 0.06 + 48) / 1e6)
    assert prices.cost(call("llama3", "ollama")) == 0


PRICE = "[[price]]\nmodel = 'm'\ninput_usd_per_million = 1\noutput_usd_per_million = 2\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[price]\n", "cannot read the prices in"),
        ("[prices]\nmodel = 'm'\n", "cannot use 'prices' in"),
        ("[price]\nmodel = 'm'\n", "with two brackets"),
        ("price = [1]\n", "with two brackets"),
        (PRICE + "currency = 'EUR'\n", "cannot use 'currency' of price 1 in"),
        (PRICE + PRICE.replace("'m'", "''"), "cannot use model = '' of price 2 in"),
        (PRICE.replace("'m'", "'**'"), "cannot use model = '**'"),
        (PRICE.replace("'m'", "'a*b'"), "cannot use model = 'a*b'"),
        (PRICE.replace("'m'", "4"), "cannot use model = 4"),
        (PRICE + "provider = 1\n", "cannot use provider = 1"),
        (PRICE.replace("= 1", "= -1"), "cannot use input_usd_per_million = -1"),
        (PRICE.replace("= 1", "= nan"), "cannot use input_usd_per_million = nan"),
        (PRICE.replace("= 1", "= true"), "cannot use input_usd_per_million = True"),
        (PRICE.replace("= 2", "= '2'"), "cannot use output_usd_per_million = '2'"),
        ("[[price]]\nmodel = 'm'\noutput_usd_per_million = 2\n", "it lacks input_usd_per_million"),
        ("[[price]]\nmodel = 'm'\ninput_usd_per_million = 2\n", "it lacks output_usd_per_million"),
        (PRICE + "since = '2026-01-01'\n", "cannot use since = 2026-01-01"),
        (PRICE + "since = 2026-01-01T10:00:00\n", "cannot use since = 2026-01-01 10:00:00"),
        (PRICE + "since = 2026-01-01\nuntil = 2026-01-01\n", "it must be later than since"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_what_to_write(tmp_path, text, reason):
    with pytest.raises(BadPrices) as raised:
        own(tmp_path, text)
    assert reason in str(raised.value)
    assert str(tmp_path / "prices.toml") in str(raised.value)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(BadPrices, match="cannot read the prices in"):
        Prices(tmp_path / "none.toml")
