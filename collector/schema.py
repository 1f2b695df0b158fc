"""The messages of proto/wal.proto as upb classes, built when this module is imported; no generated code, no protoc.

Owns the reading of that text, which is the only place where the request's shape is written down: the engine reads the
same one. Two sets of classes come of it. The strict ones check every `string` for UTF-8, in C, while they parse. In
the lenient ones strings are `bytes`, so that a request with a bad string can still be taken apart span by span.

What nests in an AnyValue is `bytes` in that text, so no depth of nesting fails a parse. No thread of its own: message
classes are safe to use from any.
"""

import re
from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClassesForFiles

from storage.decode import WAL_PROTO

_TOKEN = re.compile(r'\w+|"[^"]*"|[{}=;]')
_SCALARS = dict(FieldDescriptorProto.Type.items())
_PACKAGE = "spanhouse.wal"


def file_descriptor(text: str, *, strings_as_bytes: bool = False) -> FileDescriptorProto:
    """The file that `text` declares: proto3 with top-level messages, scalar and message fields, `repeated` and `oneof`.

    That is the whole language of proto/wal.proto; anything else raises ValueError.
    """
    tokens = iter(_TOKEN.findall(re.sub(r"//[^\n]*", "", text)))
    name = "wal_lenient.proto" if strings_as_bytes else "wal.proto"
    file = FileDescriptorProto(name=name, package=_PACKAGE, syntax="proto3")
    for token in tokens:
        if token == "syntax":
            _expect(tokens, "=", '"proto3"', ";")
        elif token == "message":
            _read_message(tokens, file.message_type.add(name=next(tokens)), strings_as_bytes)
        else:
            raise ValueError(f"cannot read the schema: {token!r} where a message should begin")
    return file


def _read_message(tokens: Iterator[str], message: DescriptorProto, strings_as_bytes: bool) -> None:
    _expect(tokens, "{")
    in_oneof = False
    while (token := next(tokens)) != "}" or in_oneof:
        if token == "}":
            in_oneof = False
        elif token == "oneof":
            message.oneof_decl.add(name=next(tokens))
            in_oneof = True
            _expect(tokens, "{")
        else:
            field = _read_field(tokens, token, strings_as_bytes)
            if in_oneof:
                field.oneof_index = len(message.oneof_decl) - 1
            message.field.append(field)


def _read_field(tokens: Iterator[str], token: str, strings_as_bytes: bool) -> FieldDescriptorProto:
    label = FieldDescriptorProto.LABEL_OPTIONAL
    if token == "repeated":
        label, token = FieldDescriptorProto.LABEL_REPEATED, next(tokens)
    field = FieldDescriptorProto(label=label, name=next(tokens))
    _expect(tokens, "=")
    field.number = int(next(tokens))
    _expect(tokens, ";")
    if token == "string" and strings_as_bytes:
        token = "bytes"
    # A scalar's name in the language is its name in the enum; whatever is no scalar is a message of this file.
    scalar = f"TYPE_{token.upper()}"
    if scalar in _SCALARS:
        field.type = _SCALARS[scalar]
    else:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{_PACKAGE}.{token}"
    return field


def _expect(tokens: Iterator[str], *expected: str) -> None:
    for want in expected:
        if (got := next(tokens)) != want:
            raise ValueError(f"cannot read the schema: {got!r} where {want!r} should be")


def message_classes(text: str, *, strings_as_bytes: bool = False) -> dict[str, type[Message]]:
    """The upb classes of the messages that `text` declares, by name."""
    file = file_descriptor(text, strings_as_bytes=strings_as_bytes)
    # A pool of their own: the default pool is one namespace for the whole process.
    pool = DescriptorPool()
    pool.Add(file)
    classes = GetMessageClassesForFiles([file.name], pool)
    return {name.removeprefix(f"{_PACKAGE}."): message_class for name, message_class in classes.items()}


_TEXT = WAL_PROTO.read_text(encoding="utf-8")

STRICT = message_classes(_TEXT)
LENIENT = message_classes(_TEXT, strings_as_bytes=True)
