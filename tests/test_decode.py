"""The decoding statement as text: what is sent to the engine is known, and values cannot break out of it."""

from pathlib import Path

import pytest

from storage import decode
from storage.canonical import CanonicalSql
from storage.vocabulary import load

SNAPSHOT = Path(__file__).with_name("snapshots") / "load.sql"


def test_the_statement_is_known() -> None:
    """Regenerate with: rm tests/snapshots/load.sql, then run this test twice."""
    proto = decode.engine_proto().replace("\\", "\\\\").replace("'", "\\'")
    statement = decode.Decoder(CanonicalSql(load())).rows(Path("/wal/segment.wal")).insert("token")
    text = statement.replace(proto, "<proto/wal.proto>") + "\n"
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(text)
        pytest.fail(f"{SNAPSHOT.name} was missing and is written now: look at it, then run again")
    assert text == SNAPSHOT.read_text(), "the statement changed: if that is meant, remove tests/snapshots/load.sql"


def test_names_of_files_are_quoted() -> None:
    statement = decode.Decoder(CanonicalSql(load())).rows(Path("/it's \\ here/{x}.wal")).insert("it's")
    assert "file('/it\\'s \\\\ here/{x}.wal', 'Protobuf'" in statement
    assert "insert_deduplication_token = 'it\\'s'" in statement


@pytest.mark.parametrize(
    ("key", "value", "content"),
    [
        ("gen_ai.input.messages", "x", True),
        ("llm.input_messages.0.message.content", "x", True),
        ("gen_ai.prompt.0.content", "x", True),
        ("gen_ai.prompt.name", "x", False),
        ("http.route", "x" * 1024, False),
        ("http.route", "x" * 1025, True),
        ("http.route", "é" * 513, True),
    ],
)
def test_what_is_content(key: str, value: str, content: bool) -> None:
    assert decode.content_rule().holds(key, value) is content
