"""What the headers of a request, or the metadata of a call, say of all spans in it: which run, experiment or model.

Owns the table from header to canonical field. Headers are lower-case here, as HTTP/2 and ASGI have them. A request
without any of them, which is nearly every one, costs one comparison of sets. Pure; runs on the receivers' threads.

Sources: MLflow (server/otel_api.py), Braintrust (otel/__init__.py), LangSmith, W&B Weave and Opik (their pages on
OpenTelemetry).
"""

from collections.abc import Mapping

from collector.frames import Context
from collector.status import BadRequest

RUN, MODEL = "x-spanhouse-run-id", "x-spanhouse-model"
BRAINTRUST = "x-bt-parent"

# Later ones win over earlier ones, and what a header of our own says over all.
_FIELDS = {
    "langsmith-project": "experiment_id",
    "x-mlflow-experiment-id": "experiment_id",
    "x-mlflow-run-id": "run_id",
    RUN: "run_id",
}
_BRAINTRUST_FIELDS = {
    "project_id": ("experiment_id",),
    "project_name": ("experiment_id",),
    "experiment_id": ("experiment_id", "run_id"),
}
_PROJECT_HEADERS = frozenset(("project_id", "projectname"))

HEADERS = frozenset((*_FIELDS, MODEL, BRAINTRUST, *_PROJECT_HEADERS))
"""All that may say something; a project header does so on the paths of its product only."""
_HEADERS_BYTES = frozenset(name.encode() for name in HEADERS)


def context_of_http(headers: Mapping[bytes, bytes], project_header: str) -> Context:
    """What an HTTP request says. Raises BadRequest."""
    if _HEADERS_BYTES.isdisjoint(headers):
        return ()
    said = {}
    for name in _HEADERS_BYTES & headers.keys():
        try:
            said[name.decode()] = headers[name].decode().strip()
        except UnicodeDecodeError as error:
            raise BadRequest(f"cannot take {headers[name][:80]!r} as {name.decode()}: it is not UTF-8") from error
    return context_of(said, project_header)


def context_of(said: Mapping[str, str], project_header: str = "") -> Context:
    """What headers say, by canonical field. `said` holds those of HEADERS that were sent. Raises BadRequest."""
    fields: dict[str, str] = {}
    if project := said.get(project_header, ""):
        fields["experiment_id"] = project
    # A parent of any other form (a span that was exported as text) names nothing of ours; nor is it an error.
    kind, _, name = said.get(BRAINTRUST, "").partition(":")
    fields |= dict.fromkeys(_BRAINTRUST_FIELDS.get(kind, ()), name)
    fields |= {field: said[header] for header, field in _FIELDS.items() if said.get(header)}
    if model := said.get(MODEL, ""):
        fields["model_name"], _, fields["model_version"] = model.rpartition("/")
        if not (fields["model_name"] and fields["model_version"]):
            raise BadRequest(f"cannot take {model[:80]!r} as {MODEL}: write name/version")
    return tuple(fields.items())
