"""Rotates tables of several sizes as one UPDATE, in batches and with workers, encrypts and decrypts them, and reports
what each takes, and how fast a standby replays it. Each figure is a median of several turns, each of which has all
ways in it."""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from psycopg import errors

from cluster import Cluster
from edition import install_sql_edition
from postgres import connect, value
from tables import DECRYPT, ENCRYPT, NEW, OLD, ROTATE, census, in_background, wait_until
from throwaway import refuse_another_server

UPDATE = "UPDATE secrets SET value = {schema}fernet_rotate(value) WHERE {schema}fernet_key_index(value) > 1"


def two_updates(db):
    """Two sessions, each with half of the blocks: what the server gains from a second process."""
    half = value(db, "SELECT pg_relation_size('secrets') / current_setting('block_size')::integer / 2")
    one, other = [f"{UPDATE.format(schema='')} AND ctid {operator} '({half},0)'" for operator in ("<", ">=")]
    with connect("postgres", keys=[NEW, OLD]) as session, in_background(session.execute, one) as update:
        db.execute(other)
        update.result()


# What begins with a table that has not been converted, and the conversion that made it.
CONVERSIONS = {
    "UPDATE": (ROTATE, lambda db: db.execute(UPDATE.format(schema=""))),
    "two UPDATEs of half": (ROTATE, two_updates),
    "CALL": (ROTATE, ROTATE.call),
    "CALL, all done": (None, ROTATE.call),
    "census": (None, census),
    "CALL, 1 worker": (ROTATE, lambda db: ROTATE.call(db, workers=1)),
    "CALL, 2 workers": (ROTATE, lambda db: ROTATE.call(db, workers=2)),
    "CALL to encrypt": (ENCRYPT, ENCRYPT.call),
    "CALL to decrypt": (DECRYPT, DECRYPT.call),
}
# The SQL edition gets a tenth of the rows.
OF_THE_EDITION = {
    "SQL edition: UPDATE": lambda db: db.execute(UPDATE.format(schema="edition.")),
    "SQL edition: CALL": lambda db: db.execute("CALL edition.fernet_rotate_column('secrets', 'value')"),
}


def table_mb(db):
    return value(db, "SELECT pg_table_size('secrets')") / 1e6


def new_table(db, conversion, rows):
    db.execute("DROP TABLE IF EXISTS secrets")
    conversion.fill(db, rows)


def measure(db, work):
    """Seconds, megabytes of WAL, and megabytes by which the table grew."""
    db.execute("CHECKPOINT")  # the WAL has each changed page once as a whole
    size, position = table_mb(db), value(db, "SELECT pg_current_wal_insert_lsn()")
    start = time.perf_counter()
    work(db)
    seconds = time.perf_counter() - start
    wal = float(value(db, "SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", position)) / 1e6
    return seconds, wal, table_mb(db) - size


def has_edition(db):
    """Installs the SQL edition in a schema of its own, if the server has what it needs."""
    try:
        db.execute("CREATE SCHEMA edition")
        install_sql_edition(db, "edition")
    except errors.FeatureNotSupported:  # an extension that is not available
        return False
    return True


def show(rows, way, seconds, wal, growth):
    print(f"{rows:>10}  {way:20}{seconds:8.2f}{rows / seconds:10.0f}{wal:9.0f}{wal / rows * 1e6:10.0f}{growth:11.0f}", flush=True)


def target(measured, at_least):
    return f"{measured:.2f} (target: at least {at_least:g}, {'met' if measured >= at_least else 'MISSED'})"


def compare(db, rows, turns, of_edition):
    taken = {way: [] for way in [*CONVERSIONS, *(OF_THE_EDITION if of_edition else [])]}
    for _ in range(turns):
        for way, (conversion, work) in CONVERSIONS.items():
            if conversion:
                new_table(db, conversion, rows)
            taken[way].append(measure(db, work))
            assert census(db) == {conversion.after if conversion else "current": rows}
    for way, work in OF_THE_EDITION.items() if of_edition else []:
        new_table(db, ROTATE, rows // 10)
        taken[way].append(measure(db, work))
        assert census(db) == {"current": rows // 10}
    median = {way: [statistics.median(figures) for figures in zip(*figures)] for way, figures in taken.items()}
    for way, figures in median.items():
        show(rows // 10 if way in OF_THE_EDITION else rows, way, *figures)
    took = {way: seconds for way, (seconds, _, _) in median.items()}
    # The proof reads the whole table once more: the time of a call that finds nothing to rotate.
    print(f"{rows:>10}  the CALL has of the UPDATE's speed {target(took['UPDATE'] / took['CALL'], 0.85)},"
          f" without the proof {target(took['UPDATE'] / (took['CALL'] - took['CALL, all done']), 0.95)}")
    print(f"{rows:>10}  two workers have, times the speed of one, {target(took['CALL, 1 worker'] / took['CALL, 2 workers'], 1.6)};"
          f" two UPDATEs, that of one UPDATE, {took['UPDATE'] / took['two UPDATEs of half']:.2f}")
    print(f"{rows:>10}  to encrypt takes {took['CALL to encrypt'] / took['CALL']:.2f} of the rotation's time,"
          f" to decrypt {took['CALL to decrypt'] / took['CALL']:.2f}", flush=True)


def replay(rows):
    """A standby has received the WAL of a rotation, and then replays it in its single process."""
    settings = "shared_buffers = 512MB", "max_wal_size = 16GB", "checkpoint_timeout = 1h", "autovacuum = off"
    with Cluster([NEW, OLD], *settings) as primary, primary.connect() as db:
        db.execute("CREATE EXTENSION pg_fernet")
        ROTATE.fill(db, rows)
        with Cluster([NEW, OLD], *settings, base=primary) as standby, standby.connect() as replica:
            def has(position):
                return lambda: value(replica, f"SELECT pg_last_wal_{position}_lsn() >= %s::pg_lsn", end)

            end = value(db, "SELECT pg_current_wal_insert_lsn()")
            wait_until(has("replay"))
            replica.execute("SELECT pg_wal_replay_pause()")
            db.execute("CHECKPOINT")
            start = end
            began = time.perf_counter()
            ROTATE.call(db)
            written = time.perf_counter() - began
            end = value(db, "SELECT pg_current_wal_flush_lsn()")
            wait_until(has("receive"))
            mb = float(value(db, "SELECT %s::pg_lsn - %s::pg_lsn", end, start)) / 1e6
            began = time.perf_counter()
            replica.execute("SELECT pg_wal_replay_resume()")
            while not has("replay")():
                time.sleep(0.01)
            replayed = time.perf_counter() - began
    print(f"{rows:>10}  {mb:.0f} MB of WAL: a CALL writes {mb / written:.0f} MB/s, a standby replays {mb / replayed:.0f} MB/s", flush=True)


def main(sizes):
    refuse_another_server()
    with connect("postgres") as db:
        db.execute("CREATE EXTENSION pg_fernet")
        db.execute(f"ALTER DATABASE postgres SET fernet.keys = '{NEW},{OLD}'")  # where workers find them
    db = connect("postgres", keys=[NEW, OLD])
    of_edition = has_edition(db)
    print(value(db, "SELECT version()"))
    print(f"{'rows':>10}  {'':20}{'s':>8}{'rows/s':>10}{'WAL MB':>9}{'WAL MB/M':>10}{'growth MB':>11}", flush=True)
    for rows in sizes:
        compare(db, rows, 3 if rows <= 1_000_000 else 1, of_edition and rows <= 1_000_000)
    replay(min(sizes))


main([int(rows) for rows in sys.argv[1:]] or [1_000_000])
