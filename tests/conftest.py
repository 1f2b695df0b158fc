"""Fixtures of the tests that need the whole program."""

from collections.abc import Iterator

import pytest
from program import Program

STORE_SUITE = (
    "test_store", "test_listing", "test_settling", "test_late_scores", "test_records", "test_entities",
    "test_assessments", "test_links_api", "test_vocabulary", "test_mlflow_search", "test_golden", "test_roles",
    "test_copying", "test_views", "test_outage", "test_recheck", "test_clickhouse_files",
    "test_volumes",
    "test_erase_store", "test_sampling", "test_repetition", "test_partitioning", "test_redaction",
    "test_thinning", "test_expire_early",
    "test_retention_plan", "test_pins_store",
)  # fmt: skip
"""What runs on every footing of the store: `make test-store` (tests/store.py says which footing)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in STORE_SUITE:
            item.add_marker("store")


@pytest.fixture(scope="session")
def spanhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program as a process, one for all tests that leave it as it is. It must end well, too."""
    with Program(tmp_path_factory.mktemp("spanhouse") / "data") as program:
        yield program
