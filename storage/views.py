"""Views for readers that know the tables of the OpenTelemetry Collector's ClickHouse exporter: Grafana, above all.

A database of its own for one tenant, since Spanhouse's tables hold all tenants: who may read that database sees one of
them. The views run with the rights of who made them, so that a reader needs none on `spanhouse`.

`otel_traces` leaves payload out (prompts, answers, tool results): ClickHouse does not drop a join whose columns nobody
asks for, and a dashboard would read all payload to count spans. `otel_traces_content` is the same with payload, for
single traces. On a cluster both are `Distributed` over a view of each node's own rows, so that a node joins, filters
and counts what it has (docs/grafana.md).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from storage.engine import Engine
from storage.errors import StoreError
from storage.literals import literal
from storage.wire_text import link_columns, texts_of

TRACES, TRACES_WITH_CONTENT, LOOKUP = "otel_traces", "otel_traces_content", "_trace_id_ts"
OURS = "Spans of the tenant "
"""How the comment of a view begins that was made here; the tenant follows."""

_SPANS_SQL = Path(__file__).with_name("otel_traces.sql").read_text()
_LOOKUP_SQL = Path(__file__).with_name("otel_traces_trace_id_ts.sql").read_text()
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_DISTRIBUTED = re.compile(r"Distributed\('(?P<cluster>[^']+)', '(?P<database>[^']+)', '(?P<table>[^']+)'")
_TAKEN = ("spanhouse", "spanhouse_local", "system", "information_schema", "INFORMATION_SCHEMA")


class CannotMakeViews(StoreError):
    """Views cannot be made there; the text says why, and what to do."""


def create_views(engine: Engine, tenant: str, database: str) -> None:
    """Make the views of a tenant in a database, which is made too, or bring them to this program's.

    Raises CannotMakeViews where the database has something else of the same name, and StoreUnavailable.
    """
    if _NAME.fullmatch(database) is None or database in _TAKEN:
        raise CannotMakeViews(
            f"cannot make views in the database {database!r}: the name should be 1 to 64 letters, digits and _, and "
            "none of ClickHouse's or Spanhouse's own"
        )
    cluster, origin = _where_spans_are(engine)
    _check_free(engine, tenant, database)
    for statement in _statements(_definer(engine), tenant, database, cluster, origin):
        engine.command(statement)


def _where_spans_are(engine: Engine) -> tuple[str, str]:
    """The cluster, '' for none, and the database of the tables that hold rows."""
    sql = "SELECT engine_full FROM system.tables WHERE database = 'spanhouse' AND name = 'spans'"
    rows = engine.rows(sql)
    if not rows:
        raise CannotMakeViews("cannot make views: there is no table spanhouse.spans yet; start Spanhouse once")
    found = _DISTRIBUTED.match(str(rows[0][0]))
    return (found["cluster"], found["database"]) if found else ("", "spanhouse")


def _check_free(engine: Engine, tenant: str, database: str) -> None:
    """Nothing of somebody else's is replaced: tables of the exporter itself, or the views of another tenant."""
    wanted = {name for traces in (TRACES, TRACES_WITH_CONTENT) for name in _names(traces)}
    sql = f"SELECT name, engine, comment FROM system.tables WHERE database = {literal(database)}"
    for name, kind, comment in engine.rows(sql):
        if name not in wanted:
            continue
        if kind not in ("View", "Distributed") or not comment.startswith(OURS):
            raise CannotMakeViews(
                f"cannot make the view {database}.{name}: there is a table of that name; choose another database"
            )
        if comment != _comment(tenant):
            raise CannotMakeViews(
                f"cannot make views of the tenant {tenant!r} in the database {database!r}: it has those of "
                f"{comment.removeprefix(OURS)}; choose another database, or drop that one"
            )


def _names(traces: str) -> Iterator[str]:
    for name in (traces, traces + LOOKUP):
        yield name
        yield f"{name}_local"


def _comment(tenant: str) -> str:
    return f"{OURS}{tenant!r}"


def _definer(engine: Engine) -> str:
    return "`" + str(engine.rows("SELECT currentUser()")[0][0]).replace("\\", "\\\\").replace("`", "\\`") + "`"


def _statements(definer: str, tenant: str, database: str, cluster: str, origin: str) -> Iterator[str]:
    """What makes the database and its views, in order."""
    everywhere = f" ON CLUSTER {literal(cluster)}" if cluster else ""
    comment = f"\nCOMMENT {literal(_comment(tenant))}"
    yield f"CREATE DATABASE IF NOT EXISTS {database}{everywhere}"
    for name, select in (
        (TRACES, _spans(origin, tenant, content=False)),
        (TRACES_WITH_CONTENT, _spans(origin, tenant, content=True)),
        (TRACES + LOOKUP, _lookup(origin, tenant)),
        (TRACES_WITH_CONTENT + LOOKUP, _lookup(origin, tenant)),
    ):
        view = f"{database}.{name}_local" if cluster else f"{database}.{name}"
        security = f"DEFINER = {definer} SQL SECURITY DEFINER"
        yield f"CREATE OR REPLACE VIEW {view}{everywhere} {security} AS\n{select}{comment}"
        if cluster:
            of = ", ".join(map(literal, (cluster, database, f"{name}_local")))
            yield f"CREATE OR REPLACE TABLE {database}.{name}{everywhere} AS {view} ENGINE = Distributed({of}){comment}"


def _spans(origin: str, tenant: str, *, content: bool) -> str:
    """The SELECT of spans, `content` with payload."""
    links = link_columns("s.Links")
    pieces = {
        "spans": f"{origin}.spans",
        "origins": "spanhouse.origins",  # of all shards: a load tells its origins to one of them
        "tenant": literal(tenant),
        "attributes": _attributes(content),
        "resource_attributes": texts_of("ResourceAttributes"),
        "event_attributes": texts_of("a"),
        "link_trace_ids": links["TraceId"],
        "link_span_ids": links["SpanId"],
        "link_trace_states": links["TraceState"],
        "link_attributes": links["Attributes"],
        "content": _CONTENT_JOIN if content else "",
        "payload": f"{origin}.content",
    }
    return _filled(_SPANS_SQL, pieces)


_CONTENT_JOIN = """ANY LEFT JOIN
(
    SELECT TraceId, SpanKey, Content, OtherContent
    FROM {payload}
    WHERE Tenant = {tenant}
) AS c ON c.TraceId = s.TraceId AND c.SpanKey = cityHash64(s.SpanId, s.Timestamp, s.Duration, s.SpanName)"""


def _attributes(content: bool) -> str:
    """One map of text from the maps by type."""
    maps = ["s.StringAttributes"]
    maps += [f"mapApply((k, v) -> (k, toString(v)), s.{kind}Attributes)" for kind in ("Int", "Float", "Bool")]
    maps += [texts_of("s.OtherAttributes")]
    if content:
        maps += ["c.Content", texts_of("c.OtherContent")]
    return f"mapConcat({', '.join(maps)})"


def _lookup(origin: str, tenant: str) -> str:
    return _filled(_LOOKUP_SQL, {"traces": f"{origin}.traces", "tenant": literal(tenant)})


def _filled(sql: str, pieces: dict[str, str]) -> str:
    """A statement without its comments, and with `pieces` in the place of their names."""
    text = "".join(line for line in sql.splitlines(keepends=True) if not line.startswith("--"))
    for name in ("content", *pieces):  # content names others
        text = text.replace(f"{{{name}}}", pieces.get(name, ""))
    return text
