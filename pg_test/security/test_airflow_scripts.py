"""The scripts in sql/airflow, run by a superuser in a database where others may create what they like, and by others.
The tables have the shape of Airflow's; pg_test/airflow has the real ones."""

import os
import re
import subprocess
import time

import pytest

import pyca
from key_files import key
from postgres import ROOT, column, connect, create_database, drop_database, set_keys, value
from tables import in_background, wait_until
from test_planted_objects import PLANT, sprung

DATABASE = "fernet_airflow"
TOKEN = "gAAAAA[A-Za-z0-9_-]+=*"
SCRIPTS = "rotate.sql", "encrypt.sql", "check.sql"
TABLES = {
    "dag_run": "id integer",
    "dag_bundle": "name varchar(250)",
    "connection": "id serial, conn_id varchar(250), password varchar(5000), extra text, is_encrypted boolean, is_extra_encrypted boolean",
    "variable": "id serial, key varchar(250), val text, is_encrypted boolean",
    "trigger": "id serial, kwargs text",
    "xcom": "dag_id varchar(250), run_id varchar(250), task_id varchar(250), map_index integer NOT NULL DEFAULT -1, key varchar(512), value jsonb",
    "connection_test_request": "id uuid DEFAULT gen_random_uuid(), connection_id varchar(250), password varchar(5000), extra text,"
                               " is_encrypted boolean NOT NULL DEFAULT false, is_extra_encrypted boolean NOT NULL DEFAULT false",
}

# Beside copies of the server's functions and operators: some that fit a varchar better than the server's and
# ours do.
PLANT_VARCHAR = """
DO $do$
DECLARE
    types CONSTANT oid[] := ARRAY['text', 'bytea', 'int', 'bigint', 'bool', 'timestamptz', 'interval', 'name', 'oid']::regtype[];
    body text := $$ BEGIN INSERT INTO traps.sprung VALUES (%L, current_user); RETURN NULL; END $$;
    schema text;
    arguments text;
    f record;
    o record;
BEGIN
    FOREACH schema IN ARRAY ARRAY['traps', 'public'] LOOP
        FOR f IN SELECT DISTINCT proname, prorettype, replace(array_to_string(proargtypes::regtype[], ', '), 'text', 'varchar') AS arguments
                 FROM pg_proc
                 WHERE (pronamespace = 'pg_catalog'::regnamespace OR pronamespace = 'public'::regnamespace AND proname LIKE 'fernet%')
                   AND 'text'::regtype = ANY (proargtypes::oid[]) AND prokind = 'f' AND NOT proretset AND pronargs <= 4
                   AND types @> proargtypes::oid[] AND prorettype = ANY (types)
        LOOP
            EXECUTE format('CREATE OR REPLACE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', schema, f.proname, f.arguments,
                           f.prorettype::regtype, format(body, format('%I.%I(%s)', schema, f.proname, f.arguments)));
        END LOOP;
        FOR o IN SELECT * FROM pg_operator
                 WHERE oprnamespace = 'pg_catalog'::regnamespace AND (oprleft, oprright) = ('text'::regtype, 'text'::regtype)
        LOOP
            FOREACH arguments IN ARRAY ARRAY['varchar, varchar', 'varchar, text', 'text, varchar'] LOOP
                EXECUTE format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', schema, 'operator ' || o.oprname, arguments,
                               o.oprresult::regtype, format(body, format('%I.%s(%s)', schema, o.oprname, arguments)));
                EXECUTE format('CREATE OPERATOR %I.%s (FUNCTION = %I.%I, LEFTARG = %s, RIGHTARG = %s)', schema, o.oprname,
                               schema, 'operator ' || o.oprname, split_part(arguments, ', ', 1), split_part(arguments, ', ', 2));
            END LOOP;
        END LOOP;
    END LOOP;
END $do$;

CREATE FUNCTION public.fernet_rotate(VARIADIC text[]) RETURNS text LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO traps.sprung VALUES ('variadic', current_user); RETURN NULL; END $$;

CREATE FUNCTION traps.current_schemas(boolean) RETURNS name[] LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO traps.sprung VALUES ('current_schemas', current_user); RETURN '{traps}'; END $$;
CREATE FUNCTION traps.count_on(bigint) RETURNS bigint LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO traps.sprung VALUES ('count', current_user); RETURN 0; END $$;
CREATE AGGREGATE traps.count(*) (SFUNC = traps.count_on, STYPE = bigint, INITCOND = '0');
CREATE FUNCTION traps.add(text, text, text) RETURNS text LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO traps.sprung VALUES ('string_agg', current_user); RETURN NULL; END $$;
CREATE AGGREGATE traps.string_agg(text, text) (SFUNC = traps.add, STYPE = text);

CREATE DOMAIN traps.name AS pg_catalog.text;
CREATE DOMAIN traps.text AS pg_catalog.int4;
CREATE DOMAIN traps.regtype AS pg_catalog.text;
CREATE VIEW traps.pg_class AS SELECT 1 AS nothing;
CREATE VIEW traps.pg_extension AS SELECT 1 AS nothing;
CREATE VIEW traps.pg_locks AS SELECT 1 AS nothing;
"""


@pytest.fixture(scope="module")
def roles():
    with connect("postgres") as admin:
        admin.execute("CREATE ROLE fernet_attacker LOGIN; CREATE ROLE fernet_airflow LOGIN")
        yield
        admin.execute("DROP ROLE fernet_attacker, fernet_airflow")


@pytest.fixture
def admin(roles, keys):
    """A superuser, in a database with Airflow's tables and the extension in schema public, where an attacker may create
    objects."""
    create_database(DATABASE)
    with connect(DATABASE) as admin:
        admin.execute("CREATE EXTENSION pg_fernet")
        admin.execute("CREATE SCHEMA traps AUTHORIZATION fernet_attacker")
        admin.execute("GRANT USAGE ON SCHEMA traps TO PUBLIC")
        admin.execute("GRANT CREATE ON SCHEMA public TO fernet_attacker, fernet_airflow")
        admin.execute(f"GRANT CREATE ON DATABASE {DATABASE} TO fernet_attacker")
        admin.execute("SET ROLE fernet_airflow")
        create_tables(admin, "public")
        admin.execute("RESET ROLE")
        set_keys(admin, *keys)
        fill(admin, "public", keys[1])
        yield admin
    drop_database(DATABASE)


def create_tables(session, schema, tables=TABLES):
    for table in tables:
        session.execute(f"CREATE TABLE {schema}.{table} ({TABLES[table]})")


def fill(session, schema, key):
    """A row with tokens of the key in each table, and one with plaintext."""
    for table, name in ("connection", "conn_id"), ("connection_test_request", "connection_id"):
        session.execute(f"INSERT INTO {schema}.{table} ({name}, password, extra, is_encrypted, is_extra_encrypted) VALUES"
                        " ('old', %s, %s, true, true), ('plain', 'plain password', '{}', false, false)",
                        [token(key, "password"), token(key, "extra")])
    session.execute(f"INSERT INTO {schema}.variable (key, val, is_encrypted) VALUES ('old', %s, true), ('plain', 'plain value', false)",
                    [token(key, "value")])
    session.execute(f"INSERT INTO {schema}.trigger (kwargs) VALUES (%s), ('{{}}')", [token(key, "kwargs")])
    session.execute(f"INSERT INTO {schema}.xcom (dag_id, run_id, task_id, key, value) VALUES ('d', 'r', 't', 'old', to_jsonb(%s::text)),"
                    " ('d', 'r', 't', 'plain', '{}'), ('d', 'r', 't', 'none', NULL)", [token(key, "xcom")])


def token(key, text):
    return pyca.encrypt(key, text.encode(), 1_700_000_000).decode()


@pytest.fixture
def attacker(admin):
    with connect(DATABASE, user="fernet_attacker") as session:
        session.execute("CREATE TABLE traps.sprung (trap text, victim text); GRANT INSERT ON traps.sprung TO PUBLIC")
        yield session


def psql(script, *keys, path=None, user="postgres", psqlrc="/dev/null"):
    options = f"-c fernet.keys={','.join(keys)}" + (f" -c search_path={path}" if path else "")
    environment = os.environ | {"PGOPTIONS": options, "PGUSER": user, "PGDATABASE": DATABASE, "PSQLRC": str(psqlrc)}
    return subprocess.run(["psql", "-f", ROOT / "sql" / "airflow" / script], env=environment, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=60)


def succeed(*arguments, **options):
    """What it prints."""
    done = psql(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def refusal(*arguments, **options):
    """The error with which it ends."""
    done = psql(*arguments, **options)
    assert done.returncode == 3, done.stdout + done.stderr
    return done.stderr


def snapshot(session):
    return {table: session.execute(f"SELECT t.ctid, t.xmin, t.* FROM public.{table} AS t ORDER BY t.ctid").fetchall() for table in TABLES}


def run_all(keys, **options):
    for script in SCRIPTS:
        printed = succeed(script, *keys, **options)
        assert "Airflow 3 in schema public of fernet_airflow, pg_fernet" in printed
    assert "All that Airflow encrypts is under the first key." in printed


#
# Planted objects
#

@pytest.mark.parametrize("path", [None, "traps,pg_catalog,public"])
def test_planted_functions_operators_types_and_catalogs(admin, attacker, keys, path):
    attacker.execute(PLANT.replace("CREATE TABLE traps.sprung (trap text, victim text);", ""))
    attacker.execute(PLANT_VARCHAR)
    if path:
        admin.execute(f"SET search_path = {path}")
        admin.execute("SELECT fernet_rotate('x'::varchar)")
        assert sprung(attacker) == ["traps.fernet_rotate(varchar)"]
        attacker.execute("TRUNCATE traps.sprung")
    run_all(keys, path=path)
    assert sprung(attacker) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_makes_a_call_ambiguous_is_not_called(admin, attacker, keys, script):
    for arguments in "token text, more integer DEFAULT 1", "more integer DEFAULT 1":
        for name in "fernet_is_token", "fernet_encrypt", "fernet_key_index", "fernet_rotate", "fernet_keys":
            attacker.execute(f"CREATE FUNCTION public.{name}({arguments}) RETURNS boolean LANGUAGE plpgsql"
                             " AS $$ BEGIN INSERT INTO traps.sprung VALUES ('default', current_user); RETURN NULL; END $$")
    before = snapshot(admin)
    assert "is not unique" in refusal(script, *keys)
    assert sprung(attacker) == [] and snapshot(admin) == before


#
# Whose tables
#

@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("tables", [["connection"], ["connection_test_request"], TABLES])
def test_tables_of_another_schema_are_not_taken_for_airflows(admin, attacker, keys, script, tables):
    """A schema with the caller's name comes first in the path."""
    attacker.execute("CREATE SCHEMA postgres")
    create_tables(attacker, "postgres", tables)
    before = snapshot(admin)
    assert "several schemas in the search path have tables with the same names as Airflow's: postgres, public" in refusal(script, *keys)
    assert snapshot(admin) == before


def test_the_schema_can_be_named(admin, attacker, keys):
    attacker.execute("CREATE SCHEMA postgres")
    create_tables(attacker, "postgres")
    run_all(keys, path="public")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_table_that_airflow_lacks_and_somebody_else_has_made(admin, attacker, keys, script):
    """Its triggers would run with the rights of the caller."""
    admin.execute("DROP TABLE public.connection_test_request")
    create_tables(attacker, "public", ["connection_test_request"])
    assert "Airflow's tables have several owners" in (error := refusal(script, *keys))
    assert "public.connection_test_request of fernet_attacker" in error


@pytest.mark.parametrize("kind", ["view", "materialized view", "foreign table"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_no_table(admin, keys, script, kind):
    admin.execute("ALTER TABLE public.connection RENAME TO hidden")
    admin.execute({
        "view": "CREATE VIEW public.connection AS SELECT * FROM public.hidden",
        "materialized view": "CREATE MATERIALIZED VIEW public.connection AS SELECT * FROM public.hidden",
        "foreign table": "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;"
                         " CREATE FOREIGN TABLE public.connection (id integer) SERVER nowhere",
    }[kind])
    assert "not an ordinary table: public.connection" in refusal(script, *keys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_temporary_tables(admin, keys, script, tmp_path):
    rc = tmp_path / "psqlrc"
    rc.write_text(f"CREATE TEMPORARY TABLE connection ({TABLES['connection']});\n")
    assert "Airflow 3 in schema public of fernet_airflow" in psql(script, *keys, psqlrc=rc).stdout
    assert value(admin, "SELECT count(*) FROM public.connection WHERE conn_id = 'old'") == 1
    rc.write_text("\n".join(f"CREATE TEMPORARY TABLE {table} ({columns});" for table, columns in TABLES.items()))
    assert "not an ordinary table: pg_temp_" in refusal(script, *keys, path="pg_temp", psqlrc=rc)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_airflow_and_no_extension(admin, keys, script):
    assert "no Airflow tables in the search path" in refusal(script, *keys, path="traps")
    admin.execute("DROP EXTENSION pg_fernet")
    assert "pg_fernet is not installed in this database" in refusal(script, *keys)


def test_names_that_must_be_quoted(admin, keys):
    admin.execute("""
        CREATE SCHEMA "the fernet's "; ALTER EXTENSION pg_fernet SET SCHEMA "the fernet's ";
        ALTER SCHEMA public RENAME TO "Air""flow's %s $$;" """)
    for script in SCRIPTS:
        printed = succeed(script, *keys, path='"Air""flow\'s\\ %s\\ $$;"')
        assert """Airflow 3 in schema "Air""flow's %s $$;" of fernet_airflow""" in printed
        assert """in schema "the fernet's "\n""" in printed


#
# What the versions of Airflow have
#

@pytest.mark.parametrize("xcom_type", ["bytea", "json", "jsonb"])
@pytest.mark.parametrize("trigger_type", ["text", "json"])
def test_tokens_in_documents(admin, keys, trigger_type, xcom_type):
    """Every byte that is not a token's stays."""
    document = '{"a": [1.50, "%s"],  "b": "%s%s"}'
    succeed("encrypt.sql", *keys)
    admin.execute("TRUNCATE public.trigger, public.xcom")
    admin.execute(f"ALTER TABLE public.trigger ALTER kwargs TYPE {trigger_type} USING kwargs::{trigger_type}")
    admin.execute(f"ALTER TABLE public.xcom DROP value, ADD value {xcom_type}")
    old = document % (token(keys[1], "one"), "text before ", token(keys[1], "two"))
    unchanged = document % ("gAAAAA", "", token(key(), "theirs"))
    for row in old, unchanged:
        admin.execute("INSERT INTO public.trigger (kwargs) VALUES (%s)", [row])
        admin.execute("INSERT INTO public.xcom (dag_id, run_id, task_id, map_index, key, value) VALUES ('d', 'r', 't', 3, 'k', %s)",
                      [row.encode() if xcom_type == "bytea" else row])
    checked = psql("check.sql", *keys).stdout
    for of_column in "trigger.kwargs", "xcom.value":
        row = next(line for line in checked.splitlines() if f" {of_column} " in line and "old key" in line)
        assert [part.strip() for part in row.split("|")][2::2] == ["2", "2"], checked
    assert checked.count("d/r/t/3/k") == 1  # it is named once

    succeed("rotate.sql", *keys)

    succeed("check.sql", keys[0])
    as_text = "convert_from(value, 'UTF8')" if xcom_type == "bytea" else "value::text"
    for table, rows in {"trigger": column(admin, "SELECT kwargs::text FROM public.trigger"),
                        "xcom": column(admin, f"SELECT {as_text} FROM public.xcom")}.items():
        if (table, xcom_type) == ("xcom", "jsonb"):
            old, unchanged = (value(admin, "SELECT %s::jsonb::text", row) for row in (old, unchanged))
        assert unchanged in rows
        rows.remove(unchanged)
        assert re.split(TOKEN, rows[0]) == re.split(TOKEN, old)
        assert [pyca.decrypt([keys[0]], found.encode()) for found in re.findall(TOKEN, rows[0])] == [b"one", b"two"]


@pytest.mark.parametrize("missing", [
    "DROP TABLE public.xcom",
    "DROP TABLE public.xcom, public.trigger, public.connection_test_request",
    "ALTER TABLE public.xcom DROP run_id, DROP map_index",
])
def test_an_airflow_that_has_less(admin, keys, missing):
    admin.execute(missing)
    run_all(keys)


#
# Rows that a policy hides
#

@pytest.mark.parametrize("script", SCRIPTS)
def test_a_policy_that_hides_rows_is_an_error(admin, keys, script):
    admin.execute("""
        ALTER TABLE public.connection ENABLE ROW LEVEL SECURITY;
        CREATE POLICY mine ON public.connection USING (conn_id = 'plain');
        CREATE ROLE fernet_tenant LOGIN;
        GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO fernet_tenant;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO fernet_tenant;
        GRANT SET ON PARAMETER fernet.keys TO fernet_tenant""")
    try:
        before = snapshot(admin)
        error = refusal(script, *keys, user="fernet_tenant")
        assert 'query would be affected by row-level security policy for table "connection"' in error
        assert snapshot(admin) == before
        # A role that sees all rows is not affected.
        run_all(keys)
    finally:
        admin.execute("DROP OWNED BY fernet_tenant; DROP ROLE fernet_tenant")


#
# Tokens without their key
#

def test_a_token_that_no_key_opens_is_never_plaintext(admin, keys):
    """Whatever its flag says: a second layer of encryption would hide it."""
    lost = token(key(), "lost")
    admin.execute("UPDATE public.connection SET password = %s, is_encrypted = false WHERE conn_id = 'old'", [lost])
    admin.execute("UPDATE public.connection_test_request SET extra = %s, is_extra_encrypted = false WHERE connection_id = 'old'", [lost])
    admin.execute("INSERT INTO public.variable (key, val, is_encrypted) VALUES ('lost', %s, false), ('ancient', %s, NULL)", [lost, lost])
    kept = {"connection": ("conn_id", "password", "is_encrypted"), "connection_test_request": ("connection_id", "extra", "is_extra_encrypted"),
            "variable": ("key", "val", "is_encrypted")}

    def left():
        return {table: sorted(admin.execute(f"SELECT {name}, {flag} FROM public.{table} WHERE {secret} = %s", [lost]).fetchall(), key=str)
                for table, (name, secret, flag) in kept.items()}

    before = left()
    succeed("rotate.sql", *keys)
    done = psql("encrypt.sql", *keys)
    assert done.returncode == 0
    assert "left as they are: 4\n" in done.stderr and lost not in done.stdout + done.stderr
    assert [line.split(" | ")[1].strip() for line in done.stdout.splitlines()[-6:-2]] == ["old", "old", "ancient", "lost"]
    assert left() == before

    checked = psql("check.sql", *keys)
    assert checked.returncode == 3
    statuses = {tuple(part.strip() for part in line.split(" | ")[:2]) for line in checked.stdout.splitlines() if line.endswith(" | no")}
    assert statuses == {("connection.password", "unknown key"), ("connection_test_request.extra", "unknown key"), ("variable.val", "unknown key")}

    # What is not a token of Airflow's can be encrypted by hand.
    admin.execute("UPDATE public.variable SET val = fernet_encrypt(val::text), is_encrypted = true WHERE val = %s", [lost])
    assert "left as they are: 2\n" in psql("encrypt.sql", *keys).stderr


#
# What is not in order, and the cures of docs/airflow.md
#

def statuses(*keys):
    """The values that are not in order, and the hint, as check.sql prints them."""
    done = psql("check.sql", *keys)
    assert done.returncode == 3
    return {tuple(part.strip() for part in line.split(" | ")[:2]) for line in done.stdout.splitlines() if line.endswith(" | no")}, done.stderr


@pytest.mark.parametrize("column, table, secret, flag, name", [
    ("connection.password", "connection", "password", "is_encrypted", "conn_id"),
    ("connection.extra", "connection", "extra", "is_extra_encrypted", "conn_id"),
    ("variable.val", "variable", "val", "is_encrypted", "key"),
])
def test_plaintext_under_a_flag(admin, keys, column, table, secret, flag, name):
    succeed("encrypt.sql", *keys)
    succeed("rotate.sql", *keys)
    admin.execute(f"UPDATE public.{table} SET {secret} = 'plaintext' WHERE {name} = 'old'")
    before = snapshot(admin)
    done = psql("rotate.sql", *keys)
    assert done.returncode == 3 and "value is not a Fernet token" in done.stderr
    assert "If this stops at a value, run check.sql: it names the value.\n" in done.stdout
    assert snapshot(admin) == before
    found, told = statuses(*keys)
    assert found == {(column, "not a token")}
    assert """For "not a token", correct the flag if the value is plaintext, then run encrypt.sql.""" in told

    admin.execute(f"UPDATE public.{table} SET {flag} = false WHERE {name} = 'old' AND NOT fernet_is_token({secret}::text)")
    run_all(keys)
    assert value(admin, f"SELECT fernet_decrypt({secret}) FROM public.{table} WHERE {name} = 'old'") == "plaintext"


def test_a_token_of_an_older_key_without_its_flag(admin, keys):
    """encrypt.sql sets the flag, and rotate.sql rotates."""
    succeed("encrypt.sql", *keys)
    succeed("rotate.sql", *keys)
    admin.execute("UPDATE public.variable SET val = %s, is_encrypted = false WHERE key = 'old'", [token(keys[1], "value")])
    assert statuses(*keys)[0] == {("variable.val", "flag missing")}
    succeed("encrypt.sql", *keys)
    assert statuses(*keys)[0] == {("variable.val", "old key")}
    succeed("rotate.sql", *keys)
    succeed("check.sql", *keys)


@pytest.mark.parametrize("flag", [True, False])
def test_a_token_whose_key_was_missing(admin, keys, flag):
    """With its key at the end of the list, the same two."""
    missing = key()
    succeed("encrypt.sql", *keys)
    succeed("rotate.sql", *keys)
    admin.execute("UPDATE public.variable SET val = %s, is_encrypted = %s WHERE key = 'old'", [token(missing, "value"), flag])
    assert statuses(*keys)[0] == {("variable.val", "unknown key")}
    if not flag:
        succeed("encrypt.sql", *keys, missing)
    assert statuses(*keys, missing)[0] == {("variable.val", "old key")}
    succeed("rotate.sql", *keys, missing)
    succeed("check.sql", *keys)


def test_one_key_in_the_list(admin, keys):
    assert "there is a single key in the list" in psql("rotate.sql", keys[1]).stderr
    succeed("rotate.sql", *keys)


#
# Whatever .psqlrc says
#

@pytest.mark.parametrize("settings", [
    r"\set ON_ERROR_ROLLBACK on",
    "\\set ON_ERROR_ROLLBACK on\n\\set AUTOCOMMIT off",
    "\\set AUTOCOMMIT off\nSELECT 1;",
    "\\set ON_ERROR_ROLLBACK on\n\\set AUTOCOMMIT off\nSET statement_timeout = '10 min';",
    r"\set SINGLELINE on",
    r"\set FETCH_COUNT 1",
    r"\set ON_ERROR_STOP off",
    "\\set ECHO all\n\\set ECHO_HIDDEN on\n\\set VERBOSITY verbose\n\\timing on\n\\set QUIET off",
    "\\pset format unaligned\n\\pset tuples_only on\n\\pset expanded on\n\\pset null '∅'\n\\pset footer off\n\\pset fieldsep ''\n\\pset title x",
    "\\set schema traps\n\\set fernet traps\n\\set is_refused true\n\\set refusal nonsense\n\\set path '{traps}'\n\\set failed on",
    "SET standard_conforming_strings = off;\nSET quote_all_identifiers = on;\nSET bytea_output = escape;",
])
def test_psqlrc(admin, attacker, keys, settings, tmp_path):
    rc = tmp_path / "psqlrc"
    rc.write_text(settings + "\n")
    for script in SCRIPTS:
        done = psql(script, *keys, psqlrc=rc)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr.replace("WARNING:  there is already a transaction in progress", "")
    assert "All that Airflow encrypts is under the first key." in done.stdout
    tokens = column(admin, "SELECT fernet_key_index(password) FROM public.connection")
    assert tokens == [1, 1]
    assert psql("check.sql", keys[1], psqlrc=rc).returncode == 3
    assert psql("rotate.sql", keys[2], psqlrc=rc).returncode == 3
    assert column(admin, "SELECT fernet_key_index(password) FROM public.connection") == [1, 1]


#
# Strangers who could put something in the place of what is there, or have attached something to it
#

STRANGER = "belongs to fernet_attacker, who is neither a superuser nor the owner of Airflow's tables"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("what", ["DATABASE fernet_airflow", "SCHEMA public", "SCHEMA fernet"])
def test_a_stranger_owns_the_schema(admin, keys, script, what):
    if what == "SCHEMA fernet":
        admin.execute("CREATE SCHEMA fernet; ALTER EXTENSION pg_fernet SET SCHEMA fernet")
    admin.execute(f"ALTER {what} OWNER TO fernet_attacker")
    schema = "fernet" if "fernet" in what.split()[1:] else "public"
    assert f"schema {schema} {STRANGER}" in refusal(script, *keys)
    # It is right if the owner is the owner of the tables, or the server's user.
    for owner in "fernet_airflow", "postgres":
        admin.execute(f"ALTER {what} OWNER TO {owner}")
        assert "Airflow 3 in schema public of fernet_airflow" in psql(script, *keys).stdout


@pytest.mark.parametrize("script", ["rotate.sql", "encrypt.sql"])
def test_a_strangers_trigger_on_xcom(admin, attacker, keys, script):
    admin.execute("GRANT TRIGGER ON public.xcom TO fernet_attacker")
    attacker.execute("CREATE FUNCTION traps.spring() RETURNS trigger LANGUAGE plpgsql"
                     " AS $$ BEGIN INSERT INTO traps.sprung VALUES ('trigger', current_user); RETURN NEW; END $$;"
                     "CREATE TRIGGER t BEFORE UPDATE ON public.xcom FOR EACH ROW EXECUTE FUNCTION traps.spring()")
    assert "trigger t on public.xcom runs code of fernet_attacker" in refusal(script, *keys)
    assert sprung(admin) == []


@pytest.mark.parametrize("script", ["rotate.sql", "encrypt.sql"])
@pytest.mark.parametrize("planted", ["function", "condition"])
def test_a_strangers_trigger(admin, attacker, keys, script, planted):
    admin.execute("GRANT TRIGGER ON public.connection TO fernet_attacker")
    admin.execute("CREATE FUNCTION public.harmless() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
                  "GRANT EXECUTE ON FUNCTION public.harmless() TO PUBLIC")
    attacker.execute("CREATE FUNCTION traps.spring() RETURNS trigger LANGUAGE plpgsql"
                     " AS $$ BEGIN INSERT INTO traps.sprung VALUES ('trigger', current_user); RETURN NEW; END $$;"
                     "CREATE FUNCTION traps.spring_when(text) RETURNS boolean LANGUAGE plpgsql"
                     " AS $$ BEGIN INSERT INTO traps.sprung VALUES ('when', current_user); RETURN true; END $$")
    attacker.execute("CREATE TRIGGER t BEFORE UPDATE ON public.connection FOR EACH ROW "
                     + ("EXECUTE FUNCTION traps.spring()" if planted == "function"
                        else "WHEN (traps.spring_when(OLD.conn_id)) EXECUTE FUNCTION public.harmless()"))
    assert "trigger t on public.connection runs code of fernet_attacker" in refusal(script, *keys)
    assert sprung(admin) == []
    admin.execute("ALTER TABLE public.connection DISABLE TRIGGER t")
    assert psql(script, *keys).returncode == 0
    # The owner's own trigger runs.
    admin.execute("ALTER TABLE public.connection ENABLE TRIGGER t")
    admin.execute("ALTER FUNCTION traps.spring() OWNER TO fernet_airflow; ALTER FUNCTION traps.spring_when(text) OWNER TO fernet_airflow")
    assert psql(script, *keys).returncode == 0


@pytest.mark.parametrize("script", ["rotate.sql", "encrypt.sql"])
def test_a_table_that_is_replaced_while_the_script_waits(admin, keys, script):
    with connect(DATABASE) as other:
        other.execute("BEGIN")
        other.execute("DROP TABLE public.connection")
        other.execute("SET ROLE fernet_airflow")
        create_tables(other, "public", ["connection"])
        with in_background(refusal, script, *keys) as call:
            wait_until(lambda: value(admin, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = %s AND query LIKE %s"
                                            " AND pid <> pg_backend_pid())", DATABASE, "%are_locked boolean%"))
            other.execute("COMMIT")
            assert "Airflow's tables were replaced while this waited for them" in call.result()


# The locks of who sleeps, on tables and not on their indexes.
HELD = """
    SELECT c.relname, l.mode FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation JOIN pg_stat_activity AS a USING (pid)
    WHERE a.datname = %s AND a.wait_event = 'PgSleep' AND c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"""


@pytest.mark.parametrize("script", ["rotate.sql", "encrypt.sql"])
@pytest.mark.parametrize("table, mode, tasks_write", [("variable", "ROW EXCLUSIVE", True), ("xcom", "SHARE", False)])
def test_the_script_names_whom_it_waits_for(admin, keys, script, table, mode, tasks_write):
    """Roles that write to xcom are not among them."""
    with connect(DATABASE) as task, connect(DATABASE) as other:
        if tasks_write:
            task.execute("BEGIN; DELETE FROM public.xcom WHERE key = 'plain'")
        other.execute(f"BEGIN; LOCK TABLE public.{table} IN {mode} MODE")
        with in_background(psql, script, *keys) as call:
            wait_until(lambda: value(admin, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = %s"
                                            " AND wait_event = 'PgSleep')", DATABASE))
            # What it holds meanwhile keeps no writer waiting.
            wait_until(lambda: set(admin.execute(HELD, [DATABASE])) == ({("xcom", "AccessShareLock")} if script == "rotate.sql" else set()))
            time.sleep(1.5)
            other.execute("COMMIT")
            done = call.result()
        assert done.returncode == 0
        assert f"Processes: {other.info.backend_pid}.\n" in done.stderr


@pytest.mark.parametrize("encoding", ["EUC_JP", "GBK", "BIG5", "LATIN1"])
def test_encodings_of_the_client(admin, keys, encoding):
    admin.execute(f"ALTER DATABASE {DATABASE} SET client_encoding = '{encoding}'")
    for script in "encrypt.sql", "rotate.sql", "check.sql":
        done = psql(script, *keys)
        assert (done.returncode, done.stderr) == (0, "")
    assert "All that Airflow encrypts is under the first key." in psql("check.sql", *keys).stdout


#
# The part that the three have in common
#

def test_the_scripts_find_and_lock_the_tables_in_the_same_way():
    """It is in each of them, so that each can be read by itself, and piped to psql elsewhere."""
    texts = [(ROOT / "sql" / "airflow" / script).read_text() for script in SCRIPTS]
    settings, found, locked = (
        [text.partition(begins)[2].partition(ends)[0] for text in texts]
        for begins, ends in (("\\set ON_ERROR_STOP", "BEGIN; COMMIT;"), ("-- After this", "\\endif"), ("-- Lock the tables", "END $$;")))
    assert settings[0] and len(set(settings)) == 1
    assert found[0] and len(set(found)) == 1
    assert locked[0] and locked == [locked[0], locked[0], ""]
