"""What the spans of one tree spent, for its answer: the trace's usage, and beside each span's own that of its subtree.

Pure; runs on the thread of the request that asked. The counting itself is storage/usage.py.
"""

from collections.abc import Callable
from typing import Any

from query.tree import Tree
from storage.usage import NONE, Call, Counted, account, call_of, subtree_totals, total

Price = Callable[[Call], float | None]
"""USD of a call, None where nobody knows."""


class Spending:
    """The account of one tree."""

    def __init__(self, tree: Tree, price: Price) -> None:
        self._tree = tree
        calls = []
        for index, span in enumerate(tree.spans):
            if span.canonical and (
                call := call_of(
                    index, span.canonical, span.scope.name, span.start_time_unix_nano, span.end_time_unix_nano
                )
            ):
                calls.append(call)
        counted = account(tree.parent, calls, price)
        self._by_span: dict[int, Counted] = {entry.call.span: entry for entry in counted}
        self._total = total(counted)
        order = [index for index, _ in tree.walk()] if counted else []
        self._subtrees = subtree_totals(order, tree.parent, counted) if counted else []

    def of_trace(self) -> dict[str, Any]:
        """The whole trace's, each call counted once."""
        return self._total.json()

    def of_span(self, index: int) -> dict[str, Any] | None:
        """A span's own usage, and whether the trace's has it. None where the span says nothing."""
        entry = self._by_span.get(index)
        if entry is None:
            return None
        other = entry.duplicate_of
        return {
            **entry.total.json(),
            "counts": entry.counts,
            "reason": entry.reason or None,
            "duplicate_of": None if other is None or other == NONE else self._tree.spans[other].span_id.hex(),
            "cost_source": entry.cost_source or None,
        }

    def of_subtree(self, index: int) -> dict[str, Any] | None:
        """The sums of a span's subtree, itself included. None where nothing in it spent anything."""
        if not self._subtrees:
            return None
        sums = self._subtrees[index]
        return sums.json() if sums.total_tokens or sums.cost_usd is not None else None
