"""Who may do what: roles by functions and settings."""

import os
from contextlib import ExitStack
from types import SimpleNamespace

import psycopg
import pytest

import pyca
from key_files import folder_for, key, write
from postgres import column, connect, create_database, drop_database, value

DATABASE = "fernet_privileges"
# The roles, and what each is granted. Each name gets a prefix.
ROLES = {
    "superuser": [],
    "owner": [],  # of the database
    "rotator": ["EXECUTE ON FUNCTION fernet_rotate(text), fernet_rotate(bytea), fernet_rotate(json), fernet_rotate(jsonb)"],
    "decryptor": ["EXECUTE ON FUNCTION fernet_decrypt(text), fernet_decrypt(bytea)",
                  "EXECUTE ON FUNCTION fernet_decrypt(text, interval, timestamptz), fernet_decrypt(bytea, interval, timestamptz)",
                  "EXECUTE ON PROCEDURE fernet_decrypt_column, fernet_decrypt_shard"],
    "operator": ["EXECUTE ON FUNCTION fernet_census, fernet_find_columns", "EXECUTE ON PROCEDURE fernet_rotate_column, fernet_rotate_shard"],
    "setter": ["SET ON PARAMETER fernet.keys, fernet.keys_file, fernet.keys_command"],
    "nobody": [],
    "reader": ["pg_read_all_settings"],
    "monitor": ["pg_monitor"],
}

MATRIX = """
                                                    superuser owner rotator decryptor operator setter nobody reader monitor
fernet_census(regclass,name)                            x       .      .        .        x       .      .      .       .
fernet_decrypt(bytea)                                   x       .      .        x        .       .      .      .       .
fernet_decrypt(bytea,interval,timestamptz)              x       .      .        x        .       .      .      .       .
fernet_decrypt(text)                                    x       .      .        x        .       .      .      .       .
fernet_decrypt(text,interval,timestamptz)               x       .      .        x        .       .      .      .       .
fernet_decrypt_bytea(bytea)                             x       .      .        .        .       .      .      .       .
fernet_decrypt_bytea(bytea,interval,timestamptz)        x       .      .        .        .       .      .      .       .
fernet_decrypt_bytea(text)                              x       .      .        .        .       .      .      .       .
fernet_decrypt_bytea(text,interval,timestamptz)         x       .      .        .        .       .      .      .       .
fernet_decrypt_column(regclass,name,integer,integer)    x       .      .        x        .       .      .      .       .
fernet_decrypt_shard(regclass,name,integer,text,text)   x       .      .        x        .       .      .      .       .
fernet_encrypt(bytea)                                   x       .      .        .        .       .      .      .       .
fernet_encrypt(text)                                    x       .      .        .        .       .      .      .       .
fernet_encrypt_column(regclass,name,integer,integer)    x       .      .        .        .       .      .      .       .
fernet_encrypt_shard(regclass,name,integer,text,text)   x       .      .        .        .       .      .      .       .
fernet_encrypt_trigger()                                x       .      .        .        .       .      .      .       .
fernet_find_columns(integer)                            x       .      .        .        x       .      .      .       .
fernet_generate_key()                                   x       x      x        x        x       x      x      x       x
fernet_is_token(bytea)                                  x       x      x        x        x       x      x      x       x
fernet_is_token(text)                                   x       x      x        x        x       x      x      x       x
fernet_key_index(bytea)                                 x       .      .        .        .       .      .      .       .
fernet_key_index(json)                                  x       .      .        .        .       .      .      .       .
fernet_key_index(jsonb)                                 x       .      .        .        .       .      .      .       .
fernet_key_index(text)                                  x       .      .        .        .       .      .      .       .
fernet_keys()                                           x       .      .        .        .       .      .      .       .
fernet_rotate(bytea)                                    x       .      x        .        .       .      .      .       .
fernet_rotate(json)                                     x       .      x        .        .       .      .      .       .
fernet_rotate(jsonb)                                    x       .      x        .        .       .      .      .       .
fernet_rotate(text)                                     x       .      x        .        .       .      .      .       .
fernet_rotate_column(regclass,name,integer,boolean,integer) x       .      .        .        x       .      .      .       .
fernet_rotate_shard(regclass,name,integer,boolean,text,text) x  .      .        .        x       .      .      .       .
fernet_timestamp(bytea)                                 x       .      .        .        .       .      .      .       .
fernet_timestamp(text)                                  x       .      .        .        .       .      .      .       .
SHOW fernet.keys                                        x       .      .        .        .       .      .      x       x
SHOW fernet.keys_command                                x       .      .        .        .       .      .      x       x
SHOW fernet.keys_file                                   x       .      .        .        .       .      .      x       x
SHOW fernet.mask_log                                    x       x      x        x        x       x      x      x       x
fernet.keys in pg_settings                              .       .      .        .        .       .      .      .       .
fernet.keys_command in pg_settings                      x       .      .        .        .       .      .      x       x
fernet.keys_file in pg_settings                         x       .      .        .        .       .      .      x       x
fernet.mask_log in pg_settings                          x       x      x        x        x       x      x      x       x
SET fernet.keys                                         x       .      .        .        .       x      .      .       .
SET fernet.keys_command                                 .       .      .        .        .       .      .      .       .
SET fernet.keys_file                                    x       .      .        .        .       x      .      .       .
SET fernet.mask_log                                     x       .      .        .        .       .      .      .       .
ALTER DATABASE SET fernet.keys                          x       .      .        .        .       .      .      .       .
ALTER DATABASE SET fernet.keys_command                  .       .      .        .        .       .      .      .       .
ALTER DATABASE SET fernet.keys_file                     x       .      .        .        .       .      .      .       .
ALTER DATABASE SET fernet.mask_log                      x       .      .        .        .       .      .      .       .
ALTER ROLE SET fernet.keys                              x       .      .        .        .       x      .      .       .
ALTER ROLE SET fernet.keys_command                      .       .      .        .        .       .      .      .       .
ALTER ROLE SET fernet.keys_file                         x       .      .        .        .       x      .      .       .
ALTER ROLE SET fernet.mask_log                          x       .      .        .        .       .      .      .       .
ALTER SYSTEM SET fernet.keys                            x       .      .        .        .       .      .      .       .
ALTER SYSTEM SET fernet.keys_command                    x       .      .        .        .       .      .      .       .
ALTER SYSTEM SET fernet.keys_file                       x       .      .        .        .       .      .      .       .
ALTER SYSTEM SET fernet.mask_log                        x       .      .        .        .       .      .      .       .
CREATE FUNCTION SET fernet.keys                         x       .      .        .        .       x      .      .       .
CREATE FUNCTION SET fernet.keys_command                 .       .      .        .        .       .      .      .       .
CREATE FUNCTION SET fernet.keys_file                    x       .      .        .        .       x      .      .       .
CREATE FUNCTION SET fernet.mask_log                     x       .      .        .        .       .      .      .       .
pg_file_settings                                        x       .      .        .        .       .      .      .       .
"""


def matrix():
    header, *rows = MATRIX.strip("\n").splitlines()
    rows = [row.rsplit(maxsplit=len(ROLES)) for row in rows]
    return {action: dict(zip(header.split(), marks, strict=True)) for action, *marks in rows}


@pytest.fixture(scope="module")
def roles():
    """A session of each role in a database that the owner owns, with keys from a file."""
    create_database(DATABASE)
    keys = key(), key()
    with ExitStack() as stack:
        admin = stack.enter_context(connect(DATABASE))
        admin.execute("CREATE EXTENSION pg_fernet")
        admin.execute("CREATE TABLE tokens (token text)")
        admin.execute("GRANT SELECT, UPDATE ON tokens TO PUBLIC")
        for role, grants in ROLES.items():
            admin.execute(f"CREATE ROLE fernet_{role} LOGIN" + " SUPERUSER" * (role == "superuser"))
            stack.callback(admin.execute, f"DROP ROLE fernet_{role}")
            stack.callback(admin.execute, f"DROP OWNED BY fernet_{role}")
            for grant in grants:
                admin.execute(f"GRANT {grant} TO fernet_{role}")
        admin.execute(f"ALTER DATABASE {DATABASE} OWNER TO fernet_owner")
        stack.callback(admin.execute, f"ALTER DATABASE {DATABASE} OWNER TO CURRENT_USER")
        file = write(folder_for(os.environ["PGHOST"]) / "keys", *keys)
        admin.execute(f"ALTER DATABASE {DATABASE} SET fernet.keys_file = '{file}'")

        sessions = {role: stack.enter_context(connect(DATABASE, user=f"fernet_{role}")) for role in ROLES}
        for session in sessions.values():
            session.execute("SELECT fernet_is_token('x')")  # loads the library
        yield SimpleNamespace(keys=keys, file=file, admin=stack.enter_context(connect(DATABASE)), **sessions)
        for session in sessions.values():
            session.close()
    drop_database(DATABASE)


@pytest.fixture
def token(roles):
    """A token of the older key."""
    return pyca.encrypt(roles.keys[1], b"hello", 1_700_000_000).decode()


FINGERPRINTS = "SELECT string_agg(fingerprint, ',' ORDER BY key_index) FROM fernet_keys()"
SETTING = {
    "SET": "SET {}",
    "ALTER DATABASE SET": f"ALTER DATABASE {DATABASE} SET {{}}",
    "ALTER ROLE SET": "ALTER ROLE CURRENT_USER SET {}",
    "ALTER SYSTEM SET": "ALTER SYSTEM SET {}",
    "CREATE FUNCTION SET": "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET {} AS 'SELECT 1'",
}


def statement(action, token, fingerprints):
    """What a row of the matrix means in SQL."""
    procedure = action.partition("(")[0]
    if procedure.endswith("_shard"):
        strict = ", false" if "boolean" in action else ""
        return f"CALL {procedure}('tokens', 'token', 10{strict}, '{fingerprints}')"
    if procedure.endswith("_column"):
        return f"CALL {procedure}('tokens', 'token')"
    if procedure == "fernet_encrypt_trigger":
        return ("CREATE TEMP TABLE written (token text); CREATE TRIGGER encrypt BEFORE INSERT ON written"
                " FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('token'); INSERT INTO written VALUES ('hello')")
    if action.startswith("fernet_"):
        function, _, types = action.rstrip(")").partition("(")
        arguments = {
            "text": f"'{token}'::text", "bytea": f"'{token}'::bytea", "json": f"to_json('{token}'::text)", "jsonb": f"to_jsonb('{token}'::text)",
            "interval": "'100 years'", "timestamptz": "now()",
            "regclass": "'tokens'", "name": "'token'", "integer": "10"}
        return f"SELECT {function}({', '.join(arguments[type] for type in types.split(',') if type)})"
    if " in pg_settings" in action:
        return f"SELECT 1 / count(*) FROM pg_settings WHERE name = '{action.split()[0]}'"
    if action == "pg_file_settings":
        return "SELECT count(*) FROM pg_file_settings"
    verb, _, setting = action.rpartition(" ")
    if verb == "SHOW":
        return action
    values = {"fernet.keys": key(), "fernet.mask_log": "off"}
    return SETTING[verb].format(f"{setting} = '{values.get(setting, '/bin/true')}'")


def may(session, query):
    """Whether the role is allowed to. Nothing may have changed afterwards."""
    try:
        if query.startswith("ALTER SYSTEM"):
            session.execute(query)
            session.execute(query.replace(" SET ", " RESET ").partition(" = ")[0])
        elif query.startswith("CALL"):
            session.execute(query)
        else:
            with session.transaction(force_rollback=True):
                session.execute(query)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.CantChangeRuntimeParam):
        return "."
    except psycopg.errors.DivisionByZero:
        return "."  # not a row of pg_settings
    return "x"


@pytest.mark.parametrize("action", matrix())
def test_matrix(roles, token, action):
    query = statement(action, token, value(roles.admin, FINGERPRINTS))
    assert {role: may(getattr(roles, role), query) for role in ROLES} == matrix()[action]


def signature(function):
    return function.replace("timestamp with time zone", "timestamptz").replace(",bigint" * 5, "")


def test_the_matrix_has_every_function_and_setting(roles):
    rows = matrix()
    functions = column(roles.admin, "SELECT objid::regprocedure::text FROM pg_depend WHERE deptype = 'e' AND classid = 'pg_proc'::regclass"
                       " AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet')")
    assert {row for row in rows if row.startswith("fernet_")} == {signature(function) for function in functions}
    settings = {*column(roles.superuser, "SELECT name FROM pg_settings WHERE name LIKE 'fernet.%'"), "fernet.keys"}
    assert {row.removeprefix("SHOW ") for row in rows if row.startswith("SHOW ")} == settings


def test_an_extension_is_the_superusers(roles):
    """The owner of the database may neither create nor change nor drop it."""
    create_database("fernet_without")
    try:
        roles.admin.execute("ALTER DATABASE fernet_without OWNER TO fernet_owner")
        with connect("fernet_without", user="fernet_owner") as owner:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute("CREATE EXTENSION pg_fernet")
        for query in "DROP EXTENSION pg_fernet", "ALTER EXTENSION pg_fernet SET SCHEMA pg_temp", "ALTER EXTENSION pg_fernet UPDATE":
            assert may(roles.owner, query) == "."
    finally:
        drop_database("fernet_without")


#
# Who may set keys
#

def test_who_sets_keys_is_not_shown_them(roles):
    own = key()
    with roles.setter.transaction(force_rollback=True):
        roles.setter.execute(f"SET fernet.keys = '{own}'")
        for query in ("SHOW fernet.keys", "SELECT current_setting('fernet.keys')", "SHOW fernet.keys_file",
                      f"SELECT set_config('fernet.keys', '{own}', false)",  # which would return it
                      "ALTER ROLE CURRENT_USER SET fernet.keys FROM CURRENT",  # which everybody could read
                      "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET fernet.keys FROM CURRENT AS 'SELECT 1'"):
            assert may(roles.setter, query) == "."


def test_who_sets_keys_loses_those_of_the_configuration(roles, token):
    """If it could add its own keys, a role could rotate tokens so that it can read them."""
    roles.admin.execute("GRANT EXECUTE ON FUNCTION fernet_rotate(text) TO fernet_setter")
    try:
        with roles.setter.transaction(force_rollback=True):
            roles.setter.execute(f"SET fernet.keys = '{key()}'")
            with pytest.raises(psycopg.errors.ExternalRoutineInvocationException):
                roles.setter.execute(f"SELECT fernet_rotate('{token}')")
    finally:
        roles.admin.execute("REVOKE EXECUTE ON FUNCTION fernet_rotate(text) FROM fernet_setter")


@pytest.mark.parametrize("setting", ["fernet.keys", "fernet.keys_file", "fernet.keys_command"])
def test_an_ordinary_role_stores_no_setting_before_the_library_is_loaded(roles, setting):
    for query in (f"ALTER ROLE CURRENT_USER SET {setting} = 'x'", f"ALTER SYSTEM SET {setting} = 'x'",
                  f"CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET {setting} = 'x' AS 'SELECT 1'"):
        with connect(DATABASE, user="fernet_nobody") as session:
            assert may(session, query) == "."
    with connect(DATABASE, user="fernet_owner") as session:
        assert may(session, f"ALTER DATABASE {DATABASE} SET {setting} = 'x'") == "."


#
# Who may only rotate
#

@pytest.fixture
def table(roles, token):
    """A table that the rotator owns, and a schema for more."""
    roles.admin.execute("CREATE SCHEMA rotator AUTHORIZATION fernet_rotator")
    roles.rotator.execute("CREATE TABLE rotator.secrets (token text)")
    roles.rotator.execute("INSERT INTO rotator.secrets VALUES (%s)", [token])
    yield
    roles.admin.execute("DROP SCHEMA rotator CASCADE")


def test_who_may_rotate_does(roles, table):
    roles.rotator.execute("UPDATE rotator.secrets SET token = fernet_rotate(token)")
    assert value(roles.admin, "SELECT fernet_key_index(token) FROM rotator.secrets") == 1
    assert value(roles.admin, "SELECT fernet_decrypt(token) FROM rotator.secrets") == "hello"


@pytest.mark.parametrize("query", [
    "SELECT fernet_decrypt(token) FROM rotator.secrets",
    "SELECT fernet_decrypt_bytea(token) FROM rotator.secrets",
    "SELECT fernet_decrypt(fernet_rotate(token)) FROM rotator.secrets",
    "SELECT FROM rotator.secrets WHERE fernet_decrypt(token) = 'hello'",
    "SELECT FROM pg_class WHERE relname = fernet_decrypt('{token}')",
    "EXPLAIN SELECT FROM pg_class WHERE relname = fernet_decrypt('{token}')",
    "DO 'BEGIN PERFORM fernet_decrypt(token) FROM rotator.secrets; END'",
    "PREPARE leak AS SELECT fernet_decrypt(token) FROM rotator.secrets; EXECUTE leak",
    # Its own objects that call it.
    "CREATE VIEW rotator.leak AS SELECT fernet_decrypt(token) FROM rotator.secrets; SELECT * FROM rotator.leak",
    "CREATE TABLE rotator.leak AS SELECT fernet_decrypt(token) FROM rotator.secrets",
    "CREATE MATERIALIZED VIEW rotator.leak AS SELECT fernet_decrypt(token) FROM rotator.secrets",
    "CREATE TABLE rotator.leak (t text DEFAULT fernet_decrypt('{token}')); INSERT INTO rotator.leak VALUES (DEFAULT)",
    "CREATE TABLE rotator.leak (t text CHECK (fernet_decrypt(t) <> '')); INSERT INTO rotator.leak VALUES ('{token}')",
    "CREATE FUNCTION rotator.leak() RETURNS text LANGUAGE sql AS $$SELECT fernet_decrypt('{token}')$$; SELECT rotator.leak()",
    "CREATE FUNCTION rotator.leak() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$SELECT fernet_decrypt('{token}')$$; SELECT rotator.leak()",
    "CREATE STATISTICS rotator.leak ON (fernet_decrypt(token)) FROM rotator.secrets; ANALYZE rotator.secrets",
    "CREATE OPERATOR rotator.! (FUNCTION = fernet_decrypt, RIGHTARG = text)",
    "CREATE AGGREGATE rotator.leak(text) (SFUNC = textcat, STYPE = text, INITCOND = '', FINALFUNC = fernet_decrypt)",
    # The C functions behind it.
    "CREATE FUNCTION rotator.leak(text) RETURNS text LANGUAGE c AS '$libdir/pg_fernet', 'fernet_decrypt_wrapper'",
    "CREATE FUNCTION rotator.leak(text) RETURNS text LANGUAGE internal AS 'fernet_decrypt_wrapper'",
    # More rights.
    "GRANT EXECUTE ON FUNCTION fernet_decrypt(text) TO fernet_rotator",
    "ALTER FUNCTION fernet_decrypt(text) OWNER TO fernet_rotator",
    "ALTER FUNCTION fernet_decrypt(text) SECURITY DEFINER",
    "CREATE OR REPLACE FUNCTION fernet_decrypt(token text) RETURNS text LANGUAGE sql AS 'SELECT token'",
    "SET ROLE fernet_decryptor",
    "SET SESSION AUTHORIZATION fernet_decryptor",
    # The keys.
    "SHOW fernet.keys_file",
    "SELECT pg_read_file('{file}')",
    "SELECT lo_import('{file}')",
    "COPY rotator.secrets FROM '{file}'",
    "COPY rotator.secrets FROM PROGRAM 'cat {file}'",
])
def test_who_may_only_rotate_learns_no_plaintext(roles, table, token, query):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.rotator.execute(query.replace("{token}", token).replace("{file}", str(roles.file)))


def test_statistics_are_made_with_the_rights_of_the_tables_owner(roles, table):
    """Otherwise a superuser's ANALYZE would put plaintexts where the owner can read them."""
    roles.rotator.execute("CREATE STATISTICS rotator.leak ON (fernet_decrypt(token)) FROM rotator.secrets")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.superuser.execute("ANALYZE rotator.secrets")


#
# Wrappers
#

def test_a_security_definer_function_lends_its_owners_rights(roles, token):
    """And no more than it was written for."""
    roles.admin.execute("CREATE SCHEMA wrappers")
    try:
        roles.admin.execute("""
            CREATE FUNCTION wrappers.decrypt_mine(token text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
            AS $$ SELECT public.fernet_decrypt(token) WHERE session_user = 'fernet_nobody' $$""")
        roles.admin.execute("GRANT USAGE ON SCHEMA wrappers TO PUBLIC")
        assert value(roles.nobody, f"SELECT wrappers.decrypt_mine('{token}')") == "hello"
        assert value(roles.rotator, f"SELECT wrappers.decrypt_mine('{token}')") is None
        for query in f"SELECT fernet_decrypt('{token}')", "SHOW fernet.keys_file", "SELECT * FROM fernet_keys()":
            assert may(roles.nobody, query) == "."

        roles.admin.execute("ALTER FUNCTION wrappers.decrypt_mine(text) OWNER TO fernet_nobody")
        assert may(roles.nobody, f"SELECT wrappers.decrypt_mine('{token}')") == "."
    finally:
        roles.admin.execute("DROP SCHEMA wrappers CASCADE")
