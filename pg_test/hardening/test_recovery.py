"""A server that is killed during an UPDATE or its COMMIT: afterwards each row opens, and all are old or all are new."""

import sys
import time

import psycopg
import pytest

from cluster import Cluster, run
from log import complaints
from soak import count
from postgres import value
from tables import NEW, OLD, fill, in_background, plaintexts

ROWS, LARGE = 5000, 20
KILLS = count(3, 20)


SETTINGS = {
    # With few buffers, much of what is not committed is written.
    "update": ["shared_buffers = '2MB'", "max_wal_size = '32MB'"],
    # The log is in memory until the commit writes it.
    "commit": ["shared_buffers = '128MB'", "wal_buffers = '16MB'", "wal_writer_delay = '10s'"],
}


@pytest.fixture(scope="module", params=SETTINGS)
def moment(request):
    return request.param


@pytest.fixture(scope="module")
def cluster(moment):
    settings = ["fsync = on", "synchronous_commit = on", "full_page_writes = on", "autovacuum = off", *SETTINGS[moment]]
    if sys.platform == "linux":
        settings.append("recovery_init_sync_method = syncfs")  # starts faster
    with Cluster([NEW, OLD], *settings) as cluster:
        with cluster.connect() as db:
            db.execute("CREATE EXTENSION pg_fernet")
            assert value(db, "SHOW data_checksums") == "on"
        yield cluster


class Rotation:
    """A table whose tokens are all under one key, and their rotation back and forth between two keys."""

    def __init__(self, cluster, table):
        self.cluster, self.table = cluster, table
        self.new, self.old = NEW, OLD
        cluster.write("keys", "\n".join([NEW, OLD]))
        with cluster.connect() as db:
            fill(db, ROWS, table=table)
            db.execute("SELECT set_config('fernet.keys', %s, false)", [OLD])
            # Out of line, and indexed as far as that is possible.
            db.execute(f"INSERT INTO {table} SELECT {ROWS} + i, fernet_encrypt(repeat(md5(i::text), 3000)) FROM generate_series(1, {LARGE}) AS i")
            db.execute(f"CREATE INDEX ON {table} (left(value, 200))")
            self.expected = {id: plaintext for id, (plaintext, _) in plaintexts(db, table=table).items()}
        self.update = f"UPDATE {table} SET value = fernet_rotate(value)"

    def check(self, committed):
        """After a restart. `committed`: whether the client was told so."""
        self.cluster.start()
        with self.cluster.connect() as db:
            found = plaintexts(db, table=self.table)
            assert {id: plaintext for id, (plaintext, _) in found.items()} == self.expected
            (key,) = {key for _, key in found.values()}
            assert key == self.new or not committed
            # Through the index, too.
            db.execute("SET enable_seqscan = off")
            assert value(db, f"SELECT count(*) FROM {self.table} AS t JOIN {self.table} AS u ON left(t.value, 200) = left(u.value, 200)") == len(found)
        if key == self.new:
            self.new, self.old = self.old, self.new
            self.cluster.write("keys", f"{self.new}\n{self.old}")
            return "new"
        return "old"


def is_told(statement):
    """Whether a statement in the background was reported to have succeeded."""
    try:
        statement.result()
        return True
    except psycopg.Error:
        return False


def test_killed(cluster, rng, moment):
    rotation = Rotation(cluster, "secrets")
    seen, longest = [], 0
    for kill in range(KILLS + 1):
        db = cluster.connect()
        statement = rotation.update
        if moment == "commit":
            db.execute("BEGIN")
            db.execute(rotation.update)
            statement = "COMMIT"
        processes = cluster.processes()
        begun = time.monotonic()
        with in_background(db.execute, statement) as running:
            if kill == 0:  # once it is over
                running.result()
                longest = 1.1 * (time.monotonic() - begun)
            else:
                # A kill cannot undo what a commit has handed to the kernel: that is decided early.
                time.sleep(longest * rng.random() ** (1 if moment == "update" else 4))
            cluster.kill(processes)
            seen.append(rotation.check(is_told(running)))
    print(f"{len(seen)} kills within {longest:.4f} s, {len(seen) * (ROWS + LARGE)} rows checked: {', '.join(seen)}")
    assert seen[0] == "new"


def test_nothing_is_damaged(cluster):
    """After all these kills."""
    assert [line for line in complaints(cluster.log().splitlines()) if "FATAL:" not in line] == []
    with cluster.connect() as db:
        has_amcheck = value(db, "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'")
    if has_amcheck:
        run("pg_amcheck", "--install-missing", "--heapallindexed", "--rootdescend", "-h", cluster.dir, "-U", "postgres", "postgres")
    run("pg_ctl", "stop", "-m", "fast", "-D", cluster.data)
    cluster.process.wait()
    assert "Bad checksums:  0" in run("pg_checksums", "--check", "-D", cluster.data)
    cluster.start()
    if not has_amcheck:
        pytest.skip("checksums are right; this server has no amcheck")
