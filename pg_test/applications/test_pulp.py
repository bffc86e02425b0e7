"""Pulp, with its own migrations, models and pulpcore-manager."""

import base64
import os
import time

import pytest
from psycopg import sql

from application import Application
from key_files import folder_for, key, write
from postgres import connect, drop_database
from pyca import fingerprint

COLUMNS = {
    "core_remote": ["client_key", "username", "password", "proxy_username", "proxy_password"],
    "core_upstreampulp": ["client_key", "username", "password"],
    "core_domain": ["storage_settings"],
    "core_task": ["enc_args", "enc_kwargs"],
    "core_taskschedule": ["task_args", "task_kwargs"],
}


class Pulp(Application):
    def __init__(self, folder, database):
        super().__init__("pulp", "Pulp")
        self.folder_of_keys = folder_for(os.environ["PGHOST"])
        scratch = folder / "tmp"
        scratch.mkdir()
        self.settings = {"PULP_DATABASES__default__HOST": os.environ["PGHOST"], "PULP_DATABASES__default__NAME": database,
                         "PULP_DATABASES__default__USER": os.environ["PGUSER"], "PULP_SECRET_KEY": key(),
                         "PULP_CONTENT_ORIGIN": "http://localhost", "PULP_DEPLOY_ROOT": str(folder),
                         "PULP_WORKING_DIRECTORY": str(scratch), "PULP_FILE_UPLOAD_TEMP_DIR": str(scratch)}

    def key_file(self, *keys):
        """A key file that Pulp and the server can read."""
        path = self.folder_of_keys / f"{len(list(self.folder_of_keys.iterdir()))}.key"
        return str(write(path, *keys, "# the newest first", ""))

    def models(self, command, key_file, **settings):
        return self.run("app.py", *command.split(), PULP_DB_ENCRYPTION_KEY=key_file, **(self.settings | settings))

    def manage(self, command, key_file, **settings):
        manager = self.python.with_name("pulpcore-manager")
        return self.run(manager, command, PULP_DB_ENCRYPTION_KEY=key_file, **(self.settings | settings))


@pytest.fixture
def pulp(tmp_path, database):
    return Pulp(tmp_path, database)


@pytest.fixture
def copy(database):
    name = f"{database}_copy"
    yield name
    drop_database(name)


def openssl_key():
    """As `openssl rand -base64 32` prints it, with a + and a /."""
    return base64.b64encode(b"\xfb\xff" + os.urandom(30)).decode()


def census(session):
    """How many tokens each column has, by their status and key. A document may have none: {}."""
    return {(table, column): session.execute("SELECT status, fingerprint, tokens FROM fernet_census(%s, %s)"
                                             " WHERE tokens > 0 AND status LIKE ANY ('{current,%% key}')", [table, column]).fetchall()
            for table, columns in COLUMNS.items() for column in columns}


def statuses(counts):
    return {row[:2] for rows in counts.values() for row in rows}


def test_rotation(pulp, database):
    old, new = openssl_key(), openssl_key()
    before = pulp.key_file(old)
    pulp.manage("migrate", before)
    written = pulp.models("write 25", before)
    with pytest.raises(AssertionError, match="InvalidToken"):
        pulp.models("read", pulp.key_file(new))

    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        session.execute(sql.SQL("SET fernet.keys_file = {}").format(pulp.key_file(new, old)))
        found = session.execute("SELECT relation::text, column_name FROM fernet_find_columns() ORDER BY 1, 2").fetchall()
        assert set(found) == {(table, column) for table, columns in COLUMNS.items() for column in columns}
        counts = census(session)
        assert all(counts.values())
        assert statuses(counts) == {("old key", fingerprint_of(old))}
        session.execute(pulp.block("sql"))
        assert statuses(census(session)) == {("current", fingerprint_of(new))}
    assert pulp.models("read", pulp.key_file(new)) == written


def test_its_own_command_has_the_same_result(pulp, database, copy, capsys):
    """On 5,000 rows, and how long both take."""
    old, new = openssl_key(), openssl_key()
    both = pulp.key_file(new, old)
    pulp.manage("migrate", pulp.key_file(old))
    written = pulp.models("write 5000", pulp.key_file(old))
    with connect("postgres") as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(copy), sql.Identifier(database)))

    def timed(rotate):
        start = time.monotonic()
        rotate()
        return time.monotonic() - start

    counts = []
    for name in (database, copy):
        with connect(name) as session:
            session.execute("CREATE EXTENSION pg_fernet")
            session.execute(sql.SQL("SET fernet.keys_file = {}").format(both))
            if name == database:
                ours = timed(lambda: session.execute(pulp.block("sql")))
            else:
                theirs = timed(lambda: pulp.manage("rotate-db-key", both, PULP_DATABASES__default__NAME=copy))
            counts.append(census(session))
    assert counts[0] == counts[1]
    assert statuses(counts[0]) == {("current", fingerprint_of(new))}
    assert pulp.models("read", pulp.key_file(new)) == written
    assert pulp.models("read", pulp.key_file(new), PULP_DATABASES__default__NAME=copy) == written
    with capsys.disabled():
        print(f"\n5,000 rows: pg_fernet {ours:.1f} s, rotate-db-key {theirs:.1f} s")


def fingerprint_of(key):
    return fingerprint(key.translate(str.maketrans("+/", "-_")))
