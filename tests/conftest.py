"""Fixtures of the tests that need the whole program."""

from collections.abc import Iterator

import pytest
from program import Program


@pytest.fixture(scope="session")
def spanhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program as a process, one for all tests that leave it as it is. It must end well, too."""
    with Program(tmp_path_factory.mktemp("spanhouse") / "data") as program:
        yield program
