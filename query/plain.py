"""Attribute values as plain JSON, for people and for jq. Runs on the thread of the request that asked.

    OTLP                     JSON
    string, bool             the same
    int (64 bits)            a number with all its digits
    double                   a number with a point (1.0 stays 1.0); "NaN", "Infinity", "-Infinity" as in proto3 JSON
    bytes                    {"bytes": "<base64>"}
    array, key-value list    an array, an object (of keys that repeat within a nested list, the last wins)
    no value set             null
    nested, but not valid    {"bytes": "<base64>"} of its wire bytes (nested.py says what is valid)

What this cannot tell apart (a string "NaN" from the number, say) the OTLP form can: see otlp.py.
"""

import math
from base64 import b64encode
from typing import Any

from query.nested import Form, nested_json
from storage.spans import Attributes, Nested, Value

_AS_IT_IS = frozenset((str, bool, int, type(None)))


def plain(value: Value) -> Any:
    """The value as something that orjson writes; a nested one is JSON text already (orjson.Fragment)."""
    if isinstance(value, float):
        return json_double(value)
    if isinstance(value, bytes):
        return {"bytes": b64encode(value).decode()}
    if isinstance(value, Nested):
        return nested_json(value, PLAIN_JSON) or plain(value.wire)
    return value


def plain_attributes(attributes: Attributes) -> dict[str, Any]:
    """Members for the JSON object that carries attributes: `attributes`, and `duplicate_attributes` where keys repeat.

    OTLP asks for unique keys, and senders break that. Of a repeated key the last value is in the object, and all its
    values are in `duplicate_attributes`, as [{"key", "value"}, …].
    """
    json = {key: value if type(value) in _AS_IT_IS else plain(value) for key, value in attributes}
    if len(json) == len(attributes):
        return {"attributes": json}
    times: dict[str, int] = {}
    for key, _ in attributes:
        times[key] = times.get(key, 0) + 1
    repeated = [{"key": key, "value": plain(value)} for key, value in attributes if times[key] > 1]
    return {"attributes": json, "duplicate_attributes": repeated}


def json_double(value: float) -> float | str:
    """A double as proto3's JSON mapping has it: JSON has no numbers for the three that are not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


PLAIN_JSON = Form(
    opening={"array": b"[", "kvlist": b"{"},
    closing={"array": b"]", "kvlist": b"}"},
    pair=(b"", b":", b""),
    scalar=plain,
    unique_keys=True,
)
