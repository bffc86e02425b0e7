"""A database with the extension on the server that PGHOST and so on name. PG_FERNET_SOAK=1 makes every test long."""

import pytest

from fixtures import database, db, rng, sessions  # noqa: F401, fixtures
from log import complaints
from postgres import server_log


@pytest.fixture
def healthy():
    """The server logs no sign of a crash, of a panic, or of an ended session."""
    with server_log() as lines:
        yield
    assert complaints(lines) == []
