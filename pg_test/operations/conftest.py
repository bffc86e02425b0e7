"""A database with the extension on the server that PGHOST and so on name, and tables of tokens."""

from contextlib import ExitStack

import pytest

from edition import SQL
from fixtures import database, rng  # noqa: F401, fixtures
from postgres import connect
from tables import CONVERSIONS, NEW, OLD

# Numbers of background workers that the tests try.
WORKERS = {0: "alone"} if SQL else {0: "alone", 2: "two workers"}


@pytest.fixture
def sessions(database):
    """Opens sessions that know the new key and the old one. They end with the test."""
    with ExitStack() as stack:
        def session():
            session = connect(database, keys=[NEW, OLD])
            # All at once: after a failed test, a statement may still be running, and wait for another session.
            stack.callback(session.close)
            return session

        yield session


@pytest.fixture
def keys_in_database(database):
    """The keys of the sessions are also in the settings of the database, where background workers find them."""
    with connect(database) as admin:
        admin.execute(f"ALTER DATABASE {database} SET fernet.keys = '{NEW},{OLD}'")
        yield
        admin.execute(f"ALTER DATABASE {database} RESET fernet.keys")


@pytest.fixture(params=WORKERS, ids=WORKERS.get)
def workers(request):
    """How many background workers help with a call."""
    if request.param:
        request.getfixturevalue("keys_in_database")
    return request.param


@pytest.fixture(params=CONVERSIONS, ids=lambda conversion: conversion.name)
def conversion(request):
    """Each of the procedures on whole columns."""
    return request.param


@pytest.fixture
def db(sessions):
    """A session, and no table `secrets` before and after the test."""
    db = sessions()
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
    yield db
    # A test that failed may have left a session with a lock.
    db.execute("SET lock_timeout = '5s'")
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
