"""How far a trace tree can be trusted: what is missing, doubled, circular or out of time, said and never repaired.

Pure functions on a Tree, on the thread of the request that asked.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from query.answers import ClockSkew, Integrity, IntegrityCounts, Problem, RootState, TimeProblem
from query.tree import Tree
from storage.spans import Span

ENTRIES_MAX = 1_000
"""Entries in each list of the answer; the counts beside them are whole."""
LATE_S = 60
"""A missing root may still come while spans of its trace arrived within this time."""
TIME_MAX_UNIX_NANO = 2**63 - 1
"""The last nanosecond that the store can search for, on 2262-04-11."""

Key = TypeVar("Key")


def examine(tree: Tree, *, truncated: bool, now_unix_nano: int) -> Integrity:
    """Look at the whole trace. `truncated` says that the tree was built from a part of its spans."""
    skews, skew_count = _first(_skewed(tree))
    problems, problem_count = _first(_time_problems(tree))
    return Integrity(
        complete=bool(tree.roots) and not (tree.orphans or tree.cycles or truncated),
        root=_root_state(tree, now_unix_nano),
        roots=_ids(tree, tree.roots),
        orphans={parent.hex(): ids for parent, ids in _grouped(tree, tree.orphans.items())},
        duplicate_span_ids=[span_id.hex() for span_id in islice(tree.duplicates, ENTRIES_MAX)],
        cycles=[ids for _, ids in _grouped(tree, enumerate(tree.cycles))],
        clock_skew=[_clock_skew(tree, index) for index in skews],
        times=[TimeProblem(span_id=tree.spans[index].span_id.hex(), problem=problem) for index, problem in problems],
        truncated=truncated,
        counts=IntegrityCounts(
            roots=len(tree.roots),
            orphans=sum(map(len, tree.orphans.values())),
            missing_parents=len(tree.orphans),
            duplicate_span_ids=len(tree.duplicates),
            cycles=len(tree.cycles),
            spans_in_cycles=sum(map(len, tree.cycles)),
            clock_skew=skew_count,
            times=problem_count,
        ),
    )


def _root_state(tree: Tree, now_unix_nano: int) -> RootState:
    if tree.roots:
        return "present"
    newest_unix_nano = max((span.received_unix_nano for span in tree.spans), default=0)
    return "late" if newest_unix_nano > now_unix_nano - LATE_S * 10**9 else "missing"


def _ids(tree: Tree, indexes: list[int], entries_max: int = ENTRIES_MAX) -> list[str]:
    return [tree.spans[index].span_id.hex() for index in indexes[:entries_max]]


def _grouped(tree: Tree, groups: Iterable[tuple[Key, list[int]]]) -> Iterator[tuple[Key, list[str]]]:
    """Span ids of each group, at most ENTRIES_MAX in all: the last group may be cut, and further ones are left out."""
    left = ENTRIES_MAX
    for key, indexes in groups:
        if not left:
            return
        ids = _ids(tree, indexes, left)
        left -= len(ids)
        yield key, ids


def _first(found: Iterable[Key]) -> tuple[list[Key], int]:
    """The entries to list, and how many there are."""
    rest = iter(found)
    listed = list(islice(rest, ENTRIES_MAX))
    return listed, len(listed) + sum(1 for _ in rest)


def _in_range(time_unix_nano: int) -> bool:
    return 0 < time_unix_nano <= TIME_MAX_UNIX_NANO


def _starting_before_parent(tree: Tree) -> Iterator[tuple[int, bool]]:
    """Spans that start before their parent, and whether one resource, so one clock, timed both."""
    for index, above in enumerate(tree.parent):
        # Spans are ordered by start: only a parent further back can start later.
        if above > index:
            span, parent = tree.spans[index], tree.spans[above]
            if span.start_time_unix_nano < parent.start_time_unix_nano and _comparable(span, parent):
                yield index, span.resource is parent.resource or span.resource == parent.resource


def _comparable(span: Span, parent: Span) -> bool:
    return _in_range(span.start_time_unix_nano) and _in_range(parent.start_time_unix_nano)


def _skewed(tree: Tree) -> Iterator[int]:
    return (index for index, same_clock in _starting_before_parent(tree) if not same_clock)


def _clock_skew(tree: Tree, index: int) -> ClockSkew:
    span = tree.spans[index]
    parent = tree.spans[tree.parent[index]]
    both_end = span.end_time_unix_nano and parent.end_time_unix_nano
    return ClockSkew(
        span_id=span.span_id.hex(),
        parent_span_id=parent.span_id.hex(),
        starts_before_parent_nano=str(parent.start_time_unix_nano - span.start_time_unix_nano),
        ends_after_parent_nano=str(span.end_time_unix_nano - parent.end_time_unix_nano) if both_end else None,
    )


def _time_problems(tree: Tree) -> Iterator[tuple[int, Problem]]:
    for index, span in enumerate(tree.spans):
        start, end = span.start_time_unix_nano, span.end_time_unix_nano
        if not start:
            yield index, "no start"
        if not end:
            yield index, "no end"
        elif end < start:
            yield index, "end before start"
        if max(start, end) > TIME_MAX_UNIX_NANO:
            yield index, "beyond the representable range"
    for index, same_clock in _starting_before_parent(tree):
        if same_clock:
            yield index, "start before parent's start"
