"""The arrows of the house, and the doors that only one file may open, read from the source with ast."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("collector", "storage", "query", "cli")
FILES = [ROOT / "spanhouse.py", *(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))]
MAY_IMPORT = {
    "spanhouse.py": set(PACKAGES),
    "collector": {"storage"},
    "query": {"storage"},
    "storage": set(),
    "cli": set(),
}
WORKS_ON_THE_STORE = {("cli/store.py", "storage")}
"""Every other command asks a running server."""
ONLY_IN = {
    "grpc": {"collector/otlp_grpc.py", "collector/status.py"},
    "chdb": {"storage/embedded.py"},
    "clickhouse_connect": {"storage/engine.py", "storage/embedded.py", "storage/hosts.py", "storage/server.py"},
    "typer": {"spanhouse.py", "cli/commands.py", "cli/keeping_commands.py", "cli/settings.py", "cli/store.py"},
    "mlflow": {"query/registry.py"},
}
ENVIRONMENT = {("os", "environ"), ("os", "getenv"), ("sys", "argv")}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    package = name.partition("/")[0]
    tree = ast.parse(path.read_text())
    for imported in imports(tree):
        top = imported.partition(".")[0]
        if (name, top) in WORKS_ON_THE_STORE:
            continue
        if top in PACKAGES and top != package:
            assert top in MAY_IMPORT[package], f"{name} imports {imported}"
        assert name in ONLY_IN.get(top, {name}), f"{name} imports {imported}: only {ONLY_IN[top]} may"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and name != "spanhouse.py":
            assert (node.value.id, node.attr) not in ENVIRONMENT, f"{name}:{node.lineno} reads the environment"


def test_it_looks_at_files() -> None:
    assert {path.parent.name for path in FILES} >= {*PACKAGES, ROOT.name}
