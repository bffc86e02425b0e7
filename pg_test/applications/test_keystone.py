"""Keystone's credentials, with its own migrations, API and keystone-manage."""

import os
import re
import shutil
import subprocess

import pytest

from application import PAGE, Application
from pages import ROOT
from postgres import column, connect, set_keys, value
from pyca import fingerprint

NULL_KEY = 43 * "A" + "="


class Keystone(Application):
    """Keystone with a configuration of its own."""

    def __init__(self, folder, database):
        super().__init__("keystone", "Keystone")
        self.keys = folder / "credential-keys"
        self.configuration = folder / "keystone.conf"
        self.configuration.write_text(f"""
            [database]
            connection = postgresql+psycopg2://{os.environ["PGUSER"]}@/{database}?host={os.environ["PGHOST"]}
            [credential]
            key_repository = {self.keys}
            [fernet_tokens]
            key_repository = {folder}/fernet-keys
            [fernet_receipts]
            key_repository = {folder}/fernet-keys
            """.replace("            ", ""))
        for command in ("db_sync", "fernet_setup"):
            self.manage(command)

    def manage(self, command):
        us = ("--keystone-user", str(os.getuid()), "--keystone-group", str(os.getgid())) if "db" not in command else ()
        return self.run(self.python.with_name("keystone-manage"), "--config-file", self.configuration, command, *us)

    def credentials(self, command):
        return self.run("app.py", command, self.configuration)

    def key(self, number):
        return (self.keys / number).read_text()

    def key_numbers(self):
        return sorted(path.name for path in self.keys.iterdir())

    def leave_key(self, number):
        for other in self.key_numbers():
            if other != number:
                (self.keys / other).unlink()

    def list_for_the_server(self):
        return self.derive(KEY_REPOSITORY=str(self.keys))

    def rotate(self, session, number):
        """The statements of the page, as psql runs them, with the hash of that key."""
        sha1sum = self.block("sh").replace("/etc/keystone/credential-keys/2", str(self.keys / number))
        key_hash = subprocess.run(["sh", "-c", sha1sum], check=True, capture_output=True, text=True).stdout.split()[0]
        block, count = re.subn(r"(?<=^\\set key_hash )[0-9a-f]{40}$", key_hash, self.block("sql"), flags=re.MULTILINE)
        assert count == 1
        set_keys_in_psql = f"SELECT fernet_generate_key(); SET fernet.keys = '{','.join(self.list_for_the_server())}';\n"
        subprocess.run(["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", session.info.dbname], input=set_keys_in_psql + block,
                       check=True, capture_output=True, text=True)


@pytest.fixture
def keystone(tmp_path, database):
    return Keystone(tmp_path, database)


@pytest.fixture
def session(database):
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        yield session


def census(session):
    return session.execute("SELECT status, fingerprint FROM fernet_census('credential', 'encrypted_blob')"
                           " WHERE tokens > 0").fetchall()


def test_rotation(keystone, session):
    keystone.manage("credential_setup")
    written = keystone.credentials("write")
    keystone.manage("credential_rotate")
    assert keystone.key_numbers() == ["0", "1", "2"]
    with pytest.raises(AssertionError, match="not all credentials are encrypted with the primary key"):
        keystone.manage("credential_rotate")

    keys = keystone.list_for_the_server()
    assert keys == [keystone.key("2"), keystone.key("1"), keystone.key("0"), NULL_KEY]
    set_keys(session, *keys)
    assert census(session) == [("old key", fingerprint(keystone.key("1")))]
    keystone.rotate(session, "2")
    assert census(session) == [("current", fingerprint(keystone.key("2")))]

    everything = shutil.copytree(keystone.keys, keystone.keys.with_name("backup"))
    keystone.leave_key("2")
    assert keystone.credentials("read") == written

    # Keystone's own commands still work: they trust key_hash.
    shutil.copytree(everything, keystone.keys, dirs_exist_ok=True)
    keystone.manage("credential_rotate")
    assert keystone.key_numbers() == ["0", "2", "3"]
    keystone.manage("credential_migrate")
    keystone.leave_key("3")
    assert keystone.credentials("read") == written


def test_the_new_key_alone_is_not_enough_before(keystone):
    keystone.manage("credential_setup")
    keystone.credentials("write")
    keystone.manage("credential_rotate")
    keystone.leave_key("2")
    with pytest.raises(AssertionError, match="Credential could not be decrypted"):
        keystone.credentials("read")


def test_without_its_hash_a_key_cannot_be_followed_by_another(keystone, session):
    """Why the page changes both columns at once, and what helps if somebody did not."""
    keystone.manage("credential_setup")
    written = keystone.credentials("write")
    keystone.manage("credential_rotate")
    set_keys(session, *keystone.list_for_the_server())
    session.execute("UPDATE credential SET encrypted_blob = fernet_rotate(encrypted_blob)")
    with pytest.raises(AssertionError, match="not all credentials are encrypted with the primary key"):
        keystone.manage("credential_rotate")
    keystone.manage("credential_migrate")
    keystone.manage("credential_rotate")
    assert keystone.credentials("read") == written


def test_null_key(keystone, session):
    """The key that Keystone encrypts with if it has no keys yet."""
    written = keystone.credentials("write")
    keystone.manage("credential_setup")
    set_keys(session, *keystone.list_for_the_server())
    assert census(session) == [("old key", fingerprint(NULL_KEY))]
    assert fingerprint(NULL_KEY) in (ROOT / PAGE).read_text()
    keystone.rotate(session, "1")
    assert census(session) == [("current", fingerprint(keystone.key("1")))]
    hashes = column(session, "SELECT DISTINCT key_hash FROM credential")
    assert len(hashes) == 1
    keystone.manage("credential_rotate")
    assert keystone.credentials("read") == written
    assert value(session, "SELECT count(*) FROM credential") > 5
