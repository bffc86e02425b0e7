"""Both directions, every size, text and bytea columns."""

import time

import pytest
from cryptography.fernet import Fernet

import pyca
from postgres import set_keys, value

SIZES = [*range(50), 63, 64, 65, 255, 256, 1000, 1999, 2000, 2001, 4095, 4096, 8191, 65_535, 65_536, 100_000]
LARGE = [3_000_000, 5_000_001]


@pytest.fixture
def key(db, rng):
    key = pyca.key_of(rng)
    set_keys(db, key)
    return key


def text_of(rng, size):
    """Text of this many bytes in UTF-8, of characters of one to four bytes."""
    characters = rng.choices("aZ 0\n\\'\"é¤žЖ日€𝄞🐘", k=size)
    text = "".join(characters).encode()[:size].decode(errors="ignore")
    return text + "x" * (size - len(text.encode()))


def test_python_to_sql(db, key, rng):
    db.execute("CREATE TEMP TABLE made (id int, token text, bytes bytea)")
    plaintexts = [rng.randbytes(size) for size in SIZES + LARGE]
    with db.cursor().copy("COPY made FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "text", "bytea"])
        for number, plaintext in enumerate(plaintexts):
            token = Fernet(key).encrypt(plaintext)
            copy.write_row([number, token.decode(), token])
    rows = db.execute("SELECT fernet_decrypt_bytea(token), fernet_decrypt_bytea(bytes),"
                      " fernet_key_index(token), fernet_key_index(bytes) FROM made ORDER BY id").fetchall()
    assert rows == [(plaintext, plaintext, 1, 1) for plaintext in plaintexts]


def test_python_text_to_sql(db, key, rng):
    for size in SIZES + LARGE:
        text = text_of(rng, size)
        token = Fernet(key).encrypt(text.encode())
        assert value(db, "SELECT fernet_decrypt(%s::text)", token.decode()) == text
        assert value(db, "SELECT fernet_decrypt(%s::bytea)", token) == text


def test_sql_to_python(db, key, rng):
    for size in SIZES + LARGE:
        plaintext = rng.randbytes(size)
        token = value(db, "SELECT fernet_encrypt(%s::bytea)", plaintext)
        assert Fernet(key).decrypt(token) == plaintext
        assert token.encode() == pyca.canonical(token)


def test_sql_text_to_python(db, key, rng):
    for size in SIZES + LARGE:
        text = text_of(rng, size)
        token = value(db, "SELECT fernet_encrypt(%s::text)", text)
        assert Fernet(key).decrypt(token) == text.encode()
        assert token.encode() == pyca.canonical(token)


def test_new_tokens_bear_the_time(db, key):
    before = int(time.time())
    token = value(db, "SELECT fernet_encrypt('x')")
    assert before <= Fernet(key).extract_timestamp(token) <= time.time()


def test_sql_keys_are_pythons(db):
    key = value(db, "SELECT fernet_generate_key()")
    set_keys(db, key)
    token = value(db, "SELECT fernet_encrypt('hello')")
    assert Fernet(key).decrypt(token) == b"hello"


def test_python_list_is_sql_list(db, rng):
    """The same list for both, as Airflow has it in its settings."""
    keys = [pyca.key_of(rng) for _ in range(3)]
    set_keys(db, *keys)
    token = value(db, "SELECT fernet_encrypt('hello')")
    assert pyca.multi(keys).decrypt(token) == b"hello"
    assert Fernet(keys[0]).decrypt(token) == b"hello"
