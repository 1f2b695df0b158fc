"""The recorded requests under tests/corpus: what exporters of real SDKs and agent frameworks sent, a folder a case.

`NNNN.bin` is the body as it came: of gRPC the data frame (one byte compressed flag, four bytes length, the message).
`NNNN.json` says the protocol, the path, the content type and the encoding.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

CORPUS = Path(__file__).with_name("corpus")
CASES = sorted(path.name for path in CORPUS.iterdir())


@dataclass(frozen=True)
class Recorded:
    """One request."""

    protocol: str
    content_type: str
    content_encoding: str | None
    body: bytes

    @property
    def grpc_message(self) -> bytes:
        """The message of a gRPC request, uncompressed."""
        assert len(self.body) == 5 + int.from_bytes(self.body[1:5], "big")
        return gzip.decompress(self.body[5:]) if self.body[0] else self.body[5:]

    def decoded(self) -> ExportTraceServiceRequest:
        """What was sent, by opentelemetry-proto alone. Not for JSON."""
        if self.protocol == "grpc":
            return ExportTraceServiceRequest.FromString(self.grpc_message)
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[self.content_encoding]
        return ExportTraceServiceRequest.FromString(plain(self.body))


def requests(case: str) -> list[Recorded]:
    """The requests of a case in the order in which they were sent."""
    found = []
    for sidecar in sorted((CORPUS / case).glob("*.json")):
        said = json.loads(sidecar.read_text())
        body = sidecar.with_suffix(".bin").read_bytes()
        found.append(Recorded(said["protocol"], said["content_type"], said["content_encoding"], body))
    return found
