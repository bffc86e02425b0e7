"""A database with the extension on the server that PGHOST and so on name, and tables of tokens."""

import os
import random
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

from tables import NEW, OLD, connect

DATABASE = "pg_fernet_operations"


@pytest.fixture(scope="session")
def database():
    with connect(os.environ.get("PGDATABASE", "postgres")) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {DATABASE}")
    with connect(DATABASE) as connection:
        connection.execute("CREATE EXTENSION pg_fernet")
    yield DATABASE
    with connect(os.environ.get("PGDATABASE", "postgres")) as admin:
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture
def sessions(database):
    """Opens sessions that know the new key and the old one. They end with the test."""
    with ExitStack() as stack:
        def session():
            session = connect(database, keys=[NEW, OLD])
            # At once: where a test has failed, a statement may still be running, and wait for another session.
            stack.callback(session.close)
            return session

        yield session


@pytest.fixture
def db(sessions):
    """A session, in a schema that is dropped after the test."""
    db = sessions()
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
    yield db
    # A test that failed may have left a session with a lock.
    db.execute("SET lock_timeout = '5s'")
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")


@pytest.fixture
def rng():
    """Random numbers. PG_FERNET_SEED repeats a run; pytest shows the seed of a test that fails."""
    seed = int(os.environ.get("PG_FERNET_SEED", random.SystemRandom().getrandbits(32)))
    print(f"PG_FERNET_SEED={seed}")
    return random.Random(seed)
