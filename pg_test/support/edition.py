"""Which edition of pg_fernet the tests are of: the native one or, with PG_FERNET_EDITION=sql, the SQL edition.

A role that may log in, and owns the databases of the tests, installs and uses the SQL edition. What takes a
superuser, such as to make another role, is said to: `superuser`.
"""

import os
import re
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

SQL = os.environ.get("PG_FERNET_EDITION") == "sql"
SCRIPT = Path(__file__).parents[2] / "sql" / "edition" / "pg_fernet_sql.sql"

SUPERUSER = "postgres"
OWNER = "fernet_owner"
USER = OWNER if SQL else SUPERUSER
# How many times fewer rows the tests take that have many: it is slower.
FEWER = 10 if SQL else 1

# What the tests set to see more of the server, which is not for everyone to set.
WATCHED_WITH = "deadlock_timeout, log_error_verbosity, log_min_error_statement, log_min_messages, log_statement, max_stack_depth"
# Functions of the SQL edition are in the CONTEXT of an error.
OURS = re.compile(r'^PL/pgSQL function (?:\w+\.)?_?fernet_.*|^SQL statement "(?:SELECT|CALL) public\._fernet_[^"]*"', re.MULTILINE)


def superuser(database="postgres", **options):
    """Opens a session of a superuser, each statement a transaction."""
    return psycopg.connect(dbname=database, autocommit=True, user=SUPERUSER, **options)


def prepare(**options):
    """Makes the role on a new server, whose database postgres is a test's, too."""
    with superuser(**options) as session:
        if not session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone():
            session.execute(f"CREATE ROLE {OWNER} LOGIN")
        if SQL:
            session.execute(f"GRANT SET ON PARAMETER {WATCHED_WITH} TO {OWNER}")
            session.execute(f"ALTER DATABASE postgres OWNER TO {OWNER}")


def install(session, schema="public"):
    """What CREATE EXTENSION is to the native edition."""
    if not SQL:
        session.execute(sql.SQL("CREATE EXTENSION pg_fernet SCHEMA {}").format(sql.Identifier(schema)))
    else:
        install_sql_edition(session, schema)


def install_sql_edition(session, schema):
    """Installs the SQL edition, also beside the native one, into a schema that is there."""
    session.execute("CREATE EXTENSION IF NOT EXISTS pgcrypto SCHEMA public")
    with session.transaction():
        session.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(schema)))
        session.execute(SCRIPT.read_bytes())


def context(diag):
    """Where an error is said to have happened, but for functions of the SQL edition."""
    if not SQL or not diag.context:
        return diag.context
    return "\n".join(filter(None, OURS.sub("", diag.context).splitlines())) or None


def foreign_data_wrapper(database="postgres", **options):
    """Lets the tests make servers of postgres_fdw, or skips the one that asks for them."""
    with superuser(database, **options) as session:
        try:
            session.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA public")
        except psycopg.Error:
            pytest.skip("postgres_fdw is not installed here")
        if SQL:
            session.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {OWNER}")


def map_user(server, database="postgres", **options):
    """Lets the tests use such a server, as a superuser there."""
    with superuser(database, **options) as session:
        session.execute(f"CREATE USER MAPPING FOR {USER} SERVER {server} OPTIONS (user '{SUPERUSER}', password_required 'false')")


def create_role(name):
    """Makes a role that the tests can become, with SET ROLE."""
    with superuser() as session:
        session.execute(f"CREATE ROLE {name}")
        if SQL:
            session.execute(f"GRANT {name} TO {OWNER}")


def drop_role(name):
    with superuser() as session:
        session.execute(f"DROP ROLE {name}")
