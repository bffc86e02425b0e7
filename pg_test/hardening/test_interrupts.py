"""Cancel, timeout, terminate and shutdown end work on large values within a second, and change nothing."""

import random
import time

import pytest
from psycopg import errors

import pyca
from cluster import Cluster, run
from postgres import connect, force_parallel, set_keys, value
from soak import SOAK, count
from tables import encrypt_writes, in_background

# Tokens of 4 MiB, 4 GB of them in soak; and tokens after as many blanks, which take longer to read than to store.
TOKENS, BLANKS = count(60, 1000), 300

STATEMENTS = {
    "update": "UPDATE large SET token = fernet_rotate(token)",
    "update to few": "UPDATE blanks SET token = fernet_rotate(token)",
    "encrypt": "SELECT sum(length(fernet_encrypt(repeat('x', 3 << 20) || n))) FROM generate_series(1, 10000) AS n",
    "decrypt": "SELECT sum(length(fernet_decrypt_bytea(token))) FROM large, generate_series(1, 100)",
    "parallel": "SELECT sum(length(fernet_decrypt(token))) FROM blanks",
    "key_index": "SELECT sum(fernet_key_index(token)) FROM large, generate_series(1, 100)",
    "census": "SELECT * FROM fernet_census('blanks', 'token')",
    "find_columns": "SELECT * FROM fernet_find_columns(100000)",
    "rotate_column": "CALL fernet_rotate_column('blanks', 'token')",
    # It reads them all, and finds nothing to do.
    "encrypt_column": "CALL fernet_encrypt_column('blanks', 'token')",
    "decrypt_column": "CALL fernet_decrypt_column('blanks', 'token')",
    "trigger": "INSERT INTO written SELECT repeat('x', 3 << 20) FROM generate_series(1, 10000)",
}


def make_large_values(db, new, old):
    set_keys(db, old)
    db.execute("CREATE UNLOGGED TABLE large (token text)")
    # PostgreSQL cannot be interrupted while it tries to compress a value.
    db.execute("ALTER TABLE large ALTER token SET STORAGE EXTERNAL")
    db.execute("INSERT INTO large SELECT fernet_encrypt(repeat('x', 3 << 20))")
    db.execute("CREATE UNLOGGED TABLE blanks AS SELECT repeat(' ', 4 << 20) || fernet_encrypt('x') AS token")
    # Copies are stored as they are, and need no more work.
    db.execute(f"INSERT INTO large SELECT token FROM large, generate_series(2, {TOKENS})")
    db.execute(f"INSERT INTO blanks SELECT token FROM blanks, generate_series(2, {BLANKS})")
    db.execute("ANALYZE blanks")
    db.execute("CREATE UNLOGGED TABLE written (value text)")
    db.execute("ALTER TABLE written ALTER value SET STORAGE EXTERNAL")
    encrypt_writes(db, "written")
    set_keys(db, new, old)


def is_unchanged(db):
    return (value(db, "SELECT count(*) FROM large WHERE fernet_key_index(token) = 2") == TOKENS
            and value(db, "SELECT count(*) FROM blanks WHERE octet_length(token) > 4 << 20") == BLANKS
            and value(db, "SELECT count(*) FROM written") == 0)


@pytest.fixture(scope="module")
def keys():
    rng = random.Random(1)
    return [pyca.key_of(rng) for _ in range(2)]


@pytest.fixture(scope="module")
def large(database, keys):
    """A session beside; there are the tables."""
    with connect(database) as db:
        make_large_values(db, *keys)
        yield db
        db.execute("DROP TABLE large, blanks, written")


@pytest.fixture
def session(large, sessions, keys):
    session = sessions()
    set_keys(session, *keys)
    return session


def seconds_to_end(session, statement, stop, refusal, after=0.3):
    """How long a statement goes on after it is told to stop."""
    ended = []

    def work():
        try:
            session.execute(statement)
        finally:
            ended.append(time.monotonic())

    with in_background(work) as call:
        time.sleep(after)
        assert call.is_alive(), "it was over too soon"
        told = time.monotonic()
        stop()
        with pytest.raises(refusal):
            call.result()
    print(f"{statement}: {ended[0] - told:.3f} s")
    return ended[0] - told


@pytest.mark.parametrize("what", STATEMENTS)
def test_cancel(large, session, what):
    if what == "parallel":
        force_parallel(session)
    pid = session.info.backend_pid
    assert seconds_to_end(session, STATEMENTS[what], lambda: large.execute("SELECT pg_cancel_backend(%s)", [pid]), errors.QueryCanceled) < 1
    assert is_unchanged(large)
    assert value(session, "SELECT fernet_decrypt(fernet_encrypt('still here'))") == "still here"


@pytest.mark.parametrize("what", STATEMENTS)
def test_statement_timeout(large, session, what):
    session.execute("SET statement_timeout = '300ms'")
    begun = time.monotonic()
    with pytest.raises(errors.QueryCanceled):
        session.execute(STATEMENTS[what])
    assert time.monotonic() - begun < 1.3
    assert is_unchanged(large)


@pytest.mark.parametrize("what", STATEMENTS)
def test_terminate(large, session, what):
    pid = session.info.backend_pid
    assert seconds_to_end(session, STATEMENTS[what], lambda: large.execute("SELECT pg_terminate_backend(%s)", [pid]), errors.AdminShutdown) < 1
    assert is_unchanged(large)


def test_fast_shutdown(keys):
    with Cluster(keys, "fsync = off") as cluster:
        with cluster.connect() as db:
            db.execute("CREATE EXTENSION pg_fernet")
            make_large_values(db, *keys)
        stop = "pg_ctl", "stop", "-m", "fast", "-D", cluster.data
        with cluster.connect() as session:
            assert seconds_to_end(session, STATEMENTS["update"], lambda: run(*stop, "-W"), errors.AdminShutdown) < 1
        cluster.process.wait(60)
        cluster.start()
        with cluster.connect() as db:
            set_keys(db, *keys)
            assert is_unchanged(db)


@pytest.mark.skipif(not SOAK, reason="takes 2 GB of memory, and time: in make soak")
def test_one_value_of_256_mib(large, session):
    """Nothing inside one call can be interrupted: the statement ends no later than the call."""
    session.execute("CREATE TEMP TABLE one (token text)")
    session.execute("ALTER TABLE one ALTER token SET STORAGE EXTERNAL")
    session.execute(f"INSERT INTO one SELECT fernet_encrypt(repeat('x', {192 << 20}))")
    set_keys(session, *reversed(value(session, "SHOW fernet.keys").split(",")))
    begun = time.monotonic()
    assert value(session, "SELECT length(fernet_rotate(token)) FROM one") >= 256 << 20
    call = time.monotonic() - begun
    print(f"a call: {call:.1f} s")
    pid = session.info.backend_pid
    for after in 0.1, 0.5 * call, 0.9 * call:
        assert seconds_to_end(session, "UPDATE one SET token = fernet_rotate(token)",
                              lambda: large.execute("SELECT pg_cancel_backend(%s)", [pid]), errors.QueryCanceled, after) < call + 1
