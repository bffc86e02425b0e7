import pytest

from postgres import create_database, drop_database

DATABASE = "pg_fernet_application"


@pytest.fixture
def database():
    """An empty database, the one that programs of an application connect to."""
    create_database(DATABASE)
    yield DATABASE
    drop_database(DATABASE)
