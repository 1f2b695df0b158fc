"""Retention policies as SQL: the class of a span, from the columns of `ingest` or of `spans`. Pure text.

What the resource of a span says is known where it is decoded, a resource at a time, or is looked up in `origins`: those
conditions are numbered, and the caller says how to ask for each.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

from storage.decode import content_rule
from storage.literals import literal
from storage.match import STATUSES, Match
from storage.retention import DEFAULT, Policies
from storage.rules import BadRules
from storage.vocabulary import Vocabulary

CONDITIONS_MAX = 64
"""On resources, of all policies: they are bits of a number."""
_CANONICAL = {
    "environment": ("environment",),
    "operation": ("operation_kind",),
    "agent": ("agent_name",),
    "model": ("response_model", "request_model"),
    "run": ("run_id",),
    "session": ("session_id",),
    "user": ("user_id",),
}
"""What a policy may ask for → canonical fields that say it."""
_PLACES = ("", "trace.", "baggage.", "header.")
_ALWAYS = ("", "header.")
_COLUMNS = {"tenant": "Tenant", "service": "ServiceName"}


class ClassSql:
    """The class of a span by these policies. Raises BadRules for what the store cannot tell of a span."""

    def __init__(self, policies: Policies, vocabulary: Vocabulary) -> None:
        self._policies, self._vocabulary = policies, vocabulary
        for policy in policies.policies:
            for key in policy.match.attributes or ():
                if content_rule().holds(key, ""):
                    raise BadRules(
                        f"cannot match the attribute {key!r} of policy {policy.name!r}: it is content, which is "
                        "kept apart; match what is on the skeleton"
                    )

    @cached_property
    def resource(self) -> list[str]:
        """Conditions on `resource_map`, a map of a resource's attributes as `origins` has them."""
        conditions: list[str] = []
        self._class(lambda condition: conditions.append(condition) or "0")  # type: ignore[func-returns-value]
        distinct = list(dict.fromkeys(conditions))
        if len(distinct) > CONDITIONS_MAX:
            raise BadRules(
                f"cannot use policies with {len(distinct)} different conditions on what resources say: "
                f"{CONDITIONS_MAX} are the most; merge some by lists of values"
            )
        return distinct

    @property
    def resource_bits(self) -> str:
        """All of these in one number, from `resource_map`."""
        bits = [f"bitShiftLeft(toUInt64({condition}), {i})" for i, condition in enumerate(self.resource)]
        return " + ".join(bits) or "toUInt64(0)"

    def of_ingest(self) -> str:
        """From columns of `ingest` and `resource_bits`."""
        return self._class(lambda condition: f"bitTest(resource_bits, {self.resource.index(condition)})")

    def of_spans(self) -> str:
        """From columns of `spans`."""
        return self._class(
            lambda condition: (
                "OriginId GLOBAL IN (SELECT OriginId FROM spanhouse.origins WHERE "
                f"{condition.replace('resource_map', 'ResourceAttributes')})"
            )
        )

    def _class(self, on_resource: Callable[[str], str]) -> str:
        cases = [f"{self._condition(p.match, on_resource)}, {p.class_}" for p in self._policies.policies]
        return f"toUInt16(multiIf({', '.join(cases)}, {DEFAULT}))" if cases else f"toUInt16({DEFAULT})"

    def _condition(self, match: Match, on_resource: Callable[[str], str]) -> str:
        found = [self._text(key, values, on_resource) for key, values in match.texts.items()]
        if match.status:
            found.append(f"StatusCode IN ({', '.join(str(STATUSES[status]) for status in match.status)})")
        if match.min_duration_ms is not None:
            found.append(f"Duration >= {round(match.min_duration_ms * 1e6)}")
        if match.max_duration_ms is not None:
            found.append(f"Duration <= {round(match.max_duration_ms * 1e6)}")
        found += [_attribute(key, values, on_resource) for key, values in (match.attributes or {}).items()]
        return " AND ".join(found) or "1"

    def _text(self, key: str, values: Sequence[str], on_resource: Callable[[str], str]) -> str:
        if key in _COLUMNS:
            return _matches(_COLUMNS[key], values)
        either = []
        for field in _CANONICAL[key]:
            known = [place + field for place in _PLACES if place in _ALWAYS or place + field in self._vocabulary.fields]
            either += [_matches(f"Canonical[{literal(name)}]", values) for name in known]
            on_resources = self._vocabulary.resource.get(field, ())
            either += [on_resource(_matches(f"substring(resource_map[{literal(k)}], 2)", values)) for k in on_resources]
        return f"({' OR '.join(either)})"


def _attribute(key: str, values: Sequence[str], on_resource: Callable[[str], str]) -> str:
    """An attribute of the span or its resource, of whatever type: as text it is one of the values."""
    k = literal(key)
    either = [_matches(f"StringAttributes[{k}]", values)]
    for kind in ("Int", "Float", "Bool"):
        column = f"{kind}Attributes"
        either.append(f"(mapContains({column}, {k}) AND {_matches(f'toString({column}[{k}])', values)})")
    either.append(on_resource(_matches(f"substring(resource_map[{k}], 2)", values)))
    return f"({' OR '.join(either)})"


def _matches(text: str, values: Sequence[str]) -> str:
    plain = [value for value in values if "*" not in value]
    either = [f"{text} IN ({', '.join(map(literal, plain))})"] if plain else []
    either += [f"{text} LIKE {literal(_pattern(value))}" for value in values if "*" in value]
    return either[0] if len(either) == 1 else f"({' OR '.join(either)})"


def _pattern(text: str) -> str:
    """For LIKE."""
    for special in "\\%_":
        text = text.replace(special, "\\" + special)
    return text.replace("*", "%")
