import pytest
from tables import NEW, OLD
from test_proof import *  # noqa: F401,F403
from test_writers import *  # noqa: F401,F403
from test_interrupted import *  # noqa: F401,F403

@pytest.fixture
def sessions(sessions):
    return lambda **options: sessions(NEW, OLD, **options)

@pytest.fixture
def db(sessions):
    db = sessions()
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
    yield db
    db.execute("SET lock_timeout = '5s'")
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
