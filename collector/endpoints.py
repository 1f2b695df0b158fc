"""Where OTLP/HTTP is served: the specification's paths, and those to which the SDKs of other products send.

The one table of them, so that such an SDK reaches Spanhouse by changing its host. A base is what a product documents as
its `OTEL_EXPORTER_OTLP_ENDPOINT`; exporters append `/v1/traces` and `/v1/logs` themselves. docs/endpoints.md shows the
same table to users. Pure.
"""

from dataclasses import dataclass

from collector.frames import Signal


@dataclass(frozen=True, slots=True)
class Base:
    """What a base path stands for: the products whose it is, and the header in which they name a project there."""

    products: tuple[str, ...]
    project_header: str = ""


BASES = {
    "": Base(("OpenTelemetry", "MLflow", "Phoenix", "Arize", "Traceloop", "OpenLIT", "Logfire", "Laminar", "AgentOps")),
    "/mlflow": Base(("MLflow (tracking URI)",)),
    "/api/public/otel": Base(("Langfuse",)),
    "/otel": Base(("LangSmith", "W&B Weave", "Braintrust"), "project_id"),
    "/api/v1/otel": Base(("LangSmith (self-hosted)",)),
    "/agents/otel": Base(("W&B Weave (agents)",), "project_id"),
    "/traces/otel": Base(("W&B Weave (dedicated)",), "project_id"),
    "/api/v1/private/otel": Base(("Opik (self-hosted)",), "projectname"),
    "/opik/api/v1/private/otel": Base(("Opik",), "projectname"),
    "/api/otel": Base(("LangWatch",)),
    "/opentelemetry": Base(("HoneyHive",)),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is taken at a path."""

    signal: Signal
    project_header: str


TRACES_PATH, LOGS_PATH = "/v1/traces", "/v1/logs"
_SIGNALS: dict[str, Signal] = {TRACES_PATH: "traces", LOGS_PATH: "logs"}

ENDPOINTS = {
    base + path: Endpoint(signal, at.project_header) for base, at in BASES.items() for path, signal in _SIGNALS.items()
}
"""By path."""

OTHER_SIGNALS = {
    base + path: signal
    for base in BASES
    for path, signal in {"/v1/metrics": "metrics", "/v1development/profiles": "profiles"}.items()
}
"""What an exporter of all signals sends beside, by path."""
