"""What is said of the registry to people: short, and without the secrets that URIs and errors carry. Pure."""

import re
from urllib.parse import urlsplit, urlunsplit

TEXT_CHARS_MAX = 300


def shown(uri: str) -> str:
    """A URI without what may be secret in it: user, password, query."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def why(error: Exception) -> str:
    """What went wrong, for a person, in a few words."""
    if isinstance(error, ImportError):
        return f"cannot import {error.name}: install spanhouse[mlflow]"
    text = str(error)
    for sign, words in (
        ("Connection refused", "connection refused"),
        ("timed out", "no answer in time"),
        ("Name or service not known", "its name is not known"),
        ("NameResolutionError", "its name is not known"),
    ):
        if sign in text:
            return words
    return cleaned(error)


def cleaned(error: Exception) -> str:
    """The first line of an error, without secrets."""
    line = (str(error) or type(error).__name__).partition("\n")[0]
    line = re.sub(r"//[^/\s@]*@", "//", line)
    return re.sub(r"(?i)([\w-]*(?:token|key|secret|password|sig)[\w-]*=)[^&\s'\")]+", r"\1…", line)[:TEXT_CHARS_MAX]
