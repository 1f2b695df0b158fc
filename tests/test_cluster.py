"""The schema and the statements of a cluster, as text. What a real one makes of them: `make test-store`."""

import os
import re
from pathlib import Path

import pytest

from storage.cluster import LOCAL, SHARDED, altered, of_tenant, on_cluster
from storage.engine import TENANT_TABLES
from storage.migrate import migrations

ROOT = Path(__file__).parent.parent
SNAPSHOT = Path(__file__).parent / "snapshots" / "cluster.sql"


def statements() -> list[str]:
    return [
        text
        for migration in migrations()
        for statement in migration.statements()
        for text in on_cluster(statement, "spans")
    ]


def test_the_schema_of_a_cluster_is_known() -> None:
    text = ";\n\n".join(statements()) + "\n"
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(text)
        pytest.fail(f"{SNAPSHOT.name} was missing and has been written: read it, and run this again")
    assert SNAPSHOT.read_text() == text


def test_every_statement_is_for_all_nodes() -> None:
    for statement in statements():
        assert "ON CLUSTER 'spans'" in statement
        assert not re.search(r"^ENGINE = (?!Replicated|Distributed|Null)", statement, re.MULTILINE), statement


def test_tables_with_traces_are_sharded_and_no_others() -> None:
    made = {}
    for migration in migrations():
        for statement in migration.statements():
            if match := re.match(r"CREATE TABLE IF NOT EXISTS spanhouse\.(\w+)", statement):
                made[match[1]] = "TraceId" in statement
    assert {name for name, of_traces in made.items() if of_traces} | {"origins", "seen", "volumes", "places"} == SHARDED
    names = {name.partition(".")[2] for name in of_tenant(TENANT_TABLES)}
    assert names == set(TENANT_TABLES)


def test_changes_of_rows_are_made_on_all_shards() -> None:
    text = altered("ALTER TABLE spanhouse.spans UPDATE X = 1 WHERE Tenant = {tenant:String}", "c")
    assert text == f"ALTER TABLE {LOCAL}.spans ON CLUSTER 'c' UPDATE X = 1 WHERE Tenant = {{tenant:String}}"


@pytest.mark.parametrize("path", [*ROOT.glob("query/**/*.*"), *ROOT.glob("storage/*.*")], ids=os.path.basename)
def test_a_subquery_with_final_is_global(path: Path) -> None:
    """Else ClickHouse 24.10 reads all rows of it, old ones too, where it asks the shards."""
    if path.suffix in {".py", ".sql"}:
        text = path.read_text().replace("{maybe}", "")
        wrong = re.findall(r"(?<!GLOBAL )(?<!GLOBAL NOT )\bIN\s*\(\s*SELECT[^()]*\bFINAL\b", text)
        assert wrong == []
