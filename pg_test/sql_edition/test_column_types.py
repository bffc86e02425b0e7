"""All types of columns that can hold tokens: the tests of the native edition."""

import pytest

from tables import NEW, OLD
from test_types import *  # noqa: F401,F403


@pytest.fixture
def sessions(sessions):
    return lambda: sessions(NEW, OLD)
