"""fernet_rotate_column beside others, interrupted, and its proof: the tests of the native edition."""

import pytest

import test_proof
import test_writers
from postgres import value
from tables import NEW, OLD
from test_interrupted import *  # noqa: F401,F403
from test_proof import *  # noqa: F401,F403
from test_writers import *  # noqa: F401,F403


def waits(db, pid):
    """The native edition waits for a lock, this one looks again and again."""
    return value(db, "SELECT wait_event_type = 'Lock' OR wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", pid)


test_proof.waits_for_lock = test_writers.waits_for_lock = waits


@pytest.fixture
def sessions(sessions):
    return lambda: sessions(NEW, OLD)


@pytest.fixture
def db(sessions):
    db = sessions()
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
    yield db
    # A test that failed may have left a session with a lock.
    db.execute("SET lock_timeout = '5s'")
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
