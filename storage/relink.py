"""Applies the vocabulary of today to spans that were stored under an earlier one.

A mutation of the column `Canonical`: the engine rewrites that column, part by part, in its own background. Called on
the thread of the job that asked for it (storage/settling.py), which then settles the traces.
"""

import time
from collections.abc import Callable

from storage.canonical import CanonicalSql
from storage.decode import content_rule
from storage.engine import Engine
from storage.errors import StoreUnavailable
from storage.literals import literal
from storage.vocabulary import CONDITIONS, Vocabulary

POLL_S = 0.2

_TYPED = {
    "strings": ("StringAttributes", "String"),
    "ints": ("IntAttributes", "Int64"),
    "doubles": ("FloatAttributes", "Float64"),
    "bools": ("BoolAttributes", "Bool"),
}
_OTHERS = {"arrays": "a", "kvlists": "m"}


def recanonicalize(
    engine: Engine,
    vocabulary: Vocabulary,
    tenant: str,
    times: tuple[int, int],
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Compute `Canonical` anew for the tenant's spans that start within `times`, in Unix nanoseconds.

    What was found in the payload, and what request headers said, stays: the one is not read here, the other is not
    kept anywhere else. Returns when all parts are rewritten, or when `goes_on` says no; the engine then finishes by
    itself. Raises StoreUnavailable.
    """
    statement = update(vocabulary, _scopes(engine, vocabulary))
    parameters = {"tenant": tenant, "since": times[0], "until": times[1]}
    before = {name for name, _, _ in engine.mutations("spans")}
    engine.alter(statement, parameters)
    while goes_on():
        waiting = [
            (name, reason) for name, done, reason in engine.mutations("spans") if name not in before and not done
        ]
        if not waiting:
            return
        if failures := [reason for _, reason in waiting if reason]:
            raise StoreUnavailable(f"cannot link anew: {failures[0][:500]}")
        time.sleep(POLL_S)


def update(vocabulary: Vocabulary, scopes: dict[str, list[int]]) -> str:
    """The mutation. `scopes` has the origins of each scope that the vocabulary asks for."""
    headers = "mapFilter((k, v) -> startsWith(k, 'header.'), Canonical)"
    new = CanonicalSql(vocabulary).expression(lambda key: content_rule().holds(key, ""), "Canonical")
    for name, value in reversed(_columns(scopes).items()):
        new = f"arrayElement(arrayMap({name} -> {new}, [{value}]), 1)"
    return (
        f"ALTER TABLE spanhouse.spans UPDATE Canonical = CAST(mapUpdate(CAST({new}, {_MAP}), {headers}), {_MAP})\n"
        "WHERE Tenant = {tenant:String} AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')"
        " AND Timestamp <= fromUnixTimestamp64Nano(least({until:Int64} - 1, 4294967295000000000), 'UTC')"
    )


_MAP = "'Map(LowCardinality(String), String)'"


def _columns(scopes: dict[str, list[int]]) -> dict[str, str]:
    """What canonical.py reads, of the columns of `spans`."""
    maps = [name for name, _ in _TYPED.values()] + ["OtherAttributes"]
    columns = {"keys": f"arrayConcat({', '.join(f'mapKeys({name})' for name in maps)})"}
    for member, (column, kind) in _TYPED.items():
        columns[member] = f"arrayConcat({', '.join(_values(name, column, kind) for name in maps)})"
    for member, letter in _OTHERS.items():
        nothing = ", ".join(_nulls(name, "String") for name in maps[:-1])
        tagged = f"arrayMap(v -> if(startsWith(v, '{letter}'), substring(v, 2), NULL), mapValues(OtherAttributes))"
        columns[member] = f"arrayConcat({nothing}, CAST({tagged}, 'Array(Nullable(String))'))"
    named = "''"
    for scope, origins in scopes.items():
        if origins:
            named = f"if(OriginId IN ({', '.join(map(str, origins))}), {literal(scope)}, {named})"
    return columns | {
        "event_names": "EventNames",
        "event_times": "EventTimes",
        "event_maps": "EventAttributes",
        "name": "toString(SpanName)",
        "scope_name": named,
        "begin": "toUnixTimestamp64Nano(Timestamp)",
    }


def _values(name: str, column: str, kind: str) -> str:
    return f"CAST(mapValues({name}), 'Array(Nullable({kind}))')" if name == column else _nulls(name, kind)


def _nulls(name: str, kind: str) -> str:
    return f"CAST(arrayMap(k -> NULL, mapKeys({name})), 'Array(Nullable({kind}))')"


def _scopes(engine: Engine, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Origin ids of the scopes that rules ask for."""
    names = {condition.partition("=")[2] for condition in CONDITIONS if condition.startswith("scope")}
    names |= set(vocabulary.kinds_by_scope)
    found: dict[str, list[int]] = {name: [] for name in sorted(names)}
    listed = ", ".join(map(literal, found))
    for scope, origin in engine.rows(
        f"SELECT DISTINCT ScopeName, OriginId FROM spanhouse.origins WHERE ScopeName IN ({listed}) ORDER BY ALL"
    ):
        found[scope].append(origin)
    return found
