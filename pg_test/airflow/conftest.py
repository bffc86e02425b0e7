"""A migrated and filled metadata database for each version of Airflow; each test gets a copy."""

import itertools

import pytest
from cryptography.fernet import Fernet

from documentation import code_block
from edition import SQL, USER, install
from harness import Airflow, on_server
from rows import ENCRYPTED, PLAINTEXT

VERSIONS = ("2.11.2", "3.3.2")

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()

_number = itertools.count()


@pytest.fixture
def old():
    return OLD


@pytest.fixture
def new():
    return NEW


@pytest.fixture
def both():
    """The key list of a rotation: the new key first."""
    return f"{NEW},{OLD}"


@pytest.fixture(scope="session", params=VERSIONS)
def migrated(request, tmp_path_factory):
    """Airflow with the schema of its own migrations and no rows."""
    version = request.param
    airflow = Airflow(version, f"airflow_{version}", tmp_path_factory.mktemp(f"airflow-{version}"))
    on_server("CREATE DATABASE {} OWNER {}", airflow.database, USER)
    airflow.cli("db", "migrate", key=OLD)
    with airflow.connect() as connection:
        if SQL:
            connection.execute("CREATE SCHEMA fernet")
            install(connection, "fernet")
        else:
            connection.execute(code_block("Before you start", "sql"))
    return airflow


@pytest.fixture(scope="session")
def filled(migrated):
    """Airflow with rows that it encrypted itself, under the old key."""
    filled = copy_of(migrated)
    filled.seed(ENCRYPTED, key=OLD)
    return filled


@pytest.fixture(scope="session")
def half_encrypted(filled):
    """Airflow that had no key in the past: plaintext rows beside the encrypted ones."""
    half_encrypted = copy_of(filled)
    half_encrypted.seed(PLAINTEXT, key=None)
    return half_encrypted


@pytest.fixture
def empty_airflow(migrated):
    yield from a_copy_of(migrated)


@pytest.fixture
def airflow(filled):
    yield from a_copy_of(filled)


@pytest.fixture
def half_encrypted_airflow(half_encrypted):
    yield from a_copy_of(half_encrypted)


def copy_of(airflow):
    database = f"{airflow.database}_{next(_number)}"
    on_server("CREATE DATABASE {} OWNER {} TEMPLATE {}", database, USER, airflow.database)
    return Airflow(airflow.version, database, airflow.home)


def a_copy_of(airflow):
    copy = copy_of(airflow)
    yield copy
    on_server("DROP DATABASE {} WITH (FORCE)", copy.database)
