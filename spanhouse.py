"""Spanhouse, the table of contents: the parts and the order they start and stop in, the command line.

    socket ─► receivers ─► admission ─► WAL ─► (acknowledged)
                                         └─► loader ─► store ◄─ query API ◄─ browser, `spanhouse trace`

`serve` is all of it, `collect` what is left of the store and `query` what is right of it. These run on the main thread,
which waits for a signal while the parts work on theirs. Every other command asks a running server over HTTP and imports
none of the parts: the imports stand inside the functions, since the engine alone takes a second and 200 MB to import.
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
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cli.commands import Here
    from cli.settings import Role, Settings
    from collector.budget_rules import Rules
    from collector.ledger import Ledger
    from collector.loader import Load, Prepare
    from collector.wal import Wal
    from query.mlflow.gateway import Asgi
    from query.registry import Registry
    from query.storage_api import Beside
    from storage.engine import Engine
    from storage.erasure import Unloaded
    from storage.linking import Deployment
    from storage.prices import Prices
    from storage.sampler import Sampler
    from storage.spans import Span
    from storage.vocabulary import Vocabulary

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
PACKAGES = ("cli", "collector", "query", "storage")
STORE_RETRY_S = 3.0

logger = logging.getLogger("spanhouse")


# Serving


class CannotServe(Exception):
    """The server cannot start or go on. The text is a sentence for a person, with the way out."""


def run(settings: "Settings", ready: Callable[[dict[str, str]], None], role: "Role" = "serve") -> None:
    """Do what the role asks until SIGTERM or SIGINT, then drain. Calls `ready` with the addresses when all answer.

    Parts start downstream first and stop upstream first: what was acknowledged is in the log before the log closes, and
    the loader outlives the log. Raises CannotServe.
    """
    from prometheus_client import ProcessCollector

    from collector import admin, budgets_api
    from collector.ledger import Ledger
    from collector.listening import http_server, listen
    from query.health import create_collector_app
    from storage.sampler import Sampler
    from storage.sampling_rules import SamplingRules

    if role != "serve" and settings.clickhouse is None:
        raise CannotServe(
            f"cannot {role} without a ClickHouse server: give its address by --clickhouse, or let `spanhouse serve` do "
            "all in one process"
        )
    host, stop = settings.host, _signals()

    def broken() -> None:
        stop.put("an HTTP server ended")  # nobody reads it when they are to end

    with ExitStack() as parts:
        ledger = Ledger()
        ProcessCollector(registry=ledger.registry)
        # The log comes first: it holds the data directory against other processes.
        intake = None if role == "query" else _Intake(settings, parts, ledger)
        tables = _tables(settings)
        engine = _open_store(settings, role, tables.vocabulary, stop)
        if engine is None:
            return
        parts.callback(engine.close)
        _redact(settings, engine)
        sampler = Sampler(engine, SamplingRules(engine, tables.vocabulary), tables.vocabulary, ledger.decided)
        beside = partial(_Known, ledger=ledger, intake=intake, sampler=sampler)
        known = None if role == "collect" else beside(settings, parts, engine, tables)
        load = known.load if known else _collecting(engine, tables.vocabulary, sampler)
        if intake:
            intake.guard(engine, sampler, known.make_room if known else lambda: None)
        receivers = intake.receive(load, engine.prepare, sampler, broken) if intake else None
        if known:
            api = known.api(receivers.otlp if receivers else _elsewhere)
        else:
            api = create_collector_app(intake.ready if intake else dict)
        if intake:
            api.include_router(admin.quarantine_router(intake.quarantine, intake.wal.append))
            api.include_router(budgets_api.router(intake.budgets))
        api.include_router(admin.metrics_router(ledger.registry))
        with _named(host, settings.http_port, "--http-port"):
            listener = listen(host, settings.http_port)
        parts.enter_context(http_server(api, listener, broken, access_log=False, log_config=None))
        http = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
        ready({**(receivers.addresses if receivers else {}), "http": http})
        reason = stop.get()
        logger.info("stopping: %s", reason)
    logger.info("stopped")
    if reason not in SIGNALS:
        raise CannotServe(f"cannot go on: {reason}; the log says why")


class _Receivers(NamedTuple):
    """Where spans are received, and what takes OTLP/HTTP requests that come another way."""

    addresses: dict[str, str]
    otlp: "Asgi"


class _Intake:
    """What takes spans: the log, the loader behind it and the receivers in front of it."""

    def __init__(self, settings: "Settings", parts: ExitStack, ledger: "Ledger") -> None:
        from collector.quarantine import Quarantine

        self._settings, self._parts, self._ledger = settings, parts, ledger
        self._budget_rules = _budget_rules(settings)
        data_dir = settings.data_dir.absolute()
        self.wal = _open_log(settings, data_dir, ledger, lambda: self.quarantine.bytes_on_disk())  # noqa: PLW0108 (it opens below)
        parts.callback(self.wal.release)
        self.quarantine = Quarantine(data_dir / "quarantine", ledger)
        self._wal_directory = data_dir / "wal"

    def unloaded(self) -> "Unloaded":
        """What erasures find beside the store."""
        from collector.erasing import Intake

        return Intake(self.wal, self.quarantine, self._wal_directory)

    def ready(self) -> dict[str, str]:
        """What keeps it from taking requests, by part."""
        refusals = {"log": self.wal.refusal(), "disk": self._reserve.refusal()}
        return {part: refusal for part, refusal in refusals.items() if refusal}

    def guard(self, engine: "Engine", sampler: "Sampler", on_low: Callable[[], None]) -> None:
        """Begin to keep tenants within their budgets, and room on the disks. `on_low` is called when there is none."""
        from collector.budgets import Budgets, Stored
        from collector.budgets_api import BudgetMetrics
        from collector.disk_reserve import DiskReserve
        from storage.volumes import Volumes

        volumes, settings = Volumes(engine), self._settings
        self.budgets = Budgets(
            self._budget_rules,
            self.wal,
            lambda: Stored(*volumes.of_tenants()),
            shorten=engine.shorten,
            sample=sampler.keep_of_ordinary,
            every_s=settings.budget_interval_s,
        )
        self._ledger.registry.register(BudgetMetrics(self.budgets))
        directories = [self._wal_directory, *([] if settings.clickhouse else [settings.data_dir.absolute() / "store"])]
        self._reserve = DiskReserve(
            directories,
            settings.disk_reserve,
            disks=volumes.rooms if settings.clickhouse else tuple,
            on_low=on_low,
        )
        for part in (self.budgets, self._reserve):
            part.start()
            self._parts.callback(part.stop)

    def held(self) -> dict[str, int]:
        """Bytes that it keeps beside the store."""
        return {"wal_bytes": self.wal.bytes_held(), "quarantine_bytes": self.quarantine.bytes_on_disk()}

    def receive(self, load: "Load", prepare: "Prepare", sampler: "Sampler", broken: Callable[[], None]) -> _Receivers:
        """Begin to load, and to receive. Calls `broken` when a receiver ends by itself."""
        from collector import otlp_http
        from collector.admission import Admission
        from collector.listening import http_server, listen
        from collector.loader import Loader
        from collector.otlp_grpc import OtlpGrpc

        settings, parts, host = self._settings, self._parts, self._settings.host
        loader = Loader(
            self.wal, load, self.quarantine, self._ledger, prepare=sampler.prepared(prepare), sampling=sampler
        )
        loader.start()
        parts.callback(loader.stop, settings.shutdown_timeout_s)
        parts.callback(self.wal.close)

        admission = Admission(
            self.wal.append,
            self._ledger,
            request_bytes_max=settings.request_bytes_max,
            request_spans_max=settings.request_spans_max,
            in_flight_bytes_max=settings.in_flight_bytes_max,
            retransmit_window_s=settings.retransmit_window_s,
            retransmit_entries_max=settings.retransmit_entries_max,
            tenants_max=settings.tenants_max,
            allow=self._allow,
        )
        for tenant, digest, received_unix_nano in self.wal.recent_digests():
            admission.remember(tenant, digest, received_unix_nano)

        otlp_grpc = OtlpGrpc(admission, f"{_in_url(host)}:{settings.otlp_grpc_port}")
        with _named(host, settings.otlp_grpc_port, "--otlp-grpc-port"):
            otlp_grpc.start()
        parts.callback(otlp_grpc.stop)

        app = otlp_http.OtlpHttp(admission)
        parts.callback(app.close)
        with _named(host, settings.otlp_http_port, "--otlp-http-port"):
            listener = listen(host, settings.otlp_http_port)
        parts.enter_context(http_server(app, listener, broken, **otlp_http.UVICORN_OPTIONS))
        grpc_address = f"{_in_url(host)}:{otlp_grpc.port}"
        http_address = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
        return _Receivers({"otlp_grpc": grpc_address, "otlp_http": http_address}, app)

    def _allow(self, tenant: str, size: int) -> None:
        self._reserve.allow(tenant, size)
        self.budgets.allow(tenant, size)


def _collecting(engine: "Engine", vocabulary: "Vocabulary", sampler: "Sampler") -> "Load":
    from storage.migrate import loads_when_migrated
    from storage.policies import RetentionPolicies

    return loads_when_migrated(engine, RetentionPolicies(engine, vocabulary).refreshed(sampler.sampled(engine.load)))


async def _elsewhere(_scope: Any, _receive: Any, send: Any) -> None:
    """What a process that receives nothing answers to who sends spans below /mlflow."""
    text = b"cannot take spans here: this is a query service; route POST /mlflow/v1/traces to a collector"
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 501, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _open_log(settings: "Settings", data_dir: Path, ledger: "Ledger", quarantine_bytes: Callable[[], int]) -> "Wal":
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

    def __init__(
        self,
        settings: "Settings",
        parts: ExitStack,
        engine: "Engine",
        tables: "_Tables",
        *,
        ledger: "Ledger",
        intake: "_Intake | None",
        sampler: "Sampler",
    ) -> None:
        from query.implied import ImpliedLinks
        from query.storage_metrics import StoreMetrics
        from storage.annotations import Annotations
        from storage.assessments import Assessments
        from storage.deployments import Deployments
        from storage.harvest import Harvest
        from storage.keeping import Keeping
        from storage.relink import recanonicalize
        from storage.resettling import Resettling
        from storage.settling import Settler
        from storage.snapshots import Snapshots, holders

        vocabulary, prices, deployments = tables
        self._settings, self._engine, self._vocabulary, self._prices = settings, engine, vocabulary, prices
        store = settings.data_dir.absolute() / "store"
        self._snapshots = None if settings.clickhouse else Snapshots(engine, store)
        self._deployments = Deployments(engine, deployments)
        settler = Settler(engine, vocabulary, self._deployments, prices.cost, trace_spans_max=settings.trace_spans_max)
        self._keeping = Keeping(
            engine,
            vocabulary,
            settler.catch_up,
            unloaded=intake.unloaded() if intake else None,
            holders=partial(holders, store) if self._snapshots else list,
        )
        self._sampling_rules = sampler.rules
        self.load = self._keeping.ruled(settler.watched(sampler.sampled(engine.load)))
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
        self._keeping.start()
        parts.callback(self._keeping.stop)
        ledger.registry.register(StoreMetrics(self._keeping.recounting.seen))
        self._resettling = Resettling(
            engine, settler, partial(recanonicalize, engine, vocabulary), partial(prices.reload, settings.prices)
        )
        parts.callback(self._resettling.stop)
        self._beside: Beside = intake.held if intake else dict

    def make_room(self) -> None:
        """Have what may go early go early."""
        self._keeping.expiry.make_room()

    def api(self, otlp: "Asgi") -> "FastAPI":
        """The HTTP API, with all that reads traces and what is known of them. `otlp` takes what MLflow sends."""
        from query import (
            assessments_api,
            compare_api,
            entities_api,
            erasures_api,
            links_api,
            pins_api,
            registry_api,
            retention_api,
            retention_plan_api,
            sampling_api,
            snapshots_api,
            storage_api,
        )
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
            snapshots_api.router(self._snapshots),
            storage_api.router(self._keeping.volumes, self._beside),
            retention_api.router(self._keeping.policies, self._keeping.expiry),
            retention_plan_api.router(self._keeping.plans),
            pins_api.router(self._keeping.pins),
            sampling_api.router(self._sampling_rules),
            erasures_api.router(self._keeping.erasures),
        ):
            api.include_router(router)
        gateway = Gateway(engine, traces, self._assessments, self._annotations, otlp, mlflow_url=settings.mlflow_url)
        api.mount("/mlflow", gateway)
        return api


def _open_registry(settings: "Settings") -> "Registry | None":
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


def _tables(settings: "Settings") -> _Tables:
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


def _budget_rules(settings: "Settings") -> "Rules":
    from collector.budget_rules import BadBudgets, load

    try:
        return load(settings.budgets)
    except BadBudgets as error:
        raise CannotServe(str(error)) from error


def _redact(settings: "Settings", engine: "Engine") -> None:
    """Let loads apply the rules of the settings."""
    from storage.redaction import BadRedaction, load

    try:
        if redaction := load(settings.redaction, settings.redaction_key_file):
            engine.redact(redaction)
    except BadRedaction as error:
        raise CannotServe(str(error)) from error


def _open_store(
    settings: "Settings", role: "Role", vocabulary: "Vocabulary", stop: "queue.SimpleQueue[str]"
) -> "Engine | None":
    """The store; None if the program is to stop before its server answers. A collector does not wait for it."""
    from storage.errors import StoreError
    from storage.footing import BadFooting
    from storage.migrate import SchemaMismatch, migrated

    open_engine = _opening(settings, role, vocabulary)
    try:
        if role == "collect":
            return open_engine()
        while True:
            try:
                return migrated(open_engine)
            except (SchemaMismatch, BadFooting):
                raise
            except StoreError as error:
                if settings.clickhouse is None:
                    raise
                logger.warning("cannot start yet: %s; will try again", error)
            try:
                logger.info("stopping: %s", stop.get(timeout=STORE_RETRY_S))
                return None
            except queue.Empty:
                pass
    except StoreError as error:
        raise CannotServe(str(error)) from error


def _opening(settings: "Settings", role: "Role", vocabulary: "Vocabulary") -> "Callable[[], Engine]":
    """What opens the store."""
    from cli.store import footing_of
    from storage.engine import Bounds

    bounds = Bounds(
        memory_bytes_max=settings.engine_memory_bytes_max,
        query_memory_bytes_max=settings.query_memory_bytes_max,
        query_timeout_s=settings.query_timeout_s,
    )
    footing = footing_of(settings)
    if role != "query":
        footing.directory.mkdir(parents=True, exist_ok=True)
        os.chdir(footing.directory)  # chDB writes `__cache__` into the working directory, whatever it is told
    return lambda: footing.open(vocabulary, bounds)


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
    except (CannotServe, BadSettings) as error:
        _die(str(error))
    except Exception as error:
        if not _is_of_store(error):
            raise
        _die(str(error))


def _is_of_store(error: Exception) -> bool:
    """Whether the store says that it cannot; only a command that uses it has its module."""
    errors = sys.modules.get("storage.errors")
    return errors is not None and isinstance(error, errors.StoreError)


def _die(message: str, way_out: str | None = None) -> NoReturn:
    sys.stderr.write(f"Error: {message}.\n" + (f"Try:   {way_out}.\n" if way_out else ""))
    sys.exit(1)


def _settings(given: dict[str, Any], command: str = "serve") -> "Settings":
    """The settings from options, environment and defaults, in this order. Ends the program with what is wrong."""
    try:
        return settings_of(given)
    except BadSettings as error:
        _die(str(error), f"see `spanhouse {command} --help`")


def _act(role: "Role", given: dict[str, Any]) -> None:
    from cli.log import log_to_stderr

    settings = _settings(given, role)
    log_to_stderr(settings.log_format, settings.log_level)
    known = [ENV_PREFIX + name.upper() for name in (*Settings.model_fields, "url", "tenant")]
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            logger.warning("ignoring %s: there is no such setting%s", name, f"; is it {close[0]}?" if close else "")

    def ready(addresses: dict[str, str]) -> None:
        names = {"otlp_grpc": "OTLP/gRPC", "otlp_http": "OTLP/HTTP", "http": "query API"}
        if role == "collect":
            names["http"] = "its own state"
        text = "Spanhouse is ready: " + ", ".join(f"{names[key]} on {at}" for key, at in addresses.items())
        line = json.dumps({"event": "ready", **addresses}) if settings.log_format == "json" else text
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    run(settings, ready, role)


def _serve(**given: Any) -> None:
    """Receive, keep and answer until SIGTERM or Ctrl-C.

    What was acknowledged is on disk then. Sizes are written in bytes or as "64 MiB".
    """
    _act("serve", given)


def _collect(**given: Any) -> None:
    """Receive spans and bring them to a ClickHouse server, until SIGTERM or Ctrl-C.

    What was acknowledged is on disk here until it is stored there. Any number of these may run.
    """
    _act("collect", given)


def _query(**given: Any) -> None:
    """Answer what is asked of the spans that a ClickHouse server keeps, until SIGTERM or Ctrl-C.

    Any number of these may run; one of them works out what traces come to.
    """
    _act("query", given)


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
    from cli import commands, keeping_commands, store
    from cli.settings import ENV_PREFIX, BadSettings, Role, Settings, options, settings_of

    by_role: dict[Role, Callable[..., None]] = {"serve": _serve, "collect": _collect, "query": _query}
    for role, command in by_role.items():
        setattr(command, "__signature__", inspect.Signature(list(options(role))))  # noqa: B010 (functions have it)
        app.command(role)(command)
    app.registered_commands += store.app.registered_commands
    for one in (commands.app, keeping_commands.app):
        app.registered_commands += one.registered_commands
        app.registered_groups += one.registered_groups


def _near(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    return _in_url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    main()
