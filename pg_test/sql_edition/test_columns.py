"""The three procedures beside others, interrupted, and its proof: the tests of the native edition."""

import threading

import psycopg
import pytest

import test_proof
import test_writers
from postgres import notices, value
from tables import CONVERSIONS, ENCRYPT, NEW, OLD, census, contents, in_background, wait_until
from test_cost import test_memory_is_bounded_for_large_values  # noqa: F401
from test_interrupted import *  # noqa: F401,F403
from test_proof import *  # noqa: F401,F403
from test_writers import *  # noqa: F401,F403


def waits(db, pid):
    """The native edition waits for a lock, this one looks again and again."""
    return value(db, "SELECT wait_event_type = 'Lock' OR wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", pid)


# What the writers are to meet takes longer here.
test_writers.ROWS = 20_000
test_proof.waits_for_lock = test_writers.waits_for_lock = waits


@pytest.fixture
def sessions(sessions):
    return lambda: sessions(NEW, OLD)


@pytest.fixture
def db(sessions):
    db = sessions()
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
    yield db
    # A test that failed may have left a session with a lock.
    db.execute("SET lock_timeout = '5s'")
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")


@pytest.fixture(params=CONVERSIONS, ids=lambda conversion: conversion.name)
def conversion(request):
    return request.param


def test_two_calls_beside_writers(db, sessions, rng, conversion):
    """Both end with the proof, and each value is what was written last."""
    conversion.fill(db, test_writers.ROWS)
    stop = threading.Event()
    writers = [test_writers.Writer(sessions(), number, [conversion.new_value], rng, stop) for number in range(test_writers.WRITERS)]
    for writer in writers:
        writer.start()
    wait_until(lambda: all(writer.written or writer.error for writer in writers))
    callers = sessions(), sessions()
    told = [notices(caller, "WARNING") for caller in callers]
    try:
        with in_background(conversion.call, callers[0], batch_size=2000) as first, in_background(conversion.call, callers[1], batch_size=3000) as second:
            counts = first.result(), second.result()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [writer.error for writer in writers] == [None] * test_writers.WRITERS
    assert told == [[], []]
    expected = {id: f"secret {id}" for id in range(1, test_writers.ROWS + 1)}
    expected |= {id: plaintext for writer in writers for id, (plaintext, _) in writer.written.items()}
    assert contents(db) == expected
    assert census(db) == {conversion.after: len(expected)}
    assert sum(count[conversion.done] for count in counts) > 0


@pytest.mark.parametrize("what, statement", [
    ("generated column length of public.secrets", "ALTER TABLE secrets ADD length integer GENERATED ALWAYS AS (length(value)) STORED"),
    ("constraint of_the_row of public.secrets", "ALTER TABLE secrets ADD CONSTRAINT of_the_row CHECK (secrets IS NOT NULL)"),
    ("index public.computed", "CREATE INDEX computed ON secrets (lower(value))"),
    ("index public.computed", "CREATE INDEX computed ON secrets (id) WHERE value <> ''"),
    ("constraint encrypted of public.secrets", "ALTER TABLE secrets ADD CONSTRAINT encrypted CHECK (value <> '')"),
])
def test_what_may_not_take_new_values_is_refused_as_soon_as_there_are_any(db, what, statement):
    """So whoever has a constraint that only tokens satisfy can have the proof."""
    ENCRYPT.fill(db, 3)
    db.execute(statement)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match=f'column "value" of public.secrets is in {what}'):
        ENCRYPT.call(db)
    assert census(db) == {ENCRYPT.before: 3}
    db.execute("UPDATE secrets SET value = fernet_encrypt(value)")
    told = notices(db, "WARNING")
    assert ENCRYPT.call(db) == ENCRYPT.counts(0, already=3)
    assert told == []
