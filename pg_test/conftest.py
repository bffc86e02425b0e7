"""What holds for all suites."""

import pytest

from throwaway import refuse_another_server


@pytest.fixture(scope="session", autouse=True)
def throwaway():
    """Nothing is written to somebody else's server."""
    try:
        refuse_another_server()
    except SystemExit as error:
        pytest.exit(str(error), returncode=1)
