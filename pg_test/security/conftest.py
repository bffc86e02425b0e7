"""A database with the extension on the server that PGHOST and so on name; keys for it, in files of the server's user."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

# What the tests of interoperability have for databases, servers and keys serves here, too.
sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

from key_files import folder_for, key, write
from postgres import connect, create_database, drop_database
from settings import Configuration

DATABASE = "pg_fernet_security"


@pytest.fixture(scope="session")
def database():
    create_database(DATABASE)
    with connect(DATABASE) as admin:
        admin.execute("CREATE EXTENSION pg_fernet")
    yield DATABASE
    drop_database(DATABASE)


@pytest.fixture
def sessions(database):
    """Opens sessions, which end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(connect(database, **options))


@pytest.fixture
def db(sessions):
    """A session of a superuser, each statement a transaction."""
    return sessions()


@pytest.fixture
def folder():
    """A folder for files that the server's user can read. It goes with the server."""
    return folder_for(os.environ["PGHOST"])


@pytest.fixture
def keys():
    return [key() for _ in range(3)]


@pytest.fixture
def key_file(folder, keys):
    """A good key file."""
    return write(folder / "keys", *keys)


@pytest.fixture
def configuration(db):
    """Settings of the whole server, undone with the test."""
    with Configuration(db) as configuration:
        yield configuration
