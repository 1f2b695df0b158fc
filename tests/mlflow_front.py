"""The gateway for MLflow's programs on a real store, served by itself; its caller, and a server to stand behind it."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from otlp_building import request, span
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from store import Store

from collector.listening import http_server, listen
from query.mlflow.gateway import Gateway
from storage.assessments import Assessments
from storage.mlflow_traces import MlflowTraces


class Upstream:
    """A server in the place of MLflow's: says what it was asked, redirects, and gives and takes much."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.version = "3.17.2"
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length) if length < 1 << 20 else b""
                if not body and length:
                    while length:
                        length -= len(self.rfile.read(min(length, 1 << 16)))
                elif self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size + 2)[:-2]
                    self.rfile.readline()
                upstream.asked.append(
                    {"method": self.command, "path": self.path, "headers": self.headers.items(), "body": body}
                )
                path = self.path.partition("?")[0]
                if path == "/base/version":
                    self.answer(200, upstream.version.encode())
                elif path.endswith("/moved"):
                    here = f"http://127.0.0.1:{upstream.port}"
                    to = {"/base/moved": f"{here}/base/there?a=b", "/base/away/moved": "https://elsewhere.example/x"}
                    self.answer(302, b"", location=to.get(path, "/base/there"))
                elif path.endswith("/large"):
                    self.send_response(200)
                    self.send_header("content-length", str(64 << 20))
                    self.end_headers()
                    for _ in range(64):
                        self.wfile.write(b"x" * (1 << 20))
                elif path.endswith("/experiments/get"):
                    self.answer(200, b'{"experiment": {"artifact_location": "mlflow-artifacts:/7"}}')
                elif path.endswith("/cut"):
                    self.send_response(200)
                    self.send_header("content-length", "1000")
                    self.end_headers()
                    self.wfile.write(b"z" * 10)
                    self.close_connection = True
                elif path.endswith("/part"):
                    self.answer(206, b"y" * 5000, **{"content-range": "bytes 0-4999/9000"})
                else:
                    self.answer(200, b"{}", **{"x-twice": "1", "connection": "x-private", "x-private": "2"})

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_one

            def answer(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/base"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Front:
    """The gateway on a real store, served on a free port. Spans are loaded `load_s` seconds after they came."""

    def __init__(self, store: Store, mlflow_url: str | None) -> None:
        self.store = store
        self.load_s = 0.0
        self.links: list[tuple[str, tuple[bytes, ...], str, str, str, str]] = []
        self.otlp_asked: list[dict[str, Any]] = []
        self.rows = MlflowTraces(store.engine)
        assessments = Assessments(store.engine, lambda *_: None)
        self.app = Gateway(store.engine, store.traces, assessments, self, self._otlp, mlflow_url=mlflow_url)

    def link_all(self, tenant, links, source) -> None:
        for trace_id, entity, id, version in links:
            self.link(tenant, [trace_id], entity, id, version, source)

    def link(self, tenant, trace_ids, entity, id, version, source) -> None:
        self.links.append((tenant, tuple(trace_ids), entity, id, version, source))

    async def _otlp(self, scope: Any, receive: Any, send: Any) -> None:
        """In the place of the OTLP receiver, which has its own tests."""
        self.otlp_asked.append({**scope, "headers": dict(scope["headers"])})
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        tenant = dict(scope["headers"])[b"x-spanhouse-tenant"].decode()
        timer = threading.Timer(self.load_s, self.store.load, ([body], tenant))
        timer.start()
        if not self.load_s:
            await run_in_threadpool(timer.join)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Client:
    """A caller of a gateway, as a tenant of its own."""

    def __init__(self, front: Front, url: str) -> None:
        self.front = front
        self.tenant = uuid.uuid4().hex
        self.root = url
        self.url = f"{url}/mlflow"
        self.http = httpx.Client(headers={"x-spanhouse-tenant": self.tenant}, timeout=30)

    def call(self, method: str, path: str, status: int = 200, **kwargs) -> Any:
        response = self.http.request(method, f"{self.url}/api/{path}", **kwargs)
        assert response.status_code == status, response.text
        return response.json()

    def send(self, *spans, **headers: str) -> None:
        body = request(*spans).SerializeToString()
        response = self.http.post(
            f"{self.url}/v1/traces", content=body, headers={"content-type": "application/x-protobuf", **headers}
        )
        assert response.status_code == 200, response.text

    def start(self, number: int, **fields: Any) -> dict[str, Any]:
        info = {
            "trace_id": tr(number),
            "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "1"}},
            "request_time": "2026-11-22T15:36:35.946Z",
            "execution_duration": "0.389s",
            "state": "OK",
            **fields,
        }
        answer = self.call("POST", "3.0/mlflow/traces", json={"trace": {"trace_info": info}})
        started: dict[str, Any] = answer["trace"]["trace_info"]
        return started

    def info(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"3.0/mlflow/traces/{tr(number)}")["trace"]["trace_info"]
        return found

    def get(self, number: int, status: int = 200, **parameters: str) -> Any:
        return self.call("GET", "3.0/mlflow/traces/get", status, params={"trace_id": tr(number), **parameters})

    def linked(self) -> set[tuple[str, str, str]]:
        return {link[2:5] for link in self.front.links if link[0] == self.tenant}


def tr(number: int) -> str:
    return f"tr-{span(number).trace_id.hex()}"


@contextmanager
def served(front: Front) -> Iterator[str]:
    """The gateway as the program mounts it."""
    app = Starlette(routes=[Mount("/mlflow", front.app)], middleware=[Middleware(GZipMiddleware, minimum_size=1000)])
    listener = listen("127.0.0.1", 0)
    with http_server(app, listener, lambda: None, log_config=None):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def fronts_of(store: Store, upstream: Upstream) -> Iterator[dict[str, tuple[Front, str]]]:
    """Gateways with a server behind them, without one, and with one that is away; each with its address."""
    with ExitStack() as stack:
        made = {
            "with": Front(store, upstream.url),
            "without": Front(store, None),
            "away": Front(store, "http://127.0.0.1:9"),
        }
        yield {name: (front, stack.enter_context(served(front))) for name, front in made.items()}
