"""A conversion ends with nothing left, under an older key for instance, or with a WARNING that says how much: whatever moves, is
inserted or kept meanwhile."""

import re
import threading
import time
from contextlib import contextmanager

import pytest
from cryptography.fernet import Fernet
from psycopg import errors

from edition import FEWER
from postgres import major_version, notices, value
from tables import (DECRYPT, ENCRYPT, OLD, ROTATE, census, contents, fill, filled, in_background, in_line, rotate, under,
                    wait_until, waits_for_lock)

ROWS = 50_000 // FEWER
LEFT = re.compile(r"(\d+) tokens? can still be read only with an older key|still (?:in plaintext|encrypted): (\d+) values?")


@contextmanager
def over_and_over(session, statement):
    """Runs a statement, or several in one transaction, as fast as it can. Yields how often it has."""
    count, stop, errors = [0], threading.Event(), []

    def run():
        try:
            while not stop.is_set():
                session.execute(statement)
                count[0] += 1
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: count[0] or errors)
        yield count
    finally:
        stop.set()
        thread.join()
    assert not errors, errors


def warned_of(told):
    """How many tokens the warnings say are left."""
    return sum(int(found[1] or found[2]) for message in told if (found := LEFT.fullmatch(message)))


MOVERS = {
    "to another place": "UPDATE secrets SET part = part WHERE id = 1",
    "to another partition": "UPDATE secrets SET part = 3 - part WHERE id = 1",
    "deleted and inserted": "WITH gone AS (DELETE FROM secrets WHERE id = 1 RETURNING *) INSERT INTO secrets SELECT * FROM gone",
}


@pytest.mark.parametrize("statement", MOVERS.values(), ids=MOVERS)
@pytest.mark.parametrize("rows", [100, ROWS])
def test_a_row_that_moves_all_the_time(db, sessions, conversion, statement, rows, workers):
    db.execute("CREATE TABLE secrets (id integer, part integer, value text) PARTITION BY LIST (part)")
    for part in 1, 2:
        db.execute(f"CREATE TABLE secrets_{part} PARTITION OF secrets FOR VALUES IN ({part})")
    conversion.fill(db, rows, "INSERT INTO secrets SELECT i, 1 + i % 2, {value}")
    db.execute("CREATE INDEX ON secrets (id)")
    caller = sessions()
    told = notices(caller, "WARNING")
    with over_and_over(sessions(), statement) as moved:
        start = moved[0]
        counts = conversion.call(caller, workers=workers)
    print(f"moved {moved[0] - start} times, {counts}, {told}")
    assert moved[0] > start
    left = census(db).get(conversion.before, 0)
    assert left == warned_of(told)
    assert counts[conversion.done] == rows - left
    assert conversion.call(db)[conversion.done] == left
    assert census(db) == {conversion.after: rows}


@pytest.mark.skipif(major_version() < 19, reason="it came with PostgreSQL 19")
def test_a_table_that_is_repacked_all_the_time(db, sessions, conversion, rng, workers):
    """While others write to it: it gets the file of a copy, in which to older snapshots there are no rows."""
    rows = 20_000
    conversion.fill(db, rows)
    expected = filled(rows)

    def write(writer):
        """For a while, what is to be converted."""
        for n in range(200):
            id = rng.randint(1, rows)
            expected[id] = f"written {n}"
            writer.execute("UPDATE secrets SET value = %s WHERE id = %s", [conversion.value(expected[id]), id])

    caller = sessions()
    told = notices(caller, "WARNING")
    with over_and_over(sessions(), "REPACK (CONCURRENTLY) secrets") as repacked:
        start = repacked[0]
        with in_background(write, sessions()) as writes:
            conversion.call(caller, batch_size=1000, workers=workers)
            writes.result()
        print(f"repacked {repacked[0] - start} times")
        # Now that nothing is written any more, there is an end.
        told.clear()
        conversion.call(caller, batch_size=1000, workers=workers)
    assert repacked[0] > start
    assert not told
    assert census(db) == {conversion.after: rows}
    assert contents(db) == expected


def test_what_was_not_committed_when_the_call_began(db, sessions, conversion, workers):
    conversion.fill(db, 10)
    writer, caller = sessions(), sessions()
    told = notices(caller, "NOTICE")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO secrets VALUES (11, %s)", [conversion.value("late")])
    with in_background(conversion.call, caller, workers=workers) as call:
        # What can be seen is rotated first. Then it says whom it waits for, and has no lock on the table.
        wait_until(lambda: told)
        pid = writer.info.backend_pid
        assert told[0] == f"waiting for process {pid}, which has written to public.secrets or locked it"
        assert census(db) == {conversion.after: 10}
        assert value(db, "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'relation'", caller.info.backend_pid) == 0
        # Nor a snapshot, but for the moment in which it looks.
        wait_until(lambda: value(db, "SELECT backend_xmin IS NULL FROM pg_stat_activity WHERE pid = %s", caller.info.backend_pid))
        writer.execute("COMMIT")
        assert call.result()[conversion.done] == 11
    assert census(db) == {conversion.after: 11}


def test_lock_timeout_bounds_the_wait(db, sessions, conversion):
    conversion.fill(db, 10)
    writer, caller = sessions(), sessions()
    told = notices(caller, "WARNING")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO secrets VALUES (11, %s)", [conversion.value("late")])
    caller.execute("SET lock_timeout = '1200ms'")
    start = time.monotonic()
    assert conversion.call(caller)[conversion.done] == 10
    assert 1.1 < time.monotonic() - start < 10
    assert told == \
        [f"gave up waiting for process {writer.info.backend_pid}, which has written to public.secrets or locked it"]
    writer.execute("COMMIT")
    assert census(db) == {conversion.after: 10, conversion.before: 1}
    assert conversion.call(caller)[conversion.done] == 1


def test_lock_timeout_ends_the_wait_for_a_table(db, sessions, conversion, workers):
    """There is nothing to warn of: it has not been able to look."""
    conversion.fill(db, 10)
    other, caller = sessions(), sessions()
    other.execute("BEGIN; LOCK TABLE secrets")
    caller.execute("SET lock_timeout = '100ms'")
    with pytest.raises(errors.LockNotAvailable):
        conversion.call(caller, workers=workers)
    other.execute("COMMIT")
    assert conversion.call(caller, workers=workers) == conversion.counts(10)


@pytest.mark.parametrize("lock", ["ACCESS SHARE", "SHARE UPDATE EXCLUSIVE", "ROW SHARE"])
def test_who_does_not_write_is_not_waited_for(db, sessions, lock):
    # A query; a vacuum; who has locked rows that nobody wants.
    fill(db, 10)
    other = sessions()
    other.execute("BEGIN")
    other.execute(f"LOCK TABLE secrets IN {lock} MODE")
    assert rotate(sessions())["rotated"] == 10
    other.execute("COMMIT")


def test_two_calls_at_once(db, sessions, conversion, workers):
    conversion.fill(db, 20_000)
    arguments = {"batch_size": 100, "workers": workers}
    with in_background(conversion.call, sessions(), **arguments) as first, in_background(conversion.call, sessions(), **arguments) as second:
        assert first.result()[conversion.done] + second.result()[conversion.done] == 20_000
    assert census(db) == {conversion.after: 20_000}


def test_who_holds_a_row_can_change_the_table(db, sessions):
    fill(db, 3)
    other, caller = sessions(), sessions()
    other.execute("BEGIN")
    other.execute("SELECT FROM secrets WHERE id = 2 FOR UPDATE")
    with in_background(rotate, caller) as call:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid) and census(db).get("current") == 2)
        other.execute("SET LOCAL lock_timeout = '5s'")
        other.execute("ALTER TABLE secrets ADD COLUMN note text")
        other.execute("COMMIT")
        assert call.result()["rotated"] == 3


@pytest.mark.parametrize("called", ["secrets", "secrets_1"])
def test_partitions_are_locked_after_their_table(db, sessions, called):
    db.execute("CREATE TABLE secrets (id integer, value text) PARTITION BY LIST (id)")
    db.execute("CREATE TABLE secrets_1 PARTITION OF secrets FOR VALUES IN (1)")
    with under(db, OLD):
        db.execute("INSERT INTO secrets VALUES (1, fernet_encrypt('x'))")
    other, caller = sessions(), sessions()
    other.execute("BEGIN")
    other.execute("LOCK TABLE ONLY secrets IN ACCESS EXCLUSIVE MODE")
    with in_background(rotate, caller, table=called) as call:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
        # A deadlock, if the call had locked the partition first.
        other.execute("SET LOCAL lock_timeout = '5s'")
        other.execute("ALTER TABLE secrets ADD COLUMN note text")
        other.execute("COMMIT")
        assert call.result()["rotated"] == 1


@contextmanager
def look_held_at(db, sessions, table, caller, call, insert, *values):
    """Has a call in the background find what is inserted, and holds it until `go_on`: in the look at that, when its snapshot has
    been taken, before a table of it that is empty. What only checks the tables, before the first look, is over by then."""
    writer, locker = sessions(), sessions()
    writer.execute("BEGIN")
    writer.execute(insert, values)
    with in_background(call, caller) as called:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
        locker.execute("BEGIN")
        # A stronger lock would have a transaction number, for whose end REPACK would wait.
        locker.execute(f"LOCK TABLE ONLY {table} IN SHARE MODE")
        writer.execute("COMMIT")
        waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted AND relation = %s::regclass)"
        wait_until(lambda: value(db, waiting, caller.info.backend_pid, table))
        yield called, lambda: locker.execute("COMMIT")


# The first is what ALTER COLUMN TYPE does to a partition; for the whole, the parent would have to be changed as
# well.
REWRITES = ["ALTER TABLE {} SET UNLOGGED", *["REPACK (CONCURRENTLY) {}"] * (major_version() >= 19)]


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_table_that_is_rewritten_after_the_snapshot(db, sessions, conversion, isolation, rewrite):
    # To that snapshot it is empty then.
    db.execute("CREATE TABLE secrets (id integer, n integer, value text) PARTITION BY LIST (id)")
    for part in 1, 2:
        db.execute(f"CREATE TABLE secrets_{part} (id integer PRIMARY KEY, n integer, value text)")
    for part in 1, 2:
        db.execute(f"ALTER TABLE secrets ATTACH PARTITION secrets_{part} FOR VALUES IN ({part})")
    # Of the two, the one with the lower number is read first.
    first, second = "secrets_1", "secrets_2"
    caller = sessions()
    caller.execute(f"SET default_transaction_isolation = '{isolation}'")
    insert = "INSERT INTO secrets VALUES (2, 0, %s)"
    with look_held_at(db, sessions, first, caller, conversion.call, insert, conversion.value("x")) as (call, go_on):
        db.execute("CREATE TABLE aside (LIKE secrets)")
        db.execute(rewrite.format(second))
        db.execute("DROP TABLE aside")
        go_on()
        assert call.result()[conversion.done] == 1
    assert census(db) == {conversion.after: 1}


ATTACHED = {
    "ATTACH PARTITION": ("CREATE TABLE more (id integer, value text); {insert};"
                         " ALTER TABLE secrets ATTACH PARTITION more FOR VALUES IN (2)", "PARTITION BY LIST (id)"),
    "INHERIT": ("CREATE TABLE more (id integer, value text); {insert}; ALTER TABLE more INHERIT secrets", ""),
    "INHERITS": ("CREATE TABLE more () INHERITS (secrets); {insert}", ""),
}


@pytest.mark.parametrize("statements, partitioned", ATTACHED.values(), ids=ATTACHED)
def test_a_table_that_is_added_in_an_open_transaction(db, sessions, conversion, statements, partitioned):
    db.execute(f"CREATE TABLE secrets (id integer, value text) {partitioned}")
    token = conversion.value("x")
    other, caller = sessions(), sessions()
    other.execute("BEGIN")
    other.execute(statements.format(insert=f"INSERT INTO more VALUES (2, '{token}')"))
    with in_background(conversion.call, caller) as call:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
        other.execute("COMMIT")
        assert call.result()[conversion.done] == 1
    assert census(db) == {conversion.after: 1}


CHANGES = {
    "replaced": "CREATE TABLE again (LIKE secrets); INSERT INTO again SELECT * FROM secrets_2;"
                " DROP TABLE secrets_2; ALTER TABLE again INHERIT secrets",
    "rewritten": "ALTER TABLE secrets_2 SET UNLOGGED",
    "with the column made again": "ALTER TABLE secrets_2 NO INHERIT secrets; ALTER TABLE secrets_2 ADD value2 text;"
                                  " UPDATE secrets_2 SET value2 = value; ALTER TABLE secrets_2 DROP value;"
                                  " ALTER TABLE secrets_2 RENAME value2 TO value; ALTER TABLE secrets_2 INHERIT secrets",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_child_that_is_changed_behind_the_snapshot(db, sessions, conversion, change):
    db.execute("CREATE TABLE secrets (id integer, value text)")
    for child in 1, 2:
        db.execute(f"CREATE TABLE secrets_{child} () INHERITS (secrets)")
    insert = "INSERT INTO secrets_2 VALUES (2, %s)"
    with look_held_at(db, sessions, "secrets_1", sessions(), conversion.call, insert, conversion.value("x")) as (call, go_on):
        db.execute(change)
        go_on()
        assert call.result()[conversion.done] == 1
    assert census(db) == {conversion.after: 1}


BECOMES_A_DOCUMENT = {
    "encrypt": (ENCRYPT, {"not a token": 1}, "still in plaintext: 1 value"),
    "decrypt": (DECRYPT, {"current": 1}, "left as they are: 1 token among other text"),
}


@pytest.mark.parametrize("conversion, left, warning", BECOMES_A_DOCUMENT.values(), ids=BECOMES_A_DOCUMENT)
def test_a_column_that_becomes_a_document_meanwhile(db, sessions, conversion, left, warning):
    """What is in it then is neither encrypted nor decrypted, and the call says that it is left."""
    conversion.fill(db, 10)
    writer, other, caller = sessions(), sessions(), sessions()
    told = notices(caller, "WARNING")
    late = conversion.value("x")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO secrets VALUES (11, %s)", [late])
    with in_background(conversion.call, caller) as call:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
        with in_line(db, other, "ALTER TABLE secrets ALTER value TYPE jsonb USING to_jsonb(value)"):
            writer.execute("COMMIT")
        assert call.result()[conversion.done] == 10
    assert told[-1] == warning
    assert census(db) == {conversion.after: 10} | left
    assert value(db, "SELECT value #>> '{}' FROM secrets WHERE id = 11") == late


def test_a_table_that_is_dropped_meanwhile(db, sessions):
    fill(db, 10)
    other, caller = sessions(), sessions()
    other.execute("BEGIN")
    other.execute("UPDATE secrets SET id = id WHERE id = 1")
    with in_background(rotate, caller) as call:
        wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
        other.execute("DROP TABLE secrets")
        other.execute("COMMIT")
        with pytest.raises(errors.UndefinedTable):
            call.result()


def test_rows_that_a_foreign_key_would_change_are_not_waited_for(db, sessions):
    # The rows of the batch are locked meanwhile: a deadlock with who wants one of them.
    fill(db, 100)
    db.execute("CREATE UNIQUE INDEX ON secrets (value)")
    db.execute("CREATE TABLE children (id integer, value text REFERENCES secrets (value) ON UPDATE CASCADE)")
    db.execute("INSERT INTO children SELECT id, value FROM secrets")
    writer, caller = sessions(), sessions()
    try:
        writer.execute("BEGIN")
        writer.execute("UPDATE children SET id = id WHERE id = 5")
        with in_background(rotate, caller) as call:
            time.sleep(0.5)
            writer.execute("SET LOCAL lock_timeout = '5s'")
            writer.execute("UPDATE secrets SET id = id WHERE id = 7")
            writer.execute("COMMIT")
            assert call.result()["rotated"] == 100
        assert census(db) == {"current": 100}
    finally:
        writer.execute("ROLLBACK")
        db.execute("DROP TABLE children")


@pytest.fixture
def function(db):
    """Makes a trigger function `code` with a body."""
    def make(body, returns="trigger"):
        db.execute(f"CREATE FUNCTION code({'' if returns == 'trigger' else 'text'}) RETURNS {returns} LANGUAGE plpgsql AS $$ BEGIN {body} END $$")

    yield make
    db.execute("DROP FUNCTION IF EXISTS code CASCADE")


KEPT = {
    "BEFORE, the old row": ("BEFORE", "RETURN OLD;"),
    "BEFORE, no row": ("BEFORE", "RETURN NULL;"),
    "BEFORE, the old value": ("BEFORE", "NEW.value := OLD.value; RETURN NEW;"),
    "AFTER": ("AFTER", "UPDATE secrets SET value = OLD.value WHERE id = NEW.id AND value <> OLD.value; RETURN NULL;"),
}


@pytest.mark.parametrize("when, body", KEPT.values(), ids=KEPT)
def test_what_a_trigger_keeps_is_counted(db, sessions, conversion, function, when, body):
    conversion.fill(db, 50)
    function(body)
    db.execute(f"CREATE TRIGGER keep {when} UPDATE ON secrets FOR EACH ROW"
               " WHEN (OLD.id % 5 = 0 AND pg_trigger_depth() = 0) EXECUTE FUNCTION code()")
    caller = sessions()
    told = notices(caller, "WARNING")
    start = time.monotonic()
    assert conversion.call(caller) == conversion.counts(40)
    assert time.monotonic() - start < 5
    assert census(db) == {conversion.after: 40, conversion.before: 10}
    assert warned_of(told) == 10


def test_beside_the_trigger_that_encrypts(db, sessions):
    """It passes tokens on as they are: what the call encrypts is encrypted once. What the call decrypts, it encrypts again."""
    ENCRYPT.fill(db, 50)
    db.execute("CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('value')")
    db.execute("INSERT INTO secrets VALUES (51, 'secret 51')")
    caller = sessions()
    told = notices(caller, "WARNING")
    assert ENCRYPT.call(caller) == ENCRYPT.counts(50, 1)
    assert told == []
    assert contents(db) == filled(51)
    start = time.monotonic()
    assert DECRYPT.call(caller) == DECRYPT.counts(0)
    assert time.monotonic() - start < 5
    assert warned_of(told) == 51
    assert census(db) == {"current": 51}


RULES = {
    "INSTEAD": ("DO INSTEAD INSERT INTO secrets_log VALUES (OLD.id)", 0),
    "INSTEAD NOTHING": ("DO INSTEAD NOTHING", 0),
    "INSTEAD, of some": ("WHERE OLD.id % 5 = 0 DO INSTEAD INSERT INTO secrets_log VALUES (OLD.id)", 40),
    "ALSO": ("DO ALSO INSERT INTO secrets_log VALUES (OLD.id)", 50),
}


@pytest.mark.parametrize("rule, rotated", RULES.values(), ids=RULES)
def test_what_a_rule_does_is_counted(db, sessions, rule, rotated):
    fill(db, 50)
    db.execute("CREATE TABLE secrets_log (id integer)")
    db.execute(f"CREATE RULE elsewhere AS ON UPDATE TO secrets {rule}")
    caller = sessions()
    told = notices(caller, "WARNING")
    try:
        assert rotate(caller)["rotated"] == rotated
        assert census(db).get("old key", 0) == 50 - rotated == warned_of(told)
    finally:
        db.execute("DROP TABLE secrets_log CASCADE")


INSERTED = Fernet(OLD).encrypt(b"inserted").decode()


def test_what_the_function_of_a_constraint_inserts(db, sessions, function):
    db.execute("CREATE TABLE secrets (id integer, value text)")
    function(f"IF $1 <> '{INSERTED}' AND (SELECT count(*) FROM secrets) < 60 THEN"
             f" INSERT INTO secrets VALUES (0, '{INSERTED}'); END IF; RETURN true;", returns="boolean")
    with under(db, OLD):
        db.execute("INSERT INTO secrets SELECT i, fernet_encrypt('x') FROM generate_series(1, 50) AS i")
    db.execute("ALTER TABLE secrets ADD CHECK (code(value)) NOT VALID")
    caller = sessions()
    told = notices(caller, "WARNING")
    counts = rotate(caller)
    held = census(db)
    assert sum(held.values()) == 60
    assert held.get("old key", 0) == warned_of(told)
    assert counts["rotated"] == held["current"]


def test_what_a_trigger_inserts(db, sessions, function):
    fill(db, 50)
    function(f"INSERT INTO secrets VALUES (-OLD.id, '{INSERTED}'); RETURN NULL;")
    db.execute("CREATE TRIGGER more AFTER UPDATE ON secrets FOR EACH ROW WHEN (OLD.id > 0) EXECUTE FUNCTION code()")
    assert rotate(sessions())["rotated"] == 100
    assert census(db) == {"current": 100}


def test_triggers_for_each_statement(db, sessions, function):
    """They fire where the rows are, for all of them together, and not for a table that has none of its own."""
    db.execute("CREATE TABLE secrets (id integer, part integer, value text) PARTITION BY LIST (part); CREATE TABLE fired (name text, rows bigint)")
    for part in range(2):
        db.execute(f"CREATE TABLE secrets_{part} PARTITION OF secrets FOR VALUES IN ({part})")
    function("INSERT INTO fired VALUES (TG_TABLE_NAME, (SELECT count(*) FROM new)); RETURN NULL;")
    for table in "secrets", "secrets_0", "secrets_1":
        db.execute(f"CREATE TRIGGER fired AFTER UPDATE ON {table} REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION code()")
    try:
        ROTATE.fill(db, 5000, "INSERT INTO secrets SELECT i, i % 2, {value}")
        assert rotate(sessions())["rotated"] == 5000
        assert sorted(db.execute("SELECT name, sum(rows) FROM fired GROUP BY name")) == [("secrets_0", 2500), ("secrets_1", 2500)]
    finally:
        db.execute("DROP TABLE fired")


WRITTEN = {"NULL": "NULL", "plaintext": "'plain'", "an unknown key": "'%s'" % Fernet(Fernet.generate_key()).encrypt(b"x").decode()}


@pytest.mark.parametrize("instead", WRITTEN.values(), ids=WRITTEN)
def test_what_a_trigger_writes_instead_is_not_counted(db, sessions, function, instead):
    fill(db, 20)
    function(f"NEW.value := {instead}; RETURN NEW;")
    db.execute("CREATE TRIGGER instead BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION code()")
    assert rotate(sessions())["rotated"] == 0


def test_what_a_deferred_trigger_puts_back_is_not_counted(db, sessions, conversion, function):
    conversion.fill(db, 20)
    function("UPDATE secrets SET value = OLD.value WHERE id = NEW.id; RETURN NULL;")
    db.execute("CREATE CONSTRAINT TRIGGER back AFTER UPDATE ON secrets DEFERRABLE INITIALLY DEFERRED"
               " FOR EACH ROW WHEN (OLD.value <> NEW.value AND pg_trigger_depth() = 0) EXECUTE FUNCTION code()")
    caller = sessions()
    told = notices(caller, "WARNING")
    assert conversion.call(caller)[conversion.done] == 0
    assert warned_of(told) == 20


def test_a_deferred_trigger_that_waits(db, sessions, function):
    """For as long as the session has set, and not for as long as a batch waits."""
    fill(db, 20)
    db.execute("CREATE TABLE other (id integer)")
    function("LOCK TABLE other; RETURN NULL;")
    db.execute("CREATE CONSTRAINT TRIGGER wait AFTER UPDATE ON secrets DEFERRABLE INITIALLY DEFERRED"
               " FOR EACH ROW EXECUTE FUNCTION code()")
    holder, caller = sessions(), sessions()
    try:
        holder.execute("BEGIN; LOCK TABLE other")
        with in_background(rotate, caller) as call:
            wait_until(lambda: value(db, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'other'::regclass)"))
            time.sleep(0.7)
            holder.execute("COMMIT")
            assert call.result()["rotated"] == 20
    finally:
        db.execute("DROP TABLE other")


def test_a_procedure_goes_on_as_it_began(db, sessions):
    fill(db, 20)
    caller = sessions()
    caller.execute("SET default_transaction_isolation = serializable")
    told = notices(caller, "INFO")
    caller.execute("DO $$ DECLARE n bigint; BEGIN CALL fernet_rotate_column('secrets', 'value', 10, false, 0, n, n, n, n, n);"
                   " RAISE INFO '%', current_setting('transaction_isolation'); END $$")
    assert told == ["serializable"]


def test_deferred_triggers(db, sessions, function):
    # They run when a batch commits.
    fill(db, 50)
    function(f"INSERT INTO secrets VALUES (-OLD.id, '{INSERTED}'); RETURN NULL;")
    db.execute("CREATE CONSTRAINT TRIGGER more AFTER UPDATE ON secrets DEFERRABLE INITIALLY DEFERRED"
               " FOR EACH ROW WHEN (OLD.id > 0) EXECUTE FUNCTION code()")
    assert rotate(sessions())["rotated"] == 100
    assert census(db) == {"current": 100}
