"""Text as literals of SQL, for statements that are built and not parametrised: what they hold is not a sender's."""


def literal(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
