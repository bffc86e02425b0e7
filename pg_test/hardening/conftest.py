"""A database with the extension on the server that PGHOST and so on name. PG_FERNET_SOAK=1 makes every test long."""

import sys
from pathlib import Path

import pytest

# What the other suites have for keys, tables and servers serves here, too.
for suite in "interop", "operations", "security":
    sys.path.insert(0, str(Path(__file__).parents[1] / suite))

from fixtures import database, db, rng, sessions  # noqa: F401, fixtures
from log import complaints
from postgres import server_log


@pytest.fixture
def healthy():
    """The server logs no sign of a crash, of a panic, or of an ended session."""
    with server_log() as lines:
        yield
    assert complaints(lines) == []
