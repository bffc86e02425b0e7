"""Both sides of the limit of 1 GB."""

import psycopg
import pytest

import pyca
from postgres import column, set_keys, value
from soak import SOAK
from tables import encrypt_writes

GIGABYTE = 1 << 30

# A value holds 2^30 - 1 bytes with its header of four. A token of more blocks than this takes more.
BLOCKS = ((GIGABYTE - 5) // 4 * 3 - 57) // 16
LARGEST = 16 * BLOCKS - 1


def text(length):
    """An expression for so many characters. Repeating a single one takes seconds."""
    piece = max(n for n in range(1, 5000) if length % n == 0)
    return f"repeat('{'x' * piece}', {length // piece})"


@pytest.fixture
def session(healthy, db, rng):
    (available,) = [int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable:")]
    if available < 5_000_000:
        pytest.skip("takes 4 GB of memory")
    db.execute("SET log_error_verbosity = verbose")
    set_keys(db, *(pyca.key_of(rng) for _ in range(2)))
    return db


@pytest.fixture
def written(session):
    """A table that stores large values as they are."""
    session.execute("CREATE UNLOGGED TABLE written (value text)")
    session.execute("ALTER TABLE written ALTER value SET STORAGE EXTERNAL")
    yield
    session.execute("DROP TABLE written")


def refusal(session, statement, place=""):
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as refusal:
        session.execute(statement)
    assert refusal.value.diag.message_primary == "result would exceed the limit of 1 GB for a value" + place
    assert refusal.value.diag.message_hint.startswith("Split the value")


def test_the_largest_plaintext_makes_the_largest_token(session):
    assert value(session, f"SELECT length(fernet_encrypt({text(LARGEST)}))") == 4 * -(-(57 + 16 * BLOCKS) // 3)


def test_one_byte_more_is_refused(session):
    refusal(session, f"SELECT length(fernet_encrypt({text(LARGEST + 1)}))")
    refusal(session, f"SELECT length(fernet_encrypt({text(GIGABYTE - 8)}))")


def test_the_trigger_refuses_it_too(session, written):
    encrypt_writes(session, "written")
    refusal(session, f"INSERT INTO written VALUES ({text(LARGEST + 1)})", ': column "value" of public.written')


@pytest.mark.skipif(not SOAK, reason="takes 4 GB of memory: in make soak")
def test_the_largest_row(session, written):
    session.execute(f"INSERT INTO written VALUES ({text(LARGEST + 1)})")
    refusal(session, "CALL fernet_encrypt_column('written', 'value')", place=": (0,1) of public.written")
    session.execute("TRUNCATE written")
    # A row has a header, too.
    plaintext = text(LARGEST - 48)
    session.execute(f"INSERT INTO written VALUES ({plaintext})")
    for procedure in "encrypt", "decrypt":
        assert session.execute(f"CALL fernet_{procedure}_column('written', 'value')").fetchone() == (1, 0, 0, 0, 0)
        assert value(session, f"SELECT value = {plaintext} FROM written") == (procedure == "decrypt")
    encrypt_writes(session, "written")
    session.execute("UPDATE written SET value = value")
    assert value(session, f"SELECT fernet_decrypt(value) = {plaintext} FROM written")


@pytest.mark.skipif(not SOAK, reason="takes 4 GB of memory: in make soak")
def test_every_function_takes_the_largest_token(session, rng):
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    calls = {
        "fernet_is_token(token)": "true",
        "fernet_key_index(token)": "2",
        "fernet_timestamp(token) <= clock_timestamp()": "true",
        f"length(fernet_decrypt(token)) = {LARGEST}": "true",
        f"length(fernet_decrypt(token, '1 day')) = {LARGEST}": "true",
        f"length(fernet_decrypt_bytea(token)) = {LARGEST}": "true",
        f"length(fernet_decrypt_bytea(token, '1 day', clock_timestamp())) = {LARGEST}": "true",
        "fernet_key_index(fernet_rotate(token))": "1",
    }
    # One byte short of a token, and as long as a value can be: it is not a token, and is refused.
    refused = ["fernet_decrypt(left(token, -1))", f"fernet_rotate(repeat('gAAA', {(GIGABYTE - 5) // 4}))"]
    for type, convert in ("text", "{}"), ("bytea", "convert_to({}, 'UTF8')"):
        session.execute(f"""
            CREATE OR REPLACE FUNCTION pg_temp.outcomes(calls text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$
            DECLARE
                token {type}; call text; result text;
            BEGIN
                PERFORM set_config('fernet.keys', '{old}', false);
                token := {convert.format(f"fernet_encrypt({text(LARGEST)})")};
                PERFORM set_config('fernet.keys', '{new},{old}', false);
                FOREACH call IN ARRAY calls LOOP
                    BEGIN
                        EXECUTE 'SELECT (' || call || ')::text FROM (SELECT $1 AS token) AS t' INTO result USING token;
                    EXCEPTION WHEN OTHERS THEN
                        result := sqlstate;
                    END;
                    RETURN NEXT result;
                END LOOP;
            END $$""")
        assert column(session, "SELECT * FROM pg_temp.outcomes(%s)", list(calls)) == list(calls.values())
    assert column(session, "SELECT * FROM pg_temp.outcomes(%s)", ["length(%s)" % call.replace("left(token, -1)", "substr(token, 2)") for call in refused]) == ["22P02"] * 2
