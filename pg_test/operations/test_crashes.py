"""Calls that are killed with their session, a worker or the server, at random moments."""

import itertools
import sys
import time

import psycopg
import pytest
from cryptography.fernet import Fernet, InvalidToken

from cluster import Cluster
from edition import FEWER, SQL, install
from tables import DECRYPT, ENCRYPT, NEW, OLD, ROTATE, census, contents, filled, in_background

ROWS = 20_000 // FEWER
KILLS = 4 if SQL else 20
# What is killed, and how many background workers help with the call.
VICTIMS = [("session", 0), ("server", 0), *([] if SQL else [("session", 2), ("worker", 2), ("server", 2)])]


@pytest.fixture(scope="module")
def cluster():
    # A killed server must find all that it has committed.
    settings = ["fsync = on", "synchronous_commit = on", "restart_after_crash = on"]
    if sys.platform == "linux":
        settings.append("recovery_init_sync_method = syncfs")  # starts faster
    with Cluster([NEW, OLD], *settings) as cluster:
        with cluster.connect() as db:
            install(db)
        yield cluster


def there_and_back(procedure, cluster):
    """Conversions in turn, each of which undoes the previous one: rotations from one key to the other and back, or
    encryption and decryption. Yields the conversion, and whether a value has the form that it makes."""
    for keys in itertools.cycle([[NEW, OLD], [OLD, NEW]]):
        if procedure == "rotate":
            cluster.write_keys(keys)
            yield ROTATE, lambda value, key=keys[0]: opens(key, value)
        else:
            yield ENCRYPT, ENCRYPT.is_new
            yield DECRYPT, DECRYPT.is_new


def worker_pids(cluster):
    with cluster.connect() as db:
        return [pid for (pid,) in db.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fernet worker'")]


def opens(key, token):
    try:
        return Fernet(key).decrypt(token) is not None
    except InvalidToken:
        return False


@pytest.mark.parametrize("procedure", ["rotate", "encrypt, decrypt"])
@pytest.mark.parametrize("victim, workers", VICTIMS)
def test_a_new_call_completes_the_job(cluster, rng, victim, workers, procedure):
    with cluster.connect() as db:
        db.execute("DROP TABLE IF EXISTS secrets")
        (ROTATE if procedure == "rotate" else ENCRYPT).fill(db, ROWS)
    conversions = there_and_back(procedure, cluster)
    conversion, is_new = next(conversions)
    done = 0  # how many rows the calls since the last reversal have converted
    for kill in range(KILLS // 2 if workers else KILLS):
        caller = cluster.connect()
        pid = caller.info.backend_pid
        with in_background(conversion.call, caller, batch_size=200, workers=workers) as call:
            time.sleep(rng.uniform(0, 0.15))
            if victim == "server":
                cluster.kill()
            else:
                cluster.kill_session(*(worker_pids(cluster) if victim == "worker" else []), pid)
            finished = False
            try:
                call.result()
                finished = True
            except psycopg.Error:
                pass
        if victim == "server":
            cluster.start()
        with cluster.connect() as db:
            # Every value is what it was; what was converted stays converted.
            assert contents(db) == filled(ROWS)
            current = sum(is_new(found) for (found,) in db.execute("SELECT value FROM secrets"))
            assert census(db).get(conversion.after, 0) == current
            assert done <= current
            print(f"{conversion.name}: {current} rows of {ROWS} are done")
            done = current
            if finished or current == ROWS:
                assert current == ROWS
                # Then the other way round.
                (conversion, is_new), done = next(conversions), 0
    with cluster.connect() as db:
        assert conversion.call(db) == conversion.counts(ROWS - done, done)
        assert census(db) == {conversion.after: ROWS}
    cluster.write_keys([NEW, OLD])
