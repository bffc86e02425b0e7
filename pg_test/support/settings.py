"""The settings of a session and of the server, and their effects."""

import os
import shlex
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from postgres import column, value
from tables import wait_until


def preloading(preload):
    """The line of the configuration."""
    return "" if preload == "none" else f"{preload}_preload_libraries = 'pg_fernet'"


def use_file(session, path):
    session.execute("SELECT set_config('fernet.keys_file', %s, false)", [str(path)])


def fingerprints(session):
    """Those of the keys in use."""
    return column(session, "SELECT fingerprint FROM fernet_keys() ORDER BY key_index")


def refusal(session, sqlstate, query="SELECT fernet_encrypt('hello')"):
    """The error with which a query ends."""
    with pytest.raises(psycopg.Error) as error:
        session.execute(query)
    diag = error.value.diag
    assert diag.sqlstate == sqlstate, diag.message_primary
    assert diag.message_hint
    return diag.message_primary


def reload(session):
    """Lets the server read its configuration again, and waits until the session has read it, too."""
    before = value(session, "SELECT pg_conf_load_time()")
    session.execute("SELECT pg_reload_conf()")
    wait_until(lambda: value(session, "SELECT pg_conf_load_time()") != before)


def pg_ctl(host, *arguments):
    """Stops or restarts a server of our own. Ends all sessions."""
    data = Path(host, "data")
    command = [*shlex.split(os.environ["PG_FERNET_RUN"]), "pg_ctl", "-w", "-D", data, "-l", data / "server.log", *arguments]
    subprocess.run(command, cwd="/", check=True, capture_output=True)


class Configuration:
    """Settings of the whole server, which end with the `with`."""

    def __init__(self, session):
        self.session = session
        self.names = set()

    def __enter__(self):
        self.session.execute("LOAD 'pg_fernet'")
        return self

    def set(self, name, value):
        self.names.add(name)
        self.session.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), str(value)))
        reload(self.session)

    def __exit__(self, *_):
        for name in self.names:
            self.session.execute(sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name)))
        reload(self.session)
