"""The commands about what is kept: retention policies, what they would come to, and pins.

The imports stand inside the functions, as in cli/commands.py.
"""
# ruff: noqa: PLC0415

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.commands import Tenant, Url, _client, _console

app = typer.Typer()
retention_commands = typer.Typer(help="What is kept how long.", no_args_is_help=True)
app.add_typer(retention_commands, name="retention")

By = Annotated[str, typer.Option(help="Who changes them.")]
Comment = Annotated[str, typer.Option(help="Why.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer.")]


@retention_commands.command("show")
def retention_show(context: typer.Context, *, url: Url = None) -> None:
    """Show the policies, in their order."""
    from cli import retention

    with _client(context, url, "default") as client:
        retention.draw(_console(), client.retention())


@retention_commands.command("history")
def retention_history(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many versions.")] = 20,
    url: Url = None,
) -> None:
    """Show who changed the policies when."""
    from cli import versions

    with _client(context, url, "default") as client:
        versions.draw(_console(), client.retention_versions(limit), "policies")


@retention_commands.command("plan")
def retention_plan(
    context: typer.Context,
    *,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All policies, as TOML; without it those in force.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=31, help="Look at the spans of so many of the last whole days.")] = 7,
    names: Annotated[
        int, typer.Option(min=1, max=100, help="List so many services and agents; the others are one.")
    ] = 10,
    price_per_gb_month: Annotated[
        float | None, typer.Option(min=0, help="What a gigabyte on disk costs a month, to see money beside bytes.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what policies would come to, and what of what is stored they would let go. Changes nothing."""
    from cli import retention_plan, versions

    asked: dict[str, Any] = {"days": days, "names": names, "price_per_gb_month": price_per_gb_month}
    if policy is not None:
        wanted = versions.read(policy, "docs/retention.md")
        asked |= {"policies": wanted.pop("policies", []), "default": wanted.pop("default", {}), **wanted}
    with _client(context, url, "default") as client, _console(stderr=True).status("Looking at what is stored"):
        answer = client.plan_retention(asked)
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        command = f"{context.obj().command} retention apply --policy {policy or 'FILE'}"
        retention_plan.draw(_console(), answer, command)


@retention_commands.command("apply")
def retention_apply(
    context: typer.Context,
    *,
    policy: Annotated[Path, typer.Option(metavar="FILE", help="All policies, as TOML.")],
    by: By = "",
    comment: Comment = "",
    url: Url = None,
) -> None:
    """Replace the policies by those of a file. What is paused stays so."""
    from cli import retention, versions

    wanted = versions.read(policy, "docs/retention.md")
    with _client(context, url, "default") as client:
        now = client.retention()
        change = {**wanted, "changed_by": by, "comment": comment, "version": now["version"], "paused": now["paused"]}
        retention.draw(_console(), client.change_retention(change))


@retention_commands.command("pause")
def retention_pause(context: typer.Context, *, by: By = "", comment: Comment = "", url: Url = None) -> None:
    """Let nothing expire until `resume`."""
    _set_paused(context, url, by, comment, paused=True)


@retention_commands.command("resume")
def retention_resume(context: typer.Context, *, by: By = "", comment: Comment = "", url: Url = None) -> None:
    """Let what the policies keep no longer expire again."""
    _set_paused(context, url, by, comment, paused=False)


def _set_paused(context: typer.Context, url: str | None, by: str, comment: str, *, paused: bool) -> None:
    from cli import retention

    with _client(context, url, "default") as client:
        now = client.retention()
        if now["paused"] != paused:
            change = retention.as_they_are(now)
            change |= {"changed_by": by, "comment": comment, "version": now["version"], "paused": paused}
            now = client.change_retention(change)
        retention.draw(_console(), now)


@retention_commands.command("progress")
def retention_progress(context: typer.Context, *, as_json: AsJson = False, url: Url = None) -> None:
    """Show how far the policies in force have reached what is stored."""
    from cli import retention

    with _client(context, url, "default") as client:
        progress = client.retention_progress()
    if as_json:
        sys.stdout.write(json.dumps(progress) + "\n")
    else:
        retention.draw_progress(_console(), progress)


Entity = Annotated[
    str, typer.Argument(help="trace, run, model, session, user, agent, prompt, experiment or logged_model.")
]
Ids = Annotated[
    list[str],
    typer.Argument(metavar="ID...", help="Its id or name; of a model, prompt or agent NAME@VERSION is one version."),
]


@app.command("pin")
def pin_command(
    context: typer.Context,
    entity: Entity,
    ids: Ids,
    *,
    by: Annotated[str, typer.Option(help="Who pins it.")] = "",
    comment: Comment = "",
    url: Url = None,
    tenant: Tenant = "default",
) -> None:
    """Keep a trace, or all traces of something, whatever the policies say."""
    from cli import pins

    with _client(context, url, tenant) as client:
        for which in pins.asked(entity, ids):
            client.pin({**which, "pinned_by": by, "comment": comment})
        pins.draw(_console(), client.pins())


@app.command("unpin")
def unpin_command(
    context: typer.Context, entity: Entity, ids: Ids, *, url: Url = None, tenant: Tenant = "default"
) -> None:
    """Take pins back: the policies count again."""
    from cli import pins

    with _client(context, url, tenant) as client:
        for which in pins.asked(entity, ids):
            client.unpin(which)
        pins.draw(_console(), client.pins())


@app.command("pins")
def pins_command(
    context: typer.Context, *, as_json: AsJson = False, url: Url = None, tenant: Tenant = "default"
) -> None:
    """List what is pinned, the newest first."""
    from cli import pins

    with _client(context, url, tenant) as client:
        found = client.pins()
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        pins.draw(_console(), found)
