"""The edition of pg_fernet that is tested: the native one or, with PG_FERNET_EDITION=sql, the SQL edition.

A role that may log in, and owns the databases of the tests, installs and uses the SQL edition. What only a
superuser can do, such as making another role, is done by `superuser`.
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
# The factor by which tests with many rows use fewer rows: this edition is slower.
FEWER = 10 if SQL else 1

# Settings that show the tests more of the server. Not every role may change them.
WATCHED_WITH = "deadlock_timeout, log_error_verbosity, log_min_error_statement, log_min_messages, log_statement, max_stack_depth"
# The CONTEXT of an error names functions of the SQL edition.
OURS = re.compile(r'^PL/pgSQL function (?:\w+\.)?_?fernet_.*|^SQL statement "(?:SELECT|CALL) public\._fernet_[^"]*"', re.MULTILINE)


def superuser(database="postgres", **options):
    """Opens a session of a superuser, each statement a transaction."""
    return psycopg.connect(dbname=database, autocommit=True, user=SUPERUSER, **options)


def prepare(**options):
    """Makes the role on a new server whose database postgres is also used by a test."""
    with superuser(**options) as session:
        if not session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone():
            session.execute(f"CREATE ROLE {OWNER} LOGIN")
        if SQL:
            session.execute(f"GRANT SET ON PARAMETER {WATCHED_WITH} TO {OWNER}")
            session.execute(f"ALTER DATABASE postgres OWNER TO {OWNER}")


def install(session, schema="public"):
    """The counterpart of CREATE EXTENSION for the native edition."""
    if not SQL:
        session.execute(sql.SQL("CREATE EXTENSION pg_fernet SCHEMA {}").format(sql.Identifier(schema)))
    else:
        install_sql_edition(session, schema)


def install_sql_edition(session, schema):
    """Installs the SQL edition into an existing schema, also beside the native one."""
    session.execute("CREATE EXTENSION IF NOT EXISTS pgcrypto SCHEMA public")
    with session.transaction():
        session.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(schema)))
        session.execute(SCRIPT.read_bytes())


def context(diag):
    """The CONTEXT of an error, without functions of the SQL edition."""
    if not SQL or not diag.context:
        return diag.context
    return "\n".join(filter(None, OURS.sub("", diag.context).splitlines())) or None


def foreign_data_wrapper(database="postgres", **options):
    """Lets the tests make servers of postgres_fdw, or skips the test that calls it."""
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
