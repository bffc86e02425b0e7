"""ALTER EXTENSION pg_fernet UPDATE leads from each released version to what a fresh installation gives.

The SQL of each release is kept in sql/releases, the scripts from one to the next are in sql."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tables import connect, value

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
OLDER = SCRIPT.replace(ADDED, "").replace("    fernet_keys(),\n", "") \
    .replace("    fernet_rotate(text), fernet_rotate(bytea),\n", "    fernet_rotate(bytea),\n") \
    .replace("RETURNS integer\n    LANGUAGE c STABLE", "RETURNS integer\n    LANGUAGE c VOLATILE")
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
