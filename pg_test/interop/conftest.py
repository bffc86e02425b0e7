"""A database with the extension on the server that PGHOST and so on name, and connections to it."""

import pytest

from fixtures import database, db, rng, sessions  # noqa: F401, fixtures
from postgres import connect


@pytest.fixture
def role(database):
    """An ordinary role that may run every function of the extension."""
    with connect(database) as admin:
        admin.execute("CREATE ROLE fernet_user LOGIN")
        for (function,) in admin.execute("SELECT objid::regprocedure::text FROM pg_depend WHERE deptype = 'e'"
                                         " AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet')"):
            admin.execute(f"GRANT EXECUTE ON ROUTINE {function} TO fernet_user")
        yield "fernet_user"
        admin.execute("DROP OWNED BY fernet_user")
        admin.execute("DROP ROLE fernet_user")
