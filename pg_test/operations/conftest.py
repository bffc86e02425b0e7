"""A database with the extension on the server that PGHOST and so on name, and tables of tokens."""

from contextlib import ExitStack

import pytest

from fixtures import rng  # noqa: F401, a fixture
from edition import install
from postgres import connect, create_database, drop_database
from tables import CONVERSIONS, NEW, OLD

DATABASE = "pg_fernet_operations"


@pytest.fixture(scope="session")
def database():
    create_database(DATABASE)
    with connect(DATABASE) as connection:
        install(connection)
    yield DATABASE
    drop_database(DATABASE)


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


@pytest.fixture(params=CONVERSIONS, ids=lambda conversion: conversion.name)
def conversion(request):
    """Each of the procedures on whole columns."""
    return request.param


@pytest.fixture
def db(sessions):
    """A session, in a schema that is dropped after the test."""
    db = sessions()
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
    yield db
    # A test that failed may have left a session with a lock.
    db.execute("SET lock_timeout = '5s'")
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
