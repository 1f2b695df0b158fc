"""The survey of a segment as SQL: what its spans say of their traces, a row a trace. Pure text.

It reads the segment as a load does, but only what the rules ask for.
"""

from collections.abc import Callable
from pathlib import Path

from storage.canonical import CanonicalSql
from storage.decode import Decoder, Rows
from storage.literals import literal
from storage.retention import Keep, Policies, Policy
from storage.retention_sql import ClassSql
from storage.rules import BadRules
from storage.sampling import Rules
from storage.scores import EVENTS, KEYS, TRIGGERED
from storage.vocabulary import Vocabulary

PLACES = 1 << 16
"""Operations and versions are told apart by a number below it: what is remembered of a tenant is bounded so."""
PLACES_OF_TRACE_MAX = 100
CONDITIONS_MAX = 48
"""On resources: the upper bits of their number tell the version that the resource names."""
COLUMNS = (
    "Segment", "Tenant", "TraceId", "Version", "Matched", "Notable", "Start", "End", "Spans", "Places", "Surveyed",
)  # fmt: skip
_VERSIONED = (("model_name", "model_version"), ("agent_name", "agent_version"), ("response_model", "response_model"))
_ASSESSED = (
    f"hasAny(mapKeys(StringAttributes), [{', '.join(map(literal, KEYS))}])"
    f" OR mapContains(BoolAttributes, {literal(TRIGGERED)}) OR hasAny(EventNames, [{', '.join(map(literal, EVENTS))}])"
)
"""A span carries scores."""
_SAID_IN = ("", "trace.", "baggage.", "header.")


class _MatchedSql(ClassSql):
    """Instead of the first policy that matches, all of them: bit n is set if the one of number n matches."""

    def _class(self, on_resource: Callable[[str], str]) -> str:
        bits = [
            f"bitShiftLeft(toUInt64({self._condition(policy.match, on_resource)}), {policy.class_})"
            for policy in self._policies.policies
        ]
        return " + ".join(bits) or "toUInt64(0)"


class SurveySql:
    """The survey by these rules. Raises BadRules for what the store cannot tell of a span."""

    def __init__(self, rules: Rules, vocabulary: Vocabulary) -> None:
        self._rules, self._vocabulary = rules, vocabulary
        matching = tuple(
            Policy(rule.name, rule.match, Keep(), number)
            for number, rule in enumerate(rules.rules)
            if rule.match is not None
        )
        try:
            matched = _MatchedSql(Policies(matching), vocabulary)
            conditions = len(matched.resource)
        except BadRules as error:
            raise BadRules(str(error).replace("policy", "rule").replace("policies", "rules")) from error
        if conditions > CONDITIONS_MAX:
            raise BadRules(
                f"cannot use rules with {conditions} different conditions on what resources say: {CONDITIONS_MAX} are "
                "the most; merge some by lists of values"
            )
        bits = matched.resource_bits
        if rules.counts_places:
            bits += f" + bitShiftLeft(toUInt64({self._version_of_resource()}), {CONDITIONS_MAX})"
        self._decoder = Decoder(
            CanonicalSql(vocabulary), f"({matched.of_ingest()}, {self._places()})", f"toUInt64({bits})"
        )

    def rows(self, segment: Path, token: str) -> Rows:
        """Of one segment: every trace of it is a row of `spanhouse.surveys`."""
        decoded = self._decoder.rows(segment.absolute())
        query = f"""SELECT
    {literal(token)} AS Segment, Tenant, TraceId, toUInt32({self._rules.version}) AS Version,
    groupBitOr(Class.1) AS Matched, toUInt8(max(StatusCode = 2 OR {_ASSESSED})) AS Notable,
    min(toUnixTimestamp64Nano(Timestamp)) AS Start,
    max(toUnixTimestamp64Nano(Timestamp) + greatest(Duration, 0)) AS End,
    toUInt32(count()) AS Spans, groupUniqArrayArray({PLACES_OF_TRACE_MAX})(Class.2) AS Places, now('UTC') AS Surveyed
FROM
(
{decoded.query}
)
GROUP BY Tenant, TraceId"""
        return Rows("surveys", COLUMNS, query, decoded.settings)

    def _places(self) -> str:
        """Places that a span names: its operation below PLACES, versions above."""
        if not self._rules.counts_places:
            return "CAST([], 'Array(UInt32)')"
        named = [
            (name, version)
            for where in _SAID_IN
            for name, version in _VERSIONED
            if where in {"", "header."} or where + version in self._vocabulary.fields
            for name, version in [(f"Canonical[{literal(where + name)}]", f"Canonical[{literal(where + version)}]")]
        ]
        said = ", ".join(f"if({version} = '', 0, {_version('said', name, version)})" for name, version in named)
        of_resource = f"bitShiftRight(resource_bits, {CONDITIONS_MAX})"
        versions = f"arrayMap(v -> {PLACES} + v, arrayFilter(v -> v > 0, [{of_resource}, {said}]))"
        operation = f"cityHash64(ServiceName, SpanName) % {PLACES}"
        return f"CAST(arrayPushFront({versions}, {operation}), 'Array(UInt32)')"

    def _version_of_resource(self) -> str:
        """From 1 below PLACES where the resource names a version, or else 0."""
        keys = ["service.version"]
        for field in ("model_version", "agent_version", "model_name", "agent_name"):
            keys += self._vocabulary.resource.get(field, ())
        values = [f"resource_map[{literal(key)}]" for key in ("service.name", *dict.fromkeys(keys))]
        versions = [key for key in keys if "version" in key]
        said = " OR ".join(f"resource_map[{literal(key)}] != ''" for key in dict.fromkeys(versions))
        return f"if({said}, {_version('resource', *values)}, 0)"


def _version(*names: str) -> str:
    first, *rest = names
    return f"1 + cityHash64({', '.join([literal(first), *rest])}) % {PLACES - 1}"
