"""Functions, operators, types and conversions that an attacker has planted in the caller's path: nothing of ours calls
them."""

from contextlib import contextmanager, suppress

import psycopg
import pytest

import pyca
from pages import blocks
from postgres import column, connect, create_database, drop_database, set_keys, value

DATABASE = "fernet_planted"

# The attacker's schema has a copy of every operator and function of the server's that SQL could mean by a name and
# these types. Each of them records that it was called.
PLANT = """
CREATE TABLE traps.sprung (trap text, victim text);
GRANT INSERT ON traps.sprung TO PUBLIC;

DO $do$
DECLARE
    types CONSTANT oid[] := ARRAY['text', 'bytea', 'int', 'bigint', 'bool', 'timestamptz', 'interval', 'name', 'oid', 'regclass',
                                  'numeric', 'float8', 'xid', 'tid', 'char(1)']::regtype[];
    f record;
    o record;
    body text := $$ BEGIN INSERT INTO traps.sprung VALUES (%L, current_user); RETURN NULL; END $$;
BEGIN
    FOR f IN SELECT p.*, oid::regprocedure::text AS signature FROM pg_proc AS p
             WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset AND pronargs <= 4
               AND types @> proargtypes::oid[] AND prorettype = ANY (types)
    LOOP
        EXECUTE format('CREATE FUNCTION traps.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
                       f.proname, array_to_string(f.proargtypes::regtype[], ', '), f.prorettype::regtype, format(body, f.signature));
    END LOOP;
    FOR o IN SELECT p.*, oid::regoperator::text AS signature FROM pg_operator AS p
             WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprkind = 'b'
               AND types @> ARRAY[oprleft, oprright, oprresult]
    LOOP
        EXECUTE format('CREATE FUNCTION traps.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L',
                       'operator ' || o.signature, o.oprleft::regtype, o.oprright::regtype, o.oprresult::regtype, format(body, o.signature));
        EXECUTE format('CREATE OPERATOR traps.%s (FUNCTION = traps.%I, LEFTARG = %s, RIGHTARG = %s)',
                       o.oprname, 'operator ' || o.signature, o.oprleft::regtype, o.oprright::regtype);
    END LOOP;
END $do$;

-- What fernet_rotate_column calls the values that it writes.
CREATE TABLE traps.fernet_new_values (id tid, writer xid, value text);

-- What fits a call in the scripts of the extension better than the server's own.
CREATE FUNCTION traps.equal(oid, regclass) RETURNS boolean LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO traps.sprung VALUES ('=(oid,regclass)', current_user); RETURN NULL; END $$;
CREATE OPERATOR traps.= (FUNCTION = traps.equal, LEFTARG = oid, RIGHTARG = regclass);
CREATE FUNCTION traps.format(text, regprocedure, text) RETURNS text LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO traps.sprung VALUES ('format(text,regprocedure,text)', current_user); RETURN NULL; END $$;

CREATE DOMAIN traps.interval AS pg_catalog.text;
CREATE DOMAIN traps.timestamptz AS pg_catalog.text;
CREATE DOMAIN traps.regclass AS pg_catalog.text;
"""

# Every function in use, on a token of the older key, which is also the only row of a table.
CALLS = {
    "fernet_encrypt(text)": "SELECT fernet.fernet_decrypt(fernet.fernet_encrypt('hello'::pg_catalog.text))",
    "fernet_encrypt(bytea)": "SELECT fernet.fernet_decrypt(fernet.fernet_encrypt('hello'::pg_catalog.bytea))",
    "fernet_encrypt_trigger()": "INSERT INTO pg_temp.triggered VALUES ('hello') RETURNING fernet.fernet_decrypt(plaintext)",
    "fernet_decrypt(text)": "SELECT fernet.fernet_decrypt({token}::pg_catalog.text)",
    "fernet_decrypt(bytea)": "SELECT fernet.fernet_decrypt({token}::pg_catalog.bytea)",
    "fernet_decrypt(text,interval,timestamptz)": "SELECT fernet.fernet_decrypt({token}::pg_catalog.text, '100 years')",
    "fernet_decrypt(bytea,interval,timestamptz)": "SELECT fernet.fernet_decrypt({token}::pg_catalog.bytea, '100 years')",
    "fernet_decrypt_bytea(text)": "SELECT fernet.fernet_decrypt_bytea({token}::pg_catalog.text)",
    "fernet_decrypt_bytea(bytea)": "SELECT fernet.fernet_decrypt_bytea({token}::pg_catalog.bytea)",
    "fernet_decrypt_bytea(text,interval,timestamptz)": "SELECT fernet.fernet_decrypt_bytea({token}::pg_catalog.text, '100 years')",
    "fernet_decrypt_bytea(bytea,interval,timestamptz)": "SELECT fernet.fernet_decrypt_bytea({token}::pg_catalog.bytea, '100 years')",
    "fernet_rotate(text)": "SELECT fernet.fernet_decrypt(fernet.fernet_rotate({token}::pg_catalog.text))",
    "fernet_rotate(bytea)": "SELECT fernet.fernet_decrypt(fernet.fernet_rotate({token}::pg_catalog.bytea))",
    "fernet_rotate(json)": "SELECT fernet.fernet_decrypt(fernet.fernet_rotate(pg_catalog.to_json({token}::pg_catalog.text))::pg_catalog.text)",
    "fernet_rotate(jsonb)": "SELECT fernet.fernet_decrypt(fernet.fernet_rotate(pg_catalog.to_jsonb({token}::pg_catalog.text))::pg_catalog.text)",
    "fernet_key_index(json)": "SELECT fernet.fernet_key_index(pg_catalog.to_json({token}::pg_catalog.text))",
    "fernet_key_index(jsonb)": "SELECT fernet.fernet_key_index(pg_catalog.to_jsonb({token}::pg_catalog.text))",
    "fernet_key_index(text)": "SELECT fernet.fernet_key_index({token}::pg_catalog.text)",
    "fernet_key_index(bytea)": "SELECT fernet.fernet_key_index({token}::pg_catalog.bytea)",
    "fernet_timestamp(text)": "SELECT fernet.fernet_timestamp({token}::pg_catalog.text)",
    "fernet_timestamp(bytea)": "SELECT fernet.fernet_timestamp({token}::pg_catalog.bytea)",
    "fernet_is_token(text)": "SELECT fernet.fernet_is_token({token}::pg_catalog.text)",
    "fernet_is_token(bytea)": "SELECT fernet.fernet_is_token({token}::pg_catalog.bytea)",
    "fernet_keys()": "SELECT * FROM fernet.fernet_keys()",
    "fernet_generate_key()": "SELECT pg_catalog.octet_length(fernet.fernet_generate_key())",
    "fernet_census(regclass,name)": "SELECT * FROM fernet.fernet_census('fernet.secrets', 'token')",
    "fernet_find_columns(integer)": "SELECT relation::pg_catalog.oid, column_name, sampled, tokens FROM fernet.fernet_find_columns()",
    "fernet_rotate_column(regclass,name,integer,boolean,integer,bigint,bigint,bigint,bigint,bigint)":
        "CALL fernet.fernet_rotate_column('fernet.secrets', 'token')",
    "fernet_rotate_shard(regclass,name,integer,boolean,text,text)":
        "CALL fernet.fernet_rotate_shard('fernet.secrets', 'token', 10, false, {fingerprints})",
    "fernet_encrypt_column(regclass,name,integer,integer,bigint,bigint,bigint,bigint,bigint)":
        "CALL fernet.fernet_encrypt_column('fernet.secrets', 'token')",
    "fernet_encrypt_shard(regclass,name,integer,text,text)":
        "CALL fernet.fernet_encrypt_shard('fernet.secrets', 'token', 10, {fingerprints})",
    "fernet_decrypt_column(regclass,name,integer,integer,bigint,bigint,bigint,bigint,bigint)":
        "CALL fernet.fernet_decrypt_column('fernet.secrets', 'token')",
    "fernet_decrypt_shard(regclass,name,integer,text,text)":
        "CALL fernet.fernet_decrypt_shard('fernet.secrets', 'token', 10, {fingerprints})",
}


@pytest.fixture(scope="module")
def attacked():
    """The extension in a schema that only superusers write to, created by a superuser who has the attacker's schema in
    the path; and the traps that this sprang."""
    create_database(DATABASE)
    with connect(DATABASE) as admin:
        admin.execute("CREATE ROLE fernet_attacker LOGIN")
        admin.execute("CREATE SCHEMA traps AUTHORIZATION fernet_attacker")
        admin.execute("GRANT CREATE ON SCHEMA public TO fernet_attacker")
        admin.execute("CREATE SCHEMA fernet")
        admin.execute("CREATE TABLE fernet.secrets (token varchar(1000))")
        admin.execute("GRANT USAGE ON SCHEMA fernet, traps TO PUBLIC")
        with connect(DATABASE, user="fernet_attacker") as attacker:
            attacker.execute(PLANT)
        # First in the attacker's schema itself, which is then the first of the path, whatever the caller has.
        admin.execute("CREATE EXTENSION pg_fernet SCHEMA traps; ALTER EXTENSION pg_fernet SET SCHEMA fernet; DROP EXTENSION pg_fernet")
        with walking_into_traps(admin):
            admin.execute("CREATE EXTENSION pg_fernet SCHEMA fernet")
        yield sprung(admin)
        admin.execute("DROP OWNED BY fernet_attacker CASCADE")
        admin.execute("DROP ROLE fernet_attacker")
    drop_database(DATABASE)


@contextmanager
def walking_into_traps(session):
    """With the attacker's schema at the front of the path."""
    session.execute("SET search_path = traps, pg_catalog, public, fernet")
    yield
    session.execute("RESET search_path")


@pytest.fixture
def token(keys):
    return pyca.encrypt(keys[-1], b"hello", 1_700_000_000).decode()


@pytest.fixture
def victim(attacked, keys):
    """A superuser's session in which no trap has been sprung yet."""
    with connect(DATABASE) as session:
        session.execute("TRUNCATE traps.sprung")
        set_keys(session, *keys)
        yield session


@pytest.fixture
def attacker(attacked):
    with connect(DATABASE, user="fernet_attacker") as session:
        yield session


def sprung(session):
    return column(session, "SELECT trap FROM traps.sprung ORDER BY 1")


def test_the_traps_work(victim):
    with walking_into_traps(victim):
        victim.execute("SELECT 'a'::text || 'b'::text, now(), sha256('x')")
    assert sprung(victim) == ["now()", "sha256(bytea)", "||(text,text)"]


def test_to_create_the_extension_springs_none(attacked):
    assert attacked == []
    with connect(DATABASE) as session:
        types = column(session, "SELECT DISTINCT unnest(proargtypes || prorettype)::regtype::text FROM pg_proc"
                       " WHERE pronamespace = 'fernet'::regnamespace ORDER BY 1")
        assert not [type for type in types if "traps" in type]
        # For a function of another schema, the name would be shown with the schema.
        defaults = column(session, "SELECT DISTINCT pg_get_expr(proargdefaults, 0) FROM pg_proc"
                          " WHERE pronamespace = 'fernet'::regnamespace AND pronargdefaults > 0")
        assert "statement_timestamp()" in defaults
        assert not [default for default in defaults if "traps" in default]


@pytest.mark.parametrize("function", CALLS)
def test_to_call_a_function_springs_none(victim, token, function):
    fingerprints = value(victim, "SELECT string_agg(fingerprint, ',') FROM fernet.fernet_keys()")
    victim.execute("CREATE TEMP TABLE triggered (plaintext text); CREATE TRIGGER encrypt BEFORE INSERT ON triggered"
                   " FOR EACH ROW EXECUTE FUNCTION fernet.fernet_encrypt_trigger('plaintext')")

    def result():
        victim.execute("TRUNCATE fernet.secrets")
        victim.execute("INSERT INTO fernet.secrets VALUES (%s)", [token])
        return victim.execute(CALLS[function].format(token=f"'{token}'", fingerprints=f"'{fingerprints}'")).fetchall()

    expected = result()
    assert expected
    with walking_into_traps(victim):
        assert result() == expected
    assert sprung(victim) == []


def test_every_function_has_been_called(victim):
    functions = column(victim, "SELECT objid::regprocedure::text FROM pg_depend WHERE deptype = 'e' AND classid = 'pg_proc'::regclass"
                       " AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet')")
    assert {f.removeprefix("fernet.").replace("timestamp with time zone", "timestamptz") for f in functions} == CALLS.keys()


def test_the_extension_takes_over_nothing(attacker, victim):
    """Objects that are already in its schema would have an owner other than the extension's."""
    victim.execute("DROP EXTENSION pg_fernet")
    attacker.execute("CREATE FUNCTION public.fernet_decrypt(token text) RETURNS text LANGUAGE sql AS 'SELECT token'")
    try:
        with pytest.raises(psycopg.errors.DuplicateFunction):
            victim.execute("CREATE EXTENSION pg_fernet SCHEMA public")
    finally:
        attacker.execute("DROP FUNCTION public.fernet_decrypt(text)")
        victim.execute("CREATE EXTENSION pg_fernet SCHEMA fernet")


def test_functions_under_our_names(attacker, victim, token):
    """A name without its schema means whatever fits best in the path: ours, or another's."""
    attacker.execute("""
        CREATE FUNCTION public.fernet_encrypt(plaintext varchar) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO traps.sprung VALUES (plaintext, current_user); RETURN ''; END $$;
        CREATE FUNCTION traps.fernet_decrypt(token text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO traps.sprung VALUES (fernet.fernet_decrypt(token), current_user); RETURN ''; END $$;""")
    victim.execute("SET search_path = fernet, public")
    victim.execute("SELECT fernet_encrypt('for PostgreSQL'::varchar)")
    assert sprung(victim) == ["for PostgreSQL"]
    victim.execute("TRUNCATE traps.sprung")
    victim.execute("SELECT fernet.fernet_encrypt('for us'::varchar)")
    assert sprung(victim) == []

    # The caller of a SECURITY DEFINER function chooses the path, unless the function does.
    for path, trapped in ("", ["hello"]), ("SET search_path = pg_catalog, fernet, pg_temp", []):
        victim.execute(f"""
            CREATE FUNCTION fernet.wrapper(token text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER {path}
            AS 'BEGIN RETURN fernet_decrypt(token); END'""")
        victim.execute(f"ALTER DATABASE {DATABASE} SET fernet.keys = '{value(victim, 'SHOW fernet.keys')}'")
        with connect(DATABASE, user="fernet_attacker") as session:
            session.execute("SET search_path = traps, fernet")
            assert value(session, f"SELECT fernet.wrapper('{token}')") == ("" if trapped else "hello")
        assert sprung(victim) == trapped
        victim.execute("TRUNCATE traps.sprung")
        victim.execute("DROP FUNCTION fernet.wrapper")
    victim.execute(f"ALTER DATABASE {DATABASE} RESET fernet.keys")
    attacker.execute("DROP FUNCTION public.fernet_encrypt(varchar), traps.fernet_decrypt(text)")


def test_the_statements_of_the_documentation_for_a_superuser(attacker, victim, token):
    """The ones that docs/security.md calls safe, on columns of varchar, for which an attacker creates functions that
    fit better."""
    statements = [block.text for block in blocks("docs/security.md")
                  if block.language == "sql" and block.heading in ("Privileges", "Planted code") and "fernet.fernet" in block.text]
    assert len(statements) == 3
    for schema in "public", "fernet":
        victim.execute(f"GRANT CREATE ON SCHEMA {schema} TO fernet_attacker")
        for name, result in ("fernet_decrypt", "text"), ("fernet_rotate", "varchar"), ("fernet_key_index", "integer"):
            attacker.execute(f"CREATE FUNCTION {schema}.{name}(varchar) RETURNS {result} LANGUAGE plpgsql"
                             " AS $$ BEGIN INSERT INTO traps.sprung VALUES ($1, current_user); RETURN NULL; END $$")
    attacker.execute("CREATE FUNCTION public.greater(integer, integer) RETURNS boolean LANGUAGE plpgsql"
                     " AS $$ BEGIN INSERT INTO traps.sprung VALUES ('>', current_user); RETURN NULL; END $$;"
                     "CREATE OPERATOR public.> (FUNCTION = public.greater, LEFTARG = integer, RIGHTARG = integer)")
    victim.execute("CREATE TABLE public.connection (id integer, password varchar(1000), owner name)")
    try:
        victim.execute("INSERT INTO public.connection VALUES (1, %s, 'fernet_attacker')", [token])
        victim.execute("SET search_path = traps, public, pg_catalog")
        for statement in statements:
            victim.execute(statement)
        assert value(victim, "SELECT fernet.fernet_key_index(password::pg_catalog.text) FROM public.connection") == 1
        victim.execute("RESET search_path")
        [function] = column(victim, "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'my_password'")
        victim.execute(f"ALTER DATABASE {DATABASE} SET fernet.keys = '{value(victim, 'SHOW fernet.keys')}'")
        victim.execute(f"GRANT EXECUTE ON FUNCTION {function} TO fernet_attacker")
        with connect(DATABASE, user="fernet_attacker") as session:
            session.execute("SET search_path = traps, public, pg_catalog")
            assert value(session, f"SELECT {function.split('(')[0]}(1)") == "hello"
        assert sprung(victim) == []
        # Without the casts, and without the path, they would be called.
        for statement in statements:
            with suppress(psycopg.Error):
                victim.execute(statement.replace("::text", "").replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
            victim.execute("ROLLBACK")
        assert sprung(victim) != []
    finally:
        victim.execute(f"ALTER DATABASE {DATABASE} RESET fernet.keys")
        victim.execute("DROP TABLE public.connection")
        victim.execute("REVOKE CREATE ON SCHEMA fernet FROM fernet_attacker")
        victim.execute("DROP OWNED BY password_reader; DROP ROLE password_reader")


def test_the_recipe_for_certain_rows_makes_nobody_a_superuser(attacker, victim):
    """The owner of the table can put a view in its place, whose functions run with the rights of the function's owner."""
    victim.execute("CREATE TABLE public.connection (id integer, password varchar(1000), owner name);"
                   "ALTER TABLE public.connection OWNER TO fernet_attacker;"
                   "GRANT CREATE ON SCHEMA public TO fernet_attacker")
    try:
        for block in blocks("docs/security.md"):
            if block.language == "sql" and block.heading == "Privileges" and "password_reader" in block.text:
                victim.execute(block.text)
        victim.execute("GRANT EXECUTE ON FUNCTION my_password(int) TO fernet_attacker")
        attacker.execute("ALTER TABLE public.connection RENAME TO moved;"
                         "CREATE FUNCTION public.climb() RETURNS text LANGUAGE plpgsql"
                         " AS $$ BEGIN EXECUTE 'ALTER ROLE fernet_attacker SUPERUSER'; RETURN NULL; END $$;"
                         "CREATE VIEW public.connection AS SELECT 1 AS id, public.climb()::varchar AS password, session_user AS owner;"
                         "GRANT SELECT ON public.connection TO PUBLIC")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            attacker.execute("SELECT public.my_password(1)")
        assert not value(victim, "SELECT rolsuper FROM pg_roles WHERE rolname = 'fernet_attacker'")
    finally:
        victim.execute("DROP VIEW public.connection; DROP FUNCTION public.climb(); DROP TABLE public.moved")
        victim.execute("DROP OWNED BY password_reader; DROP ROLE password_reader")


def test_conversions(keys):
    """In a database with another encoding, the server looks for a default conversion in the caller's path."""
    create_database("fernet_latin1", "LATIN1")
    try:
        with connect("fernet_latin1") as admin:
            admin.execute("CREATE EXTENSION pg_fernet")
            admin.execute("CREATE ROLE fernet_converter LOGIN")
            admin.execute("CREATE SCHEMA traps AUTHORIZATION fernet_converter")
            set_keys(admin, *keys)
            text = "hällö"
            token = value(admin, "SELECT fernet_encrypt(%s)", text)
            assert pyca.decrypt(keys, token.encode()) == text.encode()

            with connect("fernet_latin1", user="fernet_converter") as attacker:
                # A function that any role could make would be called by whoever decrypts: there is none of the
                # right type.
                arguments = "int, int, cstring, internal, int, boolean"
                for language in "sql", "plpgsql":
                    with pytest.raises(psycopg.errors.InvalidFunctionDefinition if language == "sql" else psycopg.errors.FeatureNotSupported):
                        attacker.execute(f"CREATE FUNCTION traps.convert({arguments}) RETURNS int LANGUAGE {language} AS 'SELECT 1'")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    attacker.execute(f"CREATE FUNCTION traps.convert({arguments}) RETURNS int LANGUAGE internal AS 'utf8_to_win'")

                # For each of the server's own, the list says what it is for.
                taken = []
                for function in column(attacker, "SELECT DISTINCT conproc::text FROM pg_conversion"):
                    for one, other in ("UTF8", "LATIN1"), ("LATIN1", "UTF8"):
                        try:
                            attacker.execute(f"CREATE DEFAULT CONVERSION traps.from_{one} FOR '{one}' TO '{other}' FROM {function}")
                            taken.append(function)
                        except psycopg.Error:
                            pass
                assert sorted(taken) == ["iso8859_1_to_utf8", "utf8_to_iso8859_1"]

            admin.execute("SET search_path = traps, pg_catalog, public")
            assert value(admin, "SELECT public.fernet_decrypt(%s)", token) == text
            assert pyca.decrypt(keys, value(admin, "SELECT public.fernet_encrypt(%s)", text).encode()) == text.encode()
            admin.execute("DROP OWNED BY fernet_converter CASCADE")
            admin.execute("DROP ROLE fernet_converter")
    finally:
        drop_database("fernet_latin1")
