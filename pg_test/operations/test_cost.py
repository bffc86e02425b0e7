"""How much memory a rotation takes. `make bench-operations` compares its time with that of the UPDATE."""

import os
import time

import pytest

from edition import FEWER
from postgres import private_memory, value
from tables import OLD, census, fill, in_background, rotate, under


def peak(call, session):
    """The most memory, in MB, that a session has to itself while a call runs."""
    most = 0
    while call.is_alive():
        try:
            most = max(most, private_memory(session) / 1024)
        except FileNotFoundError:
            break
        time.sleep(0.002)
    call.result()
    return most


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here")


@needs_proc
def test_memory_does_not_grow_with_the_table(db, sessions):
    peaks = []
    for rows in (20_000 // FEWER, 200_000 // FEWER):
        db.execute("DROP TABLE IF EXISTS secrets")
        fill(db, rows)
        caller = sessions()
        with in_background(rotate, caller, batch_size=10_000 // FEWER) as call:
            peaks.append(peak(call, caller))
    print("peaks in MB:", peaks)
    assert peaks[1] < peaks[0] + 8 and peaks[1] < 64


@needs_proc
def test_memory_is_bounded_for_large_values(db, sessions):
    db.execute("CREATE TABLE secrets (id integer, value text)")
    db.execute("ALTER TABLE secrets ALTER value SET STORAGE EXTERNAL")  # tokens do not compress
    with under(db, OLD):
        db.execute("INSERT INTO secrets SELECT i, fernet_encrypt(repeat('x', 1000000)) FROM generate_series(1, 100) AS i")
    caller = sessions()
    with in_background(rotate, caller) as call:
        most = peak(call, caller)
    print("peak in MB:", most)
    assert most < 128
    assert census(db) == {"current": 100}
    # A batch ends at some 16 MB of new tokens.
    assert value(db, "SELECT count(DISTINCT xmin::text) FROM secrets") >= 6
