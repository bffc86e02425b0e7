"""The SQL edition through pg_tle (Trusted Language Extensions), if the server has it: as a role that is not a
superuser."""

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from edition import OWNER, prepare, superuser
from pages import code_block
from postgres import ROOT, column, connect, create_database, notices, server, set_keys, value
from tables import NEW, OLD

PAGE = "docs/managed.md"
STATEMENT = subprocess.run([ROOT / "scripts" / "sql-edition", "pg_tle"], check=True, capture_output=True, text=True).stdout
VERSION = re.search("version constant pg_catalog.text := '(.*)'", STATEMENT)[1]
OLDER = STATEMENT.replace(f"'{VERSION}'", "'0.1.9'").replace(f"'pg_fernet_sql {VERSION}'", "'pg_fernet_sql 0.1.9'")
DATABASE = "app"

# Replaces pg_tle below, and only keeps what it is given.
STAND_IN = """
    CREATE SCHEMA pgtle;
    CREATE TABLE pgtle.told (call text, arguments text[], ext text);
    CREATE FUNCTION pgtle.available_extensions() RETURNS TABLE (name name, default_version name)
        LANGUAGE sql SET search_path = pg_catalog AS
        $$ SELECT arguments[1], arguments[cardinality(arguments)] FROM pgtle.told WHERE call IN ('install', 'default') ORDER BY ctid DESC LIMIT 1 $$;
    CREATE FUNCTION pgtle.install_extension(name text, version text, description text, ext text, requires text[]) RETURNS boolean
        LANGUAGE sql AS $$ INSERT INTO pgtle.told VALUES ('install', ARRAY[name, requires[1], version], ext) RETURNING true $$;
    CREATE FUNCTION pgtle.install_extension_version_sql(name text, version text, ext text) RETURNS boolean
        LANGUAGE sql AS $$ INSERT INTO pgtle.told VALUES ('version', ARRAY[name, version], ext) RETURNING true $$;
    CREATE FUNCTION pgtle.install_update_path(name text, fromvers text, tovers text, ext text) RETURNS boolean
        LANGUAGE sql AS $$ INSERT INTO pgtle.told VALUES ('path', ARRAY[name, fromvers, tovers], ext) RETURNING true $$;
    CREATE FUNCTION pgtle.set_default_version(name text, version text) RETURNS boolean
        LANGUAGE sql AS $$ INSERT INTO pgtle.told VALUES ('default', ARRAY[name, version]) RETURNING true $$"""


def test_the_statement_alone(empty):
    """What it gives to pg_tle, even if there is none."""
    empty.execute(STAND_IN)
    # Nothing that another role has put into the path is used.
    empty.execute("""
        CREATE SCHEMA trap;
        CREATE DOMAIN trap.text AS integer;
        CREATE FUNCTION trap.never(pg_catalog.text, pg_catalog.text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
        CREATE FUNCTION trap.never(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR trap.= (FUNCTION = trap.never, LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text);
        CREATE OPERATOR trap.= (FUNCTION = trap.never, LEFTARG = name, RIGHTARG = name);
        SET search_path = trap, pg_catalog""")
    for statement in OLDER, STATEMENT, STATEMENT:
        empty.execute(statement)
    told = empty.execute("SELECT call, arguments, ext FROM pgtle.told").fetchall()
    assert [(call, arguments) for call, arguments, _ in told] == [
        ("install", ["pg_fernet_sql", "pgcrypto", "0.1.9"]), ("version", ["pg_fernet_sql", VERSION]),
        ("path", ["pg_fernet_sql", "0.1.9", VERSION]), ("default", ["pg_fernet_sql", VERSION])]
    empty.execute("CREATE SCHEMA fernet; CREATE EXTENSION pgcrypto; SET search_path = fernet")
    for call, _, ext in told[:3]:
        empty.execute(ext)
        assert value(empty, "SELECT fernet.fernet_version()") == f"pg_fernet_sql {'0.1.9' if call == 'install' else VERSION}"
    assert round_trip(empty)


@pytest.fixture(scope="module")
def host():
    """A server that has loaded pg_tle, and the owner of the edition there."""
    library = subprocess.run([os.environ["PG_CONFIG"], "--pkglibdir"], check=True, capture_output=True, text=True).stdout.strip()
    if not Path(library, "pg_tle.so").exists():
        pytest.skip("no pg_tle in this server: the SQL edition is NOT TESTED with it here")
    with server("shared_preload_libraries = 'pg_tle'") as host:
        prepare(host=host)
        yield host


@pytest.fixture
def sessions(host):
    """Opens sessions with the owner's database, or another one."""
    with ExitStack() as stack:
        def session(user=OWNER, database=DATABASE):
            return stack.enter_context(connect(database, host=host, user=user))

        yield session


@pytest.fixture
def app(host, sessions):
    """A session of the owner, as the page prepares it."""
    make_database(host, DATABASE)
    with sessions("postgres") as admin:
        admin.execute(code_block(PAGE, "pg_tle", "sql").replace("TO app", f"TO {OWNER}"))
    app = sessions()
    app.execute("CREATE EXTENSION pgcrypto; CREATE SCHEMA fernet")
    assert not value(app, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    return app


def make_database(host, name):
    create_database(name, host=host)
    with superuser(host=host) as admin:
        admin.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}")


def round_trip(session):
    set_keys(session, NEW)
    return value(session, "SELECT fernet.fernet_decrypt(fernet.fernet_encrypt('x'))") == "x"


def loose_functions(session):
    """Our functions that are not part of the extension."""
    return column(session, """
        SELECT oid::regprocedure::text FROM pg_proc AS p
        WHERE pronamespace = 'fernet'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND classid = 'pg_proc'::regclass AND deptype = 'e')""")


def test_install_use_remove(host, app):
    """As the page says, in psql."""
    commands = code_block(PAGE, "pg_tle", "sh").replace("-U app", f"-U {OWNER}")
    subprocess.run(["bash", "-euc", commands], cwd=ROOT, env=os.environ | {"PGHOST": host}, check=True, capture_output=True)
    assert value(app, "SELECT fernet.fernet_version()") == f"pg_fernet_sql {VERSION}"
    assert round_trip(app)
    assert loose_functions(app) == []
    assert not value(app, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')")
    app.execute("CREATE TABLE secrets AS SELECT fernet.fernet_encrypt('secret') AS value")
    set_keys(app, OLD, NEW)
    assert app.execute("CALL fernet.fernet_rotate_column('secrets', 'value')").fetchone()[0] == 1
    with pytest.raises(psycopg.Error):
        app.execute("ALTER EXTENSION pg_fernet_sql SET SCHEMA public")

    app.execute(code_block(PAGE, "Update and remove", "sql"))
    assert column(app, "SELECT proname FROM pg_proc WHERE pronamespace IN ('fernet'::regnamespace, 'pgtle'::regnamespace)"
                         " AND proname ~ 'fernet'") == []
    with pytest.raises(psycopg.Error):
        app.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")


def test_update(app):
    """A new version replaces the functions and keeps what was granted."""
    app.execute(OLDER)
    app.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")
    assert value(app, "SELECT fernet.fernet_version()") == "pg_fernet_sql 0.1.9"
    app.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_rotate(text) TO pg_monitor")
    # A function that the older version did not have.
    app.execute("ALTER EXTENSION pg_fernet_sql DROP FUNCTION fernet.fernet_rotate(json); DROP FUNCTION fernet.fernet_rotate(json)")

    app.execute(STATEMENT)
    app.execute("ALTER EXTENSION pg_fernet_sql UPDATE")
    assert value(app, "SELECT fernet.fernet_version()") == f"pg_fernet_sql {VERSION}"
    assert value(app, "SELECT default_version FROM pgtle.available_extensions() WHERE name = 'pg_fernet_sql'") == VERSION
    assert value(app, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')")
    assert not value(app, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(json)', 'EXECUTE')")
    assert loose_functions(app) == []
    assert round_trip(app)

    told = notices(app)
    app.execute(STATEMENT)
    assert told == [f"pg_fernet_sql {VERSION} is registered already"]


@pytest.mark.parametrize("statements", [(STATEMENT,), (OLDER, STATEMENT)], ids=["as installed", "updated"])
def test_dump_and_restore(host, app, sessions, statements, tmp_path):
    for statement in statements:
        app.execute(statement)
        app.execute("CREATE EXTENSION IF NOT EXISTS pg_fernet_sql SCHEMA fernet; ALTER EXTENSION pg_fernet_sql UPDATE")
    set_keys(app, OLD)
    app.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_keys() TO pg_monitor")
    app.execute("CREATE TABLE secrets AS SELECT fernet.fernet_encrypt('secret') AS value")
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
