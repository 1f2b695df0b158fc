"""The commands that work on a store themselves, instead of asking a running server: they import the parts, late."""
# ruff: noqa: PLC0415

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.settings import Settings, options, settings_of

if TYPE_CHECKING:
    from storage.footing import Footing

app = typer.Typer()


def footing_of(settings: Settings) -> "Footing":
    """Where the store of these settings is."""
    from storage.footing import Footing

    return Footing(
        settings.data_dir.absolute() / "store",
        settings.clickhouse,
        settings.clickhouse_user,
        settings.clickhouse_password_file,
        settings.clickhouse_ca,
        settings.clickhouse_cluster,
    )


def _migrate(*, dry_run: bool, **given: Any) -> None:
    """Bring the schema of a store to this program's, and end.

    `serve`, `query` and `collect` do so themselves when they start; this is for who wants to see it first.
    """
    from storage.migrate import migrate, pending, statements
    from storage.vocabulary import load

    engine = footing_of(settings_of(given)).open(load(None))
    try:
        if dry_run:
            for migration in pending(engine):
                sys.stdout.write(f"-- {migration.name}\n")
                sys.stdout.writelines(f"{statement};\n\n" for statement in statements(engine, migration))
        else:
            names = migrate(engine)
            sys.stdout.write(f"Applied {', '.join(names)}.\n" if names else "The schema is up to date.\n")
    finally:
        engine.close()


def _copy(
    context: typer.Context,
    *,
    data_dir: Annotated[Path, typer.Option("--from", help="Data directory of `spanhouse serve`; it may be running.")],
    target: Annotated[str, typer.Option("--to", metavar="URL", help="ClickHouse, as --clickhouse takes it.")],
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Compare, and copy nothing.")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="SPANHOUSE_URL", help="URL of the HTTP API of the `serve` that runs on the data directory."
        ),
    ] = None,
    **given: Any,
) -> None:
    """Copy an embedded store to ClickHouse servers, and verify that every row is there.

    Goes on where it was interrupted; repeated, it copies what came since.
    """
    from dataclasses import asdict

    from rich.console import Console

    from cli import copying as drawing
    from cli.client import Client
    from storage.copying import copy
    from storage.embedded import Embedded
    from storage.vocabulary import load

    footing, vocabulary = footing_of(settings_of({"clickhouse": target, **given})), load(None)

    def ask() -> str:
        with Client(url or context.obj().api, "default") as client:
            return client.snapshot()

    console = Console(highlight=False)
    with drawing.Drawing(console) as show:
        report = copy(
            data_dir,
            target,
            open_store=lambda path: Embedded(path, vocabulary),
            open_target=lambda: footing.server(vocabulary),
            ask=ask,
            show=show,
            verify_only=verify_only,
        )
    drawing.show(console, asdict(report), verify_only=verify_only)
    if not report.complete:
        raise typer.Exit(1)


def _views(
    *,
    tenant: Annotated[str, typer.Option(envvar="SPANHOUSE_TENANT", help="Tenant whose spans they show.")] = "default",
    database: Annotated[str, typer.Option(help="Database in which they are made.")] = "otel",
    **given: Any,
) -> None:
    """Make views of a tenant's spans as the OpenTelemetry Collector's ClickHouse exporter has them, for Grafana."""
    from storage.views import create_views
    from storage.vocabulary import load

    settings = settings_of(given)
    engine = footing_of(settings).open(load(None))
    try:
        create_views(engine, tenant, database)
    finally:
        engine.close()
    sys.stdout.write(f"Made {database}.otel_traces and its like, of tenant {tenant}.\n")


_DRY_RUN = inspect.Parameter(
    "dry_run",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")],
)


def _add(name: str, command: Any, own: list[inspect.Parameter]) -> None:
    setattr(command, "__signature__", inspect.Signature([*own, *options(name)]))  # noqa: B010 (functions have it)
    app.command(name)(command)


_add("migrate", _migrate, [_DRY_RUN])
_add("views", _views, [one for one in inspect.signature(_views).parameters.values() if one.name != "given"])
_add("copy", _copy, [one for one in inspect.signature(_copy).parameters.values() if one.name != "given"])
