"""The ledger: what spans say they spent, each token and cent counted once."""

import random
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.usage import Call, Counted, Total, account, call_of, subtree_totals, total

MS = 1_000_000
MODEL = "gpt-4o-mini"


def call(
    span: int,
    tokens: tuple[int, int] | None = (100, 20),
    kind: str = "llm",
    scope: str = "openai",
    id: str = "",
    ms: tuple[int, int] = (0, 100),
    model: str = MODEL,
    cost: float | None = None,
    **fields: int,
) -> Call:
    said = dict(zip(("input_tokens", "output_tokens"), tokens, strict=True)) if tokens else {}
    return Call(span, kind, scope, id, "openai", model, ms[0] * MS, ms[1] * MS, cost_usd=cost, **said, **fields)


def unpriced(_: Call) -> None:
    return None


def by_token(call: Call) -> float:
    return call.total / 1000


def marks(counted: list[Counted]) -> list[tuple[bool, str, int | None]]:
    return [(one.counts, one.reason, one.duplicate_of) for one in counted]


COUNTS = (True, "", None)
ROLLUP = (False, "rollup", None)


def duplicate(of: int) -> tuple[bool, str, int]:
    return False, "duplicate", of


# What a span says.


def test_a_call_is_read_from_numbers_and_from_text():
    said = {
        "operation_kind": "llm", "response_id": "r-1", "provider": "openai", "request_model": "gpt-4o",
        "response_model": "gpt-4o-2024-08-06", "input_tokens": 12, "output_tokens": 3, "cached_input_tokens": 4,
        "cost_usd": 2.5e-05,
    }  # fmt: skip
    read = call_of(7, said, "scope", 10, 20)
    assert read == call_of(7, {name: str(value) for name, value in said.items()}, "scope", 10, 20)
    assert read == Call(
        7, "llm", "scope", "r-1", "openai", "gpt-4o-2024-08-06", 10, 20, 12, 3, None, 4, None, None, 2.5e-05
    )
    assert read.total == 15
    assert call_of(0, {"input_tokens": 5, "request_model": "m"}, "", 0, 0).model == "m"


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"operation_kind": "llm", "response_id": "r-1"},
        {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0},
        {"input_tokens": "many", "cost_usd": "nan"},
        {"input_tokens": -5, "output_tokens": 10**19, "total_tokens": True},
        {"cost_usd": "-1"},
        {"cost_usd": float("inf")},
    ],
)
def test_who_says_no_tokens_and_no_cost_says_nothing(said):
    assert call_of(0, said, "", 0, 0) is None


def test_a_cost_of_nothing_beside_tokens_is_unknown():
    assert call_of(0, {"input_tokens": 5, "cost_usd": 0}, "openlit", 0, 0).cost_usd is None


def test_the_total_is_the_said_one_or_else_the_sum():
    assert call_of(0, {"input_tokens": 5, "output_tokens": 2, "total_tokens": 9}, "", 0, 0).total == 9
    assert call_of(0, {"input_tokens": 5, "output_tokens": 2, "total_tokens": 0}, "", 0, 0).total == 7
    assert call_of(0, {"total_tokens": 9}, "", 0, 0).total == 9


@pytest.mark.parametrize(
    ("said", "inclusive"),
    [
        # Langfuse's LangChain handler takes cached tokens out of input, and the total shows it.
        ({"input": 117, "output": 18, "total": 173, "cached_input": 38}, (155, 18, 173)),
        ({"input": 96, "output": 26, "total": 154, "cached_input": 20, "cache_write": 12}, (128, 26, 154)),
        ({"input": 10, "output": 5, "total": 22, "reasoning": 7}, (10, 12, 22)),
        ({"input": 10, "output": 5, "total": 26, "cached_input": 4, "reasoning": 7}, (14, 12, 26)),
        # Parts of what was said already, and a total that nothing explains.
        ({"input": 155, "output": 18, "total": 173, "cached_input": 38}, (155, 18, 173)),
        ({"input": 10, "output": 5, "total": 99, "cached_input": 4}, (10, 5, 99)),
        ({"input": 96, "output": 26, "cached_input": 20}, (96, 26, 122)),
    ],
)
def test_parts_that_the_total_shows_to_be_left_out_are_added(said, inclusive):
    read = call_of(0, {f"{name}_tokens": value for name, value in said.items()}, "", 0, 0)
    assert (read.input_tokens, read.output_tokens, read.total) == inclusive


# Rollups.


def test_an_agent_that_says_the_sum_of_its_calls_is_not_added():
    counted = account([-1, 0, 0], [call(0, (40, 10), "agent"), call(1, (20, 5)), call(2, (20, 5))], unpriced)
    assert marks(counted) == [ROLLUP, COUNTS, COUNTS]
    assert total(counted) == Total(40, 10, 50, unpriced=2)


def test_an_agent_whose_calls_say_nothing_counts_itself():
    counted = account([-1, 0], [call(0, (40, 10), "agent")], unpriced)
    assert marks(counted) == [COUNTS]
    assert total(counted).total_tokens == 50


def test_of_rollups_over_rollups_the_lowest_counts():
    calls = [call(0, kind="workflow"), call(1, kind="agent"), call(2, kind="task")]
    assert marks(account([-1, 0, 1], calls, unpriced)) == [ROLLUP, ROLLUP, COUNTS]


def test_a_model_call_over_model_calls_repeats_them_whatever_it_says():
    """Langfuse: the LangChain handler's generation over the OpenAI wrapper's, in one scope."""
    calls = [call(0, (155, 18)), call(2, (155, 18), id="r-1")]
    assert marks(account([-1, 0, 1], calls, unpriced)) == [ROLLUP, COUNTS]


def test_a_span_without_kind_counts_if_no_model_call_is_above_or_below():
    assert marks(account([-1], [call(0, kind="")], unpriced)) == [COUNTS]
    assert marks(account([-1, 0], [call(0, kind=""), call(1, (7, 1))], unpriced)) == [ROLLUP, COUNTS]
    assert marks(account([-1, 0], [call(0), call(1, (7, 1), kind="")], unpriced)) == [COUNTS, duplicate(0)]


def test_an_agent_beside_the_calls_of_another_counts():
    calls = [call(1, (40, 10), "agent"), call(2, (7, 1), "agent"), call(3, (7, 1))]
    assert marks(account([-1, 0, 0, 2], calls, unpriced)) == [COUNTS, ROLLUP, COUNTS]


def test_embeddings_below_a_call_that_answers_are_not_what_it_repeats():
    """A generation observed by hand around a retrieval: its tokens are the model's, those below the embedding's."""
    embedding = call(1, (15, 0), "embedding", model="text-embedding-3-small")
    for kind in ("llm", "agent"):
        counted = account([-1, 0], [call(0, (100, 20), kind), embedding], unpriced)
        assert marks(counted) == [COUNTS, COUNTS]
    assert marks(account([-1, 0], [call(0, (15, 0), "embedding"), embedding], unpriced)) == [ROLLUP, COUNTS]
    reranked = account([-1, 0], [call(0, (15, 3), "reranker"), call(1, (15, 3))], unpriced)
    assert marks(reranked) == [ROLLUP, COUNTS]


# Two instrumentations on one call.


def test_an_instrumentation_around_an_sdks_own_span_is_its_duplicate():
    outer = call(0, (128, 26), scope="openinference", ms=(0, 172))
    inner = call(1, (128, 26), scope="com.anthropic.sdk", id="msg_1", ms=(144, 171), cached_input_tokens=39)
    counted = account([-1, 0], [outer, inner], unpriced)
    assert marks(counted) == [duplicate(1), COUNTS]
    assert total(counted) == Total(128, 26, 154, 39, unpriced=1)


def test_records_side_by_side_are_one_call_by_their_response_id():
    first = call(1, (96, 26), scope="a", id="r-1", ms=(0, 60))
    second = call(2, (128, 26), scope="b", id="r-1", ms=(50, 120), cached_input_tokens=32)
    counted = account([-1, 0, 0], [first, second], unpriced)
    assert marks(counted) == [duplicate(2), COUNTS]
    assert total(counted) == Total(128, 26, 154, 32, unpriced=1)


def test_records_side_by_side_without_ids_are_one_call_by_model_tokens_and_time():
    first = call(2, scope="a", ms=(0, 100), model="openai/gpt-4o-mini")
    second = call(3, scope="b", ms=(3, 99), model="gpt-4o-mini-2024-07-18", cached_input_tokens=0)
    cousins = [-1, 0, 0, 1]
    assert marks(account(cousins, [first, second], unpriced)) == [duplicate(3), COUNTS]
    for other in (
        replace(second, scope="a"),
        replace(second, output_tokens=21),
        replace(second, model="gpt-4o"),
        replace(second, kind="embedding"),
        replace(second, start_unix_nano=50 * MS, end_unix_nano=150 * MS),
    ):
        assert marks(account(cousins, [first, other], unpriced)) == [COUNTS, COUNTS], other


def test_different_response_ids_are_different_calls_in_spite_of_equal_tokens():
    calls = [call(1, scope="a", id="r-1"), call(2, scope="b", id="r-2")]
    assert marks(account([-1, 0, 0], calls, unpriced)) == [COUNTS, COUNTS]


def test_a_mock_that_repeats_its_response_id_makes_no_duplicates_of_one_scope():
    parallel = [call(span, id="chatcmpl-mock") for span in (1, 2, 3)]
    assert marks(account([-1, 0, 0, 0], parallel, unpriced)) == [COUNTS] * 3
    # Twice instrumented, one in another, and in turn of another scope: still three calls, then four.
    outer = [call(span, scope="framework", id="chatcmpl-mock") for span in (1, 2, 3)]
    inner = [call(span + 3, id="chatcmpl-mock") for span in (1, 2, 3)]
    later = [call(7, scope="framework", id="chatcmpl-mock", ms=(200, 300))]
    counted = account([-1, 0, 0, 0, 1, 2, 3, 0], outer + inner + later, unpriced)
    assert sum(one.counts for one in counted) == 4


def test_a_span_over_two_calls_with_the_response_id_of_the_last_is_their_sum():
    outer = call(0, (200, 40), scope="framework", id="r-2")
    counted = account([-1, 0, 0], [outer, call(1, id="r-1"), call(2, id="r-2")], unpriced)
    assert marks(counted) == [ROLLUP, COUNTS, COUNTS]
    assert total(counted).total_tokens == 240


def test_three_records_of_one_call_count_once():
    calls = [call(0, scope="a", ms=(0, 100)), call(1, scope="b", ms=(2, 98)), call(2, scope="c", ms=(4, 96), id="r-1")]
    nested = account([-1, 0, 1], calls, unpriced)
    assert marks(nested) == [duplicate(2), duplicate(2), COUNTS]
    beside = account([-1, -1, -1], calls, unpriced)
    assert total(beside) == total(nested) == Total(100, 20, 120, unpriced=1)


def test_an_agent_over_a_duplicate_is_a_rollup():
    calls = [call(1, (100, 20), "agent", "framework"), call(2, scope="framework"), call(3, id="r-1")]
    counted = account([-1, 0, 1, 0], calls, by_token)
    assert marks(counted) == [ROLLUP, duplicate(3), COUNTS]
    assert total(counted).cost_usd == pytest.approx(0.12)


def test_what_one_record_lacks_the_other_says():
    bare = call(1, None, scope="proxy", id="r-1", cost=0.5)
    full = call(2, (100, 20), id="r-1", reasoning_tokens=8)
    for parent in ([-1, 0, 0], [-1, 0, 1]):
        counted = account(parent, [bare, full], by_token)
        assert marks(counted) == [duplicate(2), COUNTS]
        assert total(counted) == Total(100, 20, 120, 0, 8, 0.5)
        assert counted[1].cost_source == "span"


# Cost.


def test_cost_is_what_the_span_says_or_else_the_price():
    counted = account([-1, -1], [call(0, cost=0.5), call(1, ms=(200, 300))], by_token)
    assert [(one.cost_usd, one.cost_source) for one in counted] == [(0.5, "span"), (0.12, "price")]
    assert total(counted) == Total(200, 40, 240, cost_usd=0.62)


def test_calls_without_a_price_are_counted_as_such():
    counted = account([-1, -1], [call(0, cost=0.5), call(1, ms=(200, 300))], unpriced)
    assert total(counted) == Total(200, 40, 240, cost_usd=0.5, unpriced=1)
    assert total(account([-1], [call(0)], unpriced)).cost_usd is None


def test_a_free_model_costs_nothing_and_is_known_to():
    assert total(account([-1], [call(0)], lambda _: 0.0)) == Total(100, 20, 120, cost_usd=0.0)


def test_the_cost_of_a_rollup_is_used_when_nothing_below_has_any():
    calls = [call(0, None, "agent", cost=0.9), call(1), call(2, ms=(200, 300))]
    counted = account([-1, 0, 0], calls, unpriced)
    assert marks(counted) == [ROLLUP, COUNTS, COUNTS]
    assert total(counted) == Total(200, 40, 240, cost_usd=0.9)
    priced = account([-1, 0, 0], calls, by_token)
    assert total(priced) == Total(200, 40, 240, cost_usd=0.24)
    partly = account([-1, 0, 0], [calls[0], replace(calls[1], cost_usd=0.1), calls[2]], unpriced)
    assert total(partly) == Total(200, 40, 240, cost_usd=0.1, unpriced=1)


def test_of_rollups_with_a_cost_the_lowest_is_used():
    calls = [call(0, None, "workflow", cost=0.9), call(1, (100, 20), "agent", cost=0.8), call(2)]
    assert total(account([-1, 0, 1], calls, unpriced)) == Total(100, 20, 120, cost_usd=0.8)


def test_tokens_on_the_parent_and_cost_on_the_leaves_are_both_counted_and_not_mixed():
    calls = [call(0, (200, 40), "agent"), call(1, None, cost=0.1), call(2, None, cost=0.2)]
    counted = account([-1, 0, 0], calls, by_token)
    assert marks(counted) == [COUNTS, COUNTS, COUNTS]
    assert total(counted) == Total(200, 40, 240, cost_usd=pytest.approx(0.3))


def test_what_a_tool_costs_is_beside_what_its_agent_spends():
    counted = account([-1, 0], [call(0, (100, 20), "agent"), call(1, None, "tool", cost=0.05)], by_token)
    assert total(counted).cost_usd == pytest.approx(0.17)


def test_a_child_that_repeats_its_model_calls_usage_adds_neither_tokens_nor_cost():
    calls = [call(0), call(1, kind="chain", cost=0.5)]
    counted = account([-1, 0], calls, by_token)
    assert marks(counted) == [COUNTS, duplicate(0)]
    assert total(counted) == Total(100, 20, 120, cost_usd=0.5)


# Sums over subtrees, and trees of any shape.


def test_every_span_has_the_sum_of_its_subtree():
    #        0 workflow ─ 1 agent ─ 2 call, 3 duplicate of 2 ; 4 tool ─ 5 call
    parent = [-1, 0, 1, 1, 0, 4, -1]
    calls = [call(1, (100, 20), "agent"), call(2, id="r-1"), call(3, scope="b", id="r-1"), call(5, (7, 1))]
    sums = subtree_totals(range(7), parent, account(parent, calls, by_token))
    assert [one.total_tokens for one in sums] == [128, 120, 120, 0, 8, 8, 0]
    assert sums[0].cost_usd == pytest.approx(0.128)
    assert sums[6] == Total()


def test_the_usage_object_of_the_api():
    assert Total(1, 2, 3, 4, 5, 0.1 + 0.2, 6).json() == {
        "input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cached_input_tokens": 4, "reasoning_tokens": 5,
        "cost_usd": 0.3,
    }  # fmt: skip
    assert Total().json()["cost_usd"] is None


def test_a_chain_of_a_million_parents():
    spans = 1_000_000
    parent = range(-1, spans - 1)
    calls = [call(0, kind="agent"), call(spans // 2, kind="chain"), call(spans - 1)]
    counted = account(parent, calls, unpriced)
    assert marks(counted) == [ROLLUP, ROLLUP, COUNTS]
    sums = subtree_totals(range(spans), parent, counted)
    assert sums[0] == sums[spans - 1] == total(counted)


def test_a_chain_of_calls_each_in_the_one_before():
    spans = 20_000
    calls = [call(span, scope=f"scope {span}", id="r-1") for span in range(spans)]
    counted = account(range(-1, spans - 1), calls, unpriced)
    assert [one.counts for one in counted] == [False] * (spans - 1) + [True]
    assert total(counted).total_tokens == 120


def test_very_many_records_of_one_key_at_once():
    """Nothing tells who belongs to whom: what is said is bounded work, and no less than the calls of one scope."""
    spans = 4_000
    calls = [call(span, scope="ab"[span % 2]) for span in range(spans)]
    assert spans // 2 <= sum(one.counts for one in account([-1] * spans, calls, unpriced)) < spans


class Program:
    """A made-up program: agents that call models, and instrumentations that each write down what they see."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ids = count()
        self._clock_ms = 0
        self.parent: list[int] = []
        self.calls: list[Call] = []
        self.spent = Total()
        self.made = 0

    def span(self, above: int) -> int:
        self.parent.append(above)
        return len(self.parent) - 1

    def agent(self, above: int, depth: int) -> Total:
        own, sum_of_own = self.span(above), Total()
        for _ in range(self._random.randint(1, 3)):
            nested = depth < 3 and self._random.random() < 0.4
            sum_of_own.add(self.agent(self.span(own), depth + 1) if nested else self.model_call(own))
        if self._random.random() < 0.5:
            kind = self._random.choice(["agent", "chain", "workflow", ""])
            self.calls.append(call(own, (sum_of_own.input_tokens, sum_of_own.output_tokens), kind, "framework"))
        return sum_of_own

    def model_call(self, above: int) -> Total:
        """A call, in the records of one to three instrumentations, one in another or side by side."""
        pick = self._random
        number = next(self._ids)
        # Calls of a kind follow one another; those at the same time differ in their tokens.
        start = self._clock_ms
        tokens = (pick.choice([100, 1000 + number]), pick.choice([20, 30]))
        if tokens[0] == 100:
            start = self._clock_ms = self._clock_ms + 1000
        scopes = pick.sample(["sdk", "openinference", "traceloop"], pick.randint(1, 3))
        with_id = pick.random() < 0.5
        for at, scope in enumerate(scopes):
            times = (start + at, start + 600 - at)
            if pick.random() < 0.5:
                above = self.span(above)
            record = call(self.span(above), tokens, scope=scope, ms=times)
            if with_id and pick.random() < 0.7:
                record.response_id = f"r-{number}"
            self.calls.append(record)
            if pick.random() < 0.5:
                above = record.span
        self.made += 1
        spent = Total(*tokens, sum(tokens))
        self.spent.add(spent)
        return spent


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_was_recorded_how_often_the_sum_is_what_was_spent(seed):
    program = Program(seed)
    program.agent(-1, 0)
    random.Random(seed).shuffle(program.calls)
    counted = account(program.parent, program.calls, lambda _: 1.0)
    assert sum(one.counts for one in counted) == program.made
    program.spent.cost_usd = float(program.made)
    assert total(counted) == program.spent
    sums = subtree_totals(range(len(program.parent)), program.parent, counted)
    assert sums[0] == program.spent
    for one in counted:
        assert (one.duplicate_of is None) == (one.reason != "duplicate")
        assert one.counts == (one.reason == "")
