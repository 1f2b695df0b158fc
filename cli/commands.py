"""The commands that ask a running server: what they take, and which file does it.

`context.obj` is a function that gives Here. The imports stand inside the functions: a command loads what it needs.
"""
# ruff: noqa: PLC0415

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cli.client import Client, Trouble


class Here(NamedTuple):
    """Where `serve` answers with the settings of this environment, and how this program was called."""

    api: str
    otlp_grpc: str
    command: str


app = typer.Typer()
quarantine_app = typer.Typer(help="Look after the requests that the store could not load.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")

Url = Annotated[
    str | None,
    typer.Option(
        envvar="SPANHOUSE_URL", help="URL of the server's HTTP API; by default that of `serve` on this machine."
    ),
]
Tenant = Annotated[str, typer.Option(envvar="SPANHOUSE_TENANT", help="Tenant whose data is meant.")]
FrameId = Annotated[str, typer.Argument(help="The frame's id, as `spanhouse quarantine list` shows it.")]


def show_trouble(trouble: "Trouble") -> None:
    """Say on stderr what went wrong, and the way out."""
    sys.stderr.write(f"Error: {trouble.message}.\n" + (f"Try:   {trouble.way_out}.\n" if trouble.way_out else ""))


@app.command()
def demo(
    context: typer.Context,
    *,
    endpoint: Annotated[
        str | None, typer.Option(help="OTLP/gRPC endpoint to send to; by default that of `serve` on this machine.")
    ] = None,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Send a small conversation of two agents, and say where to look.

    It goes through the OpenTelemetry SDK, as an application's would.
    """
    from cli import demo as conversation

    console = _console()
    with _client(context, url, tenant) as client:
        client.ready()
        with console.status("Sending a conversation"):
            sent = conversation.send(endpoint or context.obj().otlp_grpc, tenant)
        with console.status("Waiting until it can be read"):
            client.wait_for_trace(sent.trace_id, sent.spans)
        console.print(
            f"Sent {sent.spans} spans of a conversation in which a refund fails once. Look at it with", highlight=False
        )
        console.print(f"  {context.obj().command} trace {sent.trace_id}", style="bold", highlight=False, soft_wrap=True)
        console.print(f"  {client.url}/api/v1/traces/{sent.trace_id}", soft_wrap=True, highlight=False)


@app.command()
def trace(
    context: typer.Context,
    trace_id: Annotated[str, typer.Argument(metavar="ID", help="The trace's id: 32 hexadecimal digits.")],
    *,
    content: Annotated[
        bool, typer.Option("--content/--no-content", help="Show what was asked and answered below each span.")
    ] = False,
    spans_max: Annotated[int, typer.Option(min=1, help="Draw at most so many spans.")] = 500,
    save_svg: Annotated[Path | None, typer.Option(help="Write the drawing to this file as well.")] = None,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Draw one trace as a tree.

    With durations, errors, tokens (in→out), and what may be wrong with the tree.
    """
    from cli import terminal

    with _client(context, url, tenant) as client:
        answer = client.trace(trace_id, content=content)
    console = _console(record=save_svg is not None)
    terminal.draw_trace(console, answer, spans_max=spans_max)
    if save_svg is not None:
        save_svg.write_text(terminal.picture(console, f"spanhouse trace {trace_id}"))


@app.command()
def traces(
    context: typer.Context,
    *,
    start: Annotated[str | None, typer.Option(help="Traces that start at this time or later.")] = None,
    end: Annotated[str | None, typer.Option(help="Traces that start before this time.")] = None,
    service: Annotated[str | None, typer.Option(help="Traces with a span of this service.")] = None,
    name: Annotated[str | None, typer.Option(help="Traces with a span of this name.")] = None,
    status: Annotated[str | None, typer.Option(help="Traces with a span of this status: error, ok or unset.")] = None,
    min_duration: Annotated[str | None, typer.Option(help="Traces that last at least so long, such as 1.5s.")] = None,
    max_duration: Annotated[str | None, typer.Option(help="Traces that last at most so long.")] = None,
    attr: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Traces with a span of this attribute; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Continue where an earlier list ended.")] = None,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """List traces, newest first. Filters on spans hold for one span together."""
    from cli import terminal

    given = {
        "start": start, "end": end, "service": service, "name": name, "status": status,
        "min_duration": min_duration, "max_duration": max_duration, "limit": str(limit), "cursor": cursor,
    }  # fmt: skip
    filters = [(key, value) for key, value in given.items() if value is not None]
    for pair in attr or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"cannot use {pair!r}: write KEY=VALUE", param_hint="--attr")
        filters.append((f"attr.{key}", value))
    with _client(context, url, tenant) as client:
        page = client.traces(filters)
    terminal.draw_traces(_console(), page)


def _regression(what: str) -> Any:
    return typer.Option(metavar="SHARE", help=f"Fail if {what} rose by more than this, such as 10%.")


@app.command("gate")
def gate_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    *,
    baseline: Annotated[str, typer.Option(help="The version that is known.")],
    candidate: Annotated[str, typer.Option(help="The version to judge.")],
    start: Annotated[str | None, typer.Option(help="Traces that start at this time or later, such as -7d.")] = None,
    end: Annotated[str | None, typer.Option(help="Traces that start before this time.")] = None,
    limit: Annotated[int | None, typer.Option(help="Look at so many of the newest traces of each version.")] = None,
    min_traces: Annotated[int, typer.Option(help="Cannot tell from fewer traces of a version.")] = 200,
    max_p50_regression: Annotated[str | None, _regression("the median duration")] = None,
    max_p95_regression: Annotated[str | None, _regression("the p95 of the durations")] = None,
    max_p99_regression: Annotated[str | None, _regression("the p99 of the durations")] = None,
    max_cost_regression: Annotated[str | None, _regression("the cost of a trace")] = None,
    max_tokens_regression: Annotated[str | None, _regression("the tokens of a trace")] = None,
    max_error_rate: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Fail if more of the candidate's traces failed, such as 2%.")
    ] = None,
    min_score: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Fail if the candidate's mean score is less; repeatable."),
    ] = None,
    max_score_drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Fail if the mean score fell by more; repeatable."),
    ] = None,
    form: Annotated[Literal["text", "json"], typer.Option("--format", help="What to print.")] = "text",
    write_back: Annotated[
        bool, typer.Option("--write-back", help="Write the verdict to the registry, as tags of the candidate.")
    ] = False,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Compare two versions of a model, and fail if the new one is worse than the limits allow.

    Ends with 0 if it is within the limits, with 1 if it is not, and with 2 if nobody can tell: too few traces, a wrong
    option, a server that is away.
    """
    from cli import gate
    from cli.client import Trouble

    given: dict[str, str | int | None] = {
        "baseline": baseline, "candidate": candidate, "start": start, "end": end, "limit": limit,
        "min_traces": min_traces, "max_p50_regression": max_p50_regression, "max_p95_regression": max_p95_regression,
        "max_p99_regression": max_p99_regression, "max_cost_regression": max_cost_regression,
        "max_tokens_regression": max_tokens_regression, "max_error_rate": max_error_rate,
    }  # fmt: skip
    try:
        asked = list(gate.asked(given, {"min_score": min_score or (), "max_score_drop": max_score_drop or ()}))
        with _client(context, url, tenant) as client:
            answer = client.gate(model, asked, write_back=write_back)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except Trouble as trouble:
        show_trouble(trouble)
        raise typer.Exit(gate.CANNOT_TELL) from trouble
    if form == "json":
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        gate.draw(_console(), answer)
    raise typer.Exit(gate.EXIT_CODES[answer["verdict"]])


@app.command("erase")
def erase_command(
    context: typer.Context,
    *,
    user: Annotated[list[str] | None, typer.Option(help="Traces of this user; repeatable.")] = None,
    session: Annotated[list[str] | None, typer.Option(help="Traces of this session; repeatable.")] = None,
    trace: Annotated[list[str] | None, typer.Option(metavar="ID", help="This trace; repeatable.")] = None,
    attr: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Traces that have this attribute; repeatable.")
    ] = None,
    by: Annotated[str, typer.Option(help="Who asks, for the certificate.")] = "",
    certificate: Annotated[Path | None, typer.Option(help="Write the certificate to this new file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be removed, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether it is meant.")] = False,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Remove the traces of a user, a session or an attribute for good. Waits until no file holds them.

    What any one of the options means is removed. Without --yes it counts first, and asks.
    """
    from cli import erase

    try:
        request = erase.asked(user or (), session or (), trace or (), attr or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = _console()
    with _client(context, url, tenant) as client:
        if dry_run or not yes:
            counted = erase.wait(client, console, client.erase({**request, "by": by, "dry_run": True}))
            erase.draw(console, counted, f"{counted['traces']} traces")
            if dry_run or not typer.confirm("Remove them for good?"):
                return
        file = erase.open_certificate(certificate) if certificate else None
        try:
            begun = client.erase({**request, "by": by})
        except BaseException:
            if certificate:
                certificate.unlink()
            raise
        console.print(f"Erasure {begun['id']} goes on without this command.", highlight=False)
        done = erase.wait(client, console, begun)
        erase.draw(console, done, f"{done['traces']} traces are removed")
        if file is not None:
            erase.write(file, done["certificate"])
            console.print(f"The certificate is in {certificate}.", highlight=False)


sampling_commands = typer.Typer(help="Which traces are kept.", no_args_is_help=True)
app.add_typer(sampling_commands, name="sampling")


@sampling_commands.command("show")
def sampling_show(context: typer.Context, *, url: Url = None) -> None:
    """Show the rules, in their order, and what they did in the last day."""
    from cli import sampling

    with _client(context, url, "default") as client:
        sampling.draw(_console(), client.sampling())


@sampling_commands.command("history")
def sampling_history(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many versions.")] = 20,
    url: Url = None,
) -> None:
    """Show who changed the rules when."""
    from cli import versions

    with _client(context, url, "default") as client:
        versions.draw(_console(), client.sampling_versions(limit), "rules")


@sampling_commands.command("apply")
def sampling_apply(
    context: typer.Context,
    *,
    rules: Annotated[Path, typer.Option(metavar="FILE", help="All rules, as TOML.")],
    by: Annotated[str, typer.Option(help="Who changes them.")] = "",
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    url: Url = None,
) -> None:
    """Replace the rules by those of a file."""
    from cli import sampling, versions

    wanted = versions.read(rules, "docs/sampling.md")
    with _client(context, url, "default") as client:
        version = client.sampling()["version"]
        change = {**wanted, "changed_by": by, "comment": comment, "version": version}
        sampling.draw(_console(), client.change_sampling(change))


Start = Annotated[str | None, typer.Option(help="Traces that start at this time or later, such as -30d.")]
End = Annotated[str | None, typer.Option(help="Traces that start before this time.")]


@app.command()
def relink(
    context: typer.Context,
    *,
    start: Start = None,
    end: End = None,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Apply the conventions, deployments and links of today to traces that are stored. Waits until that is done."""
    _resettle(context, "relink", (start, end), url, tenant)


@app.command()
def reprice(
    context: typer.Context,
    *,
    start: Start = None,
    end: End = None,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Work out anew what stored traces cost, at the prices of today. Waits until that is done."""
    _resettle(context, "reprice", (start, end), url, tenant)


def _resettle(
    context: typer.Context, job: str, times: tuple[str | None, str | None], url: str | None, tenant: str
) -> None:
    from rich.progress import Progress

    from cli.client import Trouble

    given = {name: time for name, time in zip(("start", "end"), times, strict=True) if time is not None}
    with _client(context, url, tenant) as client, Progress(console=_console(), transient=True) as bar:
        client.begin(job, given)
        shown = bar.add_task("Reading spans", total=1.0)
        while (answer := client.progress(job))["state"] == "running":
            bar.update(shown, completed=answer["share"], description=f"{answer['traces']} traces")
            time.sleep(0.2)
        if answer["state"] != "done":
            raise Trouble(
                f"cannot {job}: it is {answer['state']}" + (f", {answer['error']}" if answer["error"] else "")
            )
    _console().print(f"{answer['traces']} traces are settled again.", highlight=False)


@app.command("storage")
def storage_command(
    context: typer.Context,
    *,
    by: Annotated[
        Literal["tenant", "service", "agent", "model", "day"],
        typer.Option(help="What to list; tenants are those of all."),
    ] = "service",
    days: Annotated[int, typer.Option(min=1, max=366, help="Draw so many of the newest days.")] = 30,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="List so many; the others are one.")] = 20,
    all_tenants: Annotated[
        bool, typer.Option("--all-tenants", help="Of all tenants, with the disk and when it is full.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer.")] = False,
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Show what is stored, what it takes on disk, and when the disk is full."""
    from cli import storage

    asked = [("by", by), ("days", str(days)), ("limit", str(limit))]
    if all_tenants or by == "tenant":
        asked.append(("all_tenants", "true"))
    with _client(context, url, tenant) as client:
        answer = client.storage(asked)
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        storage.draw(_console(), answer)


@quarantine_app.command("list")
def quarantine_list(context: typer.Context, url: Url = None, tenant: Tenant = "default") -> None:
    """List the requests that the store could not load, and why."""
    from cli import terminal

    with _client(context, url, tenant) as client:
        terminal.draw_quarantine(_console(), list(client.quarantine()))


@quarantine_app.command("show")
def quarantine_show(context: typer.Context, frame_id: FrameId, url: Url = None, tenant: Tenant = "default") -> None:
    """Show one of them: why it is there, and what is in it."""
    with _client(context, url, tenant) as client:
        _console().print_json(data=client.quarantined(frame_id))


@quarantine_app.command("replay")
def quarantine_replay(context: typer.Context, frame_id: FrameId, url: Url = None, tenant: Tenant = "default") -> None:
    """Load one of them again, after what hindered it is mended. It is stored once."""
    with _client(context, url, tenant) as client:
        client.replay(frame_id)
    _console().print(f"Frame {frame_id} is in the log again.", highlight=False)


@quarantine_app.command("drop")
def quarantine_drop(context: typer.Context, frame_id: FrameId, url: Url = None, tenant: Tenant = "default") -> None:
    """Delete one of them for good."""
    with _client(context, url, tenant) as client:
        client.drop(frame_id)
    _console().print(f"Frame {frame_id} is deleted.", highlight=False)


def _console(*, record: bool = False, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(record=record, width=120) if record else Console(stderr=stderr)


def _client(context: typer.Context, url: str | None, tenant: str) -> "Client":
    from cli.client import Client

    return Client(url or context.obj().api, tenant)
