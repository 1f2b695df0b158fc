"""Makes a data directory as an earlier program left it when it was killed, and what that program answered.

    git archive e12441b | tar x -C OLD
    .venv/bin/python tests/upgrade/make.py OLD tests/upgrade/e12441b.tar.xz

OLD is the source of the earlier program. Written are the data directory and, in answers.json, what it answered, by
trace and format. Trace 4 was acknowledged and not loaded yet; trace 5 was loaded, and is in the log still. A fixture is
made once, and stays as it is.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

sys.path.append(str(Path(__file__).parents[1]))
from recorded import requests
from settling_house import call, request, span

LOADED, UNLOADED = "support-bot", "late-bot"


def serve(old: Path, data: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The earlier program on free ports, and its addresses."""
    command = [sys.executable, str(old / "spanhouse.py"), "serve", f"--data-dir={data}", "--log-format=json"]
    ports = ["--otlp-grpc-port=0", "--otlp-http-port=0", "--http-port=0"]
    env = {**os.environ, "PYTHONPATH": str(old)}
    process = subprocess.Popen([*command, *ports, *options], cwd=old, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def traces_of(at: dict[str, str], count: int) -> list[str]:
    """The ids of all traces, as soon as there are so many."""
    while True:
        found = httpx.get(f"{at['http']}/api/v1/traces", params={"limit": 500, "start": "0"}).json()["traces"]
        if len(found) >= count:
            return [trace["trace_id"] for trace in found]
        time.sleep(0.2)


def trace_ids(sent: ExportTraceServiceRequest) -> set[bytes]:
    return {
        one.trace_id for block in sent.resource_spans for scope_spans in block.scope_spans for one in scope_spans.spans
    }


def send(at: dict[str, str], sent: ExportTraceServiceRequest) -> None:
    headers = {"content-type": "application/x-protobuf"}
    httpx.post(f"{at['otlp_http']}/v1/traces", content=sent.SerializeToString(), headers=headers).raise_for_status()


def killed_with(old: Path, data: Path, sent: ExportTraceServiceRequest) -> Path:
    """The log's one segment, of a program that was killed before it loaded it."""
    process, at = serve(old, data, "--flush-interval-s=3600")
    send(at, sent)
    process.kill()
    process.wait()
    [segment] = (data / "wal").glob("*.open")
    return segment


def main(old: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        process, at = serve(old, data)
        recorded = [one.decoded() for one in requests("openai_genai")]
        for each in recorded:
            send(at, each)
        run = {"mlflow__run_id": "run-of-old"}
        said = {"model__name": "support", "model__version": "3", "deployment__environment": "prod"}
        send(at, request(span(1, 1, **run), call(1, 2, 1), service=LOADED, **said))
        send(at, request(span(2, 1, acme__run="run-of-acme"), service=LOADED))
        send(at, request(span(3, 1), service="shop"))
        ids = traces_of(at, 3 + len({id_ for each in recorded for id_ in trace_ids(each)}))
        answers = {
            trace_id: {
                form: httpx.get(f"{at['http']}/api/v1/traces/{trace_id}", params={"format": form}).json()
                for form in ("flat", "otlp")
            }
            for trace_id in ids
        }
        process.terminate()
        assert process.wait(60) == 0
        of_5 = killed_with(old, data, request(span(5, 1), call(5, 2, 1), service=UNLOADED))
        shutil.copy(of_5, directory)
        process, at = serve(old, data)
        traces_of(at, len(ids) + 1)
        process.terminate()
        assert process.wait(60) == 0
        killed_with(old, data, request(span(4, 1, **run), call(4, 2, 1), service=UNLOADED))
        shutil.move(Path(directory) / of_5.name, of_5)
        (Path(directory) / "answers.json").write_text(json.dumps(answers))
        with tarfile.open(target, "w:xz") as tar:
            for name in ("data", "answers.json"):
                tar.add(Path(directory) / name, name)


main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
