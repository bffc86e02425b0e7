"""ALTER EXTENSION pg_fernet UPDATE leads from each released version to what a fresh installation gives.

The SQL of each release is kept in sql/releases, the scripts from one to the next are in sql."""

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest
from postgres import connect, create_database, drop_database, value
from tables import NEW, OLD, fill, rotate


ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "sql" / "pg_fernet.sql").read_text()
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
RELEASES = {path.stem.removeprefix("pg_fernet--"): path.read_text()
            for path in (ROOT / "sql" / "releases").glob("pg_fernet--*.sql")}
DATABASE = "pg_fernet_update"


@pytest.fixture(scope="module")
def db():
    with connect("postgres") as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {DATABASE}")
        with connect(DATABASE) as db:
            yield db
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture
def provide():
    """Puts scripts where the server looks for them, until the test ends."""
    folder = Path(subprocess.run([os.environ["PG_CONFIG"], "--sharedir"], check=True, capture_output=True,
                                 text=True).stdout.strip(), "extension")
    provided = []

    def provide(name, script):
        path = folder / f"pg_fernet--{name}.sql"
        assert not path.exists(), f"{path} is not ours"
        provided.append(path)
        path.write_text(script)

    yield provide
    for path in provided:
        path.unlink()


# All that SQL says of a function, and what it says of anything else that belongs to the extension.
MEMBERS = """
    SELECT pg_describe_object(d.classid, d.objid, 0), obj_description(d.objid, d.classid::regclass::name),
           pg_get_functiondef(p.oid), (SELECT array_agg(acl::text ORDER BY acl::text) FROM unnest(p.proacl) AS acl)
    FROM pg_depend AS d
    JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
    LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
    WHERE e.extname = 'pg_fernet' AND d.deptype = 'e'
    UNION ALL
    SELECT 'the extension', obj_description(oid, 'pg_extension'), extversion, ARRAY[extrelocatable::text, extconfig::text]
    FROM pg_extension WHERE extname = 'pg_fernet'"""


def catalog(db):
    return {name: rest for name, *rest in db.execute(MEMBERS)}


def fresh(db):
    db.execute("DROP EXTENSION IF EXISTS pg_fernet")
    db.execute("CREATE EXTENSION pg_fernet")
    return catalog(db)


def updated(db, version):
    db.execute("DROP EXTENSION IF EXISTS pg_fernet")
    db.execute(f"CREATE EXTENSION pg_fernet VERSION '{version}'")
    db.execute("ALTER EXTENSION pg_fernet UPDATE")
    return catalog(db)


def test_the_installed_version_is_this_one(db):
    assert value(db, "SELECT default_version FROM pg_available_extensions WHERE name = 'pg_fernet'") == VERSION


@pytest.mark.parametrize("version", sorted(RELEASES.keys() - {VERSION}))
def test_from_a_release(db, provide, version):
    provide(version, RELEASES[version])
    assert updated(db, version) == fresh(db)


def test_the_sql_of_a_release_does_not_change():
    assert RELEASES.get(VERSION, SCRIPT) == SCRIPT, \
        f"{VERSION} is released: give the change a version, and a script sql/pg_fernet--{VERSION}--….sql"


def test_every_release_is_kept():
    headings = re.findall(r"^## (\S+)(.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings
    assert {version for version, rest in headings if "unreleased" not in rest} == RELEASES.keys()


# A version that never was: it lacks a function, has one with another volatility, and lets everybody rotate.
[ADDED] = re.findall(r"CREATE FUNCTION fernet_keys\(\).*?;\nCOMMENT ON FUNCTION fernet_keys\(\).*?;\n", SCRIPT, re.DOTALL)
OLDER = SCRIPT.replace(ADDED, "") \
    .replace("(token text) RETURNS integer\n    LANGUAGE c STABLE", "(token text) RETURNS integer\n    LANGUAGE c VOLATILE") \
    .replace("(token bytea) RETURNS integer\n    LANGUAGE c STABLE", "(token bytea) RETURNS integer\n    LANGUAGE c VOLATILE") \
    + "GRANT EXECUTE ON FUNCTION public.fernet_rotate(text) TO PUBLIC;"
STEPS = {
    "function": ADDED,
    "its privileges": "REVOKE ALL ON FUNCTION fernet_keys() FROM PUBLIC;",
    "privileges": "REVOKE ALL ON FUNCTION fernet_rotate(text) FROM PUBLIC;",
    "volatility": "ALTER FUNCTION fernet_key_index(text) STABLE; ALTER FUNCTION fernet_key_index(bytea) STABLE;",
}


@pytest.mark.parametrize("forgotten", [None, "its privileges", "privileges", "volatility", "all"])
def test_what_an_update_forgets_is_seen(db, provide, forgotten):
    provide("0.0.9", OLDER)
    steps = [step for name, step in STEPS.items() if forgotten not in (name, "all")]
    provide(f"0.0.9--{VERSION}", "\n".join(steps))
    expected, found = fresh(db), updated(db, "0.0.9")
    different = {name for name in expected | found if expected.get(name) != found.get(name)}
    print(different)
    assert different == {
        None: set(),
        "its privileges": {"function fernet_keys()"},
        "privileges": {"function fernet_rotate(text)"},
        "volatility": {"function fernet_key_index(text)", "function fernet_key_index(bytea)"},
        "all": {"function fernet_keys()", "function fernet_rotate(text)", "function fernet_key_index(text)",
                "function fernet_key_index(bytea)"},
    }[forgotten]


def test_privileges_outlive_an_update(db, provide):
    provide("0.0.9", OLDER)
    provide(f"0.0.9--{VERSION}", "\n".join(STEPS.values()))
    db.execute("DROP EXTENSION IF EXISTS pg_fernet")
    db.execute("CREATE ROLE fernet_updated")
    try:
        db.execute("CREATE EXTENSION pg_fernet VERSION '0.0.9'")
        db.execute("GRANT EXECUTE ON FUNCTION fernet_rotate(text) TO fernet_updated")
        db.execute("REVOKE EXECUTE ON FUNCTION fernet_generate_key() FROM PUBLIC")
        db.execute("ALTER EXTENSION pg_fernet UPDATE")
        may = "SELECT has_function_privilege('fernet_updated', %s, 'EXECUTE')"
        assert [value(db, may, function) for function in
                ("fernet_rotate(text)", "fernet_rotate(bytea)", "fernet_keys()", "fernet_generate_key()", "fernet_is_token(text)")] \
            == [True, False, False, False, True]
    finally:
        db.execute("DROP EXTENSION pg_fernet")
        db.execute("DROP ROLE fernet_updated")


def test_what_was_granted_on_a_procedure_with_a_new_parameter(db, provide):
    provide("0.1.0", RELEASES["0.1.0"])
    db.execute("DROP EXTENSION IF EXISTS pg_fernet; CREATE ROLE fernet_rotator LOGIN")
    try:
        db.execute("CREATE EXTENSION pg_fernet VERSION '0.1.0'")
        db.execute("GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
        db.execute("CREATE TABLE secrets (value text); ALTER TABLE secrets OWNER TO fernet_rotator")
        with connect(DATABASE, keys=[NEW, OLD]) as caller:
            caller.execute("SET SESSION AUTHORIZATION fernet_rotator")
            # The new library knows the old declaration.
            assert rotate(caller)["rotated"] == 0
            db.execute("ALTER EXTENSION pg_fernet UPDATE")
            assert rotate(caller, workers=2)["rotated"] == 0
        dump = subprocess.run(["pg_dump", "-d", DATABASE], check=True, capture_output=True, text=True).stdout
        [grant] = [line for line in dump.splitlines() if "fernet_rotate_column" in line and line.endswith("TO fernet_rotator;")]
        assert "workers integer" in grant
    finally:
        db.execute("DROP TABLE IF EXISTS secrets; DROP EXTENSION pg_fernet; DROP OWNED BY fernet_rotator; DROP ROLE fernet_rotator")


def grants(db):
    """Who else than the owner may run what, by function."""
    found = {}
    for function, role in db.execute("""
            SELECT p.oid::regprocedure::text, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            FROM pg_proc AS p, aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE proname ~ '^fernet' AND grantee <> proowner"""):
        found.setdefault(function, set()).add(role)
    return found


def test_what_default_privileges_had_granted_to_0_1_0(db, provide):
    """It revoked from PUBLIC only. What an administrator has granted since stays, in a dump, too."""
    provide("0.1.0", RELEASES["0.1.0"])
    db.execute("DROP EXTENSION IF EXISTS pg_fernet; CREATE ROLE fernet_readers; CREATE ROLE fernet_rotator; CREATE SCHEMA fernet")
    warnings = []
    db.add_notice_handler(lambda notice: warnings.append((notice.message_primary, notice.message_detail)))
    try:
        db.execute("ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO fernet_readers WITH GRANT OPTION")
        db.execute("CREATE EXTENSION pg_fernet SCHEMA fernet VERSION '0.1.0'")
        db.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_rotate(text) TO fernet_rotator")
        db.execute("REVOKE EXECUTE ON FUNCTION fernet.fernet_rotate(text) FROM fernet_readers")
        db.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_key_index(text) TO fernet_rotator")
        assert grants(db)["fernet.fernet_decrypt(text)"] == {"fernet_readers"}

        # What is new gets them, too, until the script revokes them.
        db.execute("ALTER EXTENSION pg_fernet UPDATE")

        db.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM fernet_readers")
        found = grants(db)
        assert {function: roles for function, roles in found.items() if "PUBLIC" not in roles} == {
            "fernet.fernet_rotate(text)": {"fernet_rotator"},
            "fernet.fernet_key_index(text)": {"fernet_readers", "fernet_rotator"},
        }
        # To take it away where something else was granted would let pg_dump forget that: it is said instead.
        assert warnings == [("functions of pg_fernet are still granted because of ALTER DEFAULT PRIVILEGES",
                             "Still granted are fernet.fernet_key_index(text) to fernet_readers.")]
        dump = subprocess.run(["pg_dump", "-d", DATABASE], check=True, capture_output=True, text=True).stdout
        assert {line for line in dump.splitlines() if "TO fernet_rotator" in line} == {
            "GRANT ALL ON FUNCTION fernet.fernet_rotate(token text) TO fernet_rotator;",
            "GRANT ALL ON FUNCTION fernet.fernet_key_index(token text) TO fernet_rotator;",
        }
    finally:
        db.execute("DROP EXTENSION pg_fernet; DROP SCHEMA fernet; DROP OWNED BY fernet_readers, fernet_rotator;"
                   " DROP ROLE fernet_readers, fernet_rotator")


# What may use the functions of 0.1.0.
IN_USE = """
    ALTER TABLE secrets ADD CHECK (fernet_is_token(value)), ADD made text DEFAULT fernet_encrypt('made'),
        ADD key text DEFAULT fernet_generate_key(), ADD is_token boolean GENERATED ALWAYS AS (fernet_is_token(value)) STORED;
    CREATE INDEX ON secrets (id) WHERE fernet_is_token(value);
    CREATE TABLE written (value text, bytes bytea CHECK (fernet_is_token(bytes)));
    CREATE FUNCTION encrypt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        NEW.bytes := convert_to(fernet_encrypt(NEW.bytes), 'UTF8'); NEW.value := fernet_encrypt(NEW.value); RETURN NEW; END $$;
    CREATE TRIGGER encrypt BEFORE INSERT ON written FOR EACH ROW EXECUTE FUNCTION encrypt();
    CREATE VIEW of_text AS SELECT id, fernet_decrypt(value), fernet_decrypt(value, '1 year') AS fresh, fernet_decrypt_bytea(value),
        fernet_decrypt_bytea(value, '1 year') AS fresh_bytes, fernet_timestamp(value) < now() AS is_past, fernet_key_index(value) FROM secrets;
    CREATE VIEW of_bytea AS SELECT id, fernet_decrypt(bytes), fernet_decrypt(bytes, '1 year') AS fresh, fernet_decrypt_bytea(bytes),
        fernet_decrypt_bytea(bytes, '1 year') AS fresh_bytes, fernet_timestamp(bytes) < now() AS is_past, fernet_key_index(bytes),
        fernet_decrypt(fernet_rotate(bytes)) AS rotated FROM secrets, convert_to(value, 'UTF8') AS bytes;
    CREATE MATERIALIZED VIEW refreshed AS SELECT fernet_decrypt(fernet_rotate(value)) AS rotated FROM secrets;
    CREATE FUNCTION in_text(token text) RETURNS text LANGUAGE sql AS 'SELECT fernet_decrypt(token, interval ''1 year'')';
    CREATE FUNCTION in_body(token text) RETURNS text LANGUAGE sql RETURN fernet_decrypt(token, interval '1 year');
    CREATE FUNCTION in_plpgsql(token text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN fernet_decrypt(fernet_rotate(token)); END';
    CREATE PROCEDURE rotate_all(INOUT rotated bigint DEFAULT NULL) LANGUAGE plpgsql AS $$
        DECLARE a bigint; b bigint; c bigint; d bigint; BEGIN
        CALL fernet_rotate_column('secrets', 'value', rotated => rotated, current => a, unknown_key => b, not_a_token => c, nulls => d); END $$"""
USES = [
    "TRUNCATE secrets, written; INSERT INTO secrets (id, value) SELECT id, value FROM originals ORDER BY id",
    "TABLE of_text", "TABLE of_bytea", "REFRESH MATERIALIZED VIEW refreshed", "TABLE refreshed",
    "SELECT in_text(value), in_body(value), in_plpgsql(value) FROM secrets ORDER BY id",
    "SELECT fernet_decrypt(made), length(key), is_token FROM secrets",
    "INSERT INTO secrets VALUES (0, 'plaintext')",
    "INSERT INTO written VALUES ('text', 'bytes') RETURNING fernet_decrypt(value), fernet_decrypt(bytes)",
    "SELECT * FROM fernet_keys()", "SELECT * FROM fernet_census('secrets', 'value')",
    "SELECT relation::text FROM fernet_find_columns() ORDER BY 1",
    "CALL rotate_all()",
    "CALL fernet_rotate_shard('written', 'value', 100, false, '{fingerprints}')",
    "SELECT * FROM fernet_census('secrets', 'value')",
]


def outcomes(session):
    """What each use comes to, the same whenever it is asked for."""
    fingerprints = value(session, "SELECT string_agg(fingerprint, ',') FROM fernet_keys()")

    def outcome(statement):
        try:
            cursor = session.execute(statement)
            return cursor.fetchall() if cursor.description else cursor.statusmessage
        except psycopg.Error as error:
            return error.diag.message_primary

    return [(use, outcome(use.replace("{fingerprints}", fingerprints))) for use in USES]


def test_what_uses_0_1_0(provide):
    """It works with this library and the SQL of 0.1.0, after the update, and restored from a dump of either."""
    provide("0.1.0", RELEASES["0.1.0"])
    database, restored = "pg_fernet_in_use", "pg_fernet_restored"

    def dumped():
        return subprocess.run(["pg_dump", "-d", database], check=True, capture_output=True, text=True).stdout

    def create(name):
        create_database(name)
        with connect("postgres") as admin:
            admin.execute(f"ALTER DATABASE {name} SET fernet.keys = '{NEW},{OLD}'")

    def outcomes_of(dump):
        create(restored)
        done = subprocess.run(["psql", "-Xqd", restored], input=dump, capture_output=True, text=True)
        with connect(restored) as session:
            return outcomes(session), [line for line in done.stderr.splitlines() if "ERROR" in line]

    try:
        create(database)
        with connect(database) as db:
            db.execute("CREATE EXTENSION pg_fernet VERSION '0.1.0'; CREATE ROLE fernet_granter; CREATE ROLE fernet_rotator")
            fill(db, 100)
            db.execute("CREATE TABLE originals AS TABLE secrets;" + IN_USE)
            db.execute("""
                GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO fernet_granter WITH GRANT OPTION;
                REVOKE EXECUTE ON FUNCTION fernet_generate_key() FROM PUBLIC; GRANT EXECUTE ON FUNCTION fernet_rotate(text) TO PUBLIC;
                SET ROLE fernet_granter; GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator; RESET ROLE""")
            privileges = "SELECT oid, proacl::text FROM pg_proc WHERE proname ~ '^fernet_'"
            granted = db.execute(privileges).fetchall()

        with connect(database) as session:
            session.execute("SET track_functions = 'all'")
            before = outcomes(session)
            assert ("CALL rotate_all()", [(100,)]) in before
            session.execute("SELECT pg_stat_force_next_flush()")
            unused = "SELECT oid::regprocedure FROM pg_proc WHERE proname ~ '^fernet_' AND oid NOT IN (SELECT funcid FROM pg_stat_user_functions)"
            assert session.execute(unused).fetchall() == []
            dump = dumped()

            with connect(database) as db:
                db.execute("ALTER EXTENSION pg_fernet UPDATE")
                assert set(granted) <= set(db.execute(privileges))
            # Also where plans were kept.
            assert outcomes(session) == before
        with connect(database) as session:
            assert outcomes(session) == before
        # The procedure with a parameter more has another signature: it is to be granted again.
        assert outcomes_of(dumped()) == (before, [])
        again, refused = outcomes_of(dump)
        assert again == before
        assert len(refused) == 2 and all("fernet_rotate_column(regclass, name, integer, boolean, bigint" in line for line in refused)
    finally:
        for name in restored, database:
            drop_database(name)
        with connect("postgres") as admin:
            admin.execute("DROP ROLE IF EXISTS fernet_granter, fernet_rotator")


def test_a_session_with_the_library_of_0_1_0_cannot_update(db, provide):
    """That lacks what is new, as this one lacks what never was."""
    provide("0.1.0", RELEASES["0.1.0"])
    update = (ROOT / "sql" / "pg_fernet--0.1.0--0.2.0.sql").read_text()
    provide("0.1.0--9", update.replace("fernet_rotate_json_wrapper", "fernet_never_was_wrapper"))
    db.execute("DROP EXTENSION IF EXISTS pg_fernet; CREATE EXTENSION pg_fernet VERSION '0.1.0'")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="was replaced after the session had loaded it") as refused:
        db.execute("ALTER EXTENSION pg_fernet UPDATE TO '9'")
    assert 'could not find function "fernet_never_was_wrapper"' in refused.value.diag.message_detail
    assert "restart the server" in refused.value.diag.message_hint
    assert value(db, "SELECT extversion FROM pg_extension WHERE extname = 'pg_fernet'") == "0.1.0"


@pytest.mark.parametrize("version", sorted(RELEASES.keys() - {VERSION}))
def test_there_is_no_way_back(db, version):
    fresh(db)
    with pytest.raises(psycopg.Error, match=f'no update path from version "{VERSION}" to version "{version}"'):
        db.execute(f"ALTER EXTENSION pg_fernet UPDATE TO '{version}'")


@pytest.mark.parametrize("version", sorted(RELEASES.keys() - {VERSION}))
def test_an_update_warns_of_others_in_the_schema(db, provide, version):
    """And calls nothing that they have put there."""
    provide(version, RELEASES[version])
    db.execute("DROP EXTENSION IF EXISTS pg_fernet; CREATE ROLE fernet_creator; CREATE SCHEMA fernet AUTHORIZATION fernet_creator")
    warnings = []
    db.add_notice_handler(lambda notice: warnings.append((notice.message_primary, notice.message_detail)))
    try:
        db.execute(f"CREATE EXTENSION pg_fernet SCHEMA fernet VERSION '{version}'")
        db.execute("""
            CREATE FUNCTION fernet.equal(oid, regclass) RETURNS boolean LANGUAGE plpgsql
            AS $$ BEGIN RAISE 'called as %', current_user; END $$;
            CREATE OPERATOR fernet.= (FUNCTION = fernet.equal, LEFTARG = oid, RIGHTARG = regclass)""")
        db.execute("ALTER EXTENSION pg_fernet UPDATE")
        assert warnings == [("others may create functions in the schema of pg_fernet",
                             "These roles and their members may: fernet_creator.")]
    finally:
        db.execute("DROP EXTENSION pg_fernet; DROP SCHEMA fernet CASCADE; DROP ROLE fernet_creator")
