"""A session that gets no more memory gets an ordinary error, and goes on."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import psycopg
import pytest

import pyca
from cluster import RUN
from postgres import set_keys, value
from soak import count
from tables import encrypt_writes

pytestmark = pytest.mark.skipif(not shutil.which("prlimit"), reason="no prlimit")

OUT_OF_MEMORY = "53200"
MEGABYTE = 1 << 20

LARGE = [
    "SELECT length(fernet_encrypt(token)) FROM large",
    "SELECT length(fernet_encrypt(bytes)) FROM large",
    "SELECT length(fernet_decrypt(token)) FROM large",
    "SELECT length(fernet_decrypt(bytes, '1 day')) FROM large",
    "SELECT length(fernet_decrypt_bytea(token, '1 day')) FROM large",
    "SELECT length(fernet_decrypt_bytea(bytes)) FROM large",
    "SELECT length(fernet_rotate(token)) FROM large",
    "SELECT length(fernet_rotate(bytes)) FROM large",
    "SELECT length(fernet_rotate(json)::text) FROM large",
    "SELECT length(fernet_rotate(jsonb)::text) FROM large",
    "SELECT fernet_key_index(jsonb) FROM large",
    "SELECT fernet_key_index(token) FROM large",
    "SELECT fernet_is_token(bytes) FROM large",
    "SELECT fernet_timestamp(token) FROM large",
    "SELECT * FROM fernet_census('large', 'token')",
    "SELECT * FROM fernet_find_columns()",
    "UPDATE large SET token = fernet_rotate(token)",
    "CALL fernet_rotate_column('large', 'bytes')",
    "CALL fernet_rotate_column('large', 'jsonb')",
    "CALL fernet_rotate_column('large', 'list')",
    "CALL fernet_encrypt_column('large', 'plaintext')",
    "CALL fernet_decrypt_column('large', 'bytes')",
    "INSERT INTO written SELECT plaintext FROM large",
]
MANY_KEYS = [
    "SELECT count(fingerprint) FROM fernet_keys()",
    "SELECT fernet_keys()",
    "SELECT * FROM fernet_census('few', 'token')",
    "CALL fernet_rotate_column('few', 'token')",
    "CALL fernet_decrypt_column('few', 'token')",
    "INSERT INTO few VALUES ('hello')",
    "SELECT length(set_config('fernet.keys', '{keys}', false))",
]
MANY_TABLES = [
    "SELECT * FROM fernet_find_columns()",
    "CALL fernet_rotate_column('many', 'd')",
]


@pytest.fixture
def limit():
    """Lets the process of a session have that many more bytes than it has."""
    # The server's user may do it.
    shell = subprocess.Popen([*RUN, "sh", "-c", "while read limit; do prlimit $limit && echo; done"], cwd="/",
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def limit(session, room):
        pid = session.info.backend_pid
        (size,) = [int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmSize:")]
        shell.stdin.write(f"--pid {pid} --as={'unlimited' if room is None else size * 1024 + room}:\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == "\n"

    yield limit
    shell.stdin.close()
    shell.wait()


def codes(session, limit, statement, step, most):
    """The outcomes of a statement with more and more memory, and at last with as much as it needs."""
    seen = []
    for room in [*range(0, most, step), None]:
        limit(session, room)
        try:
            session.execute(statement)
            seen.append(None)
        except psycopg.Error as error:
            seen.append(error.sqlstate)
        assert seen[-1] in (None, OUT_OF_MEMORY), f"{statement} with {room} bytes"
        if room is not None and seen[-5:] == [None] * 5:
            break  # that much is enough
    print(f"{statement[:80]}: {dict(Counter(seen))}")
    # The session goes on.
    assert seen[-1] is None and OUT_OF_MEMORY in seen
    assert value(session, "SELECT fernet_decrypt(fernet_encrypt('hello'))") == "hello"


@pytest.fixture
def session(healthy, sessions):
    """A session that has the library, but no memory to spare. Loading would fail with another code."""
    session = sessions()
    session.execute("LOAD 'pg_fernet'")
    return session


@pytest.mark.parametrize("statement", LARGE)
def test_large_values(db, session, rng, limit, statement):
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    set_keys(db, old)
    db.execute("CREATE TABLE large AS SELECT token, token::bytea AS bytes, to_json(token) AS json, to_jsonb(token) AS jsonb,"
               " ARRAY[token] AS list, plaintext FROM repeat('x', 6 << 20) AS plaintext, fernet_encrypt(plaintext) AS token")
    db.execute("CREATE TABLE written (value text)")
    encrypt_writes(db, "written")
    try:
        set_keys(session, new, old)
        codes(session, limit, statement, count(4 * MEGABYTE, MEGABYTE // 4), 40 * MEGABYTE)
    finally:
        db.execute("DROP TABLE large, written")


@pytest.mark.parametrize("statement", MANY_KEYS)
def test_ten_thousand_keys(session, rng, limit, statement):
    keys = [pyca.key_of(rng) for _ in range(10_000)]
    session.execute("CREATE TEMP TABLE few AS SELECT %s AS token", [pyca.encrypt(keys[-1], b"x", 0).decode()])
    encrypt_writes(session, "few", "token")
    set_keys(session, *keys)
    codes(session, limit, statement.format(keys=",".join(keys)), MEGABYTE // count(8, 64), count(5, 10) * MEGABYTE)


@pytest.fixture
def many(db):
    db.execute("CREATE TABLE many (a text, b text, c text, d text) PARTITION BY LIST (a)")
    for number in range(count(400, 1000)):
        db.execute(f"CREATE TABLE many_{number} PARTITION OF many FOR VALUES IN ('{number}')")
    yield
    db.execute("DROP TABLE many")


@pytest.mark.parametrize("statement", MANY_TABLES)
def test_many_tables(db, many, session, rng, limit, statement):
    """Little is kept of each, and it comes from another allocator than values do."""
    set_keys(session, pyca.key_of(rng))
    codes(session, limit, statement, MEGABYTE // 64, 4 * MEGABYTE)
