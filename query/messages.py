"""OTLP's messages with nested values as bytes: `array_value` and `kvlist_value` pass unread, however deep they are.

The classes are made of opentelemetry-proto's own descriptors, in a pool of their own.
"""

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for module in (common_pb2, resource_pb2, trace_pb2):
        file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for message in file.message_type:
            for field in message.field:
                if field.name in ("array_value", "kvlist_value"):
                    field.type = FieldDescriptorProto.TYPE_BYTES
                    field.ClearField("type_name")
        pool.Add(file)
    return pool


_POOL = _pool()
TracesData: Any = GetMessageClass(_POOL.FindMessageTypeByName("opentelemetry.proto.trace.v1.TracesData"))
Link: Any = GetMessageClass(_POOL.FindMessageTypeByName("opentelemetry.proto.trace.v1.Span.Link"))
