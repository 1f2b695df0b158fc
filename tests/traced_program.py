"""A program that logs a run to MLflow and is traced by OpenTelemetry: `traced_program.py MLFLOW_URI OTLP_URL`.

Prints the ids of what it made as one line of JSON: its run, experiment, registered version and traces. It exports
as any program does that knows of Spanhouse's keys and no more: the run is said by its resource.
"""

import json
import sys

import mlflow
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

MLFLOW_URI, OTLP_URL = sys.argv[1:]
NAME = "support-bot"


def traces(said: dict[str, str], count: int, **attributes: str) -> list[str]:
    """So many traces of an agent that asks a model, from a program whose resource says this; their ids.

    `attributes` are further ones of the agent's span.
    """
    provider = TracerProvider(resource=Resource.create(said))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{OTLP_URL}/v1/traces")))
    tracer = provider.get_tracer("support")
    of_agent = {"gen_ai.agent.name": "triage", **attributes}
    ids = []
    for _ in range(count):
        with tracer.start_as_current_span("invoke_agent triage", attributes=of_agent) as agent:
            asked = {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "gpt-4o-mini",
                "gen_ai.usage.input_tokens": 100,
                "gen_ai.usage.output_tokens": 20,
            }
            with tracer.start_as_current_span("chat gpt-4o-mini", attributes=asked):
                pass
        ids.append(f"{agent.get_span_context().trace_id:032x}")
    provider.shutdown()
    return ids


mlflow.set_tracking_uri(MLFLOW_URI)
client = mlflow.MlflowClient()
experiment = mlflow.set_experiment("support")
with mlflow.start_run(run_name="evening") as run:
    mlflow.log_metric("accuracy", 0.93)
    model = client.create_logged_model(experiment.experiment_id, name="bot", source_run_id=run.info.run_id)
    client.create_registered_model(NAME)
    version = client.create_model_version(
        NAME, f"models:/{model.model_id}", run.info.run_id, model_id=model.model_id, await_creation_for=0
    )
    client.set_registered_model_alias(NAME, "champion", version.version)
    said = {"service.name": "trained-bot", "spanhouse.run.id": run.info.run_id}
    made = {
        "run": run.info.run_id,
        "experiment": experiment.experiment_id,
        "version": version.version,
        "of_run": traces(said, 3),
        "deployed": traces({"service.name": "shop-bot"}, 2),
        "own_key": traces({"service.name": "acme-bot"}, 1, **{"acme.training": run.info.run_id}),
        "silent": traces({"service.name": "silent-bot"}, 1),
    }
print(json.dumps(made))
