"""A database with the extension on the server that PGHOST and so on name, and connections to it."""

import pytest

from edition import superuser
from fixtures import database, db, preload, rng, sessions  # noqa: F401, fixtures
from postgres import column


@pytest.fixture
def role(database):
    """An ordinary role that may run every function of the extension."""
    with superuser(database) as admin:
        admin.execute("CREATE ROLE fernet_user LOGIN")
        for function in column(admin, "SELECT oid::regprocedure::text FROM pg_proc WHERE proname ~ '^fernet_' AND prorettype <> 'trigger'::regtype"):
            admin.execute(f"GRANT EXECUTE ON ROUTINE {function} TO fernet_user")
        yield "fernet_user"
        admin.execute("DROP OWNED BY fernet_user")
        admin.execute("DROP ROLE fernet_user")
