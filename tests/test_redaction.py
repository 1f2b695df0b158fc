"""Redaction and shortening as loads do them: what is stored, wherever it stood, on every footing."""

import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute, logs, record, request, span
from store import Store

from storage.redaction import Redaction, Rule, load
from storage.rules import BadRules

SECRET = "key-of-the-house-0123456789"
MAIL = "eve@mail.example"
EMAILS = Rule("emails", "<email>", pattern=r"[\w.]+@[\w.]+")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def items(*values: AnyValue) -> AnyValue:
    return AnyValue(array_value=ArrayValue(values=values))


def members(**values: AnyValue) -> AnyValue:
    return AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key=key, value=value) for key, value in values.items()]))


def rule(**fields: Any) -> Rule:
    return Rule(**{"name": "r", "text": "<gone>", **fields})


def hashed(value: str) -> str:
    return "hmac:" + hmac.new(SECRET.encode(), value.encode(), hashlib.sha256).hexdigest()[:32]


def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "redaction.key"
    path.write_text(f" {SECRET}\n")
    return path


def attributes(store: Store, number: int = 1, tenant: str = "default") -> dict[str, Any]:
    """Of `span(number)`, as the API has them."""
    for each in store.traces.spans_of(tenant, span(number).trace_id, content=True, limit=10):
        if each.span_id == span(number).span_id:
            return dict(each.attributes)
    raise AssertionError("no such span")


def test_a_pattern_is_replaced_in_every_place(store: Store) -> None:
    store.engine.redact(Redaction((EMAILS,)))
    deep = members(a=items(members(b=text(f"to {MAIL} and {MAIL}"), n=AnyValue(int_value=7)), text("plain")))
    one = span(
        1,
        name=f"mail {MAIL}",
        trace_state=f"a={MAIL}",
        attributes=[
            attribute("short", text(f"from {MAIL}")),
            attribute("gen_ai.input.messages", text(f"long {MAIL} " + "x" * 2000)),
            attribute("deep", deep),
            attribute("list", items(text(MAIL), AnyValue(bool_value=True), AnyValue(bytes_value=MAIL.encode()))),
            attribute("raw", AnyValue(bytes_value=MAIL.encode())),
            attribute("number", AnyValue(int_value=12)),
        ],
        events=[Span.Event(name=f"sent {MAIL}", attributes=[attribute("to", text(MAIL)), attribute("all", deep)])],
        links=[Span.Link(trace_id=b"l" * 16, span_id=b"l" * 8, attributes=[attribute("of", text(MAIL))])],
    )
    one.status.message = f"cannot mail {MAIL}"
    of_all = request(one)
    of_all.resource_spans[0].resource.attributes.append(attribute("owner", text(MAIL)))
    of_all.resource_spans[0].scope_spans[0].scope.attributes.append(attribute("author", text(MAIL)))
    store.load([of_all], context=(("user_id", MAIL),))
    store.load([logs(record(1, body=deep, attributes=[attribute("to", text(MAIL)), attribute("deep", deep)]))])

    for table, columns in {"spans": "*", "content": "*", "origins": "*", "records": "*", "traces": "*"}.items():
        rows = store.engine.rows(f"SELECT {columns} FROM spanhouse.{table}")
        assert rows, table
        assert "mail.example" not in repr(rows), table
        assert b"mail.example".hex() not in repr(rows).lower(), table
    stored = attributes(store)
    assert stored["short"] == "from <email>"
    assert stored["gen_ai.input.messages"] == "long <email> " + "x" * 2000
    assert stored["number"] == 12
    (row,) = store.engine.rows("SELECT hex(OtherAttributes['deep']), hex(OtherAttributes['list']) FROM spanhouse.spans")
    assert (
        KeyValueList.FromString(bytes.fromhex(row[0])[1:])
        == members(
            a=items(members(b=text("to <email> and <email>"), n=AnyValue(int_value=7)), text("plain"))
        ).kvlist_value
    )
    assert (
        ArrayValue.FromString(bytes.fromhex(row[1])[1:])
        == items(text("<email>"), AnyValue(bool_value=True), AnyValue(bytes_value=b"<email>")).array_value
    )
    ((link,),) = store.engine.rows("SELECT hex(Links[1]) FROM spanhouse.spans")
    assert Span.Link.FromString(bytes.fromhex(link)).attributes[0].value.string_value == "<email>"


def test_whole_values_go_by_their_keys(store: Store, tmp_path: Path) -> None:
    by_key = rule(text=None, keys=("user.id", "http.request.header.*"))
    store.engine.redact(Redaction((by_key, rule(keys=("password", "session.id"))), key_file(tmp_path)))
    store.load([request(span(1, attributes=[
        attribute("user.id", AnyValue(int_value=4711)),
        attribute("http.request.header.cookie", items(text("one"))),
        attribute("http.request.headers", text("kept")),
        attribute("form", members(password=text("hunter2"), name=text("eve"))),
        attribute("session.id", text("s-1")),
    ]))])  # fmt: skip
    stored = attributes(store)
    assert stored["user.id"] == hashed("4711")
    assert stored["http.request.headers"] == "kept"
    assert stored["http.request.header.cookie"].startswith("hmac:")
    assert stored["session.id"] == "<gone>"
    canonical = store.engine.rows("SELECT Canonical['user_id'], Canonical['session_id'] FROM spanhouse.spans")
    assert [*map(tuple, canonical)] == [(hashed("4711"), "<gone>")], "canonical columns are of what is stored"
    ((form,),) = store.engine.rows("SELECT hex(OtherAttributes['form']) FROM spanhouse.spans")
    assert (
        KeyValueList.FromString(bytes.fromhex(form)[1:])
        == members(password=text("<gone>"), name=text("eve")).kvlist_value
    )


def test_matches_are_hashed_one_by_one(store: Store, tmp_path: Path) -> None:
    numbers = rule(text=None, pattern=r"\b\d{3,}\b")
    store.engine.redact(Redaction((numbers,), key_file(tmp_path)))
    store.load([request(span(1, attributes=[
        attribute("a", text("1234 and 12 and 1234, 567")),
        attribute("b", AnyValue(int_value=5678)),
        attribute("c", AnyValue(int_value=12)),
        attribute("d", items(text("111"), AnyValue(int_value=222))),
    ]))])  # fmt: skip
    stored = attributes(store)
    assert stored["a"] == f"{hashed('1234')} and 12 and {hashed('1234')}, {hashed('567')}"
    assert (stored["b"], stored["c"]) == (hashed("5678"), 12)
    ((found,),) = store.engine.rows("SELECT hex(OtherAttributes['d']) FROM spanhouse.spans")
    assert (
        ArrayValue.FromString(bytes.fromhex(found)[1:]) == items(text(hashed("111")), text(hashed("222"))).array_value
    )


def test_rules_are_of_tenants_and_services(store: Store) -> None:
    of_some = rule(pattern="secret", tenants=("team-*",), services=("test",))
    store.engine.redact(Redaction((of_some,)))
    one = [attribute("a", text("a secret"))]
    store.load([request(span(1, attributes=one)), request(span(2, attributes=one), service="other")], "team-a")
    store.load([request(span(1, attributes=one))], "other")
    assert attributes(store, 1, "team-a")["a"] == "a <gone>"
    assert attributes(store, 2, "team-a")["a"] == "a secret"
    assert attributes(store, 1, "other")["a"] == "a secret"


def test_replacements_and_patterns_are_texts(store: Store) -> None:
    odd = rule(pattern=r"it's \\0 (a|b)", text=r"\0 'quoted' \1")
    store.engine.redact(Redaction((odd, rule(pattern="^start", text=""))))
    store.load([request(span(1, attributes=[
        attribute("a", text(r"it's \0 a")), attribute("b", text("line\nstart")), attribute("c", items(text("start x"))),
    ]))])  # fmt: skip
    stored = attributes(store)
    assert stored["a"] == r"\0 'quoted' \1"
    assert stored["b"] == "line\nstart"
    ((found,),) = store.engine.rows("SELECT hex(OtherAttributes['c']) FROM spanhouse.spans")
    assert ArrayValue.FromString(bytes.fromhex(found)[1:]) == items(text(" x")).array_value, "anchors are of the text"


@pytest.mark.parametrize(("pattern", "says"), [("(", "missing \\)"), ("a*", "write \\+"), ("(?=x)", "perl operator")])
def test_patterns_are_checked(store: Store, pattern: str, says: str) -> None:
    with pytest.raises(BadRules, match=says):
        store.engine.redact(Redaction((rule(pattern=pattern),)))


def test_the_key_is_in_no_error(store: Store, tmp_path: Path) -> None:
    path = key_file(tmp_path)
    store.engine.redact(Redaction((rule(text=None, pattern="x+"), rule(text=None, keys=("k",))), path))
    segment, token = store.segment([request(span(1))])
    for broken in (segment.read_bytes()[:-7], b"\x10" * 200):
        segment.write_bytes(broken)
        with pytest.raises(Exception) as failure:
            store.engine.load(segment, token)
        assert SECRET not in str(failure.value) + repr(failure.value.__cause__)
    assert SECRET not in store.engine._rows(segment, "traces", token).select
    path.unlink()
    segment, token = store.segment([request(span(1, name="xx"))])
    with pytest.raises(Exception, match=r"redaction\.key"):
        store.engine.load(segment, token)
    path.write_text(SECRET)
    store.engine.load(segment, token)
    ((name,),) = store.engine.rows("SELECT SpanName FROM spanhouse.spans")
    assert name == hashed("xx")


def test_long_content_is_shortened(store: Store) -> None:
    store.engine.shorten(["loud"], 4096)
    long, deep = "héllo " * 2000, members(x=text("y" * 9000), n=AnyValue(int_value=7))
    one = request(span(
        1,
        attributes=[attribute("gen_ai.input.messages", text(long)), attribute("gen_ai.output.messages", deep),
                    attribute("short", text("as it is"))],
        events=[Span.Event(name="e", attributes=[attribute("body", text(long))])],
    ))  # fmt: skip
    said = logs(record(1, body=text(long)))
    for tenant in ("loud", "quiet"):
        store.load([one, said], tenant)
    stored = attributes(store, 1, "loud")
    digest = hashlib.sha256(long.encode()).hexdigest()[:32]
    assert (
        f" … [shortened by Spanhouse: {len(long.encode())} bytes, sha256 {digest}] … "
        in stored["gen_ai.input.messages"]
    )
    assert stored["gen_ai.input.messages"].startswith(long[:1000])
    assert stored["gen_ai.input.messages"].endswith(long[-500:])
    assert len(stored["gen_ai.input.messages"].encode()) < 4096
    assert stored["short"] == "as it is"
    assert stored["spanhouse.shortened"] == 3
    assert attributes(store, 1, "quiet")["gen_ai.input.messages"] == long
    assert "spanhouse.shortened" not in attributes(store, 1, "quiet")
    bodies = store.engine.rows(
        "SELECT Tenant, length(Body), Attributes['spanhouse.shortened'], uniqExact(RecordKey) OVER ()"
        " FROM spanhouse.records ORDER BY Tenant"
    )
    assert [(t, length < 4096, mark, keys) for t, length, mark, keys in bodies] == [
        ("loud", True, "i1", 1), ("quiet", False, "", 1),
    ]  # fmt: skip
    store.engine.shorten([], 4096)
    store.load([request(span(2, attributes=[attribute("gen_ai.input.messages", text(long))]))], "loud")
    assert attributes(store, 2, "loud")["gen_ai.input.messages"] == long


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[[rules]]\nname='a'\nwith='x'", "needs keys, a pattern, or both"),
        ("[[rules]]\nname='a'\nkeys=['b']", 'either with = "…" or hash = true'),
        ("[[rules]]\nname='a'\nkeys=['b']\nwith='x'\nhash=true", "either"),
        ("[[rules]]\nname='a'\nkeys=['b']\nhash=true", "--redaction-key-file"),
        ("[[rules]]\nname='a'\nkey=['b']\nhash=true", "cannot use 'key'"),
        ("[[rules]]\nkeys=['b']", "the name of rule 1"),
        ("[rules]", "two brackets"),
        ("[[rules", "cannot read the redaction rules"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, toml: str, says: str) -> None:
    path = tmp_path / "redaction.toml"
    path.write_text(toml)
    with pytest.raises(BadRules) as error:
        load(path, None)
    assert says in str(error.value)


def test_a_short_key_is_refused_and_not_quoted(tmp_path: Path) -> None:
    path, key = tmp_path / "redaction.toml", tmp_path / "key"
    path.write_text("[[rules]]\nname='a'\nkeys=['b']\nhash=true")
    key.write_text("hunter2\n")
    with pytest.raises(BadRules, match="7 bytes") as error:
        load(path, key)
    assert "hunter2" not in str(error.value)
