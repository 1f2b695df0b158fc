"""The spans of one trace placed in a tree: every span exactly once, whatever its parents say.

Pure functions on lists; they run on the thread of the request that asked. Nothing here recurses: a chain of a million
parents, or a cycle, is data that a sender can make. Nothing here moves a time or makes up a span.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from storage.spans import Span

NONE = -1
_ORPHAN = -2
_NO_PARENT = frozenset((b"", bytes(8)))
"""An all-zero id is no id (W3C trace context, 2.2.2.3): some exporters write it in every root."""

_ORDER = attrgetter("start_time_unix_nano", "span_id")


@dataclass(slots=True)
class Tree:
    """Spans by index, ordered by start time and span id, and how they hang together.

    `parent`, `first_child` and `next_sibling` hold indexes into `spans`, or NONE. `top` is the top level: `roots`, then
    the orphans grouped by the parent that is missing, then the earliest span of each cycle, where the cycle is cut.
    """

    spans: list[Span]
    parent: "array[int]"
    first_child: "array[int]"
    next_sibling: "array[int]"
    top: list[int]
    roots: list[int]
    orphans: dict[bytes, list[int]]
    """Missing parent's span id to the spans that name it; groups and members ordered by start."""
    cycles: list[list[int]]
    """Each from its earliest span downwards, from parent to child. A span that is its own parent is a cycle of one."""
    duplicates: dict[bytes, int]
    """Span id to the number of different spans that bear it. Children hang from the first of them."""

    def walk(self) -> Iterator[tuple[int, int]]:
        """Every span once, parents first: its index, and its depth, 0 at the top level."""
        for top in self.top:
            node, depth = top, 0
            while True:
                yield node, depth
                child = self.first_child[node]
                if child != NONE:
                    node, depth = child, depth + 1
                    continue
                while depth and self.next_sibling[node] == NONE:
                    node, depth = self.parent[node], depth - 1
                if not depth:
                    break
                node = self.next_sibling[node]


def build(spans: list[Span]) -> Tree:
    """Place the spans of one trace. The list itself is left as it is."""
    ordered = sorted(spans, key=_ORDER)
    first_of, duplicates = _by_id(ordered)
    parent = array("q", (_parent_of(span, first_of) for span in ordered))
    roots = [index for index, above in enumerate(parent) if above == NONE]
    orphans: dict[bytes, list[int]] = {}
    for index, above in enumerate(parent):
        if above == _ORPHAN:
            orphans.setdefault(ordered[index].parent_span_id, []).append(index)
            parent[index] = NONE
    cycles = _cut_cycles(parent)
    top = [*roots, *(index for group in orphans.values() for index in group), *(cycle[0] for cycle in cycles)]
    first_child, next_sibling = _children(parent)
    return Tree(ordered, parent, first_child, next_sibling, top, roots, orphans, cycles, duplicates)


def _by_id(spans: list[Span]) -> tuple[dict[bytes, int], dict[bytes, int]]:
    first_of: dict[bytes, int] = {}
    duplicates: dict[bytes, int] = {}
    for index, span in enumerate(spans):
        if first_of.setdefault(span.span_id, index) != index:
            duplicates[span.span_id] = duplicates.get(span.span_id, 1) + 1
    return first_of, duplicates


def _parent_of(span: Span, first_of: dict[bytes, int]) -> int:
    if span.parent_span_id in _NO_PARENT:
        return NONE
    return first_of.get(span.parent_span_id, _ORPHAN)


def _cut_cycles(parent: "array[int]") -> list[list[int]]:
    """Find every cycle, and take the parent from its earliest span. Linear: each span is stepped on once."""
    unseen, on_path, done = 0, 1, 2
    state = bytearray(len(parent))
    cycles: list[list[int]] = []
    for start in range(len(parent)):
        path: list[int] = []
        node = start
        while node != NONE and state[node] == unseen:
            state[node] = on_path
            path.append(node)
            node = parent[node]
        if node != NONE and state[node] == on_path:
            downwards = path[path.index(node) :][::-1]
            cut = downwards.index(min(downwards))
            cycles.append(downwards[cut:] + downwards[:cut])
        for node in path:
            state[node] = done
    cycles.sort()
    for cycle in cycles:
        parent[cycle[0]] = NONE
    return cycles


def _children(parent: "array[int]") -> tuple["array[int]", "array[int]"]:
    """Linked lists instead of a list for each span: sixteen bytes a span. Backwards, so that siblings come in order."""
    first_child = array("q", [NONE]) * len(parent)
    next_sibling = array("q", [NONE]) * len(parent)
    for index in range(len(parent) - 1, -1, -1):
        above = parent[index]
        if above != NONE:
            next_sibling[index] = first_child[above]
            first_child[above] = index
    return first_child, next_sibling
