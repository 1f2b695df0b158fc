"""Spanhouse, the table of contents: the settings, the parts and the order they start and stop in, the command line.

    socket ─► receivers ─► admission ─► WAL ─► (acknowledged)
                                         └─► loader ─► store ◄─ query API ◄─ browser, `spanhouse trace`

The only file that reads the environment and the arguments. `serve` runs on the main thread, which waits for a signal
while the parts work on theirs. Every other command asks a running server over HTTP and imports none of the parts: the
imports stand inside the functions, since the engine alone takes a second and 200 MB to import.
"""
# ruff: noqa: PLC0415

import difflib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import queue
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn, Self

import typer
from pydantic import ByteSize, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cli.commands import Here
    from collector.ledger import Ledger
    from collector.wal import Wal
    from query.mlflow.gateway import Asgi
    from query.registry import Registry
    from storage.engine import Engine
    from storage.hosts import Hosts
    from storage.linking import Deployment
    from storage.prices import Prices
    from storage.spans import Span
    from storage.vocabulary import Vocabulary

ENV_PREFIX = "SPANHOUSE_"
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
PACKAGES = ("cli", "collector", "query", "storage")
MIB = 1 << 20

logger = logging.getLogger("spanhouse")

Port = Annotated[int, Field(ge=0, le=65535)]
Bytes = Annotated[ByteSize, Field(ge=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Every setting of `spanhouse serve`. Its options, the SPANHOUSE_ variables and docs/settings.md come from here."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    data_dir: Path = Field(Path("data"), description="Directory of the log, the store and the quarantine.")
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. There is no authentication: use 0.0.0.0 in a network that you trust.",
    )
    otlp_grpc_port: Port = Field(4317, description="Port of OTLP/gRPC; 0 picks a free one.")
    otlp_http_port: Port = Field(4318, description="Port of OTLP/HTTP; 0 picks a free one.")
    http_port: Port = Field(4320, description="Port of the query API; 0 picks a free one.")
    request_bytes_max: Bytes = Field(
        ByteSize(64 * MIB), description="Largest request that is taken, before and after decompression."
    )
    request_spans_max: Count = Field(500_000, description="Most spans of a request that is taken.")
    in_flight_bytes_max: Bytes = Field(
        ByteSize(256 * MIB),
        description="Bytes of requests that may wait for their acknowledgement; beyond it senders are asked to retry.",
    )
    tenants_max: Count = Field(1000, description="Number of tenants that may send.")
    retransmit_window_s: Seconds = Field(
        600, description="Time for which a request is remembered, so that it is stored once when it is sent again."
    )
    retransmit_entries_max: Count = Field(131_072, description="Number of requests that are remembered.")
    wal_bytes_max: Bytes = Field(
        ByteSize(4096 * MIB), description="Size of the log and the quarantine at which senders are asked to retry."
    )
    segment_bytes_max: Bytes = Field(ByteSize(64 * MIB), description="Size at which a segment of the log is loaded.")
    flush_interval_s: Seconds = Field(
        1.0, description="Age at which a segment of the log is loaded when the loader has nothing else to do."
    )
    engine_memory_bytes_max: Bytes = Field(
        ByteSize(1536 * MIB), description="Resident memory of the process beyond which loads and queries are put off."
    )
    query_memory_bytes_max: Bytes = Field(
        ByteSize(512 * MIB), description="Memory that one query may use; beyond it the query is refused."
    )
    query_timeout_s: Seconds = Field(30, description="Time after which a query is given up.")
    clickhouse: str | None = Field(
        None,
        description="ClickHouse server that keeps the store, as http://host:8123; several with commas. "
        "Without it, chDB keeps it in this process.",
    )
    clickhouse_user: str = Field("default", description="User at the ClickHouse server.")
    clickhouse_password_file: Path | None = Field(None, description="File with the password of that user.")
    clickhouse_ca: Path | None = Field(None, description="Certificates to check the server's with, where it is https.")
    conventions: Path | None = Field(
        None, description="File of further attribute keys for the canonical columns (docs/conventions.md)."
    )
    prices: Path | None = Field(None, description="File of prices of your own, before those known (docs/usage.md).")
    deployments: Path | None = Field(
        None, description="File that says which service ran which model version when (docs/links.md)."
    )
    mlflow_url: str | None = Field(
        None, description="MLflow server behind /mlflow, for all but its trace calls (docs/mlflow.md)."
    )
    registry_uri: str | None = Field(
        None, description="MLflow tracking URI that names runs, models and prompts (docs/registry.md)."
    )
    registry_models_uri: str | None = Field(
        None, description="URI of the model registry, where it is not that of the tracking server."
    )
    registry_write: bool = Field(False, description="Write links and verdicts of gates to the registry, as tags.")
    public_url: str = Field("", description="Address of this server for people, for what is written to the registry.")
    trace_spans_max: Count = Field(200_000, description="Most spans of a trace in one answer.")
    shutdown_timeout_s: Seconds = Field(
        30,
        description="Time to load what is in the log when the program stops; the rest is loaded after the next start.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of the log and of the ready line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @model_validator(mode="after")
    def _leave_room(self) -> Self:
        if self.wal_bytes_max < self.segment_bytes_max:
            raise ValueError("wal_bytes_max must be segment_bytes_max at least")
        if self.in_flight_bytes_max < 2 * self.request_bytes_max:
            raise ValueError("in_flight_bytes_max must be twice request_bytes_max at least")
        if self.mlflow_url is not None and not self.mlflow_url.startswith(("http://", "https://")):
            raise ValueError("mlflow_url must begin with http:// or https://")
        return self


# Serving


class CannotServe(Exception):
    """The server cannot start or go on. The text is a sentence for a person, with the way out."""


def run(settings: Settings, ready: Callable[[dict[str, str]], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Calls `ready` with the addresses when all parts answer.

    Parts start downstream first and stop upstream first: what was acknowledged is in the log before the log closes, and
    the loader outlives the log. Raises CannotServe.
    """
    from prometheus_client import ProcessCollector

    from collector import admin, otlp_http
    from collector.admission import Admission
    from collector.ledger import Ledger
    from collector.listening import http_server, listen
    from collector.loader import Loader
    from collector.otlp_grpc import OtlpGrpc
    from collector.quarantine import Quarantine

    data_dir, host, stop = settings.data_dir.absolute(), settings.host, _signals()
    with ExitStack() as parts:
        ledger = Ledger()
        ProcessCollector(registry=ledger.registry)
        # The log comes first: it holds the data directory against other processes.
        wal = _open_log(settings, data_dir, ledger, lambda: quarantine.bytes_on_disk())  # noqa: PLW0108 (it opens below)
        parts.callback(wal.release)
        quarantine = Quarantine(data_dir / "quarantine", ledger)

        tables = _tables(settings)
        engine = _open_store(settings, data_dir, tables.vocabulary)
        parts.callback(engine.close)
        known = _Known(settings, parts, engine, tables)

        loader = Loader(wal, known.load, quarantine, ledger)
        loader.start()
        parts.callback(loader.stop, settings.shutdown_timeout_s)
        parts.callback(wal.close)

        admission = Admission(
            wal.append,
            ledger,
            request_bytes_max=settings.request_bytes_max,
            request_spans_max=settings.request_spans_max,
            in_flight_bytes_max=settings.in_flight_bytes_max,
            retransmit_window_s=settings.retransmit_window_s,
            retransmit_entries_max=settings.retransmit_entries_max,
            tenants_max=settings.tenants_max,
        )
        for tenant, digest, received_unix_nano in wal.recent_digests():
            admission.remember(tenant, digest, received_unix_nano)

        def broken() -> None:
            stop.put("an HTTP server ended")  # nobody reads it when they are to end

        otlp_grpc = OtlpGrpc(admission, f"{_in_url(host)}:{settings.otlp_grpc_port}")
        with _named(host, settings.otlp_grpc_port, "--otlp-grpc-port"):
            otlp_grpc.start()
        parts.callback(otlp_grpc.stop)

        otlp_http_app = otlp_http.OtlpHttp(admission)
        parts.callback(otlp_http_app.close)
        with _named(host, settings.otlp_http_port, "--otlp-http-port"):
            otlp_http_listener = listen(host, settings.otlp_http_port)
        parts.enter_context(http_server(otlp_http_app, otlp_http_listener, broken, **otlp_http.UVICORN_OPTIONS))

        api = known.api(otlp_http_app)
        api.include_router(admin.router(quarantine, wal.append, ledger.registry))
        with _named(host, settings.http_port, "--http-port"):
            http_listener = listen(host, settings.http_port)
        parts.enter_context(http_server(api, http_listener, broken, access_log=False, log_config=None))

        http_port, otlp_http_port = (listener.getsockname()[1] for listener in (http_listener, otlp_http_listener))
        ready(
            {
                "otlp_grpc": f"{_in_url(host)}:{otlp_grpc.port}",
                "otlp_http": f"http://{_in_url(host)}:{otlp_http_port}",
                "http": f"http://{_in_url(host)}:{http_port}",
            }
        )
        reason = stop.get()
        logger.info("stopping: %s", reason)
    logger.info("stopped")
    if reason not in SIGNALS:
        raise CannotServe(f"cannot go on: {reason}; the log says why")


def _open_log(settings: Settings, data_dir: Path, ledger: "Ledger", quarantine_bytes: Callable[[], int]) -> "Wal":
    from collector.wal import Wal, WalInUse

    try:
        return Wal(
            data_dir / "wal",
            ledger,
            segment_bytes_max=settings.segment_bytes_max,
            flush_interval_s=settings.flush_interval_s,
            wal_bytes_max=settings.wal_bytes_max,
            queue_bytes_max=settings.in_flight_bytes_max,
            retransmit_window_s=settings.retransmit_window_s,
            quarantine_bytes=quarantine_bytes,
        )
    except WalInUse as error:
        raise CannotServe(str(error)) from error
    except OSError as error:
        raise CannotServe(
            f"cannot use the data directory {data_dir}: {error.strerror}; choose another with --data-dir"
        ) from error


class _Known:
    """What is known of traces beside their spans, the parts that work it out, and the API that answers with it."""

    def __init__(self, settings: Settings, parts: ExitStack, engine: "Engine", tables: "_Tables") -> None:
        from query.implied import ImpliedLinks
        from storage.annotations import Annotations
        from storage.assessments import Assessments
        from storage.deployments import Deployments
        from storage.harvest import Harvest
        from storage.relink import recanonicalize
        from storage.resettling import Resettling
        from storage.settling import Settler

        vocabulary, prices, deployments = tables
        self._settings, self._engine, self._vocabulary, self._prices = settings, engine, vocabulary, prices
        self._deployments = Deployments(engine, deployments)
        settler = Settler(engine, vocabulary, self._deployments, prices.cost, trace_spans_max=settings.trace_spans_max)
        self.load = settler.watched(engine.load)
        self._annotations = Annotations(engine, settler.touch)
        self._assessments = Assessments(engine, settler.touch)
        self._registry = _open_registry(settings)
        self._imply = None
        if self._registry is not None:
            self._imply = ImpliedLinks(engine, self._registry, settler.touch)
            self._registry.start()
            parts.callback(self._registry.stop)
        settler.start(Harvest(engine, self._assessments, settler.touch), self._imply)
        parts.callback(settler.stop)
        self._resettling = Resettling(
            engine, settler, partial(recanonicalize, engine, vocabulary), partial(prices.reload, settings.prices)
        )
        parts.callback(self._resettling.stop)

    def api(self, otlp: "Asgi") -> "FastAPI":
        """The HTTP API, with all that reads traces and what is known of them. `otlp` takes what MLflow sends."""
        from query import assessments_api, compare_api, entities_api, links_api, registry_api
        from query.api import create_app
        from query.assessed import Assessed
        from query.assessment_answers import assessment_json
        from query.entities import Entities
        from query.mlflow.gateway import Gateway
        from query.samples import Samples
        from query.selection import Selection
        from query.trace_links import TraceLinks
        from query.traces import Traces

        engine, settings, registry = self._engine, self._settings, self._registry
        traces = Traces(engine, self._vocabulary)
        describe = registry.describe if registry else None
        links = TraceLinks(engine, self._deployments, self._annotations, imply=self._imply, describe=describe)

        def about(tenant: str, trace_id: bytes, spans: "list[Span]") -> dict[str, Any]:
            assessments = self._assessments.of_trace(tenant, trace_id)
            return {
                "links": links.json(tenant, trace_id, spans),
                "assessments": [assessment_json(each) for each in assessments],
            }

        api = create_app(
            traces, engine.ready, price=self._prices.cost, about=about, trace_spans_max=settings.trace_spans_max
        )
        selection = Selection(engine)
        for router in (
            assessments_api.router(self._assessments, Assessed(engine)),
            links_api.router(self._annotations, self._deployments, selection, links, traces, self._resettling),
            # Before the pages of models, whose names take slashes.
            compare_api.router(Samples(engine), registry.write_tags if registry else None),
            entities_api.router(Entities(engine, self._annotations, describe)),
            registry_api.router(registry),
        ):
            api.include_router(router)
        gateway = Gateway(engine, traces, self._assessments, self._annotations, otlp, mlflow_url=settings.mlflow_url)
        api.mount("/mlflow", gateway)
        return api


def _open_registry(settings: Settings) -> "Registry | None":
    if settings.registry_uri is None:
        return None
    from query.registry import Registry

    # MLflow's client reads these, and retries for minutes by default: the registry has a patience of its own.
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "10",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    return Registry(
        settings.registry_uri,
        settings.registry_models_uri,
        write=settings.registry_write,
        public_url=settings.public_url,
    )


class _Tables(NamedTuple):
    """Tables to which people add entries of their own, each a file. Deployments are by tenant."""

    vocabulary: "Vocabulary"
    prices: "Prices"
    deployments: "dict[str, list[Deployment]]"


def _tables(settings: Settings) -> _Tables:
    from storage.deployments import BadDeployments, load_file
    from storage.prices import BadPrices, Prices
    from storage.vocabulary import BadVocabulary, load

    try:
        return _Tables(
            load(settings.conventions),
            Prices(settings.prices),
            load_file(settings.deployments) if settings.deployments else {},
        )
    except (BadVocabulary, BadPrices, BadDeployments) as error:
        raise CannotServe(str(error)) from error


def _open_store(settings: Settings, data_dir: Path, vocabulary: "Vocabulary") -> "Engine":
    from storage.embedded import Embedded
    from storage.engine import Bounds
    from storage.errors import StoreError
    from storage.migrate import migrated
    from storage.server import Server

    bounds = Bounds(
        memory_bytes_max=settings.engine_memory_bytes_max,
        query_memory_bytes_max=settings.query_memory_bytes_max,
        query_timeout_s=settings.query_timeout_s,
    )
    hosts, directory = _hosts(settings), data_dir / "store"
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)  # chDB writes `__cache__` into the working directory, whatever it is told
    try:
        if hosts is None:
            return migrated(lambda: Embedded(directory, vocabulary, bounds))
        return migrated(lambda: Server(hosts, vocabulary, bounds))
    except StoreError as error:
        raise CannotServe(str(error)) from error


def _hosts(settings: Settings) -> "Hosts | None":
    """The ClickHouse servers; None for the one inside."""
    from storage.hosts import BadAddress, Hosts, hosts_of

    if settings.clickhouse is None:
        return None
    path = settings.clickhouse_password_file
    try:
        password = path.read_text().strip() if path else ""
        return Hosts(hosts_of(settings.clickhouse), settings.clickhouse_user, password, settings.clickhouse_ca)
    except BadAddress as error:
        raise CannotServe(str(error)) from error
    except OSError as error:
        raise CannotServe(f"cannot read the password in {path}: {error.strerror}") from error


@contextmanager
def _named(host: str, port: int, option: str) -> Iterator[None]:
    """Say of an address that cannot be listened on which it is, and how to choose another."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotServe(f"cannot listen on {host} port {port}: {reason}; choose another with {option}") from error


def _signals() -> "queue.SimpleQueue[str]":
    """A queue that gets the name of the first signal that asks to stop. A second one ends the process at once."""
    received: queue.SimpleQueue[str] = queue.SimpleQueue()

    def handle(number: int, _frame: object) -> None:
        for each in SIGNALS.values():
            signal.signal(each, signal.SIG_DFL)
        received.put(signal.Signals(number).name)  # unlike Event.set, SimpleQueue.put may run within a handler

    for each in SIGNALS.values():
        signal.signal(each, handle)
    return received


def _hidden_packages() -> Iterator[str]:
    """Packages of ours that another one of the same name hides, a sentence each."""
    home = Path(__file__).resolve().parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else None
        if found is None or found.resolve() != home / name:
            yield f"the package {name} of Spanhouse is hidden by {found or 'nothing: it is not installed'}"


# The command line

app = typer.Typer(
    help="Keep the OpenTelemetry traces of AI agents. `serve` runs the store; the other commands ask a running one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """The `spanhouse` command."""
    if HIDDEN:
        _die(
            "cannot start: " + "; ".join(HIDDEN), "install Spanhouse in an environment of its own, and check PYTHONPATH"
        )
    from cli.client import Trouble

    try:
        app()
    except Trouble as trouble:
        commands.show_trouble(trouble)
        sys.exit(1)
    except CannotServe as error:
        _die(str(error))


def _die(message: str, way_out: str | None = None) -> NoReturn:
    sys.stderr.write(f"Error: {message}.\n" + (f"Try:   {way_out}.\n" if way_out else ""))
    sys.exit(1)


def _serve_options() -> Iterator[inspect.Parameter]:
    """One option of `serve` for every setting."""
    for name, field in Settings.model_fields.items():
        sizes = field.annotation is ByteSize
        option = typer.Option(
            _option_name(name),
            envvar=ENV_PREFIX + name.upper(),
            help=field.description,
            metavar="BYTES" if sizes else None,
        )
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=shown(field.default) if sizes else field.default,
            annotation=Annotated[str if sizes else field.annotation, option],
        )


def _option_name(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def shown(value: Any) -> str:
    """A setting's value as people write it: 64 MiB, 0.5, data."""
    return value.human_readable(separator=" ").replace(".0 ", " ") if isinstance(value, ByteSize) else f"{value}"


def _settings(given: dict[str, Any]) -> Settings:
    """The settings from options, environment and defaults, in this order. Ends the program with what is wrong."""
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            where = (
                f" {item['input']!r} for {_option_name(name)} ({ENV_PREFIX}{name.upper()})"
                if name
                else " these settings"
            )
            wrong.append(f"cannot use{where}: {item['msg'].removeprefix('Value error, ')}")
        _die("; ".join(wrong), "see `spanhouse serve --help`")


def _serve(**given: Any) -> None:
    """Receive, keep and answer until SIGTERM or Ctrl-C.

    What was acknowledged is on disk then. Sizes are written in bytes or as "64 MiB".
    """
    from cli.log import log_to_stderr

    settings = _settings(given)
    log_to_stderr(settings.log_format, settings.log_level)
    known = [ENV_PREFIX + name.upper() for name in (*Settings.model_fields, "url", "tenant")]
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            logger.warning("ignoring %s: there is no such setting%s", name, f"; is it {close[0]}?" if close else "")

    def ready(addresses: dict[str, str]) -> None:
        text = "Spanhouse is ready: OTLP/gRPC on {otlp_grpc}, OTLP/HTTP on {otlp_http}, query API on {http}"
        line = (
            json.dumps({"event": "ready", **addresses}) if settings.log_format == "json" else text.format(**addresses)
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    run(settings, ready)


_serve.__signature__ = inspect.Signature(list(_serve_options()))  # type: ignore[attr-defined]
app.command("serve")(_serve)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"spanhouse {importlib.metadata.version('spanhouse')}\n")
        raise typer.Exit


@app.callback()
def _all_commands(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """What goes before a command."""
    context.obj = _here


def _here() -> "Here":
    from cli.commands import Here

    settings, called = _settings({}), Path(sys.argv[0])
    host = _near(settings.host)
    by_name = called.name != "spanhouse" or shutil.which("spanhouse") is not None
    return Here(
        api=f"http://{host}:{settings.http_port}",
        otlp_grpc=f"http://{host}:{settings.otlp_grpc_port}",
        command="spanhouse" if by_name else str(called),
    )


HIDDEN = list(_hidden_packages())
if not HIDDEN:
    from cli import commands

    app.registered_commands += commands.app.registered_commands
    app.registered_groups += commands.app.registered_groups


def _near(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    return _in_url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()
