"""A database that belongs to a role without any rights elsewhere, with the SQL edition; beside it, in another schema,
the native one, for comparison."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from psycopg import sql

from fixtures import rng  # noqa: F401, a fixture
from postgres import ROOT, connect, create_database, drop_database, value

# Tests that hold for both editions are there.
sys.path += [str(Path(__file__).parents[1] / suite) for suite in ("interop", "operations")]

DATABASE = "pg_fernet_sql_test"
OWNER = "fernet_owner"
EDITION = ROOT / "sql" / "edition"
PATH = "-c search_path=public"
HAS_NATIVE = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_fernet')"


# Tests of the native edition that fail here, and must: what differs by nature.
DIFFERENT = {
    "test_errors_in_workers": "an error has the context that PL/pgSQL gives it",
}
# The same, where it is a matter of luck whether they do.
NOT_RUN = {
    "test_nothing_is_lost": "it counts scans of the table, and here each proof is one: test_two_calls_beside_writers",
    "test_nothing_is_lost_beside_pgbench": "the same",
    "test_keys_that_change_meanwhile": "it needs ALTER SYSTEM",
    "test_an_update_in_progress_wins": "it sets deadlock_timeout, which only a superuser may",
    "test_what_was_not_committed_when_the_call_began": "it sleeps with a snapshot between two looks at who is still writing, for 10 ms each time",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if reason := NOT_RUN.get(item.originalname):
            item.add_marker(pytest.mark.skip(reason=reason))
        if reason := DIFFERENT.get(item.originalname):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(scope="session")
def owner():
    """A role that may log in, and nothing else."""
    with connect("postgres") as server:
        server.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(OWNER)))
        yield OWNER
        server.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(OWNER)))


@pytest.fixture(scope="session")
def database(owner):
    with owned_database(DATABASE, owner) as name:
        with connect(name, user=owner) as session:
            session.execute("CREATE EXTENSION pgcrypto")
        run_psql(name, owner, EDITION / "pg_fernet_sql.sql", "public")
        with connect(name) as admin:
            if value(admin, HAS_NATIVE):
                admin.execute("CREATE SCHEMA native; CREATE EXTENSION pg_fernet SCHEMA native")
        yield name


class owned_database:
    """A database of that role's."""

    def __init__(self, name, owner, encoding="UTF8"):
        self.name, self.owner, self.encoding = name, owner, encoding

    def __enter__(self):
        create_database(self.name, self.encoding)
        with connect("postgres") as server:
            server.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(self.name), sql.Identifier(self.owner)))
        return self.name

    def __exit__(self, *_):
        drop_database(self.name)


def run_psql(database, user, file, schema, **options):
    """Runs a file of the edition as the documentation says, with a schema in the path."""
    return subprocess.run(
        ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-U", user, "-f", file],
        env=os.environ | {"PGOPTIONS": f"-c search_path={schema}"}, capture_output=True, text=True,
        **{"check": True} | options)


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
def db(sessions):
    """A session of the owner, each statement a transaction."""
    return sessions()


@pytest.fixture
def native(database):
    """A session of a superuser that calls the native edition, where there is one: this one needs only pgcrypto of a server."""
    with connect(database, options="-c search_path=native") as session:
        if not value(session, HAS_NATIVE):
            pytest.skip("no native edition here")
        session.execute("LOAD 'pg_fernet'")
        yield session
