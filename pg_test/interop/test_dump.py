"""pg_dump and restore: tables that use the extension, its schema, and who may run what."""

import subprocess

import psycopg
import pytest

from edition import install, superuser
import pyca
from postgres import connect, create_database, drop_database, set_keys, value

SOURCE, TARGET = "pg_fernet_dumped", "pg_fernet_restored"


@pytest.fixture
def keys(rng):
    return pyca.key_of(rng), pyca.key_of(rng)


@pytest.fixture
def databases(keys):
    """A table with tokens under the older key, and one that is empty."""
    create_database(SOURCE)
    create_database(TARGET)
    with superuser() as admin, connect(SOURCE) as session:
        admin.execute("CREATE ROLE fernet_rotator LOGIN")
        admin.execute("GRANT SET ON PARAMETER fernet.keys TO fernet_rotator")
        session.execute("CREATE SCHEMA crypt")
        install(session, "crypt")
        set_keys(session, keys[1])
        for statement in (
            "CREATE TABLE secrets (token text CHECK (crypt.fernet_is_token(token)))",
            "CREATE INDEX ON secrets (crypt.fernet_is_token(token))",
            "INSERT INTO secrets SELECT crypt.fernet_encrypt(n::text) FROM generate_series(1, 100) AS n",
            "GRANT USAGE ON SCHEMA crypt TO fernet_rotator",
            "GRANT SELECT, UPDATE ON secrets TO fernet_rotator",
            "GRANT EXECUTE ON FUNCTION crypt.fernet_rotate(text) TO fernet_rotator",
            "GRANT EXECUTE ON PROCEDURE crypt.fernet_rotate_column TO fernet_rotator",
            "REVOKE EXECUTE ON FUNCTION crypt.fernet_generate_key() FROM PUBLIC",
        ):
            session.execute(statement)
    yield
    drop_database(SOURCE)
    drop_database(TARGET)
    with superuser() as admin:
        admin.execute("REVOKE SET ON PARAMETER fernet.keys FROM fernet_rotator")
        admin.execute("DROP ROLE fernet_rotator")


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, **options).stdout


def dump_and_restore(format, *options):
    dump = run("pg_dump", f"--format={format}", *options, SOURCE)
    if format == "plain":
        run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", TARGET, input=dump)
    else:
        run("pg_restore", "--exit-on-error", "-d", TARGET, input=dump)
    return dump


def check_restored(keys, schema):
    with connect(TARGET) as admin, connect(TARGET, user="fernet_rotator") as rotator:
        set_keys(admin, *keys)
        assert value(admin, f"SELECT sum({schema}.fernet_decrypt(token)::int) FROM secrets") == 5050
        set_keys(rotator, *keys)
        rotator.execute(f"UPDATE secrets SET token = {schema}.fernet_rotate(token)")
        rotator.execute(f"CALL {schema}.fernet_rotate_column('secrets', 'token')")
        for call in ("fernet_decrypt(token)", "fernet_generate_key()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                rotator.execute(f"SELECT {schema}.{call} FROM secrets")
        assert value(admin, f"SELECT sum({schema}.fernet_key_index(token)) FROM secrets") == 100
        with pytest.raises(psycopg.errors.CheckViolation):
            admin.execute("INSERT INTO secrets VALUES ('plaintext')")


@pytest.mark.parametrize("format", ["plain", "custom"])
def test_dump_and_restore(databases, keys, format):
    dump = dump_and_restore(format)
    assert keys[1].encode() not in dump
    check_restored(keys, "crypt")


def test_to_another_schema(databases, keys):
    """Grants, constraints and indexes go with the extension."""
    dump_and_restore("custom")
    with connect(TARGET) as admin:
        admin.execute("CREATE SCHEMA vault")
        admin.execute("ALTER EXTENSION pg_fernet SET SCHEMA vault")
        admin.execute("GRANT USAGE ON SCHEMA vault TO fernet_rotator")
        admin.execute("DROP SCHEMA crypt")
    check_restored(keys, "vault")


def test_data_into_a_database_with_the_extension_in_another_schema(databases, keys):
    with connect(TARGET) as admin:
        admin.execute("CREATE SCHEMA vault")
        install(admin, "vault")
        admin.execute("CREATE TABLE secrets (token text CHECK (vault.fernet_is_token(token)))")
        dump_and_restore("custom", "--data-only")
        set_keys(admin, *keys)
        assert value(admin, "SELECT sum(vault.fernet_decrypt(token)::int) FROM secrets") == 5050
