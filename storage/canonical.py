"""The vocabulary as SQL: from the attributes and events of a span, the map of what it says in canonical words.

Pure text. One pass over the keys, whatever the number of rules: a key is looked up once (once a distinct key of a
block, since keys are LowCardinality) and gives the codes of its rules; what is then sorted and thinned out is the few
attributes that have one. A rule's code is the number of its field and its place there, so that the smallest code of a
field wins.

The text is short on purpose: the engine analyses it anew for each load.

The steps read the columns `keys`, `strings`, `ints`, `doubles`, `bools`, `arrays`, `kvlists`, `event_names`,
`event_times`, `event_maps`, `key_codes`, `name`, `scope_name` and `begin`: decode.py has them of what arrives,
relink.py of what is stored.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from storage.literals import literal
from storage.vocabulary import CONDITIONS, KIND, MODEL_CALLS, NOTHING, VALUE_BYTES_MAX, BadVocabulary, Rule, Vocabulary

# A key's codes, packed: the rules it belongs to, twelve bits each, and the number of its object where it holds one.
_PLACES_MAX, _FIELDS_MAX = 64, 64
_CODE_BITS = 12
_CODES_MAX = 4
_OBJECT_SHIFT = _CODE_BITS * _CODES_MAX
_OBJECT_BYTES_MAX = 1 << 18
"""Objects of more bytes are not looked into."""
_FIELD = f"bitShiftRight(x.1, {_PLACES_MAX.bit_length() - 1})"
_MAP = "'Map(String, String)'"
_WIRE = "char(1)"
"""Marks the wire bytes of a nested value among texts."""


class CanonicalSql:
    """The columns that lead from a span to its `canonical` map, for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._rules = vocabulary.rules
        self._fields = (KIND, *(name for name in vocabulary.fields if name != KIND))
        places: dict[str, int] = dict.fromkeys(self._fields, 0)
        places[KIND] = 1  # no code is 0
        self._code: dict[Rule, int] = {}
        for rule in self._rules:
            self._code[rule] = self._fields.index(rule.field) * _PLACES_MAX + places[rule.field]
            places[rule.field] += 1
        # A kind told from a presence: as if they were rules of a field behind all others.
        self._presence = {
            key: len(self._fields) * _PLACES_MAX + i for i, key in enumerate(vocabulary.kinds_by_presence)
        }
        if max(*places.values(), len(self._presence)) > _PLACES_MAX or len(self._fields) >= _FIELDS_MAX:
            raise BadVocabulary(
                f"cannot use so many conventions: a field has at most {_PLACES_MAX} keys, and there are at most "
                f"{_FIELDS_MAX - 1} fields"
            )

    # The codes of keys

    @cached_property
    def _objects(self) -> dict[str, int]:
        """Number of each key, and each member, that holds an object to look into."""
        holders: dict[str, int] = {}
        for rule in self._rules:
            for depth in range(len(rule.path)):
                holders.setdefault("#".join((rule.key, *rule.path[:depth])), len(holders) + 1)
        return holders

    def _packed(self, pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Text → its codes in one number; objects come with their number."""
        codes: dict[str, list[int]] = {}
        for text, code in pairs:
            codes.setdefault(text, []).append(code)
        for text, each in codes.items():
            if len(each) > _CODES_MAX:
                raise BadVocabulary(
                    f"cannot use the key {text!r} for {len(each)} canonical fields: {_CODES_MAX} are the most"
                )
        return {text: sum(code << (_CODE_BITS * i) for i, code in enumerate(each)) for text, each in codes.items()}

    def _attribute_codes(self) -> dict[str, int]:
        plain = [
            (rule.key, self._code[rule]) for rule in self._rules if not (rule.path or rule.event or rule.key == "@name")
        ]
        packed = self._packed([*plain, *self._presence.items()])
        for key, number in self._objects.items():
            if "#" not in key:
                packed[key] = packed.get(key, 0) | number << _OBJECT_SHIFT
        return packed

    def _member_codes(self) -> dict[str, int]:
        """`<number of the object>#<member>` → codes, and `#*<last member>` for wire bytes, where no more is known."""
        of = self._objects
        pairs = []
        for rule in self._rules:
            if rule.path:
                code = self._code[rule]
                parent = of["#".join((rule.key, *rule.path[:-1]))]
                pairs += [(f"{parent}#{rule.path[-1]}", code), (f"{of[rule.key]}#*{rule.path[-1]}", code)]
        packed = self._packed(pairs)
        for key, number in of.items():
            parent_key, _, member = key.rpartition("#")
            if parent_key:
                text = f"{of[parent_key]}#{member}"
                packed[text] = packed.get(text, 0) | number << _OBJECT_SHIFT
        return packed

    def _event_codes(self) -> dict[str, int]:
        return self._packed((f"{rule.event}::{rule.key}", self._code[rule]) for rule in self._rules if rule.event)

    # The steps

    def steps(self, more: str = "") -> list[dict[str, str]]:
        """Columns in order, each reading those before it; the last is `canonical`: Map(String, String).

        Each is to be a subquery: an alias would be copied to each of its uses, and theirs into each of theirs.
        `more` is an array of further pairs of a rule's code and a text.
        """
        # What is inside a member is JSON: of wire bytes all depths were looked at.
        deeper = self._inside("members", f"JSONExtractKeysAndValuesRaw({_first_of('h.2')})")
        found = f"arrayConcat(hits, members, {deeper}, {self._event_hits()})"
        first = f"arrayFilter((x, n) -> n = 1, good, arrayEnumerateUniq(arrayMap(x -> {_FIELD}, good)))"
        names = f"[{_list(self._fields)}]"
        return [
            {"hits": self._hits()},
            {"members": self._members()},
            {"found": found},
            {"said": f"arrayConcat({self._unpacked()}, {more})" if more else self._unpacked()},
            {"span_kind": self._kind()},
            {"good": self._good()},
            {"canonical": f"CAST(arrayMap(x -> (arrayElement({names}, {_FIELD} + 1), x.2), {first}), {_MAP})"},
        ]

    def expression(self, payload: Callable[[str], bool], before: str) -> str:
        """The same as one expression, each step bound to its name. Slower; for where there are no subqueries.

        Of the keys that are `payload` the attributes are not there: what they said is taken from the map `before`.
        """
        kept = ", ".join(
            f"(toUInt64({self._code[rule]}), {before}[{literal(rule.field)}])"
            for rule in self._rules
            if rule.path and payload(rule.key)
        )
        expression = "canonical"
        steps = self.steps(f"arrayFilter(x -> x.2 != '', [{kept}])")
        for step in reversed([{"key_codes": self.key_codes()}, *steps]):
            for name, value in step.items():
                expression = f"arrayElement(arrayMap({name} -> {expression}, [{value}]), 1)"
        return expression

    def key_codes(self) -> str:
        """The column `key_codes` that the steps read: of each key its packed codes."""
        return f"arrayMap(k -> toUInt64({_lookup('k', self._attribute_codes())}), keys)"

    def _hits(self) -> str:
        """Pairs of packed codes and text, for the attributes that have codes."""
        picked = (f"arrayFilter((x, c) -> c != 0, {member}, key_codes)" for member in _MEMBERS)
        names = ", ".join(_MEMBERS.values())
        return f"arrayMap(({names}, c) -> (c, {_AS_TEXT}), {', '.join(picked)}, arrayFilter(c -> c != 0, key_codes))"

    def _unpacked(self) -> str:
        """Pairs of one code and a text. Few keys have a second code."""
        mask = (1 << _CODE_BITS) - 1
        first = f"arrayFilter(x -> x.1 != 0, arrayMap(x -> (bitAnd(x.1, {mask}), x.2), found))"
        code = f"bitAnd(bitShiftRight(x.1, shift), {mask})"
        shifts = f"arrayFilter(shift -> {code} != 0, {list(range(_CODE_BITS, _OBJECT_SHIFT, _CODE_BITS))})"
        several = f"arrayFilter(x -> bitAnd(x.1, {((1 << _OBJECT_SHIFT) - 1) ^ mask}) != 0, found)"
        rest = f"arrayFlatten(arrayMap(x -> arrayMap(shift -> ({code}, x.2), {shifts}), {several}))"
        return f"arrayConcat({first}, {rest})"

    def _members(self) -> str:
        """Pairs for the members of objects among the hits."""
        leaves = sorted({rule.path[-1] for rule in self._rules if rule.path})
        wire, json = _wire_members("h.2", leaves), f"JSONExtractKeysAndValuesRaw({_object('h.2')})"
        return self._inside("hits", f"if(startsWith(h.2, {_WIRE}), {wire}, {json})")

    def _inside(self, holders: str, pairs: str) -> str:
        """Pairs of codes and text for what is in objects: `pairs` are name and text of the members of a holder `h`."""
        look = _lookup(f"concat(toString(bitShiftRight(h.1, {_OBJECT_SHIFT})), '#', p.1)", self._member_codes())
        inside = f"arrayMap(p -> (toUInt64({look}), p.2), {pairs})"
        of = f"arrayFilter(h -> h.1 >= {1 << _OBJECT_SHIFT} AND length(h.2) < {_OBJECT_BYTES_MAX}, {holders})"
        return f"arrayFilter(x -> x.1 != 0, arrayFlatten(arrayMap(h -> {inside}, {of})))"

    def _event_hits(self) -> str:
        """Pairs for the first event of each name that is known."""
        names = sorted({rule.event for rule in self._rules if rule.event})
        look = _lookup("concat(n, '::', k)", self._event_codes())
        at = _lookup("concat(n, '::@time')", self._event_codes())
        # An event before its span's start tells nothing about a first token.
        time = f"(toUInt64({at}), if(t > begin, toString((toInt64(t) - begin) / 1000000), ''))"
        inside = (
            f"arrayConcat([{time}], arrayMap((k, v) -> (toUInt64({look}), substring(v, 2)), mapKeys(m), mapValues(m)))"
        )
        known = f"if(u = 1 AND n IN ({_list(names)}), {inside}, [])"
        of = "event_names, event_times, event_maps, arrayEnumerateUniq(event_names)"
        return f"arrayFilter(x -> x.1 != 0, arrayFlatten(arrayMap((n, t, m, u) -> {known}, {of})))"

    def _kind(self) -> str:
        """The best of what tells the kind, each as rank, code and kind, so that the least text is the best."""
        v = self._vocabulary
        ranked: dict[str, str] = {}
        for rule in (rule for rule in self._rules if rule.field == KIND):
            key, code = "#".join((rule.key, *rule.path)), self._code[rule]
            for rank, kinds in (("0", v.kinds), ("4", v.weak_kinds)):
                ranked |= {f"{code}={value}": f"{rank}{code:04}{kind}" for value, kind in kinds.get(key, {}).items()}
        ranked |= {f"{code}=": f"2{code:04}{v.kinds_by_presence[key]}" for key, code in self._presence.items()}
        value = "lower(substringIndex(replaceOne(trim(BOTH '\"' FROM x.2), 'AgentOpsSpanKindValues.', ''), ' ', 1))"
        word = f"concat(toString(x.1), '=', if(x.1 < {_PLACES_MAX}, {value}, ''))"
        of = f"arrayFilter(x -> x.1 < {_PLACES_MAX} OR x.1 >= {len(self._fields) * _PLACES_MAX}, said)"
        choices = [f"arrayMap(x -> {_lookup(word, ranked, 'z')}, {of})"]
        for scope, names in v.kinds_by_scope.items():
            scoped = {name: f"1    {kind}" for name, kind in names.items()}
            choices.append(f"[if(scope_name = {literal(scope)}, {_lookup('name', scoped, 'z')}, 'z')]")
        by_name = {name: f"3    {kind}" for name, kind in v.kinds_by_name.items()}
        choices.append(f"[{_lookup(_FIRST_WORD, by_name, 'z')}]")
        return f"if(empty(said), '', substring(arrayMin(arrayConcat({', '.join(choices)})), 6))"

    def _met(self) -> str:
        """A bit for each condition that holds; the lowest always does."""
        bits = " + ".join(f"bitShiftLeft(toUInt16({_MET[c]}), {i + 1})" for i, c in enumerate(CONDITIONS))
        return f"1 + {bits}"

    def _candidates(self) -> str:
        by_name = ", ".join(
            f"(toUInt64({self._code[rule]}), {_BARE_NAME})" for rule in self._rules if rule.key == "@name"
        )
        return f"if(span_kind IN ('agent', 'tool'), arrayConcat(said, [{by_name}]), said)"

    def _good(self) -> str:
        """Pairs of one code and a value that holds something, where the rule's condition is met, in order of code."""
        asked = {self._code[r]: sum(2 << CONDITIONS.index(c) for c in r.when.split(",")) for r in self._rules if r.when}
        due = (
            f"x.1 >= {_PLACES_MAX} AND x.1 < {len(self._fields) * _PLACES_MAX}"
            f" AND bitAnd(bitNot(met), {_lookup('x.1', asked)}) = 0 AND x.2 NOT IN ({_list(NOTHING)})"
            f" AND length(x.2) <= {VALUE_BYTES_MAX}"
        )
        kind = "if(span_kind = '', [], [(toUInt64(0), span_kind)])"
        meant = f"arrayMap(x -> (x.1, {self._cleaned()}), arrayFilter(x -> {due}, {self._candidates()}))"
        # Bound once: inside, it would be worked out for each pair.
        holding = f"arrayElement(arrayMap(met -> arrayFilter(x -> x.2 != '', {meant}), [{self._met()}]), 1)"
        return f"arraySort(x -> x.1, arrayConcat({kind}, {holding}))"

    def _cleaned(self) -> str:
        """The value of a pair x, in the canonical form of its field."""

        def of(name: str) -> str:
            return f"{_FIELD} = {self._fields.index(name)}"

        def within(codes: list[int]) -> str:
            return f"x.1 IN ({', '.join(map(str, codes))})"

        # MLflow and Langfuse write strings as JSON.
        bare = "trim(BOTH '\"' FROM x.2)"
        head = f"substringIndex({bare}, '.', 1)"
        provider = (
            f"transform(if({head} IN ({_list(_DOTTED)}), {bare}, {head}), [{_list(self._vocabulary.providers)}], "
            f"[{_list(self._vocabulary.providers.values())}])"
        )
        seconds = "toString(toFloat64OrZero(x.2) * 1000)"
        clock = f"toUnixTimestamp64Nano(parseDateTime64BestEffortOrZero({bare}, 9, 'UTC'))"
        added = "round(arraySum(arrayMap(p -> toFloat64OrZero(p.2), JSONExtractKeysAndValuesRaw(x.2))), 12)"
        cases = [
            (of("provider"), provider),
            # An array of strings, in wire bytes or as JSON, or one string: the words in it.
            (of("finish_reasons"), "arrayStringConcat(extractAll(x.2, '[A-Za-z][A-Za-z_-]+'), ',')"),
            # Searched at any depth of wire bytes, `id` may be that of a tool call.
            (of("response_id"), f"if(match(x.2, '^\"?(call|toolu|fc|tool)_'), '', {bare})"),
            (within(self._codes_in("s")), seconds),
            (within(self._codes_in("s|ms")), f"if(position(x.2, '.') > 0, {seconds}, x.2)"),
            (within(self._codes_in("at")), f"if({clock} > begin, toString(({clock} - begin) / 1000000), '')"),
            (within(self._codes_in("sum")), f"ifNull(toString(nullIf({added}, 0)), '')"),
            *(
                (f"x.1 = {self._code[rule]}", f"extract(x.2, {literal('^(?:' + '|'.join(rule.take) + ')(.*)')})")
                for rule in self._rules
                if rule.take
            ),
        ]
        branches = ", ".join(f"{case}, {value}" for case, value in cases)
        return f"multiIf({branches}, startsWith(x.2, {_WIRE}), '', {bare})"

    def _codes_in(self, unit: str) -> list[int]:
        return [self._code[rule] for rule in self._rules if rule.unit == unit]


_DOTTED = ("gcp", "aws", "azure", "az", "ibm")
"""First words of providers whose name has dots; of others, what follows the dot is an API (`openai.chat`)."""
_FIRST_WORD = "substringIndex(name, ' ', 1)"
_BARE_NAME = (
    f"substring(name, transform({_FIRST_WORD}, ['invoke_agent', 'create_agent', 'execute_tool'], [14, 14, 14], 1))"
)
_MET = {
    "kind=agent": "span_kind = 'agent'",
    "kind=tool": "span_kind = 'tool'",
    "kind=task": "span_kind = 'task'",
    "kind=llm": "span_kind = 'llm'",
    "call": f"span_kind IN ({', '.join(map(literal, MODEL_CALLS))})",
    "scope=mlflow.tracing.provider": "scope_name = 'mlflow.tracing.provider'",
    "scope!=openinference.instrumentation.openai_agents": "scope_name != 'openinference.instrumentation.openai_agents'",
    "scope!=opentelemetry.instrumentation.openai_agents": "scope_name != 'opentelemetry.instrumentation.openai_agents'",
}
_MEMBERS = {"strings": "s", "ints": "i", "doubles": "d", "bools": "b", "arrays": "a", "kvlists": "m"}


def _object(text: str) -> str:
    """The object in a text: that of a JSON string (mlflow.linkedPrompts is one twice), the first one of an array."""
    once = f"JSONExtractString({text})"
    twice = f"if(startsWith({once}, '\"'), JSONExtractString({once}), {once})"
    inner = f"if(startsWith({text}, '\"'), {twice}, {text})"
    return f"arrayElement(arrayMap(o -> {_first_of('o')}, [{inner}]), 1)"  # bound: it would stand there three times


def _first_of(text: str) -> str:
    """The first element of an array of objects; what is no array as it is."""
    return f"if(startsWith({text}, '['), JSONExtractRaw({text}, 1), {text})"


_AS_TEXT = f"coalesce(s, toString(i), toString(d), toString(b), concat({_WIRE}, a), concat({_WIRE}, m), '')"


def _wire_members(wire: str, names: Sequence[str]) -> str:
    """Members of those names in the wire bytes of a KeyValueList, at any depth: pairs of '*name' and text.

    A KeyValue is 0A length key 12 length value; an integer is 18 and a varint, a string 0A, length, text. In hex,
    because regular expressions see UTF-8 and a varint is none.
    """
    words = "|".join(name.encode().hex().upper() for name in names)
    pattern = f"0A..({words})12(?:[0-7].|[89A-F].[0-7].)(?:18((?:[89A-F].)*[0-7].)|0A..((?:[2-7].)*))"
    low = "reinterpretAsUInt64(unhex(g[2]))"
    # Seven bits of each of five bytes.
    groups = f"arraySum(i -> bitAnd(bitShiftRight({low}, i), bitShiftLeft(toUInt64(127), 7 * i)), [0, 1, 2, 3, 4])"
    value = f"if(g[2] != '', toString({groups}), unhex(g[3]))"
    return (
        f"arrayMap(g -> (concat('*', unhex(g[1])), {value}), extractAllGroupsVertical(hex({wire}), {literal(pattern)}))"
    )


def _lookup(text: str, table: Mapping[Any, int] | Mapping[Any, str], missing: str = "") -> str:
    """`text` looked up; 0 or `missing` where the table has nothing."""
    keys = ", ".join(literal(key) if isinstance(key, str) else str(key) for key in table)
    if isinstance(next(iter(table.values())), int):
        return f"transform({text}, [{keys}], [{', '.join(map(str, table.values()))}], 0)"
    return f"transform({text}, [{keys}], [{_list(map(str, table.values()))}], {literal(missing)})"


def _list(texts: Iterable[str]) -> str:
    return ", ".join(map(literal, texts))
