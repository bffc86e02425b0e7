"""A database with the extension on the server that PGHOST and so on name; keys for it, in files of the server's user."""

import os

import pytest

from fixtures import database, db, preload, sessions  # noqa: F401, fixtures
from key_files import folder_for, key, write
from settings import Configuration


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
