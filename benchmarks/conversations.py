"""Conversations that agents send again at every turn: the same bytes for the same seed and start, as OTLP requests.

A turn is what a user says, in half of all turns a tool's output, and an answer. A model call carries every message so
far, as instrumentations send it:

    json       one trace a conversation, all messages in `gen_ai.input.messages` as one JSON text (OpenTelemetry GenAI)
    flattened  one trace a conversation, `llm.input_messages.N.message.content` (OpenInference)
    traces     as `json`, but one trace a turn: turns are minutes apart, and those of other conversations lie in between
    unnamed    as `traces`, and nothing says which conversation a turn is of

The text is of random words out of a large vocabulary with the frequencies of a language, so that repetition is all that
compresses better than text does. Pure, no thread of its own.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any, Literal

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.payloads import MS, request, span_of, start_unix_nano

Shape = Literal["json", "flattened", "traces", "unnamed"]

WORDS = 20_000
SYSTEM_CHARS = 2_000
USER_CHARS = (200, 1_500)
ANSWER_CHARS = (500, 4_000)
TOOL_CHARS = (2_000, 20_000)
TOOL_SHARE = 0.5
TURN_S = (60, 240)
REQUEST_TURNS = 8
AGENTS = 8


class Conversations:
    """`count` conversations, all of which take their next turn when it is asked for."""

    def __init__(self, count: int, shape: Shape, seed: int) -> None:
        self._draw = random.Random(f"{shape} {seed}")
        start = start_unix_nano()
        self._all = [
            _Conversation(self._draw, shape, i, start + self._draw.randrange(240_000) * MS) for i in range(count)
        ]

    def turn(self) -> Iterator[tuple[int, bytes]]:
        """Spans and bytes of each request of the next turn, in the order of time, several conversations in each."""
        taken = sorted((conversation.turn() for conversation in self._all), key=lambda s: s[0].start_time_unix_nano)
        for at in range(0, len(taken), REQUEST_TURNS):
            spans = [one for turn in taken[at : at + REQUEST_TURNS] for one in turn]
            yield len(spans), request({"assistant": spans})

    @property
    def said_bytes(self) -> int:
        """What was said until now, each message once."""
        return sum(len(message["content"]) for one in self._all for message in one.said)


@cache
def _words() -> tuple[list[str], list[float]]:
    """Made-up words, and the sums of their frequencies: the n-th word has the frequency 1/n, as in a language."""
    draw = random.Random("words")
    syllables = [a + b for a in "bcdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(draw.choices(syllables, k=1 + (i > 50) + (i > 2_000) + draw.randrange(2))) for i in range(WORDS)]
    return words, list(accumulate(1 / (i + 3) for i in range(WORDS)))


def _text(draw: random.Random, chars: int) -> str:
    words, frequencies = _words()
    return " ".join(draw.choices(words, cum_weights=frequencies, k=chars // 5))[:chars]


@cache
def _system(agent: int) -> str:
    """What an agent is told first, the same in all its conversations."""
    return _text(random.Random(f"agent {agent}"), SYSTEM_CHARS)


@dataclass
class _Conversation:
    draw: random.Random
    shape: Shape
    number: int
    clock: int
    said: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._trace_id, self._first = self.draw.randbytes(16), b""
        self.said.append({"role": "system", "content": _system(self.draw.randrange(AGENTS))})
        key = "session.id" if self.shape == "flattened" else "gen_ai.conversation.id"
        self._named = {} if self.shape == "unnamed" else {key: f"conversation-{self.number:06d}"}

    def turn(self) -> list[Span]:
        """Spans of the next turn: the turn's own one first. In one trace all later turns are children of the first."""
        draw = self.draw
        self.clock += draw.randrange(*TURN_S) * 1_000 * MS
        top = draw.randbytes(8)
        if self.shape in ("traces", "unnamed"):
            self._trace_id, parent = draw.randbytes(16), b""
        else:
            parent, self._first = self._first, self._first or top
        start = self.clock
        self.said.append({"role": "user", "content": _text(draw, draw.randrange(*USER_CHARS))})
        asked = self.said[-1]["content"]
        children = [self._ask(top)]
        if draw.random() < TOOL_SHARE:
            children += [self._use_tool(top), self._ask(top)]
        io = {"input.value": asked, "output.value": self.said[-1]["content"]}
        return [self._span(top, parent, "turn", start, io), *children]

    def _ask(self, top: bytes) -> Span:
        start, self.clock = self.clock, self.clock + self.draw.randrange(200, 4_000) * MS
        answer = {"role": "assistant", "content": _text(self.draw, self.draw.randrange(*ANSWER_CHARS))}
        sent = _flattened(self.said, answer) if self.shape == "flattened" else _json(self.said, answer)
        self.said.append(answer)
        return self._span(self.draw.randbytes(8), top, "chat", start, sent)

    def _use_tool(self, top: bytes) -> Span:
        start, self.clock = self.clock, self.clock + self.draw.randrange(10, 800) * MS
        output = _text(self.draw, self.draw.randrange(*TOOL_CHARS))
        self.said.append({"role": "tool", "content": output})
        flattened = self.shape == "flattened"
        kind = {"openinference.span.kind": "TOOL"} if flattened else {"gen_ai.operation.name": "execute_tool"}
        result = {"output.value" if flattened else "gen_ai.tool.call.result": output}
        return self._span(self.draw.randbytes(8), top, "search", start, kind | result)

    def _span(self, span_id: bytes, parent_id: bytes, name: str, start: int, attributes: dict[str, Any]) -> Span:
        """A span that ends now."""
        return span_of(
            trace_id=self._trace_id,
            span_id=span_id,
            parent_span_id=parent_id,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start=start,
            end=self.clock,
            failed=False,
            attributes={**self._named, **attributes},
        )


def _json(said: list[dict[str, str]], answer: dict[str, str]) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4.1",
        "gen_ai.usage.input_tokens": _tokens(said),
        "gen_ai.usage.output_tokens": _tokens([answer]),
        "gen_ai.input.messages": json.dumps(said),
        "gen_ai.output.messages": json.dumps([answer]),
    }


def _flattened(said: list[dict[str, str]], answer: dict[str, str]) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "openinference.span.kind": "LLM",
        "llm.model_name": "gpt-4.1",
        "llm.token_count.prompt": _tokens(said),
        "llm.token_count.completion": _tokens([answer]),
    }
    for direction, messages in (("input", said), ("output", [answer])):
        for i, message in enumerate(messages):
            for name, value in message.items():
                attributes[f"llm.{direction}_messages.{i}.message.{name}"] = value
    return attributes


def _tokens(said: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in said) // 4
