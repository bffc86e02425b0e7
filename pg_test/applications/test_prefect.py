"""Prefect 3: its own server and client save and load blocks, with the key in the environment or in the database."""

import pytest
from cryptography.fernet import Fernet

from application import Application
from key_files import key
from postgres import column, connect, set_keys, value

prefect = Application("prefect", "Prefect")
KEY_IN_THE_DATABASE = "SELECT value->>'fernet_key' FROM configuration WHERE key = 'ENCRYPTION_KEY'"


def run(command, key=None):
    return prefect.run("app.py", command, **{"PREFECT_SERVER_ENCRYPTION_KEY": key} if key else {})


def assert_rotated(session, new):
    """The new key opens all blocks, and there is no other column of tokens."""
    set_keys(session, new)
    found = session.execute("SELECT status, tokens FROM fernet_census('block_document', 'data') WHERE tokens > 0")
    assert found.fetchall() == [("current", 6)]
    assert all(Fernet(new).decrypt(token) for token in column(session, "SELECT data #>> '{}' FROM block_document"))
    assert column(session, "SELECT relation::text FROM fernet_find_columns()") == ["block_document"]


def test_key_in_the_environment(database):
    old, new = key(), key()
    written = run("write", old)
    assert "hunter2" in written
    with pytest.raises(AssertionError, match="Internal Server Error"):
        run("read", new)
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        assert column(session, KEY_IN_THE_DATABASE) == []
        set_keys(session, new, old)
        session.execute(prefect.block("sql"))
        assert_rotated(session, new)
    assert run("read", new) == written


def test_key_in_the_database(database):
    written = run("write")
    assert "hunter2" in written
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        old = value(session, KEY_IN_THE_DATABASE)
        session.execute(prefect.block("sql", "configuration"))
        session.execute("COMMIT")
        new = value(session, KEY_IN_THE_DATABASE)
        assert new != old
        # The list was the transaction's.
        assert value(session, "SELECT current_setting('fernet.keys')") == ""
        assert_rotated(session, new)
        assert run("read") == written

        # How to move to a key in the environment.
        old, new = new, key()
        set_keys(session, new, old)
        session.execute(prefect.block("sql"))
        session.execute("DELETE FROM configuration WHERE key = 'ENCRYPTION_KEY'")
        assert_rotated(session, new)
    assert run("read", new) == written
