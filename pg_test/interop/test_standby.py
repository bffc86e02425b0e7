"""On a hot standby, everything works that writes nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

import pyca
from edition import SUPERUSER
from postgres import column, connect, force_parallel, plan, set_keys, value
from tables import wait_until

PORT = 5433  # only a name for its socket: the server listens on no address


def as_server_user(program, *arguments):
    command = [*os.environ["PG_FERNET_RUN"].split(), shutil.which(program), *arguments]
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture
def standby(database):
    """Opens sessions in the database's copy on a standby."""
    data = str(Path(os.environ["PGHOST"], "standby"))
    as_server_user("pg_basebackup", "-U", SUPERUSER, "-D", data, "-R", "-c", "fast")
    as_server_user("pg_ctl", "start", "-w", "-D", data, "-l", data + "/server.log", "-o", f"-p {PORT}")
    try:
        with connect(database, port=PORT) as session:
            yield session
    finally:
        as_server_user("pg_ctl", "stop", "-m", "immediate", "-D", data)


def test_hot_standby(db, standby, database, rng):
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    set_keys(db, old)
    db.execute("CREATE TABLE replicated AS SELECT fernet_encrypt(n::text) AS token FROM generate_series(1, 10000) AS n")
    until = value(db, "SELECT pg_current_wal_insert_lsn()::text")
    wait_until(lambda: value(standby, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", until))

    assert value(standby, "SELECT pg_is_in_recovery()")
    set_keys(standby, new, old)
    assert len(column(standby, "SELECT fingerprint FROM fernet_keys()")) == 2
    force_parallel(standby)
    for query, expected in {
        "SELECT sum(fernet_decrypt(token)::int) FROM replicated": 50_005_000,
        "SELECT sum(fernet_key_index(token)) FROM replicated": 20_000,
        # A rotation whose result is not stored.
        "SELECT sum(fernet_key_index(fernet_rotate(token))) FROM replicated": 10_000,
    }.items():
        assert plan(standby, query)[1] > 0
        assert value(standby, query) == expected
    assert pyca.decrypt([new], value(standby, "SELECT fernet_encrypt('hello')")) == b"hello"
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        standby.execute("UPDATE replicated SET token = fernet_rotate(token)")
    db.execute("DROP TABLE replicated")
