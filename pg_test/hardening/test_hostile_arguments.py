"""Functions on whole columns, with any relation and name as arguments."""

from collections import Counter

import psycopg
import pytest

import pyca
from postgres import set_keys, value

# Errors that PostgreSQL raises in similar cases. The contract's own errors are about keys and tokens.
STANDARD = {
    "0A000": "a column that a table is partitioned by",
    "22004": "a NULL where none may be",
    "22001": "a column that is too short",
    "22023": "a number of rows below 1",
    "2BP01": "a column that something depends on",
    "42501": "a catalog of the server's own",
    "42P01": "no such relation",
    "42703": "no such column",
    "42804": "a column of a type that holds no tokens",
    "42809": "a relation without rows, or with rows that are elsewhere",
    "428C9": "a generated column",
    "55000": "a materialized view that is not populated, or a foreign table that nothing can read",
}

OBJECTS = '''
    CREATE SCHEMA "hostile ""args""";
    SET search_path = "hostile ""args""", public;
    CREATE DOMAIN d1 AS text; CREATE DOMAIN d2 AS d1 CHECK (value <> \'\');
    CREATE TABLE usual (id int PRIMARY KEY, a text, dropped text, "A" varchar(500), "wëird ""col$; --
    " char(200), b bytea, d d2, arr text[], j json, n name, c "char", x xml, g text GENERATED ALWAYS AS ("A") STORED);
    ALTER TABLE usual DROP dropped;
    INSERT INTO usual VALUES (1, fernet_encrypt('x'), fernet_encrypt('x'), fernet_encrypt('x'), fernet_encrypt('x')::bytea, fernet_encrypt('x'));
    CREATE TABLE "quo""ted
    ; --" (a text);
    CREATE TABLE no_columns ();
    CREATE UNLOGGED TABLE unlogged (a text);
    CREATE TEMP TABLE temporary (a text);
    CREATE TABLE parent (a text) PARTITION BY HASH (a);
    CREATE TABLE child PARTITION OF parent FOR VALUES WITH (MODULUS 1, REMAINDER 0);
    CREATE TABLE heir (b bytea) INHERITS (usual);
    CREATE INDEX i ON usual (a);
    CREATE SEQUENCE s;
    CREATE TYPE composite AS (a text);
    CREATE VIEW v AS SELECT a FROM usual;
    CREATE VIEW failing AS SELECT (1 / (id - 1))::text AS a FROM usual;
    CREATE MATERIALIZED VIEW m AS SELECT a FROM usual;
    CREATE MATERIALIZED VIEW unpopulated AS SELECT a FROM usual WITH NO DATA;
    CREATE FOREIGN DATA WRAPPER hostile; CREATE SERVER hostile FOREIGN DATA WRAPPER hostile;
    CREATE FOREIGN TABLE f (a text) SERVER hostile;
'''
NAMES = ["a", "A", 'wëird "col$; --\n    ', "b", "d", "id", "arr", "j", "n", "c", "x", "g", "prosrc", "chunk_data", "rolpassword",
         "", "*", "ctid", "xmin", "tableoid", "........pg.dropped.3........", '"a"', "a; DROP TABLE usual", "é" * 31, "x" * 63, "x" * 64]
CATALOGS = ["pg_proc", "pg_authid", "pg_class", "pg_largeobject", "pg_statistic", "pg_settings", "information_schema.tables"]


@pytest.fixture
def relations(healthy, db, rng):
    """OIDs of relations of every kind, and one of none."""
    set_keys(db, pyca.key_of(rng), pyca.key_of(rng))
    db.execute("SET log_error_verbosity = verbose")
    db.execute(OBJECTS)
    ours = [row[0] for row in db.execute("""SELECT oid FROM pg_class WHERE relname <> 'composite' AND
        (relnamespace = quote_ident(current_schema)::regnamespace OR relnamespace = pg_my_temp_schema()) ORDER BY oid""")]
    toast = value(db, "SELECT reltoastrelid FROM pg_class WHERE oid = 'usual'::regclass")
    composite = value(db, "SELECT 'composite'::regclass::oid")
    catalogs = [value(db, "SELECT %s::regclass::oid", name) for name in CATALOGS]
    yield [*ours, toast, composite, *catalogs, 0, 1, 2**31, 2**32 - 1]
    db.execute("SET client_min_messages = error")
    db.execute('DROP SCHEMA "hostile ""args""" CASCADE; DROP FOREIGN DATA WRAPPER hostile CASCADE; DROP TABLE temporary')


def outcome(db, statement, *arguments):
    try:
        db.execute(statement, arguments)
        return None
    except psycopg.Error as error:
        return error.sqlstate


def test_every_relation_and_name(db, relations):
    seen = Counter()
    for relation in relations:
        for name in NAMES:
            for statement in ("SELECT * FROM fernet_census(%s::oid::regclass, %s::name)",
                              "CALL fernet_rotate_column(%s::oid::regclass, %s::name)",
                              "CALL fernet_rotate_column(%s::oid::regclass, %s::name, 1, true)",
                              "CALL fernet_decrypt_column(%s::oid::regclass, %s::name)",
                              "CALL fernet_encrypt_column(%s::oid::regclass, %s::name)"):
                code = outcome(db, statement, relation, name)
                # The division by zero is the view's own; values of the catalogs are not tokens.
                assert code in {None, "22012", "22P02", *STANDARD}, (statement, relation, name)
                seen[code] += 1
    print(f"{seen.total()} calls: {dict(seen)}")
    assert set(STANDARD) - set(seen) == {"22001", "22004", "22023"}
    assert value(db, "SELECT count(*) FROM usual WHERE fernet_key_index(a) = 1") == 1


def test_every_number_and_null(db, relations):
    usual = value(db, "SELECT 'usual'::regclass::oid")
    for number in -2**31, -1, 0, None, 1, 2, 2**31 - 1:
        expected = "22023" if number is not None and number < 1 else None
        assert outcome(db, "SELECT * FROM fernet_find_columns(%s)", number) == expected
        for procedure in "rotate", "decrypt", "encrypt":
            call = f"CALL fernet_{procedure}_column(%s::oid::regclass, 'a', %s)"
            assert outcome(db, call, usual, number) == ("22004" if number is None else expected)
    for arguments in (None, "a", 1, False), (usual, None, 1, False), (usual, "a", 1, None):
        assert outcome(db, "CALL fernet_rotate_column(%s::oid::regclass, %s, %s, %s)", *arguments) == "22004"
    for arguments in (None, "a"), (usual, None):
        assert value(db, "SELECT count(*) FROM fernet_census(%s::oid::regclass, %s)", *arguments) == 0


def test_columns_are_found_by_any_name(db, relations):
    found = set(db.execute("SELECT relation::oid, column_name FROM fernet_find_columns()").fetchall())
    usual, view = (value(db, f"SELECT '{name}'::regclass::oid") for name in ("usual", "m"))
    assert found >= {(usual, name) for name in ("a", "A", NAMES[2], "b", "d", "g")} | {(view, "a")}
