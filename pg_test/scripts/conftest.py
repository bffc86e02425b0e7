"""These tests start what they need themselves, whatever the environment leads to."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def throwaway():
    pass
