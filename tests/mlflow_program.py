"""A program of MLflow's users: it knows nothing of Spanhouse. Run with MLFLOW_TRACKING_URI and OPENAI_BASE_URL.

Logs a run, a model, a prompt, traces by hand and of OpenAI's client, feedback and tags, reads all of it back through
MLflow's own client, and prints what it read as one line of JSON. Ids and times differ from run to run: `ids` says which
is which.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import openai
from mlflow.entities import AssessmentSource, Feedback, SpanType
from mlflow.exceptions import MlflowException
from mlflow.genai.scorers import scorer

EXPERIMENT = sys.argv[1]

seen: dict = {}
client = mlflow.MlflowClient()
mlflow.set_experiment(EXPERIMENT)
experiment_id = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
mlflow.openai.autolog()
model = openai.OpenAI(api_key="none", max_retries=0)

prompt = mlflow.genai.register_prompt(name=f"{EXPERIMENT}-prompt", template="How warm is it in {{ city }}?")


@mlflow.trace(span_type=SpanType.AGENT)
def agent(city: str) -> str:
    mlflow.update_current_trace(
        tags={"tier": "gold"},
        metadata={"mlflow.trace.session": "session-1", "mlflow.trace.user": "user-1", "batch": "b 1"},
        client_request_id="request-1",
    )
    loaded = mlflow.genai.load_prompt(f"prompts:/{prompt.name}/{prompt.version}")
    with mlflow.start_span("look up", span_type=SpanType.TOOL) as span:
        span.set_inputs({"list": [1, 2.5, None, True, {"deep": "ü"}], "empty": {}, "none": None})
        span.set_attribute("n", 3)
        span.set_attribute("json text", '{"a": 1}')
        span.add_event(mlflow.entities.SpanEvent("seen", attributes={"why": "because", "n": 1}))
        span.set_outputs("found")
    answer = model.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": loaded.format(city=city)}], temperature=0.5
    )
    return answer.choices[0].message.content


@mlflow.trace(name="broken agent", span_type=SpanType.AGENT)
def broken(question: dict) -> None:
    mlflow.update_current_trace(session_id="session-2", user="user-2")
    raise ValueError("no such thing")


mlflow.set_active_model(name=f"{EXPERIMENT}-model")
with mlflow.start_run(run_name="evening") as run:
    mlflow.log_params({"temperature": 0.5})
    mlflow.log_metric("score", 0.75)
    agent("Paris")
    by_agent = mlflow.get_last_active_trace_id()
    artifact = Path(sys.argv[2]) / "notes.txt"
    artifact.write_text("many notes\n" * 200_000)
    mlflow.log_artifact(str(artifact))
with suppress(ValueError):
    broken({"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]})
by_broken = mlflow.get_last_active_trace_id()
with suppress(openai.BadRequestError):
    model.chat.completions.create(model="broken", messages=[{"role": "user", "content": "Hi"}])
by_openai = mlflow.get_last_active_trace_id()
mlflow.flush_trace_async_logging()

names = {by_agent: "agent", by_broken: "broken agent", by_openai: "openai"}
ids = {"run": run.info.run_id, "experiment": experiment_id, "model": mlflow.get_active_model_id()}
ids |= {"prompt": prompt.name, "agent": by_agent, "broken": by_broken, "openai": by_openai}

# Right after it was written, and with what its background threads still add.
seen["at once"] = mlflow.get_trace(by_agent).to_dict()
deadline = time.monotonic() + 30
linked = f"prompt = '{prompt.name}/1'"
while not mlflow.search_traces(locations=[experiment_id], filter_string=linked, return_type="list"):
    assert time.monotonic() < deadline, "the prompt is not linked"
    time.sleep(0.1)

source = AssessmentSource(source_type="HUMAN", source_id="ann@example.com")
good = mlflow.log_feedback(trace_id=by_agent, name="good", value=True, source=source, rationale="it is right")
span_id = mlflow.get_trace(by_agent).search_spans(name="look up")[0].span_id
mlflow.log_feedback(trace_id=by_agent, name="speed", value=0.5, span_id=span_id, metadata={"judge": "clock"})
mlflow.log_feedback(trace_id=by_agent, name="words", value={"tone": "warm", "length": 5})
mlflow.log_feedback(trace_id=by_broken, name="failed", error=ValueError("no score"))
mlflow.log_expectation(trace_id=by_agent, name="degrees", value=18, source=source)
mlflow.log_expectation(trace_id=by_agent, name="facts", value=["18 degrees", {"city": "Paris"}], source=source)
gone = mlflow.log_feedback(trace_id=by_agent, name="gone", value="x")
mlflow.delete_assessment(by_agent, gone.assessment_id)
second_thought = Feedback(name="good", value=False, rationale="on second thought")
mlflow.update_assessment(by_agent, good.assessment_id, second_thought)
[failed] = mlflow.get_trace(by_broken).info.assessments
mlflow.override_feedback(trace_id=by_broken, assessment_id=failed.assessment_id, value="2 of 5")
mlflow.set_trace_tag(by_broken, "tier", "silver")
mlflow.set_trace_tag(by_broken, "passing", "1")
mlflow.delete_trace_tag(by_broken, "passing")
seen["assessment"] = mlflow.get_assessment(by_agent, good.assessment_id).to_dictionary()
with mlflow.start_run(run_name="later") as later:
    pass
client.link_traces_to_run([by_agent, by_broken], later.info.run_id)
ids["later"] = later.info.run_id

for name, trace_id in (("agent", by_agent), ("broken", by_broken), ("openai", by_openai)):
    seen[name] = mlflow.get_trace(trace_id).to_dict()


def found(filter_string: str | None = None, **asked: object) -> object:
    try:
        traces = mlflow.search_traces(
            locations=[experiment_id], filter_string=filter_string, return_type="list", **asked
        )
        return [names[trace.info.trace_id] for trace in traces]
    except MlflowException as error:
        return error.error_code


seen["search"] = {
    text: found(text)
    for text in (
        None, "status = 'OK'", "status = 'ERROR'", "attributes.status != 'OK'", "tag.tier = 'gold'",
        "tags.tier LIKE 's%'", "tag.tier ILIKE 'G%'", "tag.tier RLIKE '^go.d$'", "tag.tier IS NULL",
        "tag.tier IS NOT NULL", "tag.tier != 'gold'", "metadata.`mlflow.trace.session` = 'session-1'",
        "request_metadata.batch = 'b 1'", "metadata.`mlflow.trace.user` = 'user-2'", "metadata.batch IS NULL",
        f"metadata.`mlflow.sourceRun` = '{run.info.run_id}'", f"run_id = '{later.info.run_id}'", "name = 'agent'",
        "trace.name LIKE '%agent'", "client_request_id = 'request-1'", "timestamp_ms > 0 AND status = 'OK'",
        "execution_time_ms >= 0", "execution_time < 0", "feedback.good = 'false'", "feedback.speed > 0.4",
        "feedback.speed >= 0.6", "expectation.degrees > 17", "feedback.good IS NULL", "feedback.failed IS NOT NULL",
        "feedback.gone IS NOT NULL", "span.name = 'look up'", "span.type = 'TOOL'", "span.type = 'CHAT_MODEL'",
        "span.status = 'ERROR'", "span.name = 'look up' AND span.type = 'AGENT'", "span.name = 'no such'",
        "trace.text LIKE '%because%'", "span.content ILIKE '%DEGREES%'", "span.attributes.n LIKE '%3%'",
        f"prompt = '{prompt.name}/1'", "prompt = 'other/1'", "name = 'a' OR name = 'b'", "nonsense = 'x'",
        "name IN ('agent')", "timestamp = 'x'", "tag.tier = 5", "tag.tier = 'gold' AND span.type = 'TOOL'",
    )
}  # fmt: skip
seen["search by run"] = found(run_id=run.info.run_id)
seen["search by model"] = found(model_id=ids["model"])
seen["orders"] = {
    text: found(order_by=[text])
    for text in ("timestamp_ms ASC", "timestamp_ms DESC", "name ASC", "status DESC, name", "status", "nonsense")
}
oldest_first = {"locations": [experiment_id], "max_results": 2, "order_by": ["timestamp_ms ASC"]}
page = client.search_traces(**oldest_first)
rest = client.search_traces(**oldest_first, page_token=page.token)
seen["pages"] = [[names[trace.info.trace_id] for trace in each] for each in (page, rest)]
seen["elsewhere"] = len(mlflow.search_traces(locations=["0"], return_type="list"))

kept = client.get_run(run.info.run_id)
seen["run"] = [kept.info.run_name, kept.data.params, kept.data.metrics]
downloaded = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="notes.txt"))
seen["artifact"] = [len(downloaded.read_bytes()), downloaded.read_bytes() == artifact.read_bytes()]
seen["prompt"] = mlflow.genai.load_prompt(f"prompts:/{prompt.name}/1").template
seen["model"] = mlflow.get_logged_model(ids["model"]).name

client.delete_traces(experiment_id=experiment_id, trace_ids=[by_openai])
seen["after deletion"] = found()
try:
    mlflow.get_trace(by_openai, silent=False)
except Exception as error:
    seen["deleted"] = getattr(error, "error_code", repr(error))

# An evaluation makes traces, reads them, assesses them and links them to its run.
mlflow.set_experiment(f"{EXPERIMENT}-evaluation")


@scorer
def exact(outputs: str, expectations: dict) -> bool:
    return outputs == expectations["expected_response"]


@scorer
def spans(trace: mlflow.entities.Trace) -> int:
    return len(trace.data.spans)


def louder(text: str) -> str:
    return text.upper()


evaluated = mlflow.genai.evaluate(
    data=[{"inputs": {"text": text}, "expectations": {"expected_response": "A"}} for text in ("a", "b")],
    predict_fn=mlflow.trace(louder),
    scorers=[exact, spans],
)
linked_traces = mlflow.search_traces(run_id=evaluated.run_id, return_type="list")
scores = [(one.name, one.value) for trace in linked_traces for one in trace.info.assessments]
seen["evaluation"] = [{name: float(mean) for name, mean in evaluated.metrics.items()}, sorted(scores, key=str)]

print(json.dumps({"ids": ids, "seen": seen}))
