"""docs/applications.md, for databases where extensions cannot be installed: a server of our own rotates what is on
another one."""

from contextlib import ExitStack

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg import errors

from pages import code_block
from postgres import column, connect, server, set_keys
from preparations import NEW, OLD

ROTATE = "UPDATE connection SET password = fernet_rotate(password) WHERE fernet_key_index(password) > 1"


@pytest.fixture
def database():
    """Opens sessions with the database of the provider, which has tokens under the old key."""
    with server() as host, ExitStack() as stack:
        def session(name="app"):
            return stack.enter_context(connect(name, host=host))

        session("postgres").execute("CREATE DATABASE app")
        with session() as app:
            app.execute("CREATE ROLE app LOGIN")
            app.execute("CREATE TABLE connection (id integer, password text)")
            app.execute("ALTER TABLE connection OWNER TO app")
            for id in range(10):
                app.execute("INSERT INTO connection VALUES (%s, %s)", [id, Fernet(OLD).encrypt(b"secret").decode()])
        yield session


@pytest.fixture
def our_own(database):
    session = database("postgres")
    try:
        session.execute("CREATE EXTENSION postgres_fdw")
    except psycopg.Error:
        pytest.skip("postgres_fdw is not installed here")
    session.execute("CREATE EXTENSION pg_fernet")
    set_keys(session, NEW, OLD)
    recipe = code_block("docs/applications.md", "Where extensions cannot be installed", "sql")
    assert ROTATE in recipe
    setup, _, _ = recipe.partition("SELECT * FROM fernet_census")
    session.execute(setup.replace("CREATE EXTENSION postgres_fdw;", "").replace("db.example.com", session.info.host))
    return session


def plaintexts(session):
    return [Fernet(NEW).decrypt(token) for token in column(session, "SELECT password FROM connection ORDER BY id")]


def test_rotation(database, our_own):
    assert our_own.execute(ROTATE).rowcount == 10
    assert plaintexts(database()) == [b"secret"] * 10


def test_in_portions(our_own):
    assert our_own.execute(ROTATE + " AND id BETWEEN 1 AND 3").rowcount == 3
    assert our_own.execute(ROTATE).rowcount == 7


def test_no_edit_is_lost(database, our_own):
    application = database()
    edit = "UPDATE connection SET password = %s WHERE id = 3"
    token = Fernet(OLD).encrypt(b"edited").decode()

    # A later one waits.
    with our_own.transaction(force_rollback=True):
        our_own.execute(ROTATE)
        application.execute("SET lock_timeout = '100ms'")
        with pytest.raises(errors.LockNotAvailable):
            application.execute(edit, [token])

    # One that was made since the statement began makes it fail.
    with our_own.transaction(force_rollback=True):
        our_own.execute("SELECT count(*) FROM connection")
        application.execute(edit, [token])
        with pytest.raises(errors.SerializationFailure):
            our_own.execute(ROTATE)

    our_own.execute(ROTATE)
    assert plaintexts(application)[3] == b"edited"
