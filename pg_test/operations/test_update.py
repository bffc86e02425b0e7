"""ALTER EXTENSION pg_fernet UPDATE leads from each released version to the same state as a new installation.

The SQL of each release is kept in sql/releases; the scripts from one release to the next are in sql."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from postgres import connect, value
from tables import NEW, OLD, rotate


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


# All that SQL says about a function, and about anything else that belongs to the extension.
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


# A version that never existed: it lacks a function, has one with another volatility, and lets everybody
# rotate.
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
    """Which roles other than the owner may run what, by function."""
    found = {}
    for function, role in db.execute("""
            SELECT p.oid::regprocedure::text, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            FROM pg_proc AS p, aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE proname ~ '^fernet' AND grantee <> proowner"""):
        found.setdefault(function, set()).add(role)
    return found


def test_what_default_privileges_had_granted_to_0_1_0(db, provide):
    """It revoked only from PUBLIC. What an administrator has granted since stays, in a dump, too."""
    provide("0.1.0", RELEASES["0.1.0"])
    db.execute("DROP EXTENSION IF EXISTS pg_fernet; CREATE ROLE fernet_readers; CREATE ROLE fernet_rotator; CREATE SCHEMA fernet")
    warnings = []
    db.add_notice_handler(lambda notice: warnings.append((notice.message_primary, notice.message_detail)))
    try:
        db.execute("ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO fernet_readers WITH GRANT OPTION")
        db.execute("CREATE EXTENSION pg_fernet SCHEMA fernet VERSION '0.1.0'")
        db.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM fernet_readers")
        db.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_rotate(text) TO fernet_rotator")
        db.execute("REVOKE EXECUTE ON FUNCTION fernet.fernet_rotate(text) FROM fernet_readers")
        db.execute("GRANT EXECUTE ON FUNCTION fernet.fernet_key_index(text) TO fernet_rotator")
        assert grants(db)["fernet.fernet_decrypt(text)"] == {"fernet_readers"}

        db.execute("ALTER EXTENSION pg_fernet UPDATE")

        found = grants(db)
        assert {function: roles for function, roles in found.items() if "PUBLIC" not in roles} == {
            "fernet.fernet_rotate(text)": {"fernet_rotator"},
            "fernet.fernet_key_index(text)": {"fernet_readers", "fernet_rotator"},
        }
        # If it were revoked where something else was granted, pg_dump would forget that: so a warning names
        # it instead.
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
