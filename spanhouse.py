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
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

if TYPE_CHECKING:
    from cli.commands import Here
    from cli.settings import Role, Settings
    from collector.ledger import Ledger
    from collector.loader import Load
    from collector.pipeline import Pipeline
    from query.registry import Registry
    from query.service import QueryService
    from storage.engine import Engine
    from storage.linking import Deployment
    from storage.prices import Prices
    from storage.sampler import Sampler
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
    from collector.listening import http_server, in_url, listen, named
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
        pipeline = None if role == "query" else _open_pipeline(settings, parts, ledger)
        tables = _tables(settings)
        engine = _open_store(settings, role, tables.vocabulary, stop)
        if engine is None:
            return
        parts.callback(engine.close)
        _redact(settings, engine)
        sampler = Sampler(engine, SamplingRules(engine, tables.vocabulary), tables.vocabulary, ledger.decided)
        service = None
        if role != "collect":
            service = _query_service(settings, parts, engine, tables, sampler=sampler, ledger=ledger, pipeline=pipeline)
        load = service.load if service else _collecting(engine, tables.vocabulary, sampler)
        if pipeline:
            pipeline.guard(engine, sampler, service.make_room if service else lambda: None)
        receivers = pipeline.receive(load, engine.prepare, sampler, broken) if pipeline else None
        if service:
            api = service.api(receivers.otlp if receivers else _elsewhere)
        else:
            api = create_collector_app(pipeline.ready if pipeline else dict)
        if pipeline:
            api.include_router(admin.quarantine_router(pipeline.quarantine, pipeline.wal.append))
            api.include_router(budgets_api.router(pipeline.budgets))
        api.include_router(admin.metrics_router(ledger.registry))
        with named(host, settings.http_port, "--http-port"):
            listener = listen(host, settings.http_port)
        parts.enter_context(http_server(api, listener, broken, access_log=False, log_config=None))
        http = f"http://{in_url(host)}:{listener.getsockname()[1]}"
        ready({**(receivers.addresses if receivers else {}), "http": http})
        reason = stop.get()
        logger.info("stopping: %s", reason)
    logger.info("stopped")
    if reason not in SIGNALS:
        raise CannotServe(f"cannot go on: {reason}; the log says why")


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


def _open_pipeline(settings: "Settings", parts: ExitStack, ledger: "Ledger") -> "Pipeline":
    from collector.budget_rules import load
    from collector.pipeline import Pipeline
    from collector.wal import WalInUse
    from storage.rules import BadRules

    try:
        return Pipeline(settings, load(settings.budgets), parts, ledger)
    except (BadRules, WalInUse) as error:
        raise CannotServe(str(error)) from error
    except OSError as error:
        raise CannotServe(
            f"cannot use the data directory {settings.data_dir.absolute()}: {error.strerror}; "
            "choose another with --data-dir"
        ) from error


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


def _query_service(
    settings: "Settings",
    parts: ExitStack,
    engine: "Engine",
    tables: _Tables,
    *,
    sampler: "Sampler",
    ledger: "Ledger",
    pipeline: "Pipeline | None",
) -> "QueryService":
    from query.service import QueryService

    return QueryService(
        settings,
        parts,
        engine,
        **tables._asdict(),
        registry=_open_registry(settings),
        metrics=ledger.registry,
        sampler=sampler,
        unloaded=pipeline.unloaded() if pipeline else None,
        beside=pipeline.held if pipeline else dict,
    )


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


def _redact(settings: "Settings", engine: "Engine") -> None:
    """Let loads apply the rules of the settings."""
    from storage.redaction import load
    from storage.rules import BadRules

    try:
        if redaction := load(settings.redaction, settings.redaction_key_file):
            engine.redact(redaction)
    except BadRules as error:
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

    from collector.listening import CannotListen

    try:
        run(settings, ready, role)
    except CannotListen as error:
        raise CannotServe(str(error)) from error


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
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{reached}]" if ":" in reached else reached


if __name__ == "__main__":
    main()
