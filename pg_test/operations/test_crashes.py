"""Calls that are killed with their session, or with the server, at random moments."""

import sys
import time

import psycopg
import pytest

from cluster import Cluster
from tables import NEW, OLD, census, fill, in_background, plaintexts, rotate

ROWS = 20_000
KILLS = 20


@pytest.fixture(scope="module")
def cluster():
    # A killed server must find what it has committed.
    settings = ["fsync = on", "synchronous_commit = on", "restart_after_crash = on"]
    if sys.platform == "linux":
        settings.append("recovery_init_sync_method = syncfs")  # starts faster
    with Cluster([NEW, OLD], *settings) as cluster:
        with cluster.connect() as db:
            db.execute("CREATE EXTENSION pg_fernet")
        yield cluster


@pytest.mark.parametrize("victim", ["session", "server"])
def test_a_new_call_completes_the_job(cluster, rng, victim):
    with cluster.connect() as db:
        db.execute("DROP TABLE IF EXISTS secrets")
        fill(db, ROWS)
    to_new = True
    done = 0  # how many rows the calls since the last reversal have rotated
    for kill in range(KILLS):
        caller = cluster.connect()
        pid = caller.info.backend_pid
        with in_background(rotate, caller, batch_size=200) as call:
            time.sleep(rng.uniform(0, 0.15))
            if victim == "session":
                cluster.kill_session(pid)
            else:
                cluster.kill()
            finished = False
            try:
                call.result()
                finished = True
            except psycopg.Error:
                pass
        if victim == "server":
            cluster.start()
        with cluster.connect() as db:
            # Every value opens, and is what it was; what was rotated stays rotated.
            found = plaintexts(db)
            assert {id: p for id, (p, _) in found.items()} == {id: f"secret {id}" for id in range(1, ROWS + 1)}
            current = sum(key == (NEW if to_new else OLD) for _, key in found.values())
            assert census(db).get("current", 0) == current
            assert done <= current
            print(f"{current} rows of {ROWS} are done")
            done = current
            if finished or current == ROWS:
                assert current == ROWS
                # The other way round, then.
                to_new, done = not to_new, 0
                cluster.write("keys", "\n".join([NEW, OLD] if to_new else [OLD, NEW]))
    with cluster.connect() as db:
        counts = rotate(db)
        assert counts == {"rotated": ROWS - done, "current": done, "unknown_key": 0, "not_a_token": 0, "nulls": 0}
        assert census(db) == {"current": ROWS}
    cluster.write("keys", "\n".join([NEW, OLD]))
