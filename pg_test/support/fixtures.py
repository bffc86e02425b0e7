"""Fixtures that other suites use, too."""

import os
import random
from contextlib import ExitStack

import pytest

from edition import install
from postgres import connect, create_database, drop_database

DATABASE = "pg_fernet_test"


@pytest.fixture(scope="session")
def database():
    create_database(DATABASE)
    with connect(DATABASE) as connection:
        install(connection)
    yield DATABASE
    drop_database(DATABASE)


@pytest.fixture
def sessions(database):
    """Opens sessions, which end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(connect(database, **options))


@pytest.fixture
def db(sessions):
    """A session of the role that has installed pg_fernet, each statement a transaction."""
    return sessions()


@pytest.fixture(scope="module", params=["none", "session", "shared"])
def preload(request):
    """When servers load the library: with the first call, with each session, or when they start."""
    return request.param


@pytest.fixture
def rng():
    """Random numbers. PG_FERNET_SEED repeats a run; pytest shows the seed of a test that fails."""
    seed = int(os.environ.get("PG_FERNET_SEED", random.SystemRandom().getrandbits(32)))
    print(f"PG_FERNET_SEED={seed}")
    return random.Random(seed)
