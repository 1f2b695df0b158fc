"""The tokens of every recorded trace are those that its provider handed out, each counted once.

usage_truth.json was not read from spans. The recorded programs ran again, against the same fake model provider, which
kept a ledger of every usage object it sent; it is deterministic, so the calls are the recorded ones. Each call was
joined to its trace by what `how` says: the provider's response id in a span, the time of the request within a span that
was open then, or the question in its content; and the traces to the recorded ones by the names of their spans, their
order, and for those that ran at once by their content. `calls` and tokens are of the calls whose usage some span says:
an instrumentation that leaves it out cannot be counted, and `unsaid` ([input, output]) and `note` say what it left out.
Input includes what was read from a cache or written to one. `provider` is all that was handed out in the case.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from program import Program
from recorded import CASES, Recorded, requests

TRUTH: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("usage_truth.json").read_text())
SAYS_COST = ("pydantic_ai_v2", "pydantic_ai_v5")
TOKENS = ("input_tokens", "output_tokens", "total_tokens")


def traces_of(case: str) -> dict[str, dict[str, Any]]:
    return {trace_id: truth for trace_id, truth in TRUTH[case].items() if trace_id != "provider"}


def span_counts(case: str) -> dict[str, int]:
    """Trace id in hex to the number of its spans."""
    found = defaultdict(set)
    for request in requests(case):
        if "json" in request.content_type:
            for block in json.loads(request.body)["resourceSpans"]:
                for span in (span for scope in block["scopeSpans"] for span in scope["spans"]):
                    found[span["traceId"]].add(span["spanId"])
        else:
            for block in request.decoded().resource_spans:
                for span in (span for scope in block.scope_spans for span in scope.spans):
                    found[span.trace_id.hex()].add(span.span_id.hex())
    return {trace_id: len(spans) for trace_id, spans in found.items()}


def send(client: httpx.Client, url: str, tenant: str, request: Recorded) -> None:
    """By OTLP/HTTP, whatever it was recorded from."""
    over_grpc = request.protocol == "grpc"
    headers = {"content-type": "application/x-protobuf" if over_grpc else request.content_type}
    if request.content_encoding and not over_grpc:
        headers["content-encoding"] = request.content_encoding
    body = request.grpc_message if over_grpc else request.body
    headers["x-spanhouse-tenant"] = tenant
    client.post(f"{url}/v1/traces", content=body, headers=headers).raise_for_status()


def read(client: httpx.Client, url: str, tenant: str, trace_id: str, spans: int) -> dict[str, Any]:
    """A trace as soon as it has all its spans."""
    deadline = time.monotonic() + 30
    while True:
        answer = client.get(
            f"{url}/api/v1/traces/{trace_id}",
            params={"format": "flat", "content": "false"},
            headers={"x-spanhouse-tenant": tenant},
        )
        if answer.status_code == 200 and answer.json()["span_count"] == spans:
            tree: dict[str, Any] = answer.json()
            return tree
        assert time.monotonic() < deadline, f"trace {trace_id} of {tenant}: {answer.status_code} {answer.text[:500]}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def trees_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The traces of a case as the API of a running program answers them, by trace id; each case has a tenant."""
    with Program(tmp_path_factory.mktemp("usage") / "data") as program, httpx.Client(timeout=30) as client:

        @cache
        def trees(case: str) -> dict[str, Any]:
            for request in requests(case):
                send(client, program.otlp_http, case, request)
            counts = span_counts(case).items()
            return {trace_id: read(client, program.http, case, trace_id, spans) for trace_id, spans in counts}

        yield trees


@pytest.mark.parametrize("case", CASES)
def test_the_tokens_of_every_trace_are_those_its_provider_handed_out(case, trees_of):
    trees, truths = trees_of(case), traces_of(case)
    assert trees.keys() == truths.keys()
    said = {trace_id: {name: tree["usage"][name] for name in TOKENS} for trace_id, tree in trees.items()}
    assert said == {trace_id: {name: truth[name] for name in TOKENS} for trace_id, truth in truths.items()}
    for trace_id, truth in truths.items():
        usage = trees[trace_id]["usage"]
        assert usage["cached_input_tokens"] <= truth["cached_input_tokens"], trace_id
        assert usage["reasoning_tokens"] == 0, trace_id  # the provider never thinks


@pytest.mark.parametrize("case", CASES)
def test_one_span_counts_for_each_call_and_the_others_say_why_not(case, trees_of):
    for trace_id, truth in traces_of(case).items():
        usages = [span["usage"] for span in trees_of(case)[trace_id]["spans"] if span["usage"]]
        assert sum(usage["counts"] for usage in usages) == truth["calls"], trace_id
        assert all(usage["counts"] or usage["reason"] in ("rollup", "duplicate") for usage in usages), trace_id


@pytest.mark.parametrize("case", CASES)
def test_whatever_counts_has_a_price(case, trees_of):
    for trace_id, truth in traces_of(case).items():
        assert (trees_of(case)[trace_id]["usage"]["cost_usd"] is not None) == bool(truth["calls"]), trace_id


@pytest.mark.parametrize("case", SAYS_COST)
def test_cost_is_what_the_spans_say(case, trees_of):
    """Every model call of these is to gpt-4o-mini: 0.15 USD a million tokens, 0.075 from the cache, 0.60 for output."""
    for trace_id, truth in traces_of(case).items():
        if truth["calls"]:
            fresh = truth["input_tokens"] - truth["cached_input_tokens"]
            usd = (fresh * 0.15 + truth["cached_input_tokens"] * 0.075 + truth["output_tokens"] * 0.60) / 1e6
            assert trees_of(case)[trace_id]["usage"]["cost_usd"] == pytest.approx(usd), trace_id


@pytest.mark.parametrize("case", sorted(TRUTH.keys() - {"apm_plain"}))
def test_nothing_that_was_handed_out_is_left_unexplained(case):
    """Of the truth itself: what its traces do not add up to is named."""
    provider, traces = TRUTH[case]["provider"], traces_of(case).values()
    unseen = [provider.get("without_a_span", [0, 0]), provider.get("unsaid", [0, 0])]
    unseen += [truth["unsaid"] for truth in traces if "unsaid" in truth]
    extra = [provider.get("in_two_traces", [0, 0]), provider.get("made_up_by_the_program", [0, 0])]
    for at, name in enumerate(("input_tokens", "output_tokens")):
        counted = sum(truth[name] for truth in traces) - sum(one[at] for one in extra)
        assert counted + sum(one[at] for one in unseen) == provider[name]
