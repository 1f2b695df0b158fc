"""SQL that changes the texts within lists, maps and links, by the functions of nested_texts.py. Pure text."""

from collections.abc import Callable

TEXTS, WITH_TEXTS = "spanhouse_texts", "spanhouse_with_texts"
"""What these functions are called in the engine."""
IS_NESTED = "substring(v, 1, 1) IN ('a', 'm', 'l')"
"""Whether a value v with its letter has texts within it: a list, a map, a link."""


def within(values: str, keys: str, change: Callable[[str, str], str]) -> str:
    """Values with their letters, the scalars within them changed.

    `change` makes of such values and of their keys, two expressions, the values as they are to be.
    """
    # Without a value to walk the argument is NULL, and Python is not called.
    wire = f"if({IS_NESTED}, hex(v), NULL)"
    found = f"JSONExtract(ifNull({TEXTS}({wire}), '[]'), 'Array(Tuple(String, String))')"
    new = change("arrayMap(t -> t.2, j)", "arrayMap(t -> if(t.1 = '', toString(k), t.1), j)")
    changed = f"arrayElement(arrayMap(j -> toJSONString({new}), [{found}]), 1)"
    return f"arrayMap((k, v) -> ifNull(unhex({WITH_TEXTS}({wire}, {changed})), v), {keys}, {values})"
