"""A statement over many rows needs no more memory than one over few."""

import pytest

import pyca
from postgres import private_memory, set_keys, value

MEGABYTE = 1024


@pytest.fixture
def tokens(db, rng):
    new, old, lost = (pyca.key_of(rng) for _ in range(3))
    set_keys(db, new, old)
    db.execute("SET jit = off")  # takes 20 MB
    db.execute("CREATE TEMP TABLE tokens AS SELECT %s::text AS new, %s::text AS old, %s::text AS lost",
               [pyca.encrypt(key, b"hello, world", 1_700_000_000).decode() for key in (new, old, lost)])


def growth(db, query, rows):
    """By how much memory grows in a second run of a query, each over this many rows."""
    thousand = f"generate_series(1, 1000) AS a, generate_series(1, {rows // 1000}) AS b"
    query = f"SELECT count({query}) FROM tokens, {thousand}"
    value(db, f"SELECT count(*) FROM {thousand}")
    assert value(db, query.replace(str(rows // 1000) + ") AS b", "1) AS b")) == 1000  # warm
    before = private_memory(db)
    assert value(db, query) == rows
    between = private_memory(db)
    assert value(db, query) == rows
    return between - before, private_memory(db) - between


def test_a_million_rotations(db, tokens):
    first, second = growth(db, "fernet_rotate(old)", 1_000_000)
    assert first < MEGABYTE
    assert second < MEGABYTE // 4


@pytest.mark.parametrize("call", [
    "fernet_rotate(new)", "fernet_rotate(old::bytea)", "fernet_encrypt(old)", "fernet_decrypt(old)", "fernet_decrypt_bytea(old)",
    "fernet_decrypt(old, '100 years', clock_timestamp())", "fernet_is_token(old)", "fernet_timestamp(old)", "fernet_generate_key()",
    "coalesce(fernet_key_index(lost), 0)", "coalesce(fernet_key_index('plaintext' || a), 0)",
    "(SELECT count(fingerprint) FROM fernet_keys() WHERE a > 0)",
    # The sum is past the end of timestamptz: an error of the server's is caught each time.
    "fernet_decrypt(old, '1000000 years', clock_timestamp())",
])
def test_every_function(db, tokens, call):
    first, second = growth(db, call, 100_000)
    assert first < MEGABYTE
    assert second < MEGABYTE // 4


def test_large_values(db, rng):
    """Each is 2 MB, out of line, so that it is fetched into memory again for each row."""
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    set_keys(db, old)
    db.execute("CREATE TEMP TABLE large AS SELECT fernet_encrypt(%s::bytea) AS token", [rng.randbytes(1_500_000)])
    set_keys(db, new, old)

    def peak(rows):
        value(db, "SELECT count(DISTINCT left(fernet_decrypt_bytea(fernet_rotate(token))::text, 5)) FROM large, generate_series(1, %s)", rows)
        return private_memory(db)

    few = peak(2)
    assert peak(100) - few < 2 * MEGABYTE


def test_changes_of_the_setting(db, rng):
    """Each drops the keys before it."""
    lists = [",".join(pyca.key_of(rng) for _ in range(100)) for _ in range(2)]
    query = ("SELECT count(fernet_encrypt(set_config('fernet.keys', (%s::text[])[1 + n %% 2], false)::bytea))"
             " FROM generate_series(1, 2000) AS n")
    value(db, query, lists)
    before = private_memory(db)
    value(db, query, lists)
    assert private_memory(db) - before < MEGABYTE
