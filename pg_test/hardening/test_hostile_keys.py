"""Lists of one to ten thousand keys, and lists of anything but keys: from the setting, from a file, from a
command."""

import os

import psycopg
import pytest

import pyca
from hostile import MEGABYTE
from key_files import folder_for, write
from postgres import column, set_keys, value
from settings import Configuration, use_file
from soak import count

REFUSED, UNREADABLE = "22023", "F0000"


@pytest.fixture
def from_setting(db):
    return lambda text: set_keys(db, text.decode())


@pytest.fixture
def from_file(db):
    folder = folder_for(os.environ["PGHOST"])
    return lambda text: use_file(db, write_bytes(folder / "keys", text))


@pytest.fixture
def from_command(db):
    path = folder_for(os.environ["PGHOST"]) / "keys"
    with Configuration(db) as configuration:
        def use(text):
            write_bytes(path, text)
            configuration.set("fernet.keys_command", f"cat '{path}'")  # reloads, too

        yield use


def write_bytes(path, text):
    write(path)
    path.write_bytes(text)
    return path


@pytest.fixture(params=["setting", "file", "command"])
def source(request, db, healthy):
    """Its name, and a function that makes the server use a list from it: returns the number of keys, or a
    SQLSTATE."""
    use = request.getfixturevalue("from_" + request.param)
    db.execute("SET log_error_verbosity = verbose")

    def outcome(text):
        try:
            use(text)
            return value(db, "SELECT count(*) FROM fernet_keys()")
        except psycopg.Error as error:
            return error.sqlstate

    return request.param, outcome


def test_every_list(source, rng):
    name, outcome = source
    key = pyca.key_of(rng).encode()
    keys = [pyca.key_of(rng).encode() for _ in range(10_000)]
    lists = {
        # Bytes that are not base64 are skipped.
        key: 1,
        b" " * (MEGABYTE - 100) + key: 1,
        key + b"!" * (MEGABYTE - 100): 1,
        b"".join(b"%c??" % byte for byte in key): 1,
        key.rstrip(b"="): REFUSED,
        key[1:]: REFUSED,
        key[:-2] + b"A=": 1,
        key + b"," + b"=" * 1000: REFUSED,
        b"=" * 1000 + key: 1,
        key * 2: REFUSED,
        key + b" " * MEGABYTE + key: REFUSED if name == "setting" else UNREADABLE,
        key + b" " * (MEGABYTE - 100) + key[:10]: REFUSED,
        b"-" * 44: REFUSED,
        "ключ".encode(): REFUSED,
        "é".encode() * (MEGABYTE // 2): REFUSED,
        b"=" * MEGABYTE: REFUSED,
        b"A" * MEGABYTE: REFUSED,
        b"gAAAAA" * (MEGABYTE // 6): REFUSED,
        bytes(rng.choices(range(32, 127), k=MEGABYTE)).replace(b"#", b"!"): REFUSED,
        b"," * MEGABYTE: REFUSED,
    }
    for length in 2, 3, 10, 100, 1000, 10_000:
        lists[b",".join(keys[:length])] = length
        lists[b",".join([*keys[:length], key[1:]])] = REFUSED
    lists[b",".join([key] * 10_000)] = 10_000  # the same one, again and again
    if name == "setting":
        lists |= {
            b"": REFUSED, b" ": REFUSED, b",": REFUSED, key + b",": REFUSED, b"," + key: REFUSED, key + b",," + key: REFUSED,
            b",".join(keys * count(2, 20)): len(keys) * count(2, 20),
            b"A" * count(20, 200) * MEGABYTE: REFUSED,
            b"," * count(20, 200) * MEGABYTE: REFUSED,
        }
    else:
        lists |= {
            b"": REFUSED, b"#": REFUSED, b"\n" * MEGABYTE: REFUSED, b"#" * MEGABYTE: REFUSED,
            key + b",": 1, b"," + key: 1, key + b",," + key: 2,
            b"\0" + key: 1, key + b"\0": 1, b"\0" * MEGABYTE: REFUSED, b"\xff\xfe" + key: 1,
            rng.randbytes(MEGABYTE).replace(b"#", b"!"): REFUSED,
            b"\n".join(keys): 10_000, b"\r\n".join(keys) + b"\r\n": 10_000, b"#\n".join(keys): 10_000,
            # One more byte than is read.
            key + b"\n" * (MEGABYTE - 43): UNREADABLE,
            b"A" * 20 * MEGABYTE: UNREADABLE,
        }
    for text, expected in lists.items():
        assert outcome(text) == expected, f"{text[:100]} … ({len(text)} bytes)"
    print(f"{len(lists)} lists, from a {name}")


def test_every_function_under_ten_thousand_keys(healthy, db, rng):
    keys = [pyca.key_of(rng) for _ in range(10_000)]
    first, last, lost = (pyca.encrypt(key, b"hello", 1_700_000_000).decode() for key in (keys[0], keys[-1], pyca.key_of(rng)))
    set_keys(db, *keys)
    assert column(db, "SELECT fingerprint FROM fernet_keys()") == [pyca.fingerprint(key) for key in keys]
    for token, index in (first, 1), (last, 10_000), (lost, None), (first, 1):
        assert value(db, "SELECT fernet_key_index(%s)", token) == index
        assert value(db, "SELECT fernet_key_index(%s::bytea)", token.encode()) == index
    for call in "fernet_decrypt", "fernet_decrypt_bytea", "fernet_rotate", "fernet_timestamp":
        assert value(db, f"SELECT {call}(%s::text) IS NOT NULL", last)
        with pytest.raises(psycopg.errors.ExternalRoutineInvocationException):
            value(db, f"SELECT {call}(%s::text)", lost)
    assert value(db, "SELECT fernet_key_index(fernet_rotate(%s::text))", last) == 1
    assert value(db, "SELECT fernet_key_index(fernet_encrypt('hello'))") == 1

    db.execute("CREATE TABLE many (token text)")
    try:
        db.execute("INSERT INTO many SELECT unnest(%s::text[])", [[pyca.encrypt(key, b"hello", 0).decode() for key in keys[::100]]])
        db.execute("INSERT INTO many VALUES (%s)", [lost])
        census = db.execute("SELECT status, key_index, tokens FROM fernet_census('many', 'token')").fetchall()
        assert census == [("current", 1, 1), *[("old key", index, int(index % 100 == 1)) for index in range(2, 10_001)],
                          ("unknown key", None, 1), ("not a token", None, 0), ("null", None, 0)]
        assert db.execute("CALL fernet_rotate_column('many', 'token')").fetchone() == (99, 1, 1, 0, 0)
    finally:
        db.execute("DROP TABLE many")
