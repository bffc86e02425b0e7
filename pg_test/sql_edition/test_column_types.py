import pytest
from tables import NEW, OLD
from test_types import *  # noqa: F401,F403

@pytest.fixture
def sessions(sessions):
    return lambda **options: sessions(NEW, OLD, **options)
