"""What holds for all suites."""

import os

import pytest

import differences
import edition
from throwaway import refuse_another_server


@pytest.fixture(scope="session", autouse=True)
def throwaway():
    """Nothing is written to a server that is not ours."""
    try:
        refuse_another_server()
    except SystemExit as error:
        pytest.exit(str(error), returncode=1)
    if edition.SQL:
        edition.prepare()
        os.environ["PGUSER"] = edition.USER


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if edition.SQL:
        differences.apply(config, items)
