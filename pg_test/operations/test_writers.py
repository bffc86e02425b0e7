"""Rotation, encryption and decryption while others write to the table, or lock its rows."""

import os
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
from cryptography.fernet import Fernet
from psycopg import errors

from edition import FEWER, SQL, create_role, drop_role
from postgres import column, major_version, notices, value
from tables import (DECRYPT, ENCRYPT, NEW, OLD, census, contents, fill, filled, full_scans, in_background, in_line, rotate,
                    rotation_held_at, under, wait_until, waits_for_lock)

# Two million rows, for instance, take some minutes.
ROWS = int(os.environ.get("PG_FERNET_ROWS", 20_000 if SQL else 100_000))
WRITERS = 4


class Writer(threading.Thread):
    """Updates and inserts rows that no other writer touches, in transactions of one to three."""

    def __init__(self, db, number, forms, rng, stop):
        super().__init__()
        self.db, self.number, self.rng, self.stop = db, number, rng, stop
        self.forms = forms  # each of which turns a plaintext into a value
        self.written = {}
        self.slowest = 0
        self.error = None

    def run(self):
        try:
            while not self.stop.is_set():
                self.transaction()
        except Exception as error:
            self.error = error

    def transaction(self):
        written = {}
        start = time.monotonic()
        with self.db.transaction():
            for _ in range(self.rng.randint(1, 3)):
                form = self.rng.choice(self.forms)
                plaintext = f"written by {self.number}: {self.rng.random()}"
                # A row of its own: new ones have numbers past all others.
                id = self.rng.randrange(1, ROWS * 11 // 10, WRITERS) + self.number
                self.db.execute("INSERT INTO secrets VALUES (%s, %s)"
                                " ON CONFLICT (id) DO UPDATE SET value = excluded.value",
                                [id, form(plaintext)])
                written[id] = plaintext, form
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.written |= written
        if self.rng.random() < 0.01:  # only locks a row, for a while
            with self.db.transaction():
                self.db.execute("SELECT FROM secrets WHERE id = %s FOR UPDATE", [self.rng.choice(list(self.written))])
                time.sleep(0.05)


@pytest.mark.parametrize("only_new", [True, False], ids=["all write what is new", "some write what is old"])
def test_nothing_is_lost(db, sessions, conversion, rng, only_new, workers):
    conversion.fill(db, ROWS)
    scans = full_scans(db)
    stop = threading.Event()
    forms = [conversion.new_value] if only_new else [conversion.new_value, conversion.value]
    writers = [Writer(sessions(), n, forms, rng, stop) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    wait_until(lambda: all(writer.written for writer in writers))
    try:
        counts = conversion.call(sessions(), batch_size=ROWS // 40, workers=workers)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    # None of them met a deadlock, or waited for longer than some batches take.
    assert [writer.error for writer in writers] == [None] * WRITERS
    slowest = max(writer.slowest for writer in writers)
    print(f"{counts}, {sum(len(w.written) for w in writers)} rows written, the slowest in {slowest:.2f} s")
    assert slowest < 5

    # Each value is what was written last; the others are what they were.
    expected = filled(ROWS)
    written = {id: last for writer in writers for id, last in writer.written.items()}
    expected |= {id: plaintext for id, (plaintext, _) in written.items()}
    assert contents(db) == expected

    # What still is as it was before was written in that form; the census tells exactly how much.
    old = {id for id, found in db.execute("SELECT id, value FROM secrets") if not conversion.is_new(found)}
    assert old <= {id for id, (_, form) in written.items() if form == conversion.value}
    assert census(db).get(conversion.before, 0) == len(old)
    assert all(count == 0 for name, count in counts.items() if name not in (conversion.done, conversion.already))
    assert counts[conversion.done] > ROWS * 0.9 / FEWER  # the slower it is, the more others write meanwhile
    # No batch read the whole table. Each proof of the SQL edition does.
    assert SQL or full_scans(db) == scans + 3  # the checks above

    assert conversion.call(db)[conversion.done] == len(old)
    assert census(db) == {conversion.after: len(expected)}
    assert contents(db) == expected


def test_two_calls_beside_writers(db, sessions, rng, conversion, workers):
    """Both end with the proof, and each value is what was written last."""
    conversion.fill(db, ROWS)
    stop = threading.Event()
    writers = [Writer(sessions(), number, [conversion.new_value], rng, stop) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    wait_until(lambda: all(writer.written or writer.error for writer in writers))
    callers = sessions(), sessions()
    told = [notices(caller, "WARNING") for caller in callers]
    try:
        with in_background(conversion.call, callers[0], batch_size=ROWS // 10, workers=workers) as first, \
                in_background(conversion.call, callers[1], batch_size=ROWS // 7, workers=workers) as second:
            counts = first.result(), second.result()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [writer.error for writer in writers] == [None] * WRITERS
    assert told == [[], []]
    expected = filled(ROWS)
    expected |= {id: plaintext for writer in writers for id, (plaintext, _) in writer.written.items()}
    assert contents(db) == expected
    assert census(db) == {conversion.after: len(expected)}
    assert sum(count[conversion.done] for count in counts) > 0


SCRIPT = """
\\set id random(1, :rows * 11 / 10)
\\set number random(1, 1000000000)
BEGIN;
INSERT INTO secrets VALUES (:id, fernet_encrypt('written ' || :number))
    ON CONFLICT (id) DO UPDATE SET value = excluded.value;
-- While this transaction has the row, nobody else can write down a later change of it.
INSERT INTO journal (id, plaintext, key) VALUES (:id, 'written ' || :number, :key);
COMMIT;
"""


@contextmanager
def pgbench(database, key, others, folder):
    """Two clients that update and insert rows at random, under one key, as fast as they can."""
    # Each pgbench has a file of its own: it may still be reading that when the next one begins.
    script = folder / f"{key}.sql"
    script.write_text(SCRIPT)
    command = ["pgbench", "-n", "-f", script, "-T", "86400", "-c", "2", "-D", f"rows={ROWS}", "-D", f"key='{key}'"]
    keys = f"-c fernet.keys={','.join([key, *others])}"
    process = subprocess.Popen([*command, database], env=os.environ | {"PGOPTIONS": keys},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        _, errors = process.communicate()
    assert "ERROR" not in errors, errors


def test_nothing_is_lost_beside_pgbench(db, sessions, database, tmp_path, workers):
    fill(db, ROWS)
    db.execute("CREATE TABLE journal (number bigserial, id integer, plaintext text, key text)")
    try:
        with pgbench(database, NEW, [OLD], tmp_path), pgbench(database, OLD, [NEW], tmp_path):
            wait_until(lambda: value(db, "SELECT count(DISTINCT key) FROM journal") == 2)
            start = time.monotonic()
            counts = rotate(sessions(), workers=workers)
            seconds = time.monotonic() - start
        writes = value(db, "SELECT count(*) FROM journal")
        print(f"{counts} in {seconds:.1f} s, {writes} rows written meanwhile")
        assert counts["unknown_key"] == counts["not_a_token"] == counts["nulls"] == 0
        assert counts["rotated"] > ROWS * 0.9 / FEWER

        # Each value is what was written last; the others are what they were. What is still under the old key was
        # written under it, and the census tells exactly how much that is.
        db.execute("CREATE TABLE last AS SELECT DISTINCT ON (id) id, plaintext, key FROM journal ORDER BY id, number DESC")
        rows, right, old, written_so = db.execute("""
            SELECT count(*), count(*) FILTER (WHERE fernet_decrypt(value) = coalesce(plaintext, 'secret ' || id)),
                   count(*) FILTER (WHERE fernet_key_index(value) = 2), count(*) FILTER (WHERE fernet_key_index(value) = 2 AND key = %s)
            FROM secrets LEFT JOIN last USING (id)""", [OLD]).fetchone()
        inserted = value(db, "SELECT count(*) FROM last WHERE id > %s", ROWS)
        assert rows == right == ROWS + inserted
        assert old == written_so == census(db).get("old key", 0)
        assert rotate(db)["rotated"] == old
        assert census(db) == {"current": rows}
    finally:
        db.execute("DROP TABLE IF EXISTS journal, last")


def wait_until_it_waits_for_long(db, session):
    """Longer than the moment for which a batch waits before it leaves a row out."""
    def waits():
        return waits_for_lock(db, session.info.backend_pid)

    wait_until(lambda: waits() and not time.sleep(0.1) and waits())


def rotated_after_waiting_for(db, sessions, change, end="COMMIT"):
    """How many rows a call rotates if it has to wait for a transaction with a change."""
    writer, caller = sessions(), sessions()
    writer.execute("BEGIN")
    writer.execute(change)
    with in_background(rotate, caller) as call:
        wait_until_it_waits_for_long(db, caller)
        writer.execute(end)
        return call.result()["rotated"]


def test_locked_rows_are_waited_for_at_last_and_alone(db, sessions):
    fill(db, 20_000)
    locker, caller, other = sessions(), sessions(), sessions()
    with locker.transaction():
        locker.execute("SELECT FROM secrets WHERE id IN (3, 5000, 5001, 19999) FOR UPDATE")
        with in_background(rotate, caller, batch_size=1000) as call:
            # All others are rotated meanwhile ...
            wait_until(lambda: census(db) == {"current": 19_996, "old key": 4})
            wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
            # ... and nobody waits for the call.
            other.execute("SET lock_timeout = '2s'")
            other.execute("UPDATE secrets SET value = value WHERE id NOT IN (3, 5000, 5001, 19999)")
            assert call.is_alive()
            locker.execute("COMMIT")
            counts = call.result()
            locker.execute("BEGIN")
    assert counts == {"rotated": 20_000, "current": 0, "unknown_key": 0, "not_a_token": 0, "nulls": 0}
    assert census(db) == {"current": 20_000}


@pytest.mark.skipif(SQL, reason="it locks all rows of a batch before it writes one")
def test_a_row_that_is_locked_as_its_batch_is_written_holds_it_up_for_a_moment(db, sessions):
    fill(db, 1000)
    locker = sessions()
    with rotation_held_at(db, sessions(), 1) as (call, go_on):
        locker.execute("BEGIN")
        locker.execute("SELECT FROM secrets WHERE id = 500 FOR UPDATE")
        start = time.monotonic()
        go_on()
        wait_until(lambda: census(db) == {"current": 999, "old key": 1})
        seconds = time.monotonic() - start
        locker.execute("COMMIT")
        assert call.result()["rotated"] == 1000
    print(f"{seconds:.2f} s")
    assert seconds < 1


def test_one_table_is_locked_at_a_time(db, sessions):
    three_partitions(db)
    db.execute("ALTER TABLE secrets ADD id integer; UPDATE secrets SET id = part")
    caller = sessions()
    with rotation_held_at(db, caller, 2) as (call, go_on):
        locked = "SELECT DISTINCT relation::regclass::text FROM pg_locks WHERE pid = %s AND relation::regclass::text LIKE 'secrets%%'"
        assert sorted(column(db, locked, caller.info.backend_pid)) == ["secrets", "secrets_2"]
        go_on()
        assert call.result()["rotated"] == 3


def test_an_update_in_progress_wins(db, sessions, conversion):
    conversion.fill(db, 3)
    writer, caller = sessions(), sessions()
    mine = conversion.value("mine")
    writer.execute("BEGIN")
    writer.execute("UPDATE secrets SET value = %s WHERE id = 2", [mine])
    with in_background(conversion.call, caller) as call:
        wait_until_it_waits_for_long(db, caller)
        # This would be a deadlock if the call had a lock on another row while it waits.
        writer.execute("SET deadlock_timeout = '10ms'")
        writer.execute("UPDATE secrets SET value = %s WHERE id = 1", [mine])
        writer.execute("COMMIT")
        counts = call.result()
    assert contents(db) == {1: "mine", 2: "mine", 3: "secret 3"}
    # Row 1 was converted, overwritten with its old form, and converted again: it counts once.
    assert counts == conversion.counts(3)
    assert census(db) == {conversion.after: 3}


def test_a_row_is_rotated_whose_other_columns_are_changed_meanwhile(db, sessions):
    # Its new version has the old token, and is in a place that the call has passed when the change ends.
    fill(db, 3)
    assert rotated_after_waiting_for(db, sessions, "UPDATE secrets SET id = -id WHERE id = 2") == 3
    assert census(db) == {"current": 3}


def three_partitions(db):
    """Of one row each."""
    db.execute("CREATE TABLE secrets (part integer, value text) PARTITION BY LIST (part)")
    for part in range(1, 4):
        db.execute(f"CREATE TABLE secrets_{part} PARTITION OF secrets FOR VALUES IN ({part})")
    with under(db, OLD):
        db.execute("INSERT INTO secrets SELECT part, fernet_encrypt('x') FROM generate_series(1, 3) AS part")


@pytest.mark.parametrize("partition", [1, 3])
def test_a_row_that_moves_to_another_partition_is_rotated(db, sessions, partition):
    three_partitions(db)
    assert rotated_after_waiting_for(db, sessions, f"UPDATE secrets SET part = {partition} WHERE part = 2") == 3
    assert census(db) == {"current": 3}


def test_a_row_that_moves_to_where_the_pass_has_been_is_rotated(db, sessions):
    three_partitions(db)
    second, third, caller = sessions(), sessions(), sessions()
    # The first look leaves both rows out; then the call waits for the transactions that have locked them.
    for session, part in (second, 2), (third, 3):
        session.execute("BEGIN")
        session.execute("SELECT FROM secrets WHERE part = %s FOR UPDATE", [part])
    with in_background(rotate, caller) as call:
        wait_until_it_waits_for_long(db, caller)
        third.execute("UPDATE secrets SET part = 1 WHERE part = 3")
        third.execute("COMMIT")
        second.execute("COMMIT")
        assert call.result()["rotated"] == 3
    assert census(db) == {"current": 3}


def test_rows_that_a_trigger_writes_in_our_transaction_are_rotated(db, sessions):
    db.execute("CREATE TABLE secrets (id integer, parent integer, value text, touched integer DEFAULT 0, filler text)")
    db.execute("ALTER TABLE secrets ALTER filler SET STORAGE PLAIN")  # so that a block has one row
    with under(db, OLD):
        db.execute("INSERT INTO secrets SELECT i, 4 - i, fernet_encrypt('x'), 0, repeat('x', 7000) FROM generate_series(1, 3) AS i")
    db.execute("CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
               " UPDATE secrets SET touched = touched + 1 WHERE id = NEW.parent; RETURN NULL; END $$")
    db.execute("CREATE TRIGGER touch AFTER UPDATE ON secrets FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION touch()")
    try:
        rotate(sessions(), batch_size=1)
        assert census(db) == {"current": 3}
        assert value(db, "SELECT min(touched) FROM secrets") > 0
    finally:
        db.execute("DROP FUNCTION touch CASCADE")


def test_a_trigger_that_puts_the_old_value_back_brings_a_warning(db, sessions):
    fill(db, 3)
    db.execute("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.value := OLD.value; RETURN NEW; END $$")
    db.execute("CREATE TRIGGER keep BEFORE UPDATE ON secrets FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION keep()")
    caller = sessions()
    told = notices(caller, "WARNING")
    try:
        rotate(caller)
    finally:
        db.execute("DROP FUNCTION keep CASCADE")
    assert told == ["1 token can still be read only with an older key"]
    assert census(db) == {"current": 2, "old key": 1}


def test_a_trigger_that_moves_rows_to_another_partition_ends_the_call(db):
    """As it would end an UPDATE of the partition. An UPDATE of the partitioned table moves the row."""
    three_partitions(db)
    db.execute("CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.part := 3; RETURN NEW; END $$")
    db.execute("CREATE TRIGGER move BEFORE UPDATE ON secrets FOR EACH ROW WHEN (OLD.part = 2) EXECUTE FUNCTION move()")
    try:
        with pytest.raises(errors.CheckViolation):
            rotate(db)
        # The batch of the first partition stays.
        assert census(db) == {"current": 1, "old key": 2}
        db.execute("UPDATE secrets SET value = fernet_rotate(value) WHERE fernet_key_index(value) > 1")
        assert census(db) == {"current": 3}
        assert column(db, "SELECT part FROM secrets ORDER BY part") == [1, 3, 3]
    finally:
        db.execute("DROP FUNCTION move CASCADE")


def test_what_is_deleted_meanwhile_is_missing_from_what_was_current(db, sessions):
    fill(db, 1000)
    with under(db, NEW):
        db.execute("UPDATE secrets SET value = fernet_encrypt('secret ' || id) WHERE id > 900")
    with rotation_held_at(db, sessions(), 800, batch_size=100) as (call, go_on):
        db.execute("DELETE FROM secrets WHERE id BETWEEN 1 AND 30")
        go_on()
        assert call.result() == {"rotated": 900, "current": 70, "unknown_key": 0, "not_a_token": 0, "nulls": 0}
    assert census(db) == {"current": 970}


def test_rights_to_each_partition(db, database):
    """The partitions are the tables that are written."""
    three_partitions(db)
    create_role("fernet_rotator")
    try:
        db.execute("GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
        db.execute("GRANT SELECT, UPDATE (value) ON secrets, secrets_1, secrets_2 TO fernet_rotator")
        db.execute("GRANT SELECT ON secrets_3 TO fernet_rotator")
        db.execute("SET ROLE fernet_rotator")
        with pytest.raises(errors.InsufficientPrivilege, match="secrets_3"):
            rotate(db)
        db.execute("RESET ROLE; GRANT UPDATE (value) ON secrets_3 TO fernet_rotator; SET ROLE fernet_rotator")
        rotate(db)
    finally:
        db.execute("RESET ROLE; DROP OWNED BY fernet_rotator")
        drop_role("fernet_rotator")
    assert census(db) == {"current": 3}


def test_rights_to_the_schema(db, database):
    """A table that no query could name is not read by its oid either, even if there is nothing to write."""
    create_role("fernet_rotator")
    db.execute("CREATE SCHEMA hidden")
    try:
        db.execute("CREATE TABLE hidden.secrets (value text)")
        db.execute("INSERT INTO hidden.secrets VALUES (NULL)")
        db.execute("GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
        db.execute("GRANT SELECT, UPDATE ON hidden.secrets TO fernet_rotator")
        table = value(db, "SELECT 'hidden.secrets'::regclass::oid::text")
        db.execute("SET ROLE fernet_rotator")
        with pytest.raises(errors.InsufficientPrivilege, match="schema hidden"):
            rotate(db, table=table)
        db.execute("RESET ROLE; GRANT USAGE ON SCHEMA hidden TO fernet_rotator; SET ROLE fernet_rotator")
        assert rotate(db, table=table)["nulls"] == 1
    finally:
        db.execute("RESET ROLE; DROP SCHEMA hidden CASCADE; DROP OWNED BY fernet_rotator")
        drop_role("fernet_rotator")


def test_who_may_not_write_locks_no_row(db, database):
    fill(db, 3)
    db.execute("BEGIN")
    db.execute("SELECT FROM secrets FOR UPDATE")
    db.execute("COMMIT")
    lockers = column(db, "SELECT xmax FROM secrets ORDER BY id")
    create_role("fernet_rotator")
    try:
        db.execute("GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
        db.execute("GRANT SELECT ON secrets TO fernet_rotator")
        db.execute("SET ROLE fernet_rotator")
        with pytest.raises(errors.InsufficientPrivilege, match="secrets"):
            rotate(db)
    finally:
        db.execute("RESET ROLE; DROP OWNED BY fernet_rotator")
        drop_role("fernet_rotator")
    assert column(db, "SELECT xmax FROM secrets ORDER BY id") == lockers


def test_a_unique_column_whose_rows_are_referred_to(db, sessions):
    # An UPDATE of it then conflicts with a lock that no other UPDATE conflicts with.
    fill(db, 1000)
    db.execute("CREATE UNIQUE INDEX ON secrets (value)")
    db.execute("CREATE TABLE children (id integer REFERENCES secrets (id))")
    writer, caller = sessions(), sessions()
    try:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO children VALUES (500)")
        with in_background(rotate, caller) as call:
            wait_until_it_waits_for_long(db, caller)
            # It waits without a lock on another row.
            writer.execute("SET lock_timeout = '2s'")
            writer.execute("UPDATE secrets SET id = id WHERE id IN (1, 1000)")
            writer.execute("COMMIT")
            assert call.result()["rotated"] == 1000
        assert census(db) == {"current": 1000}
    finally:
        writer.execute("ROLLBACK")
        db.execute("DROP TABLE children")


def test_a_writer_that_rolls_back_leaves_the_row_to_the_rotation(db, sessions):
    fill(db, 3)
    assert rotated_after_waiting_for(db, sessions, "DELETE FROM secrets WHERE id = 2", end="ROLLBACK") == 3
    assert census(db) == {"current": 3}


def test_lock_timeout_holds_for_the_last_wait(db, sessions):
    fill(db, 3)
    locker, caller = sessions(), sessions()
    locker.execute("BEGIN")
    locker.execute("SELECT FROM secrets WHERE id = 2 FOR UPDATE")
    caller.execute("SET lock_timeout = '100ms'")
    told = notices(caller, "WARNING")
    assert rotate(caller)["rotated"] == 2
    assert told == [f"gave up waiting for process {locker.info.backend_pid}, which has written to public.secrets or locked it"]
    locker.execute("COMMIT")
    assert census(db) == {"current": 2, "old key": 1}
    assert value(caller, "SHOW lock_timeout") == "100ms"
    assert rotate(caller) == {"rotated": 1, "current": 2, "unknown_key": 0, "not_a_token": 0, "nulls": 0}


def test_a_row_inserted_meanwhile_is_found(db, sessions):
    fill(db, 2000)
    with rotation_held_at(db, sessions(), 1000, batch_size=100) as (call, go_on):
        db.execute("INSERT INTO secrets VALUES (0, %s)", [Fernet(OLD).encrypt(b"late").decode()])
        go_on()
        assert call.result()["rotated"] == 2001
    assert census(db) == {"current": 2001}


def test_a_table_rewritten_meanwhile(db, sessions):
    # The rows move to other blocks, and keep their writers.
    fill(db, 3000)
    db.execute("DELETE FROM secrets WHERE id % 3 = 0")
    with rotation_held_at(db, sessions(), 1000, batch_size=100) as (call, go_on):
        with in_line(db, sessions(), "VACUUM FULL secrets"):
            go_on()
        counts = call.result()
    assert census(db) == {"current": 2000}
    assert counts["rotated"] == 2000 and counts["unknown_key"] == counts["not_a_token"] == 0


def test_partitions_that_come_and_go(db, sessions):
    db.execute("CREATE TABLE secrets (id integer, value text) PARTITION BY RANGE (id)")
    for start in range(0, 4000, 1000):
        db.execute(f"CREATE TABLE secrets_{start} PARTITION OF secrets FOR VALUES FROM ({start}) TO ({start + 1000})")
    db.execute("CREATE TABLE more (id integer, value text)")
    with under(db, OLD):
        db.execute("INSERT INTO secrets SELECT i, fernet_encrypt('x') FROM generate_series(0, 3999) AS i")
        db.execute("INSERT INTO more SELECT i, fernet_encrypt('x') FROM generate_series(4000, 4009) AS i")
    with rotation_held_at(db, sessions(), 500, batch_size=100) as (call, go_on):
        change = "DROP TABLE secrets_3000; ALTER TABLE secrets ATTACH PARTITION more FOR VALUES FROM (4000) TO (5000)"
        with in_line(db, sessions(), change):
            go_on()
        assert call.result()["rotated"] == 3010
    assert census(db) == {"current": 3010}


def test_a_partition_that_goes_takes_its_bad_values_along(db, sessions):
    db.execute("CREATE TABLE secrets (id integer, value text) PARTITION BY RANGE (id)")
    for start in (0, 1000):
        db.execute(f"CREATE TABLE secrets_{start} PARTITION OF secrets FOR VALUES FROM ({start}) TO ({start + 1000})")
    with under(db, OLD):
        db.execute("INSERT INTO secrets VALUES (0, 'plaintext')")
        db.execute("INSERT INTO secrets SELECT i, fernet_encrypt('x') FROM generate_series(1, 1009) AS i")
    caller = sessions()
    told = notices(caller, "WARNING")
    with rotation_held_at(db, caller, 500, batch_size=100) as (call, go_on):
        with in_line(db, sessions(), "DROP TABLE secrets_0"):
            go_on()
        counts = call.result()
    # The tokens that were rotated in it are not under the first key: they are gone.
    assert counts["not_a_token"] == 0 and counts["rotated"] == 10 and not told


# Objects that may refuse tokens, and the statement that makes each.
CHANGES = {
    "unique index": "CREATE UNIQUE INDEX ON secrets (value)",
    "expression": "CREATE INDEX ON secrets (lower(value))",
    "check": "ALTER TABLE secrets ADD CHECK (length(value) < 1000)",
    "generated column": "ALTER TABLE secrets ADD length integer GENERATED ALWAYS AS (length(value)) STORED",
    "policy": "CREATE POLICY shown ON secrets USING (value <> '')",
    "domain": "ALTER DOMAIN of_plaintexts ADD CHECK (length(VALUE) < 1000)",
}


@pytest.fixture
def table_of_plaintexts(db):
    ENCRYPT.fill(db, 3000)
    db.execute("CREATE DOMAIN of_plaintexts AS text; ALTER TABLE secrets ALTER value TYPE of_plaintexts")
    yield
    db.execute("DROP DOMAIN of_plaintexts CASCADE")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_being_added_when_the_call_began(db, sessions, table_of_plaintexts, change):
    """The snapshot of the statement is older than the wait for the lock."""
    other, caller = sessions(), sessions()
    other.execute("BEGIN")
    other.execute("LOCK TABLE secrets")
    other.execute(change)
    with in_background(ENCRYPT.call, caller) as call:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
        other.execute("COMMIT")
        with pytest.raises(errors.DependentObjectsStillExist):
            call.result()
    assert census(db) == {"not a token": 3000}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_added_between_two_batches(db, sessions, table_of_plaintexts, change):
    with rotation_held_at(db, sessions(), 1000, ENCRYPT, batch_size=100) as (call, go_on):
        with in_line(db, sessions(), change):
            go_on()
        with pytest.raises(errors.DependentObjectsStillExist) as refused:
            call.result()
    assert 'column "value" of public.secrets is in ' in refused.value.diag.message_primary
    # As after any error, the batches before it stay.
    assert census(db) == {"current": 1000, "not a token": 2000}


@pytest.mark.parametrize("change", [
    "CREATE STATISTICS lengths ON (length(value)) FROM secrets",
    "CREATE PUBLICATION shown FOR TABLE secrets WHERE (value <> '')",
    "CREATE POLICY shown ON beside_it USING (EXISTS (SELECT FROM secrets AS s WHERE s.value > 'a'))",
    "CREATE POLICY shown ON beside_it USING (EXISTS (SELECT FROM secrets AS s WHERE s::text > 'a'))",
], ids=["statistics", "publication", "policy", "policy on whole rows"])
def test_what_is_added_while_the_last_batch_is_written(db, sessions, change):
    """These do not wait for the lock of a batch."""
    ENCRYPT.fill(db, 1000)
    db.execute("CREATE TABLE beside_it (number integer)")
    try:
        with rotation_held_at(db, sessions(), 1000, ENCRYPT) as (call, go_on):
            db.execute(change)
            go_on()
            with pytest.raises(errors.DependentObjectsStillExist, match='column "value" of public.secrets is in '):
                call.result()
        assert census(db) == {"current": 1000}
    finally:
        db.execute("DROP TABLE secrets, beside_it CASCADE; DROP PUBLICATION IF EXISTS shown")


def test_a_child_with_a_constraint_that_is_added_meanwhile(db, sessions):
    ENCRYPT.fill(db, 1000)
    db.execute("CREATE TABLE more (id integer PRIMARY KEY, value text UNIQUE)")
    db.execute("INSERT INTO more VALUES (1001, 'secret')")
    with rotation_held_at(db, sessions(), 500, ENCRYPT, batch_size=100) as (call, go_on):
        db.execute("ALTER TABLE more INHERIT secrets")
        go_on()
        with pytest.raises(errors.DependentObjectsStillExist, match="more_value_key"):
            call.result()
    assert census(db) == {"current": 1000, "not a token": 1}
    db.execute("DROP TABLE more")


@pytest.mark.skipif(major_version() < 18, reason="it came with PostgreSQL 18")
def test_a_constraint_that_is_not_enforced(db):
    DECRYPT.fill(db, 10)
    db.execute("ALTER TABLE secrets ADD CHECK (fernet_is_token(value)) NOT ENFORCED")
    assert DECRYPT.call(db) == DECRYPT.counts(10)


def test_temporary_children_of_others_are_passed_over(db, sessions):
    fill(db, 10)
    other = sessions()
    other.execute("CREATE TEMP TABLE child () INHERITS (secrets)")
    other.execute("INSERT INTO child VALUES (1, 'plaintext')")
    assert rotate(db) == {"rotated": 10, "current": 0, "unknown_key": 0, "not_a_token": 0, "nulls": 0}
    other.execute("DROP TABLE child")


def test_a_table_dropped_while_columns_are_looked_for(db, sessions):
    fill(db, 10)
    other, caller = sessions(), sessions()
    db.execute("CREATE TABLE aaa (value text)")
    other.execute("BEGIN")
    other.execute("DROP TABLE aaa")
    find = "SELECT relation::text, tokens FROM fernet_find_columns()"
    with in_background(lambda: caller.execute(find).fetchall()) as found:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
        other.execute("COMMIT")
        assert found.result() == [("secrets", 10)]
