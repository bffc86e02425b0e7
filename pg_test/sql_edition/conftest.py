"""A database that belongs to a role without any rights elsewhere, with the SQL edition. For comparison, the native
edition is beside it, in another schema."""

from contextlib import ExitStack

import pytest

from edition import OWNER, SUPERUSER, prepare, superuser
from fixtures import db, rng  # noqa: F401, fixtures
from owned import EDITION, owned_database, run_psql
from postgres import connect, value

DATABASE = "pg_fernet_sql_test"
PATH = "-c search_path=public"
HAS_NATIVE = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_fernet')"


@pytest.fixture(autouse=True)
def user(monkeypatch):
    """Unless the owner is named, a session here is a superuser's."""
    monkeypatch.setenv("PGUSER", SUPERUSER)


@pytest.fixture(scope="session")
def owner():
    """A role that may log in, and nothing else."""
    prepare()
    return OWNER


@pytest.fixture(scope="session")
def database(owner):
    with owned_database(DATABASE, owner) as name:
        with connect(name, user=owner) as session:
            session.execute("CREATE EXTENSION pgcrypto")
        run_psql(name, owner, EDITION / "pg_fernet_sql.sql", "public")
        with superuser(name) as admin:
            if value(admin, HAS_NATIVE):
                admin.execute("CREATE SCHEMA native; CREATE EXTENSION pg_fernet SCHEMA native")
        yield name


@pytest.fixture
def sessions(database, owner):
    """Opens sessions of the owner, which end with the test."""
    with ExitStack() as stack:
        def session(*keys, **options):
            session = connect(database, keys, **{"user": owner, "options": PATH} | options)
            stack.callback(session.close)
            return session

        yield session


@pytest.fixture
def empty(owner):
    """An empty database of the owner's, and a session in it."""
    with owned_database("pg_fernet_sql_empty", owner) as name, connect(name, user=owner) as session:
        yield session


@pytest.fixture
def native(database):
    """A session of a superuser that calls the native edition, if there is one: the SQL edition needs only pgcrypto on a
    server."""
    with superuser(database, options="-c search_path=native") as session:
        if not value(session, HAS_NATIVE):
            pytest.skip("no native edition here")
        session.execute("LOAD 'pg_fernet'")
        yield session
