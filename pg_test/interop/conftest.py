"""A database with the extension on the server that PGHOST and so on name, and connections to it."""

import os
import random

import pytest

from fixtures import database, db, sessions  # noqa: F401, fixtures
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


@pytest.fixture
def rng():
    """Random numbers. PG_FERNET_SEED repeats a run; pytest shows the seed of a test that fails."""
    seed = int(os.environ.get("PG_FERNET_SEED", random.SystemRandom().getrandbits(32)))
    print(f"PG_FERNET_SEED={seed}")
    return random.Random(seed)
