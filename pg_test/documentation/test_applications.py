"""docs/applications.md: real libraries write, we rotate as the page says, and they read with only the new secret."""

import json
import os
import secrets
import subprocess
from pathlib import Path

import psycopg
import pytest
from cryptography.fernet import Fernet, InvalidToken

from pages import ROOT, code_block
from postgres import column, connect, create_database, drop_database, set_keys, value
from preparations import VENV
from pyca import fingerprint

PAGE = "docs/applications.md"
DATABASE = "pg_fernet_application"
ENCRYPTED_FIELDS = "django-fernet-encrypted-fields"
FERNET_FIELDS = "django-fernet-fields"
# Tracecat is not on PyPI. These are its columns of tokens according to its source, and one of documents that
# hold some.
TRACECAT = {
    "secret": ["encrypted_keys"],
    "organization_secret": ["encrypted_keys"],
    "platform_secret": ["encrypted_keys"],
    "organization_settings": ["value"],
    "platform_settings": ["value"],
    "agent_custom_provider": ["encrypted_config"],
    "agent_catalog": ["encrypted_config"],
    "oauth_integration": ["encrypted_access_token", "encrypted_refresh_token", "encrypted_client_id", "encrypted_client_secret"],
    "mcp_integration": ["encrypted_headers", "encrypted_stdio_env"],
    "mcp_refresh_token": ["encrypted_metadata"],
}
TRACECAT_DOCUMENTS = ("agent_channel_token", "config")
TRACECAT_PREFIX = "__tracecat_encrypted__:"


def random_secret():
    return secrets.token_urlsafe(30)


def secret_key():
    return {"SECRET_KEY": random_secret(), "SALT_KEY": random_secret()}


def fernet_key():
    return {"SECRET_KEY": random_secret(), "FERNET_KEY": random_secret()}


def crypt_keys():
    """A token in either form."""
    return {"JUPYTERHUB_CRYPT_KEY": f"{Fernet.generate_key().decode()};{secrets.token_hex(32)}"}


@pytest.fixture
def database():
    create_database(DATABASE)
    yield DATABASE
    drop_database(DATABASE)


def run(secret, *command):
    done = subprocess.run([VENV / "bin" / "python", *command], env=os.environ | secret | {"PGDATABASE": DATABASE},
                          cwd=Path(__file__).parent / "applications", text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("heading, make_secret, column, column_type, application", [
    (ENCRYPTED_FIELDS, secret_key, "value", "text", ["django_fields.py", "encrypted_fields.fields"]),
    (FERNET_FIELDS, fernet_key, "value", "bytea", ["django_fields.py", "fernet_fields"]),
    ("SQLAlchemy-Utils", secret_key, "value", "character varying", ["sqlalchemy_utils_types.py", "StringEncryptedType", "FernetEngine"]),
    ("SQLAlchemy-Utils", secret_key, "value", "bytea", ["sqlalchemy_utils_types.py", "EncryptedType", "FernetEngine"]),
    ("JupyterHub", crypt_keys, "encrypted_auth_state", "bytea", ["jupyterhub_state.py"]),
], ids=lambda value: value[-1] if isinstance(value, list) else None)
def test_rotation(database, heading, make_secret, column, column_type, application):
    old, new = make_secret(), make_secret()

    def derived(secret):
        return run(secret, "-c", code_block(PAGE, heading, "python")).split()

    assert run(old, *application, "write") == "hunter2"
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        table = "users" if column == "encrypted_auth_state" else "vault_secret"
        assert value(session, f"SELECT pg_typeof({column})::text FROM {table}") == column_type
        set_keys(session, *derived(new), *derived(old))
        assert "hunter2" in value(session, f"SELECT fernet_decrypt({column}) FROM {table}")
        session.execute(code_block(PAGE, heading, "sql"))
        set_keys(session, *derived(new))
        assert "hunter2" in value(session, f"SELECT fernet_decrypt({column}) FROM {table}")
    assert run(new, *application, "read") == "hunter2"


def test_key_files_of_derived_keys(tmp_path):
    """The commands at the page's beginning: none makes a key of a secret that is not set."""
    file = tmp_path / "fernet.keys"
    (tmp_path / "derive.py").write_text(code_block(PAGE, "SQLAlchemy-Utils", "python"))
    first, rotation = (code_block(PAGE, "Other applications", "sh", containing=text).replace("/etc/postgresql", str(tmp_path))
                       for text in ("set -C", "NEW_SECRET"))

    def typed(command, **secret):
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env={"PATH": os.environ["PATH"]} | secret, capture_output=True)
        return done.returncode == 0

    def derived(secret):
        return run({"SECRET_KEY": secret}, "-c", code_block(PAGE, "SQLAlchemy-Utils", "python"))

    assert not typed(first) and not file.exists()
    assert typed(first, OLD_SECRET="old")
    assert (file.read_text().split(), file.stat().st_mode & 0o777) == ([derived("old")], 0o600)
    assert not typed(first, OLD_SECRET="another")

    assert not typed(rotation, OLD_SECRET="old") and not typed(rotation, NEW_SECRET="new")
    assert file.read_text().split() == [derived("old")]
    assert typed(rotation, OLD_SECRET="old", NEW_SECRET="new")
    assert (file.read_text().split(), file.stat().st_mode & 0o777) == ([derived("new"), derived("old")], 0o600)
    assert (tmp_path / "fernet.keys.old").read_text().split() == [derived("old")]


def test_json_fields(database):
    """As the page says: jsonb with a token in each leaf, rotated by the same statement."""
    application = ["django_fields.py", "encrypted_fields.fields"]
    old, new = secret_key(), secret_key()
    written = run(old, *application, "write", "EncryptedJSONField")
    assert "hunter2" in written
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        assert value(session, "SELECT pg_typeof(value)::text FROM vault_secret") == "jsonb"
        keys = [run(secret, "-c", code_block(PAGE, ENCRYPTED_FIELDS, "python")) for secret in (new, old)]
        set_keys(session, *keys)
        assert value(session, "SELECT tokens FROM fernet_census('vault_secret', 'value') WHERE status = 'old key'") == 3
        assert run(new, *application, "read", "EncryptedJSONField") != written
        session.execute(code_block(PAGE, ENCRYPTED_FIELDS, "sql"))
    assert run(new, *application, "read", "EncryptedJSONField") == written


# What the one statement cannot rotate, and the error.
NOT_AT_ONCE = {
    "materialized view": ("CREATE MATERIALIZED VIEW more AS TABLE secrets", "cannot change materialized view"),
    "generated column": ("ALTER TABLE secrets ADD more text GENERATED ALWAYS AS (value || '') STORED", "can only be updated to DEFAULT"),
    "array": ("CREATE TABLE more AS SELECT ARRAY[value] AS value FROM secrets", r"fernet_\w+\(text\[\]\) does not exist"),
    "xml": ("CREATE TABLE more AS SELECT xmlelement(NAME a, value) AS value FROM secrets", r"fernet_\w+\(xml\) does not exist"),
    "hstore": ("CREATE EXTENSION hstore; CREATE TABLE more AS SELECT hstore('a', value) AS value FROM secrets", r"fernet_\w+\(hstore\) does not exist"),
    "no UPDATE": ("CREATE TABLE more AS TABLE secrets; GRANT SELECT ON more TO fernet_reader; SET ROLE fernet_reader",
                  "permission denied for table more"),
}


@pytest.mark.parametrize("statements, error", NOT_AT_ONCE.values(), ids=NOT_AT_ONCE)
def test_all_columns_at_once_or_none(database, statements, error):
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet; CREATE TABLE secrets (value text)")
        session.execute("CREATE ROLE fernet_reader; GRANT SELECT, UPDATE ON secrets TO fernet_reader;"
                        " GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO fernet_reader")
        try:
            session.execute("INSERT INTO secrets VALUES (%s)", [Fernet(old).encrypt(b"x").decode()])
            set_keys(session, new, old)
            try:
                session.execute(statements)
            except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile):
                pytest.skip("the server does not have the type")
            with pytest.raises(psycopg.Error, match=error):
                session.execute(code_block(PAGE, "All columns at once", "sql", containing="DO $$"))
            assert value(session, "SELECT fernet_key_index(value) FROM secrets") == 2
        finally:
            session.execute("RESET ROLE; DROP OWNED BY fernet_reader; DROP ROLE fernet_reader")


@pytest.mark.parametrize("setting", ["REDASH_SECRET_KEY", "REDASH_COOKIE_SECRET"])
def test_redash(database, setting):
    old, new = ({setting: random_secret()} for _ in range(2))
    application = ["redash_options.py"]
    run(old, *application, "write")
    with pytest.raises(AssertionError, match="InvalidToken"):
        run(new, *application, "read")
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        assert value(session, "SELECT pg_typeof(encrypted_options)::text FROM data_sources LIMIT 1") == "bytea"
        set_keys(session, *(run(secret, "-c", code_block(PAGE, "Redash", "python")) for secret in (new, old)))
        session.execute(code_block(PAGE, "Redash", "sql"))
        for table in ["data_sources", "notification_destinations"]:
            assert value(session, "SELECT tokens FROM fernet_census(%s, 'encrypted_options') WHERE status = 'current'", table) == 3
    run(new, *application, "read")


def test_the_published_secret_of_redash(database):
    """The census shows by its fingerprint who still uses it."""
    published = "c292a0a3aa32397cdb050e233733900f"
    assert f"`{published}`" in (ROOT / PAGE).read_text()
    run({"REDASH_SECRET_KEY": published}, "redash_options.py", "write")
    key = run({"REDASH_SECRET_KEY": published}, "-c", code_block(PAGE, "Redash", "python"))
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        set_keys(session, Fernet.generate_key().decode(), key)
        assert value(session, "SELECT tokens FROM fernet_census('data_sources', 'encrypted_options') WHERE fingerprint = %s",
                     fingerprint(key)) == 3


def test_a_library_that_has_no_key_hands_out_the_token(database):
    """Why the page says to take the census before the old secret is removed."""
    application = ["django_fields.py", "encrypted_fields.fields"]
    run(secret_key(), *application, "write")
    assert run(secret_key(), *application, "read").startswith("gAAAAA")


@pytest.mark.parametrize("application", [
    ["sqlalchemy_utils_types.py", "StringEncryptedType", "AesEngine"],
    ["sqlalchemy_utils_types.py", "StringEncryptedType", "AesGcmEngine"],
    ["django_fields.py", "django_cryptography.fields"],
], ids=lambda value: value[-1])
def test_not_fernet(database, application):
    assert run(secret_key(), *application, "write") == "hunter2"
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        assert value(session, "SELECT fernet_is_token(value) FROM vault_secret") is False


def test_tracecat(database):
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    plaintexts = [b"x", b'{"TOKEN":"hunter2"}', "東京".encode() * 1000]
    columns = [(table, name) for table, names in TRACECAT.items() for name in names]

    def decrypted(key, stored):
        """A value as Tracecat reads it; what is not encrypted stays."""
        if isinstance(stored, dict):
            return {field: decrypted(key, value) for field, value in stored.items()}
        if isinstance(stored, str) and stored.startswith(TRACECAT_PREFIX):
            return decrypted(key, stored.removeprefix(TRACECAT_PREFIX).encode())
        return Fernet(key).decrypt(stored) if isinstance(stored, bytes) and stored not in (b"", b"true") else stored

    with connect(database) as session:
        def everything(key):
            return [decrypted(key, stored) for table, name in [*columns, TRACECAT_DOCUMENTS]
                    for stored in column(session, f"SELECT {name} FROM {table} ORDER BY id")]

        session.execute("CREATE EXTENSION pg_fernet")
        for table, names in TRACECAT.items():
            session.execute(f"CREATE TABLE {table} (id serial, is_encrypted boolean, {', '.join(f'{name} bytea' for name in names)})")
            session.execute(f"INSERT INTO {table} DEFAULT VALUES")
            for plaintext in plaintexts:
                session.execute(f"INSERT INTO {table} (is_encrypted, {', '.join(names)}) VALUES (true{', %s' * len(names)})",
                                [Fernet(old).encrypt(plaintext) for _ in names])
        session.execute("INSERT INTO organization_settings (is_encrypted, value) VALUES (false, 'true')")
        session.execute("INSERT INTO oauth_integration (encrypted_access_token) VALUES ('')")
        session.execute("CREATE TABLE agent_channel_token (id serial, config jsonb)")
        for plaintext in plaintexts:
            config = {"slack_client_id": "1.2", "slack_app_id": None}
            for field in ("slack_bot_token", "slack_client_secret", "slack_signing_secret"):
                config[field] = TRACECAT_PREFIX + Fernet(old).encrypt(plaintext).decode()
            session.execute("INSERT INTO agent_channel_token (config) VALUES (%s)", [json.dumps(config)])

        written = everything(old)
        with pytest.raises(InvalidToken):
            everything(new)
        set_keys(session, new, old)
        session.execute(code_block(PAGE, "Tracecat", "sql"))
        assert everything(new) == written
        set_keys(session, new)
        for table, name in [*columns, TRACECAT_DOCUMENTS]:
            assert value(session, "SELECT sum(tokens) FROM fernet_census(%s, %s) WHERE status IN ('old key', 'unknown key')", table, name) == 0
