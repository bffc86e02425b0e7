"""Rotates tables of some sizes as one UPDATE and in batches, encrypts and decrypts them, and tells what each took."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from postgres import connect, value
from tables import DECRYPT, ENCRYPT, NEW, OLD, ROTATE, census
from throwaway import refuse_another_server

WAYS = {
    "UPDATE": lambda db: db.execute(
        "UPDATE secrets SET value = fernet_rotate(value) WHERE fernet_key_index(value) > 1"),
    "CALL": ROTATE.call,
    "CALL, 1 worker": lambda db: ROTATE.call(db, workers=1),
    "CALL, 2 workers": lambda db: ROTATE.call(db, workers=2),
    "CALL, all done": ROTATE.call,
    "census": census,
    "CALL to encrypt": ENCRYPT.call,
    "CALL to decrypt": DECRYPT.call,
}
# What begins with a new table, and what is in that.
NEW_TABLES = {**dict.fromkeys(["UPDATE", "CALL", "CALL, 1 worker", "CALL, 2 workers"], ROTATE),
              "CALL to encrypt": ENCRYPT, "CALL to decrypt": DECRYPT}


def table_mb(db):
    return value(db, "SELECT pg_table_size('secrets')") / 1e6


def measure(db, way):
    db.execute("CHECKPOINT")  # each page that changes is in the WAL once as a whole
    size, position = table_mb(db), value(db, "SELECT pg_current_wal_insert_lsn()")
    start = time.perf_counter()
    WAYS[way](db)
    seconds = time.perf_counter() - start
    wal = float(value(db, "SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", position)) / 1e6
    return seconds, wal, table_mb(db) - size


def main(sizes):
    refuse_another_server()
    with connect("postgres") as db:
        db.execute("CREATE EXTENSION pg_fernet")
        db.execute(f"ALTER DATABASE postgres SET fernet.keys = '{NEW},{OLD}'")  # where workers find them
    db = connect("postgres", keys=[NEW, OLD])
    print(value(db, "SELECT version()"))
    print(f"{'rows':>10}  {'':16}{'s':>8}{'rows/s':>10}{'WAL MB':>9}{'WAL MB/M':>10}{'growth MB':>11}")
    for rows in sizes:
        times = {}
        for way in WAYS:
            if conversion := NEW_TABLES.get(way):
                db.execute("DROP TABLE IF EXISTS secrets")
                conversion.fill(db, rows)
            seconds, wal, growth = measure(db, way)
            times[way] = seconds
            assert census(db) == {conversion.after if conversion else "current": rows}
            print(f"{rows:>10}  {way:16}{seconds:8.1f}{rows / seconds:10.0f}{wal:9.0f}"
                  f"{wal / rows * 1e6:10.0f}{growth:11.0f}", flush=True)
        # The proof reads the whole table once more: what a call does that finds nothing to rotate.
        print(f"{rows:>10}  the CALL has {times['UPDATE'] / times['CALL']:.2f} of the UPDATE's speed (target: 0.85);"
              f" two workers have {times['CALL, 1 worker'] / times['CALL, 2 workers']:.2f} times that of one (target: 1.6);"
              f" the proof takes {times['CALL, all done'] / times['CALL']:.0%} of its time", flush=True)
        print(f"{rows:>10}  to encrypt takes {times['CALL to encrypt'] / times['CALL']:.2f} of the rotation's time,"
              f" to decrypt {times['CALL to decrypt'] / times['CALL']:.2f}", flush=True)


main([int(rows) for rows in sys.argv[1:]] or [1_000_000])
