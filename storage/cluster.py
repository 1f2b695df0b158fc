"""The schema on a cluster: what the schema files say for one server, said for shards and replicas. Pure text.

A table of rows that belong to a trace, or come of them, is replicated within its shard as `spanhouse_local.<table>`,
and `spanhouse.<table>` is `Distributed` over it, by trace: all that is known of a trace lies on one shard. Views stay
on their shard. The few rows of every other table are on every node.

Nodes say by their macros `{shard}` and `{replica}` who they are (clickhouse.com/docs, "Data replication").
"""

import re
from collections.abc import Iterator

DISTRIBUTED = "spanhouse"
LOCAL = "spanhouse_local"
SHARDED = frozenset(
    ("ingest", "spans", "content", "traces", "origins", "facts", "links", "seen", "explicit_links", "assessments",
     "records", "mlflow_traces", "volumes", "spans_by_class", "content_by_class", "verdicts", "inherited", "surveys",
     "decisions", "places")
)  # fmt: skip
_NOT_BY_TRACE = {"origins": "", "seen": "", "places": "", "volumes": ", rand()"}
"""These are filled by views, each on its shard, and read on all of them: a sharding key would promise where a row lies.
What is added to `volumes` otherwise may lie on any."""

CLIENT_SETTINGS = {
    # What belongs to one trace lies on one shard. A subquery with FINAL has to be a GLOBAL IN all the same: this loses
    # its FINAL (24.10).
    "distributed_product_mode": "local",
    "optimize_skip_unused_shards": 1,
    "distributed_foreground_insert": 1,
    # A process that reads what it wrote asks the replica that took it, as long as that lives.
    "load_balancing": "in_order",
    "use_hedged_requests": 0,  # they ask another replica as soon as that one takes 50 ms
    "max_replica_delay_for_distributed_queries": 10,
    "distributed_ddl_output_mode": "none_only_active",
    "distributed_ddl_task_timeout": 120,
}
"""Of every statement. A node that is away makes up for schema changes when it is back."""

_TABLE = re.compile(r"\bspanhouse\.(\w+)")
_ENGINE = re.compile(r"^ENGINE = (\w*)MergeTree(?:\(([^)\n]*)\))?$", re.MULTILINE)
_CREATE_TABLE = re.compile(r"(CREATE TABLE IF NOT EXISTS|^CREATE TABLE|DROP TABLE IF EXISTS) (\S+)")
_CREATE_VIEW = re.compile(r"CREATE MATERIALIZED VIEW IF NOT EXISTS (\S+)")
_ALTER = re.compile(r"(?:ALTER TABLE|DELETE FROM) (\S+)|^SYSTEM START CLEANUP")
_DATABASE = "CREATE DATABASE IF NOT EXISTS spanhouse"


def on_cluster(statement: str, cluster: str) -> Iterator[str]:
    """Statements that do on all nodes what a statement of the schema does on one server. They can run again."""
    where = f"ON CLUSTER '{cluster}'"
    if statement == _DATABASE:
        yield f"{statement} {where}"
        yield f"CREATE DATABASE IF NOT EXISTS {LOCAL} {where}"
        return
    names = _TABLE.search(statement)
    if names is None:
        raise ValueError(f"cannot bring this to a cluster: {statement}")
    table = names[1]
    local = _TABLE.sub(rf"{LOCAL}.\1", statement)
    if statement.startswith("EXCHANGE TABLES"):
        yield f"{local} {where}"
        for name in _TABLE.findall(statement):
            yield _distributed(name, cluster, where)
        return
    if table in SHARDED and statement.startswith("DROP TABLE"):
        yield _CREATE_TABLE.sub(rf"\g<0> {where}", statement)
    sharded = table in SHARDED or statement.startswith("CREATE MATERIALIZED VIEW") or "MODIFY QUERY" in statement
    statement = _replicated(local if sharded else statement, table, sharded)
    for pattern in (_CREATE_TABLE, _CREATE_VIEW, _ALTER):
        statement = pattern.sub(rf"\g<0> {where}", statement, count=1)
    yield statement
    if table in SHARDED and ("CREATE TABLE" in statement or "ADD COLUMN" in statement):
        yield _distributed(table, cluster, where)


def _replicated(statement: str, table: str, sharded: bool) -> str:
    shard, replica = ("{shard}", "{replica}") if sharded else ("all", "{shard}-{replica}")
    place = f"'/clickhouse/tables/{shard}/spanhouse/{table}', '{replica}'"

    def engine(match: re.Match[str]) -> str:
        return f"ENGINE = Replicated{match[1]}MergeTree({', '.join(filter(None, (place, match[2])))})"

    window = "replicated_deduplication_window = 10000,\n    replicated_deduplication_window_seconds = 604800"
    return _ENGINE.sub(engine, statement).replace("non_replicated_deduplication_window = 10000", window)


def _distributed(table: str, cluster: str, where: str) -> str:
    by = _NOT_BY_TRACE.get(table, ", cityHash64(TraceId)")
    return (
        f"CREATE OR REPLACE TABLE {DISTRIBUTED}.{table} {where} AS {LOCAL}.{table}\n"
        f"ENGINE = Distributed('{cluster}', '{LOCAL}', '{table}'{by})"
    )


def of_tenant(tables: tuple[str, ...]) -> list[str]:
    """The names under which a statement may touch these tables, here or on the nodes that it is passed on to."""
    return [f"{database}.{table}" for table in tables for database in (DISTRIBUTED, LOCAL)]


def altered(statement: str, cluster: str) -> str:
    """An ALTER of the rows of a table, or SYSTEM START CLEANUP, for all shards. Tables that every node has stay."""
    local = _TABLE.sub(lambda name: f"{LOCAL}.{name[1]}" if name[1] in SHARDED else name[0], statement)
    return _ALTER.sub(rf"\g<0> ON CLUSTER '{cluster}'", local, count=1)
