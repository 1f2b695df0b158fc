"""The documentation cannot lie: settings, commands, metrics and endpoints in docs/ are those of the program.

The parts of docs/*.md between `<!-- generated: … -->` and `<!-- end -->` are made here. Where they are out of date the
test fails; with SPANHOUSE_WRITE_DOCS=1 it writes them instead.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from program import Program
from prometheus_client.parser import text_string_to_metric_families

from cli import settings as program
from query.api import create_app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def check_page(name: str, generated: str) -> None:
    path = DOCS / f"{name}.md"
    text = path.read_text()
    block = re.compile(rf"(<!-- generated: {name} -->\n).*(<!-- end -->)", re.DOTALL)
    assert block.search(text), f"docs/{name}.md has no place for what is generated"
    right = block.sub(lambda match: match[1] + generated + match[2], text)
    if os.environ.get("SPANHOUSE_WRITE_DOCS"):
        path.write_text(right)
    elif right != text:
        pytest.fail(
            f"docs/{name}.md is out of date: run `SPANHOUSE_WRITE_DOCS=1 .venv/bin/pytest {Path(__file__).name}`"
        )


def table(*rows: tuple[str, ...]) -> str:
    head, *body = [f"| {' | '.join(row)} |\n" for row in rows]
    return head + f"|{' --- |' * len(rows[0])}\n" + "".join(body)


def test_settings_page() -> None:
    rows = [
        (
            f"`--{name.replace('_', '-')}`",
            f"`{program.ENV_PREFIX}{name.upper()}`",
            f"`{program.shown(field.default)}`",
            ", ".join(role for role in ("serve", "collect", "query") if name in program.names_of(role)),
            str(field.description),
        )
        for name, field in program.Settings.model_fields.items()
    ]
    check_page("settings", table(("option", "variable", "default", "of", "meaning"), *rows))


def test_cli_page() -> None:
    command = [sys.executable, "-m", "typer", ROOT / "spanhouse.py", "utils", "docs", "--name", "spanhouse"]
    check_page("cli", subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def test_metrics_page(spanhouse: Program) -> None:
    families = text_string_to_metric_families(httpx.get(f"{spanhouse.http}/metrics").text)
    rows = [
        (f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation)
        for family in sorted(families, key=lambda family: family.name)
        if family.name.startswith("spanhouse_") and not family.name.endswith("_created")
    ]
    check_page("metrics", table(("metric", "type", "meaning"), *rows))


def test_every_endpoint_is_documented(spanhouse: Program) -> None:
    text = "".join(page.read_text() for page in PAGES)
    for path, methods in httpx.get(f"{spanhouse.http}/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text, f"docs/*.md do not name `{method.upper()} {path}`"


def test_query_page_names_every_parameter_and_field() -> None:
    text = (DOCS / "query.md").read_text()
    document = create_app(None, dict).openapi()  # no reader: nothing is asked
    parameters = {
        parameter["name"]
        for path in document["paths"].values()
        for parameter in path["get"].get("parameters", [])
        if parameter["in"] != "path"
    }
    fields = {name for schema in document["components"]["schemas"].values() for name in schema.get("properties", {})}
    named = set(re.findall(r"[\w.<>-]+", text))
    assert not (parameters | fields) - named, "docs/query.md does not name them"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
