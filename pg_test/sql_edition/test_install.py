"""The three ways in, the way out, privileges, and names in the caller's path."""

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg import sql

from owned import EDITION, owned_database, run_psql
from postgres import ROOT, column, connect, major_version, notices, set_keys, value
from tables import CONVERSIONS, NEW, OLD

SCRIPT = EDITION / "pg_fernet_sql.sql"
VERSION = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
IN_FERNET = f"NOTICE:  pg_fernet_sql {VERSION} is in schema fernet"
OURS = "SELECT oid::regprocedure::text FROM pg_proc WHERE proname ~ '^_?fernet_' AND pronamespace = %s::regnamespace ORDER BY 1"


@pytest.fixture
def prepared(empty):
    empty.execute("CREATE EXTENSION pgcrypto; CREATE SCHEMA fernet")
    return empty


def install(session, schema="fernet", file=SCRIPT, **options):
    return run_psql(session.info.dbname, session.info.user, file, schema, **options)


def told(done):
    """What psql has shown."""
    return [re.sub("^psql:.*?: ", "", line) for line in done.stderr.splitlines()]


def test_the_owner_is_no_superuser(db):
    assert value(db, "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls FROM pg_roles"
                     " WHERE rolname = session_user") is False
    assert value(db, "SELECT fernet_version()") == f"pg_fernet_sql {VERSION}"


def test_version():
    assert f"default_version = '{VERSION}'" in (EDITION / "pg_fernet_sql.control").read_text()


def test_the_same_functions_as_the_native_edition(database, native):
    """Names, arguments, results, volatility, strictness, parallel safety, comments."""
    with connect(database) as session:
        of = """SELECT proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), provolatile, proisstrict, proparallel, prokind,
                       coalesce(obj_description(p.oid, 'pg_proc'), '')
                FROM pg_proc AS p WHERE pronamespace = %s::regnamespace AND proname ~ '^fernet_' ORDER BY 1, 2"""
        ours, native = (set(session.execute(of, [schema]).fetchall()) for schema in ("public", "native"))
    assert {row[0] for row in native - ours} == {"fernet_rotate_shard", "fernet_encrypt_shard", "fernet_decrypt_shard"}
    assert {row[0] for row in ours - native} == {"fernet_version"}


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda conversion: conversion.name)
def test_workers_are_taken_and_not_started(db, conversion):
    set_keys(db, NEW, OLD)
    conversion.fill(db, 10)
    try:
        for workers in "NULL", -1:
            with pytest.raises(psycopg.errors.DataError, match="workers must (not be null|be at least 0)") as caught:
                conversion.call(db, workers=workers)
            assert caught.value.diag.message_hint
        told = notices(db)
        assert conversion.call(db, workers=2) == conversion.counts(10)
        assert told[0] == "no background worker started, since the SQL edition has none"
    finally:
        db.execute("DROP TABLE secrets")


def test_again_and_away(prepared):
    """Run again, it updates and leaves what was granted; the other script removes all."""
    install(prepared)
    routines = column(prepared, OURS, "fernet")
    prepared.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_rotate(text) TO pg_monitor; REVOKE ALL ON FUNCTION fernet.fernet_is_token(text) FROM PUBLIC")
    assert told(install(prepared)) == [IN_FERNET]
    assert column(prepared, OURS, "fernet") == routines
    assert value(prepared, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')")
    assert not value(prepared, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_is_token(text)', 'EXECUTE')")

    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        prepared.execute("DROP EXTENSION pgcrypto")
    prepared.execute("CREATE VIEW fernet.keys AS SELECT * FROM fernet.fernet_keys()")
    assert "depends on" in install(prepared, file=EDITION / "uninstall.sql", check=False).stderr
    assert column(prepared, OURS, "fernet") == routines
    prepared.execute("DROP VIEW fernet.keys")
    install(prepared, file=EDITION / "uninstall.sql")
    assert column(prepared, OURS, "fernet") == []
    assert "pg_fernet_sql is not in schema fernet" in install(prepared, file=EDITION / "uninstall.sql", check=False).stderr
    prepared.execute("DROP EXTENSION pgcrypto")


def older(tmp_path):
    """A version with two functions that no longer exist, and one with another result."""
    script = tmp_path / "older.sql"
    script.write_text(SCRIPT.read_text().replace("_fernet_highest(openers integer[]) RETURNS integer", "_fernet_highest(openers integer[]) RETURNS bigint").replace(
        "    basis constant pg_catalog.text := $source$", """    basis constant pg_catalog.text := $source$
        CREATE OR REPLACE FUNCTION {self}._fernet_look(value integer) RETURNS integer LANGUAGE sql RETURN value;
        CREATE OR REPLACE PROCEDURE {self}.fernet_former(INOUT value integer DEFAULT 1, other text DEFAULT lower('A'))
            LANGUAGE sql AS 'SELECT 1';"""))
    return script


USERS = """
    CREATE FUNCTION fernet.fernet_nightly() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION fernet._fernet_audit() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION fernet.fernet_decrypt(token integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'"""


def test_an_update_from_a_version_with_other_functions(prepared, tmp_path):
    """It removes what that version had and this one does not have, and nothing else."""
    install(prepared)
    routines = column(prepared, OURS, "fernet")
    install(prepared, file=EDITION / "uninstall.sql")
    install(prepared, file=older(tmp_path))
    assert len(column(prepared, OURS, "fernet")) == len(routines) + 2
    prepared.execute(USERS)
    users = set(column(prepared, OURS, "fernet")) - set(routines)
    install(prepared)
    assert set(column(prepared, OURS, "fernet")) - set(routines) == users - {"fernet._fernet_look(integer)", "fernet.fernet_former(integer,text)"}
    set_keys(prepared, NEW)
    assert value(prepared, "SELECT fernet.fernet_key_index(fernet.fernet_encrypt('x') || ',')") == 1


def test_functions_with_such_names_stay(prepared):
    prepared.execute(USERS)
    privileges = "SELECT proname, proargtypes, proacl FROM pg_proc WHERE pronamespace = 'fernet'::regnamespace ORDER BY oid"
    users = prepared.execute(privileges).fetchall()
    install(prepared)
    install(prepared)
    install(prepared, file=EDITION / "uninstall.sql")
    assert prepared.execute(privileges).fetchall() == users


@pytest.mark.parametrize("function", ["fernet_decrypt(token text) RETURNS text", "_fernet_look(value text, kind text, b bytea[], c text, d boolean) RETURNS integer",
                                      "_fernet_made() RETURNS text[]", "fernet_version() RETURNS text"])
def test_a_function_of_somebody_elses_is_not_replaced(prepared, owner, function):
    """Whether it is the user's own, or planted where an administrator will install."""
    prepared.execute(f"CREATE FUNCTION fernet.{function} LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    before = column(prepared, OURS, "fernet")
    for install_as in owner, "postgres":
        with pytest.raises(psycopg.errors.DuplicateFunction) as error, connect(
                prepared.info.dbname, user=install_as, options="-c search_path=fernet") as session:
            session.execute(SCRIPT.read_bytes())
        assert error.value.diag.message_primary == f"function fernet.{before[0].removeprefix('fernet.')} of role {owner} is in the way of pg_fernet_sql"
        assert "rename or drop" in error.value.diag.message_hint
        assert column(prepared, OURS, "fernet") == before


def test_a_copy_of_another_roles_is_not_updated(prepared, owner):
    """A role that could replace its functions would get the keys of their callers."""
    install(prepared)
    with pytest.raises(psycopg.errors.DuplicateFunction) as error, connect(prepared.info.dbname, options="-c search_path=fernet") as admin:
        admin.execute(SCRIPT.read_bytes())
    assert f"of role {owner}" in error.value.diag.message_primary
    assert "run this as the role that has installed it" in error.value.diag.message_hint


def test_an_update_under_a_call(prepared, sessions):
    """A running call goes on."""
    install(prepared)
    prepared.execute("CREATE TABLE secrets (id integer, value text)")
    for id in range(40):
        prepared.execute("INSERT INTO secrets VALUES (%s, %s)", [id, Fernet(OLD).encrypt(b"x").decode()])
    # It polls: a wait for a lock would be over after a moment.
    prepared.execute("CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                     " WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NEW; END $$;"
                     "CREATE TRIGGER hold BEFORE UPDATE ON secrets FOR EACH ROW WHEN (OLD.id = 20) EXECUTE FUNCTION hold()")
    set_keys(prepared, NEW, OLD)
    with connect(prepared.info.dbname, user=prepared.info.user, options="-c search_path=fernet") as other, ThreadPoolExecutor() as pool:
        other.execute("SELECT pg_advisory_lock(1)")
        call = pool.submit(lambda: prepared.execute("CALL fernet.fernet_rotate_column('secrets', 'value', 1)").fetchone())
        try:
            while value(other, "SELECT count(*) FROM public.secrets WHERE ctid > '(0,40)'") < 5:
                time.sleep(0.01)
            other.execute(SCRIPT.read_bytes())
            assert not call.done()
        finally:
            other.execute("SELECT pg_advisory_unlock(1)")
        assert call.result()[0] == 40


def test_the_script_can_be_run_in_any_encoding():
    for file in EDITION.iterdir():
        assert file.read_bytes().isascii(), file


def test_what_is_refused(empty, native):
    assert "pg_fernet_sql needs the extension pgcrypto" in install(empty, "public", check=False).stderr
    empty.execute("CREATE EXTENSION pgcrypto")
    assert "no schema has been selected" in install(empty, "nowhere", check=False).stderr
    empty.execute("CREATE SCHEMA fernet")
    with connect(empty.info.dbname) as admin:
        admin.execute("GRANT CREATE, USAGE ON SCHEMA fernet TO PUBLIC; CREATE EXTENSION pg_fernet SCHEMA fernet")
    assert "the functions of the extension pg_fernet are in schema fernet" in install(empty, check=False).stderr
    install(empty, "public")
    with connect(empty.info.dbname) as admin, pytest.raises(psycopg.errors.DuplicateFunction):
        admin.execute("DROP EXTENSION pg_fernet; CREATE EXTENSION pg_fernet SCHEMA public")


def test_both_editions_in_one_session(database, native, sessions):
    """The library keeps the setting from roles that may not read it."""
    with connect(database) as admin:
        admin.execute("GRANT USAGE ON SCHEMA native TO PUBLIC")
        session = sessions(NEW)
        assert value(session, "SELECT fernet_decrypt(fernet_encrypt('x'))") == "x"
        session.execute("SELECT native.fernet_generate_key()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
            session.execute("SELECT fernet_encrypt('x')")
        assert 'to examine "fernet.keys"' in error.value.diag.message_primary
        user = session.info.user
        admin.execute(f"GRANT pg_read_all_settings TO {user}; GRANT SET ON PARAMETER fernet.keys TO {user}")
        try:
            session = sessions(NEW)
            session.execute("SELECT native.fernet_generate_key()")
            assert value(session, "SELECT fernet_decrypt(fernet_encrypt('x'))") == "x"
        finally:
            admin.execute(f"REVOKE pg_read_all_settings FROM {user}; REVOKE SET ON PARAMETER fernet.keys FROM {user}")


def test_a_schema_with_any_name_and_pgcrypto_anywhere(empty):
    empty.execute('CREATE SCHEMA "ex tensions"; CREATE EXTENSION pgcrypto SCHEMA "ex tensions"; CREATE SCHEMA "Fer""net"')
    install(empty, '"Fer""net"')
    set_keys(empty, NEW)
    token = value(empty, 'SELECT "Fer""net".fernet_encrypt(\'x\')')
    assert Fernet(NEW).decrypt(token) == b"x"
    assert value(empty, 'SELECT "Fer""net".fernet_key_index(%s)', f"[{token}]") == 1


@pytest.mark.parametrize("schema", ["x@.y", "@.", "a@=@b", "a$b", "self}", "new\nline"])
def test_schemas_with_odd_names(empty, schema):
    empty.execute(sql.SQL("CREATE SCHEMA {0}; CREATE SCHEMA {1}; CREATE EXTENSION pgcrypto SCHEMA {1}").format(
        sql.Identifier(schema), sql.Identifier("pgcrypto's %s {self} $$ @.")))
    quoted = sql.Identifier(schema).as_string(empty)
    empty.execute("SELECT set_config('search_path', %s, false)", [quoted])
    empty.execute(SCRIPT.read_bytes())
    set_keys(empty, NEW, OLD)
    token = Fernet(OLD).encrypt(b"x").decode()
    empty.execute("CREATE TABLE secrets AS SELECT %s AS value", [f"[{token}]"])
    assert empty.execute("CALL fernet_rotate_column('secrets', 'value')").fetchone()[0] == 1
    assert value(empty, "SELECT tokens FROM fernet_census('secrets', 'value') WHERE key_index = 1") == 1
    assert value(empty, "SELECT tokens FROM fernet_find_columns()") == 1
    empty.execute(SCRIPT.read_bytes())
    empty.execute((EDITION / "uninstall.sql").read_bytes())


@pytest.mark.parametrize("schema", ["a'b", "100%", "%s", "%1$s", "a$$b", "{pgcrypto}", r"a\b"])
def test_schemas_whose_names_are_refused(empty, schema):
    empty.execute(sql.SQL("CREATE EXTENSION pgcrypto; CREATE SCHEMA {}").format(sql.Identifier(schema)))
    empty.execute("SELECT set_config('search_path', %s, false)", [sql.Identifier(schema).as_string(empty)])
    with pytest.raises(psycopg.errors.InvalidName) as error:
        empty.execute(SCRIPT.read_bytes())
    assert "Choose a schema without" in error.value.diag.message_hint


@pytest.mark.parametrize("setting", [*["standard_conforming_strings = off"] * (major_version() < 19), "plpgsql.extra_errors = 'all'", "quote_all_identifiers = on",
                                     "array_nulls = off", "default_transaction_isolation = serializable"])
def test_settings_while_installing(prepared, setting):
    """The result is the same, except for the quotes around names."""
    bodies = ("SELECT oid::regprocedure::text, proparallel, translate(concat(prosrc, proconfig), chr(34) || chr(92), '')"
              " FROM pg_proc WHERE pronamespace = 'fernet'::regnamespace ORDER BY 1")
    install(prepared)
    usual = prepared.execute(bodies).fetchall()
    install(prepared, file=EDITION / "uninstall.sql")
    prepared.execute(f"SET {setting}; SET search_path = fernet")
    prepared.execute(SCRIPT.read_bytes())
    prepared.execute(f"RESET {setting.partition(' ')[0]}; RESET search_path")
    assert prepared.execute(bodies).fetchall() == usual


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_parallel_workers(owner, encoding):
    """No function fails there: neither if a ttl is out of range, nor if text is converted."""
    with owned_database("pg_fernet_sql_workers", owner, encoding) as name, \
            connect(name, user=owner, options="-c client_encoding=UTF8") as session:
        session.execute("CREATE EXTENSION pgcrypto; CREATE SCHEMA fernet; SET search_path = fernet")
        session.execute(SCRIPT.read_bytes())
        set_keys(session, NEW)
        session.execute("CREATE TABLE texts AS SELECT fernet_encrypt('käse') AS token, 'käse'::text AS plain FROM generate_series(1, 20)")
        session.execute("SET debug_parallel_query = on" if session.info.server_version >= 160000 else "SET force_parallel_mode = on")
        for call in ["fernet_decrypt(token)", "fernet_decrypt(token::bytea)", "fernet_encrypt(plain)", "fernet_rotate(token)", "fernet_key_index(token)",
                     "fernet_decrypt(token, '200000 years')", "fernet_decrypt_bytea(token, '300000 years -100000000 days')", "fernet_is_token(token)"]:
            assert value(session, f"SELECT count({call}) FROM texts") == 20, call
        if encoding == "UTF8":
            long = "é" * 5_500_000
            assert value(session, "SELECT fernet_decrypt(fernet_encrypt(%s::text)) = %s", long, long)
            # Between two pieces, and as the last byte.
            for bad in b"a" * 999_999 + b"\xc3" + b"a" * 10, "é".encode() * 600_000 + b"\xc3":
                with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
                    session.execute("SELECT fernet_decrypt(fernet_encrypt(%s::bytea))", [bad])


def test_others_in_the_schema_are_warned_of(prepared):
    assert told(install(prepared)) == [IN_FERNET]
    prepared.execute("CREATE SCHEMA shared; GRANT CREATE ON SCHEMA shared TO PUBLIC")
    warning = install(prepared, "shared").stderr
    assert "others may create functions in the schema of pg_fernet_sql" in warning and "PUBLIC" in warning


def test_where_it_is_and_another_copy_are_told(prepared):
    """Without search_path in PGOPTIONS, an update goes to public."""
    install(prepared)
    assert told(install(prepared, "public")) == [f"NOTICE:  pg_fernet_sql {VERSION} is in schema public; there is another in schema fernet"]


@pytest.mark.parametrize("privileges", ["", "GRANT EXECUTE ON FUNCTIONS TO PUBLIC, pg_monitor", "REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"])
def test_privileges(prepared, privileges):
    """Nothing that reads the keys is granted to others, whatever ALTER DEFAULT PRIVILEGES says."""
    if privileges:
        prepared.execute(f"ALTER DEFAULT PRIVILEGES {privileges}")
    install(prepared)
    for_all = set(column(prepared, "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'fernet'::regnamespace"
                                   " AND has_function_privilege('pg_monitor', oid, 'EXECUTE') AND proname !~ '^_'"))
    assert for_all == {"fernet_generate_key", "fernet_is_token", "fernet_version"}
    assert value(prepared, "SELECT bool_and(has_function_privilege('pg_monitor', oid, 'EXECUTE')) FROM pg_proc"
                           " WHERE pronamespace = 'fernet'::regnamespace AND proname ~ '^_'")


def test_a_role_with_one_function(prepared, owner):
    """A role that may rotate needs no right to anything else, including pgcrypto's schema."""
    prepared.execute("DROP EXTENSION pgcrypto; CREATE SCHEMA hidden; CREATE EXTENSION pgcrypto SCHEMA hidden")
    install(prepared)
    with connect("postgres") as server:
        server.execute("CREATE ROLE fernet_rotator LOGIN")
    try:
        prepared.execute("GRANT USAGE ON SCHEMA fernet TO fernet_rotator; GRANT EXECUTE ON FUNCTION fernet.fernet_rotate(text) TO fernet_rotator")
        with connect(prepared.info.dbname, [NEW, OLD], user="fernet_rotator", options="-c search_path=fernet") as session:
            old = Fernet(OLD).encrypt(b"secret").decode()
            assert Fernet(NEW).decrypt(value(session, "SELECT fernet_rotate(%s)", old)) == b"secret"
            assert '"' in value(session, "SELECT fernet_rotate(%s)", f'"{old}"')
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT fernet_decrypt(%s)", [old])
        prepared.execute(
            "REVOKE ALL ON SCHEMA fernet FROM fernet_rotator; REVOKE ALL ON ALL ROUTINES IN SCHEMA fernet FROM fernet_rotator")
    finally:
        with connect("postgres") as server:
            server.execute("DROP ROLE fernet_rotator")


def extensions():
    """Which of our objects the server can create."""
    sharedir = subprocess.run([os.environ["PG_CONFIG"], "--sharedir"], check=True, capture_output=True, text=True).stdout.strip()
    return Path(sharedir, "extension").glob("pg_fernet_sql*")


@pytest.fixture
def installed():
    """The edition among the extensions of the server; can be called again."""
    def run(what="install"):
        subprocess.run([ROOT / "scripts" / "sql-edition", what], check=True)

    run()
    yield run
    run("uninstall")
    assert list(extensions()) == []


def test_create_extension(prepared, installed):
    notes = notices(prepared)
    prepared.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")
    assert notes == []
    set_keys(prepared, NEW)
    assert value(prepared, "SELECT fernet.fernet_decrypt(fernet.fernet_encrypt('x'))") == "x"
    assert value(prepared, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')") is False
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        prepared.execute("ALTER EXTENSION pg_fernet_sql SET SCHEMA public")
    prepared.execute("DROP EXTENSION pg_fernet_sql")
    assert column(prepared, OURS, "fernet") == []


def test_update_of_the_extension(prepared, installed):
    """Installed beside an older version, it brings the way from there."""
    (control,) = [path for path in extensions() if path.suffix == ".control"]
    control.with_name("pg_fernet_sql--0.1.9.sql").write_text(SCRIPT.read_text().replace(f"pg_fernet_sql {VERSION}'", "pg_fernet_sql 0.1.9'"))
    installed()
    prepared.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet VERSION '0.1.9'")
    assert value(prepared, "SELECT fernet.fernet_version()") == "pg_fernet_sql 0.1.9"
    prepared.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_rotate(text) TO pg_monitor; ALTER EXTENSION pg_fernet_sql UPDATE")
    assert value(prepared, "SELECT fernet.fernet_version()") == f"pg_fernet_sql {VERSION}"
    assert value(prepared, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')")


def test_what_refuses_the_other_ways(prepared, installed):
    page = (ROOT / "docs/troubleshooting.md").read_text()
    install(prepared)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
        prepared.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")
    assert f"| 55000 | `{error.value.diag.message_primary}`" in page
    install(prepared, file=EDITION / "uninstall.sql")
    prepared.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")
    for file in SCRIPT, EDITION / "uninstall.sql":
        message = told(install(prepared, file=file, check=False))[0].removeprefix("ERROR:  ")
        # The planner chooses which function is the first.
        message = re.sub(r"fernet\._?fernet_\w+\([^)]*\)", "fernet._fernet_made()", message)
        assert f"| 2BP01 | `{message}`" in page
    prepared.execute("DROP EXTENSION pg_fernet_sql")


def test_create_extension_brings_pgcrypto(empty, installed):
    empty.execute("CREATE SCHEMA fernet; CREATE EXTENSION pg_fernet_sql SCHEMA fernet CASCADE")
    set_keys(empty, NEW)
    assert value(empty, "SELECT fernet.fernet_decrypt(fernet.fernet_encrypt('x'))") == "x"


@pytest.mark.parametrize("way", ["script", "extension"])
def test_dump_and_restore(prepared, owner, tmp_path, way, installed):
    if way == "script":
        install(prepared)
    else:
        prepared.execute("CREATE EXTENSION pg_fernet_sql SCHEMA fernet")
    prepared.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_keys() TO pg_monitor")
    set_keys(prepared, OLD)
    prepared.execute("CREATE TABLE public.secrets AS SELECT fernet.fernet_encrypt('secret') AS value")
    dump = tmp_path / "dump.sql"
    subprocess.run(["pg_dump", "-U", owner, "-d", prepared.info.dbname, "-f", dump], check=True)
    routines = column(prepared, OURS, "fernet")
    with owned_database("pg_fernet_sql_restored", owner) as name, connect(name, user=owner) as session:
        set_keys(session, NEW, OLD)
        subprocess.run(["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-U", owner, "-d", name, "-f", dump], check=True, capture_output=True)
        assert column(session, OURS, "fernet") == routines
        assert value(session, "SELECT fernet.fernet_decrypt(fernet.fernet_rotate(value)) FROM secrets") == "secret"
        assert value(session, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_rotate(text)', 'EXECUTE')") is False
        assert value(session, "SELECT has_function_privilege('pg_monitor', 'fernet.fernet_keys()', 'EXECUTE')")


def test_keys_from_pgoptions(database, owner):
    """In no statement, and so in no log."""
    with connect(database, user=owner, options=f"-c fernet.keys={NEW}") as session:
        assert value(session, "SELECT fernet_decrypt(fernet_encrypt('x'))") == "x"


TRAPS = """
    CREATE SCHEMA trap;
    GRANT USAGE ON SCHEMA trap TO PUBLIC;
    CREATE DOMAIN trap.text AS pg_catalog.int4; CREATE DOMAIN trap.bytea AS pg_catalog.int4; CREATE DOMAIN trap.name AS pg_catalog.int4;
    CREATE DOMAIN trap.timestamptz AS pg_catalog.int4; CREATE DOMAIN trap.regclass AS pg_catalog.int4; CREATE DOMAIN trap.tid AS pg_catalog.int4;
    CREATE DOMAIN trap.record AS pg_catalog.int4; CREATE DOMAIN trap.jsonb AS pg_catalog.int4; CREATE DOMAIN trap.xid AS pg_catalog.int4;
    DO $do$
    DECLARE
        f record;
        made integer := 0;
    BEGIN
        FOR f IN SELECT DISTINCT ON (proname, proargtypes) oid, proname, proargtypes, proretset, format_type(prorettype, NULL) AS result,
                        pg_get_function_identity_arguments(oid) AS arguments
                 FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f'
                   AND prorettype <> 'internal'::regtype AND NOT 'internal'::regtype = ANY (proargtypes::oid[])
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS %s LANGUAGE plpgsql AS ''BEGIN RAISE EXCEPTION ''''trapped in function %s''''; END''',
                               f.proname, f.arguments, CASE WHEN f.proretset THEN 'SETOF ' ELSE '' END || f.result, f.proname);
                made := made + 1;
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END LOOP;
        FOR f IN SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, p.proname
                 FROM pg_operator AS o JOIN pg_proc AS p ON p.oid = o.oprcode WHERE o.oprnamespace = 'pg_catalog'::regnamespace
        LOOP
            BEGIN
                EXECUTE format('CREATE OPERATOR trap.%s (FUNCTION = trap.%I%s, RIGHTARG = %s)', f.oprname, f.proname,
                               CASE WHEN f.l::oid <> 0 THEN ', LEFTARG = ' || f.l ELSE '' END, f.r);
                made := made + 1;
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END LOOP;
        ASSERT made > 2000, made;
    END $do$"""


def test_names_in_the_callers_path_mean_nothing(prepared):
    """Every function and operator of the server has a namesake that comes first, with the same arguments."""
    install(prepared)
    set_keys(prepared, NEW, OLD)
    old = Fernet(OLD).encrypt("é".encode()).decode()
    prepared.execute(f"CREATE TABLE public.secrets (id integer, value text, document jsonb, list text[]);"
                     f"INSERT INTO public.secrets SELECT i, '{old}', jsonb_build_array('{old}'), ARRAY['{old}'] FROM generate_series(1, 10) AS i")
    prepared.execute("CREATE TABLE public.encrypted (value varchar(200), bytes bytea);"
                     "CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON public.encrypted FOR EACH ROW EXECUTE FUNCTION"
                     " fernet.fernet_encrypt_trigger('value', 'bytes')")
    prepared.execute(TRAPS)
    prepared.execute("SET search_path = trap, pg_catalog")
    with pytest.raises(psycopg.errors.RaiseException, match="trapped in function"):
        prepared.execute("SELECT 1 + 1")
    text, bytes_, json = f"'{old}'::pg_catalog.text", f"pg_catalog.convert_to('{old}', 'UTF8')", f"""'["{old}"]'"""
    calls = ["generate_key()", "version()", "keys()", f"encrypt({text})", f"encrypt({bytes_})",
             f"rotate({json}::pg_catalog.json)", f"rotate({json}::pg_catalog.jsonb)", f"key_index({json}::pg_catalog.json)",
             f"key_index({json}::pg_catalog.jsonb)"]
    for function in "decrypt", "decrypt_bytea", "rotate", "key_index", "timestamp", "is_token":
        for token in text, bytes_, f"'[{old}]'::pg_catalog.text", f"'{old[:50]} {old[50:]}'::pg_catalog.text":
            calls.append(f"{function}({token})")
            if function.startswith("decrypt"):
                calls.append(f"{function}({token}, '1 hour', pg_catalog.statement_timestamp())")
                calls.append(f"{function}({token}, '200000 years', pg_catalog.statement_timestamp())")
    seen = 0
    for call in calls:
        try:
            prepared.execute(f"SELECT fernet.fernet_{call}")
            seen += 1
        except psycopg.Error as error:
            assert error.sqlstate in ("22P02", "39000"), (call, error)
    assert seen > 40
    for name in "value", "document", "list":
        assert prepared.execute(f"SELECT * FROM fernet.fernet_census('public.secrets'::pg_catalog.regclass, '{name}')").fetchall()[1][3] == 10
        assert prepared.execute(f"CALL fernet.fernet_rotate_column('public.secrets'::pg_catalog.regclass, '{name}', 3)").fetchone()[0] == 10
    assert len(prepared.execute("SELECT * FROM fernet.fernet_find_columns()").fetchall()) == 3
    for procedure in "decrypt", "encrypt":
        assert prepared.execute(
            f"CALL fernet.fernet_{procedure}_column('public.secrets'::pg_catalog.regclass, 'value', 3)").fetchone()[0] == 10
    prepared.execute("INSERT INTO public.encrypted VALUES ('one', 'two'); UPDATE public.encrypted SET bytes = 'three'")
    unknown = Fernet.generate_key()
    with pytest.raises(psycopg.Error, match="no key authenticates"):
        prepared.execute(f"UPDATE public.encrypted SET value = '{Fernet(unknown).encrypt(b'x').decode()}'")
    assert prepared.execute("SELECT fernet.fernet_decrypt(value), fernet.fernet_decrypt(bytes) FROM public.encrypted").fetchone() == ("one", "three")


def test_no_secret_is_said(db, rng):
    """With everything turned on that makes the server log more."""
    import pyca

    keys = [pyca.key_of(rng) for _ in range(2)]
    plaintext = b"attack at dawn\xff"
    token = pyca.encrypt(keys[0], plaintext, 1_000_000_000)
    badly_padded = pyca.sign(keys[1], pyca.decode(token)[:-32])
    said = []
    db.add_notice_handler(lambda diag: said.append(str(diag.message_primary) + str(diag.context)))
    db.execute("SET client_min_messages = debug5")
    for setting, call, argument in [
            (keys, "fernet_decrypt(%s::bytea)", token), (keys, "fernet_decrypt(%s::bytea, '1 s')", token), (keys, "fernet_rotate(%s::bytea)", badly_padded),
            (keys, "fernet_rotate(%s::bytea)", plaintext), (keys[1:], "fernet_decrypt(%s::bytea)", token),
            ([keys[0], keys[1][1:]], "fernet_decrypt(%s::bytea)", token), ([keys[0] + keys[1]], "fernet_encrypt(%s::bytea)", plaintext)]:
        db.execute("SELECT set_config('fernet.keys', %s, false)", [",".join(setting)])
        with pytest.raises(psycopg.Error) as error:
            db.execute(f"SELECT {call}", [argument])
        said.append(" ".join(str(getattr(error.value.diag, field)) for field in dir(error.value.diag) if field[0] != "_"))
    everything = " ".join(said)
    for secret in [*keys, "attack", "dawn", plaintext.hex(), token.decode()[-20:]]:
        assert secret[1:] not in everything
