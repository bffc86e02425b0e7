"""pg_dump and restore: tables that use the extension, its schema, and who may run what."""

import subprocess

import psycopg
import pytest

import pyca
from postgres import connect, create_database, drop_database, set_keys, value

SOURCE, TARGET = "pg_fernet_dumped", "pg_fernet_restored"


@pytest.fixture
def databases():
    create_database(SOURCE)
    create_database(TARGET)
    with connect("postgres") as admin:
        admin.execute("CREATE ROLE fernet_rotator LOGIN")
    yield
    drop_database(SOURCE)
    drop_database(TARGET)
    with connect("postgres") as admin:
        admin.execute("DROP ROLE fernet_rotator")


def test_dump_and_restore(databases, rng):
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    with connect(SOURCE) as session:
        set_keys(session, old)
        for statement in (
            "CREATE SCHEMA crypt",
            "CREATE EXTENSION pg_fernet SCHEMA crypt",
            "CREATE TABLE secrets (token text CHECK (crypt.fernet_is_token(token)))",
            "CREATE INDEX ON secrets (crypt.fernet_is_token(token))",
            "INSERT INTO secrets SELECT crypt.fernet_encrypt(n::text) FROM generate_series(1, 100) AS n",
            "GRANT USAGE ON SCHEMA crypt TO fernet_rotator",
            "GRANT SELECT, UPDATE ON secrets TO fernet_rotator",
            "GRANT EXECUTE ON FUNCTION crypt.fernet_rotate(text) TO fernet_rotator",
            "REVOKE EXECUTE ON FUNCTION crypt.fernet_generate_key() FROM PUBLIC",
        ):
            session.execute(statement)

    dump = subprocess.run(["pg_dump", SOURCE], check=True, capture_output=True, text=True).stdout
    assert old not in dump
    subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", TARGET], input=dump, check=True, capture_output=True, text=True)

    with connect(TARGET) as admin, connect(TARGET, user="fernet_rotator") as rotator:
        set_keys(admin, new, old)
        assert value(admin, "SELECT sum(crypt.fernet_decrypt(token)::int) FROM secrets") == 5050
        admin.execute("GRANT SET ON PARAMETER fernet.keys TO fernet_rotator")
        set_keys(rotator, new, old)
        rotator.execute("UPDATE secrets SET token = crypt.fernet_rotate(token)")
        for call in ("crypt.fernet_decrypt(token)", "crypt.fernet_generate_key()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                rotator.execute(f"SELECT {call} FROM secrets")
        assert value(admin, "SELECT sum(crypt.fernet_key_index(token)) FROM secrets") == 100
        with pytest.raises(psycopg.errors.CheckViolation):
            admin.execute("INSERT INTO secrets VALUES ('plaintext')")
        admin.execute("REVOKE SET ON PARAMETER fernet.keys FROM fernet_rotator")
