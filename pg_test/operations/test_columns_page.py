"""docs/columns.md: what it says of encrypted columns beside the procedures and the trigger."""

import pytest
from psycopg import errors

from edition import superuser
from pages import code_block
from postgres import value
from tables import DECRYPT, ENCRYPT, encrypt_writes

PAGE = "docs/columns.md"
# Bytes whose token fits into a row of a B-tree, and those that are too many.
FITS, TOO_LONG = 1900, 2100


@pytest.fixture
def customers(db):
    """The table of the page's examples."""
    db.execute("CREATE TABLE customer (id integer PRIMARY KEY, name text, iban text)")
    db.execute("INSERT INTO customer VALUES (1, 'Ann', 'DE89'), (2, 'Bob', NULL)")
    yield db
    db.execute("DROP TABLE customer CASCADE")


def test_the_view_is_only_for_reading(customers):
    block = code_block(PAGE, "2. Readers", "sql")
    customers.execute(block[:block.index("GRANT")])
    for statement in "UPDATE customer_plain SET iban = 'x'", "INSERT INTO customer_plain (id, iban) VALUES (3, 'x')":
        with pytest.raises(errors.FeatureNotSupported, match='column "iban" of view'):
            customers.execute(statement)


def test_what_is_written_to_the_hash_is_replaced(customers, database):
    try:
        with superuser(database) as session:
            session.execute("CREATE EXTENSION IF NOT EXISTS pgcrypto")
    except errors.Error:
        pytest.skip("pgcrypto is not installed here")
    encrypt_writes(customers, "customer", "iban")
    customers.execute(code_block(PAGE, "Looking up by value", "sql").replace("CREATE EXTENSION pgcrypto;", ""))
    try:
        customers.execute("UPDATE customer SET iban_hash = 'x'")
        customers.execute("INSERT INTO customer VALUES (3, 'Cy', 'FR14', 'x'), (4, 'Di', NULL, 'x')")
        customers.execute("UPDATE customer SET iban = (SELECT iban FROM customer WHERE id = 3) WHERE id = 2")
        assert customers.execute("SELECT id, iban_hash = hash_of(fernet_decrypt(iban)) FROM customer ORDER BY id").fetchall() == [
            (1, True), (2, True), (3, True), (4, None)]
        assert value(customers, "SELECT iban_hash FROM customer WHERE id = 4") is None
    finally:
        customers.execute("DROP TABLE hash_key; DROP FUNCTION hash_of, hash_iban CASCADE")


def test_an_index_that_contains_the_column(db):
    """What an index can compress takes less, which no token does."""
    db.execute("CREATE TABLE secrets (id integer, value text)")
    db.execute("CREATE INDEX ON secrets (id) INCLUDE (value)")
    db.execute("INSERT INTO secrets SELECT 1, repeat('x', %s)", [FITS])
    assert ENCRYPT.call(db) == ENCRYPT.counts(1)
    db.execute("INSERT INTO secrets SELECT 2, repeat('x', %s)", [TOO_LONG])
    with pytest.raises(errors.ProgramLimitExceeded, match="index row size .* exceeds btree version 4 maximum 2704"):
        ENCRYPT.call(db)


@pytest.mark.parametrize("type, back", [("bpchar", "blanks"), ("char(120)", "blanks".ljust(120)), ("text", "blanks  ")])
def test_blanks_at_the_end(db, type, back):
    db.execute(f"CREATE TABLE secrets (value {type})")
    db.execute("INSERT INTO secrets VALUES ('blanks  ')")
    ENCRYPT.call(db)
    DECRYPT.call(db)
    assert value(db, "SELECT value FROM secrets") == back
