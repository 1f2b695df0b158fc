"""Text as literals of SQL, for statements that are built and not parametrised: what is in them is ours, not a sender's."""


def literal(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
