"""The SQL edition through pg_tle (Trusted Language Extensions), where the server has it: as a role that is no superuser."""

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from conftest import OWNER
from pages import code_block
from postgres import ROOT, column, connect, create_database, server, set_keys, value
from tables import NEW, OLD

PAGE = "docs/managed.md"
STATEMENT = subprocess.run([ROOT / "scripts" / "sql-edition", "pg_tle"], check=True, capture_output=True, text=True).stdout
VERSION = re.search("version constant text := '(.*)'", STATEMENT)[1]
OLDER = STATEMENT.replace(f"'{VERSION}'", "'0.1.9'").replace(f"'pg_fernet_sql {VERSION}'", "'pg_fernet_sql 0.1.9'")
DATABASE = "app"


@pytest.fixture(scope="module")
def host():
    """A server that has loaded pg_tle, and the owner of the edition there."""
    library = subprocess.run([os.environ["PG_CONFIG"], "--pkglibdir"], check=True, capture_output=True, text=True).stdout.strip()
    if not Path(library, "pg_tle.so").exists():
        pytest.skip("no pg_tle in this server: the SQL edition is NOT TESTED with it here")
    with server("shared_preload_libraries = 'pg_tle'") as host:
        with connect("postgres", host=host) as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN")
        yield host


@pytest.fixture
def sessions(host):
    """Opens sessions with the owner's database, or another one."""
    with ExitStack() as stack:
        def session(user=OWNER, database=DATABASE):
            return stack.enter_context(connect(database, host=host, user=user))

        yield session


@pytest.fixture
def owner(host, sessions):
    """A session of the owner, as the page prepares it."""
    make_database(host, DATABASE)
    with sessions("postgres") as admin:
        admin.execute(code_block(PAGE, "pg_tle", "sql").replace("TO app", f"TO {OWNER}"))
    owner = sessions()
    owner.execute("CREATE EXTENSION pgcrypto; CREATE SCHEMA fernet")
    assert not value(owner, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    return owner


def make_database(host, name):
    create_database(name, host=host)
    with connect("postgres", host=host) as admin:
        admin.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}")


def round_trip(session):
    set_keys(session, NEW)
    return value(session, "SELECT fernet.fernet_decrypt(fernet.fernet_encrypt('x'))") == "x"


def loose_functions(session):
    """Ours that are no part of the extension."""
    return column(session, """
        SELECT oid::regprocedure::text FROM pg_proc AS p
        WHERE pronamespace = 'fernet'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND classid = 'pg_proc'::regclass AND deptype = 'e')""")


def test_install_use_remove(host, owner):
    """As the page says, in psql."""
    commands = code_block(PAGE, "pg_tle", "sh").replace("-U app", f"-U {OWNER}")
    subprocess.run(["bash", "-euc", commands], cwd=ROOT, env=os.environ | {"PGHOST": host}, check=True, capture_output=True)
    assert value(owner, "SELECT fernet.fernet_version()") == f"pg_fernet_sql {VERSION}"
    assert round_trip(owner)
    assert loose_functions(owner) == []
    assert not value(owner, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')")
    owner.execute("CREATE TABLE secrets AS SELECT fernet.fernet_encrypt('secret') AS value")
    set_keys(owner, OLD, NEW)
    assert owner.execute("CALL fernet.fernet_rotate_column('secrets', 'value')").fetchone()[0] == 1
    with pytest.raises(psycopg.Error):
        owner.execute("ALTER EXTENSION pg_fernet_sql SET SCHEMA public")

    owner.execute(code_block(PAGE, "Update and remove", "sql"))
    assert column(owner, "SELECT proname FROM pg_proc WHERE pronamespace IN ('fernet'::regnamespace, 'pgtle'::regnamespace)"
                         " AND proname ~ 'fernet'") == []
    with pytest.raises(psycopg.Error):
        owner.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")


def test_update(owner):
    """A new version replaces the functions and keeps what was granted."""
    owner.execute(OLDER)
    owner.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")
    assert value(owner, "SELECT fernet.fernet_version()") == "pg_fernet_sql 0.1.9"
    owner.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_rotate(text) TO pg_monitor")
    # One that the older version had not.
    owner.execute("ALTER EXTENSION pg_fernet_sql DROP FUNCTION fernet.fernet_rotate(json); DROP FUNCTION fernet.fernet_rotate(json)")

    owner.execute(STATEMENT)
    owner.execute("ALTER EXTENSION pg_fernet_sql UPDATE")
    assert value(owner, "SELECT fernet.fernet_version()") == f"pg_fernet_sql {VERSION}"
    assert value(owner, "SELECT default_version FROM pgtle.available_extensions() WHERE name = 'pg_fernet_sql'") == VERSION
    assert value(owner, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')")
    assert not value(owner, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(json)', 'EXECUTE')")
    assert loose_functions(owner) == []
    assert round_trip(owner)

    told = []
    owner.add_notice_handler(lambda diag: told.append(diag.message_primary))
    owner.execute(STATEMENT)
    assert told == [f"pg_fernet_sql {VERSION} is registered already"]


@pytest.mark.parametrize("statements", [(STATEMENT,), (OLDER, STATEMENT)], ids=["as installed", "updated"])
def test_dump_and_restore(host, owner, sessions, statements, tmp_path):
    for statement in statements:
        owner.execute(statement)
        owner.execute("CREATE EXTENSION IF NOT EXISTS pg_fernet_sql SCHEMA fernet; ALTER EXTENSION pg_fernet_sql UPDATE")
    set_keys(owner, OLD)
    owner.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_keys() TO pg_monitor")
    owner.execute("CREATE TABLE secrets AS SELECT fernet.fernet_encrypt('secret') AS value")
    dump = tmp_path / "dump.sql"
    subprocess.run(["pg_dump", "-h", host, "-U", "postgres", "-d", DATABASE, "-f", dump], check=True)

    make_database(host, "restored")
    subprocess.run(["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-h", host, "-U", "postgres", "-d", "restored", "-f", dump],
                   check=True, capture_output=True)
    restored = sessions("postgres", "restored")
    assert value(restored, "SELECT extversion FROM pg_extension WHERE extname = 'pg_fernet_sql'") == VERSION
    assert value(restored, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_keys()', 'EXECUTE')")
    assert not value(restored, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')")
    set_keys(restored, NEW, OLD)
    assert value(restored, "SELECT fernet.fernet_decrypt(fernet.fernet_rotate(value)) FROM secrets") == "secret"
