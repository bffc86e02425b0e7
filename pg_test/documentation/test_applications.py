"""docs/applications.md: real libraries write, we rotate as the page says, and they read with the new secret alone."""

import os
import secrets
import subprocess
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from pages import code_block
from postgres import connect, create_database, drop_database, set_keys, value
from preparations import VENV

PAGE = "docs/applications.md"
DATABASE = "pg_fernet_application"
ENCRYPTED_FIELDS = "django-fernet-encrypted-fields"
FERNET_FIELDS = "django-fernet-fields"


def random_secret():
    return secrets.token_urlsafe(30)


def secret_key():
    return {"SECRET_KEY": random_secret(), "SALT_KEY": random_secret()}


def fernet_key():
    return {"SECRET_KEY": random_secret(), "FERNET_KEY": random_secret()}


def crypt_keys():
    """One in either form."""
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


def test_a_library_that_has_no_key_hands_out_the_token(database):
    """Why the page says to take the census before the old secret goes."""
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
