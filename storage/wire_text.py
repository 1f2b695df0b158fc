"""SQL that turns what a store keeps of attributes and links into text, for readers that do not know OTLP's bytes.

Pure text, no engine here. Lists, maps and links are kept in their wire bytes (schema/0001_skeleton.sql), which SQL has
no function for: `arrayFold` takes them apart, an element a step. One level of them: ClickHouse 24.10 resolves a lambda
within a lambda anew for each level, and took 30 s to analyse a statement that took apart every depth.
"""

ELEMENTS_MAX = 1024
"""Elements of a list or map that are written; what follows is left out."""

_LIST, _MAP, _LINK_ATTRIBUTE = 10, 10, 34  # tags: of an element of a list, of an entry of a map, of a link's attribute


def text_of(value: str) -> str:
    """A value with its letter (`s`, `i`, …) as the text that OpenTelemetry's `AsString` makes of it.

    Lists and maps are JSON; a list or a map within one is its wire bytes in base64.
    """
    letter = f"substring({value}, 1, 1)"
    return (
        f"multiIf({letter} IN ('a', 'm'), {_json(value)}, {letter} = 'y', base64Encode(substring({value}, 2)),"
        f" substring({value}, 2))"
    )


def texts_of(attributes: str) -> str:
    """A map of values with letters as a map of texts.

    mapFromArrays(mapKeys(m), … mapValues(m) …) would do, but ClickHouse 24.10 reads the two as columns of their own
    then, and crashes.
    """
    return f"mapApply((k, v) -> (k, {text_of('v')}), {attributes})"


def link_columns(links: str) -> dict[str, str]:
    """What links in their wire bytes say, an array a column of the exporter's `Links`.

    Their fields stand in the order of their numbers, as every encoder writes them.
    """
    span_at = "if(startsWith(w, '\\x0a\\x10'), 19, 1)"
    state_at = f"{span_at} + if(substring(w, {span_at}, 2) = '\\x12\\x08', 10, 0)"
    has_state = f"substring(w, {state_at}, 1) = '\\x1a'"
    length, head = _length("w", f"{state_at} + 1")
    rests = f"arrayMap(w -> substring(w, {state_at} + if({has_state}, 1 + {head} + {length}, 0)), {links})"
    pairs = f"arrayMap(e -> ({_key('e')}, {_value('e')}), {_elements('r', _LINK_ATTRIBUTE, '1')})"
    texts = f"arrayMap(t -> (t.1, {_text('t.2')}), {pairs})"
    return {
        "TraceId": f"arrayMap(w -> if(startsWith(w, '\\x0a\\x10'), lower(hex(substring(w, 3, 16))), ''), {links})",
        "SpanId": f"arrayMap(w -> if({span_at.replace('19, 1', '1, 0')} AND substring(w, 19, 2) = '\\x12\\x08',"
        f" lower(hex(substring(w, 21, 8))), ''), {links})",
        "TraceState": f"arrayMap(w -> if({has_state}, substring(w, {state_at} + 1 + {head}, {length}), ''), {links})",
        "Attributes": f"arrayMap(r -> {texts}::Map(String, String), {rests})",
    }


def _byte(of: str, at: str) -> str:
    return f"reinterpretAsUInt8(substring({of}, {at}, 1))"


def _length(of: str, at: str) -> tuple[str, str]:
    """A length of three bytes at most that stands at `at`, and how many bytes it takes."""
    one, two, three = (_byte(of, f"{at} + {i}" if i else at) for i in range(3))
    value = f"multiIf({one} < 128, {one}, {two} < 128, {one} % 128 + {two} * 128,"
    return (
        f"{value} {one} % 128 + ({two} % 128) * 128 + {three} * 16384)",
        f"multiIf({one} < 128, 1, {two} < 128, 2, 3)",
    )


def _elements(message: str, tag: int, most: str) -> str:
    """The elements with which a message begins. The state of a step: where it reads, the elements so far."""
    length, head = _length(message, "acc.1 + 1")
    more = f"{_byte(message, 'acc.1')} = {tag}"
    step = (
        f"if({more}, (toUInt32(acc.1 + 1 + {head} + {length}),"
        f" arrayPushBack(acc.2, substring({message}, acc.1 + 1 + {head}, {length}))), acc)"
    )
    steps = f"range(toUInt64(least(intDiv(length({message}), 2), {ELEMENTS_MAX}) * ({most})))"
    return f"arrayFold((acc, i) -> {step}, {steps}, (toUInt32(1), []::Array(String))).2"


def _key(entry: str) -> str:
    """The key of a KeyValue; shorter than 128 bytes, or cut."""
    return f"if({_byte(entry, '1')} = 10, substring({entry}, 3, {_byte(entry, '2')}), '')"


def _value(entry: str) -> str:
    """The AnyValue of a KeyValue."""
    at = f"if({_byte(entry, '1')} = 10, 3 + {_byte(entry, '2')}, 1)"
    _, head = _length(entry, f"{at} + 1")
    return f"substring({entry}, {at} + 1 + {head})"


def _text(value: str, quote: str = "{}", missing: str = "''") -> str:
    """An AnyValue as text; `quote` is what becomes of strings."""
    tag, (_, head) = _byte(value, "1"), _length(value, "2")
    inner = f"substring({value}, 2 + {head})"
    seven_bits = f"bitShiftLeft(toUInt64({_byte(value, 'j + 2')} % 128), 7 * j)"
    return (
        f"multiIf({tag} = 10, {quote.format(inner)}, {tag} = 16, if({_byte(value, '2')} = 1, 'true', 'false'),"
        f" {tag} = 24, toString(reinterpretAsInt64(arraySum(j -> {seven_bits}, range(10)))),"
        f" {tag} = 33, toString(reinterpretAsFloat64(substring({value}, 2, 8))),"
        f" {value} = '', {missing}, {quote.format(f'base64Encode({inner})')})"
    )


def _json(value: str) -> str:
    """A list or a map, by its letter, as JSON."""
    is_map = f"substring({value}, 1, 1) = 'm'"
    quote = "replaceAll(toJSONString({}), '\\\\/', '/')"
    entries = _elements(f"substring({value}, 2)", _LIST, f"substring({value}, 1, 1) IN ('a', 'm')")
    pairs = f"if({is_map}, (concat({quote.format(_key('e'))}, ':'), {_value('e')}), ('', e))"
    text = _text("t.2", quote, missing="'null'")
    texts = f"arrayMap(t -> concat(t.1, {text}), arrayMap(e -> {pairs}, {entries}))"
    return f"concat(if({is_map}, '{{', '['), arrayStringConcat({texts}, ','), if({is_map}, '}}', ']'))"
