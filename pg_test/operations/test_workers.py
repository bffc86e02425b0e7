"""Background workers that help a call: in its place, as its role, with its settings, and no longer than it
lasts."""

import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from psycopg import errors

from cluster import RUN, Cluster, is_alive
from key_files import folder_for, write
from postgres import connect, is_progress, major_version, notices, value
from tables import ENCRYPT, LOST, NEW, OLD, ROTATE, call_held_at, census, contents, fill, filled, in_background, rotate, under, wait_until, waits_for_lock

ROWS = 20_000

WORKERS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_fernet worker'"


@pytest.fixture(autouse=True)
def keys(keys_in_database):
    """Workers take the keys from the settings, as any new session does."""


@pytest.fixture
def journal(db):
    """Lets a trigger note which process writes a row of the table, and what some expressions evaluate to in
    it."""
    def note(*expressions):
        drop()
        db.execute("CREATE TABLE journal (process integer, noted text[]); GRANT INSERT ON journal TO PUBLIC")
        db.execute("CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.journal"
                   f" VALUES (pg_backend_pid(), ARRAY[{', '.join(f'({e})::text' for e in expressions)}]::text[]); RETURN NEW; END $$")
        db.execute("CREATE TRIGGER note BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION note();"
                   " ALTER TABLE secrets ENABLE ALWAYS TRIGGER note")

    def drop():
        db.execute("DROP TABLE IF EXISTS journal; DROP FUNCTION IF EXISTS note CASCADE")

    yield note
    drop()


class Held:
    """A call whose workers wait at a row, in a transaction, until `go_on`."""

    def __init__(self, db, call, go_on):
        self.db, self.call, self.go_on = db, call, go_on

    def pids(self):
        return [pid for (pid,) in self.db.execute(WORKERS.replace("count(*)", "pid"))]


@pytest.fixture
def held(db, sessions):
    """Calls with two workers, each of which waits at the first row that it writes."""
    @contextmanager
    def hold(caller, conversion=ROTATE, **arguments):
        def both_wait():
            return value(db, WORKERS + " AND wait_event = 'PgSleep'") == 2

        # Not at once: some batches are done before that.
        with call_held_at(db, "mod(OLD.id, 3000) = 2999", both_wait, conversion, caller, batch_size=200, workers=2,
                          **arguments) as (call, go_on):
            assert call.is_alive()  # so both wait; asked again, one could be between two naps
            yield Held(db, call, go_on)

    return hold


def is_consistent(db):
    return contents(db) == filled(ROWS)


def done_and_left(db, conversion):
    found = census(db)
    done, left = found.get(conversion.after, 0), found.get(conversion.before, 0)
    assert done + left == ROWS
    assert is_consistent(db)
    return done, left


def test_they_do_the_writing(db, sessions, conversion, journal):
    conversion.fill(db, ROWS)
    journal()
    caller = sessions()
    told = notices(caller)
    assert conversion.call(caller, workers=3, batch_size=100) == conversion.counts(ROWS)
    processes = dict(db.execute("SELECT process, count(*) FROM journal GROUP BY process").fetchall())
    print(processes)
    # The caller writes what a worker could not write because another was extending a table for too long.
    assert processes.pop(caller.info.backend_pid, 0) < ROWS / 20
    assert len(processes) == 3 and min(processes.values()) > ROWS / 20
    assert census(db) == {conversion.after: ROWS} and is_consistent(db)
    # In transactions of that many rows.
    assert value(db, "SELECT max(rows) FROM (SELECT count(*) AS rows FROM secrets GROUP BY xmin::text) AS batches") <= 100
    assert len(told) == 1 and told[0].endswith("rows/s")
    assert value(db, WORKERS) == 0
    assert conversion.call(caller, workers=3) == conversion.counts(0, ROWS)


def test_partitions_and_children(db, sessions, conversion):
    db.execute("CREATE TABLE secrets (id integer, part integer, value text) PARTITION BY LIST (part)")
    for part in range(5):
        db.execute(f"CREATE TABLE secrets_{part} PARTITION OF secrets FOR VALUES IN ({part})")
    conversion.fill(db, ROWS, "INSERT INTO secrets SELECT i, i * i % 5, {value}")
    assert conversion.call(sessions(), workers=3) == conversion.counts(ROWS)
    assert is_consistent(db)


def test_they_do_no_more_than_there_is(db, sessions):
    # One worker takes one range of blocks.
    fill(db, 100)
    assert rotate(sessions(), workers=1_000_000) == ROTATE.counts(100)
    db.execute("TRUNCATE secrets")
    assert rotate(sessions(), workers=2) == ROTATE.counts(0)


SETTINGS = {
    "search_path": "public, pg_temp", "session_replication_role": "replica", "work_mem": "1234kB",
    "default_transaction_isolation": "serializable", "default_transaction_deferrable": "on", "row_security": "off",
    "application_name": "an app's", "app.tenant": "a, 'tenant'", "plpgsql.check_asserts": "off", "synchronous_commit": "off",
    "random_page_cost": "1.25", "extra_float_digits": "-3", "fernet.mask_log": "literals",
}


def test_as_the_caller(db, database, journal):
    db.execute("CREATE ROLE fernet_login SUPERUSER LOGIN; CREATE ROLE fernet_session; CREATE ROLE fernet_rotator;"
               " GRANT fernet_rotator TO fernet_session; GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
    try:
        seen = []
        for workers in 0, 1:
            db.execute("DROP TABLE IF EXISTS secrets")
            fill(db, 1000)
            db.execute("GRANT SELECT, UPDATE ON secrets TO fernet_rotator")
            journal("session_user", "current_user", "current_setting('transaction_isolation')",
                    "now() BETWEEN now() - interval '1 minute' AND clock_timestamp()",
                    *(f"current_setting('{name}')" for name in SETTINGS))
            with connect(database, user="fernet_login", options="-c geqo_seed=0.5") as caller:
                caller.execute("SELECT fernet_generate_key()")
                for name, setting in SETTINGS.items():
                    caller.execute("SELECT set_config(%s, %s, false)", [name, setting])
                caller.execute("SET SESSION AUTHORIZATION fernet_session; SET ROLE fernet_rotator")
                assert rotate(caller, workers=workers)["rotated"] == 1000
                rows = db.execute("SELECT DISTINCT process, noted FROM journal").fetchall()
                [(process, noted)] = rows
                assert (process == caller.info.backend_pid) == (workers == 0)
                seen.append(noted)
        print(*seen, sep="\n")
        assert seen[0] == seen[1]
        assert seen[0] == ["fernet_session", "fernet_rotator", "read committed", "true", *SETTINGS.values()]
    finally:
        db.execute("DROP TABLE secrets; DROP OWNED BY fernet_rotator, fernet_session;"
                   " DROP ROLE fernet_login, fernet_session, fernet_rotator")


def roles_and(*settings):
    return ["session_user", "current_user", *(f"current_setting('{name}')" for name in ("role", *settings))]


@pytest.mark.parametrize("statements", [
    [], ["SET ROLE NONE"], ["SET ROLE fernet_rotator"], ["SET SESSION AUTHORIZATION fernet_rotator"],
    ["SET SESSION AUTHORIZATION fernet_rotator", "SET ROLE fernet_rotator"],
], ids="; ".join)
def test_the_role_of_the_login(db, database, journal, statements):
    db.execute("CREATE ROLE fernet_login SUPERUSER LOGIN; CREATE ROLE fernet_usual; CREATE ROLE fernet_rotator;"
               " ALTER ROLE fernet_login SET role = 'fernet_usual'")
    try:
        fill(db, 1000)
        journal(*roles_and())
        db.execute("GRANT SELECT, UPDATE ON secrets TO fernet_usual, fernet_rotator;"
                   " GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_usual, fernet_rotator")
        with connect(database, user="fernet_login") as caller:
            for statement in statements:
                caller.execute(statement)
            roles = list(caller.execute(f"SELECT {', '.join(roles_and())}").fetchone())
            assert rotate(caller, workers=1)["rotated"] == 1000
        assert db.execute("SELECT DISTINCT noted FROM journal").fetchall() == [(roles,)]
    finally:
        db.execute("DROP TABLE secrets; DROP OWNED BY fernet_usual, fernet_rotator; DROP ROLE fernet_login, fernet_usual, fernet_rotator")


def test_settings_of_the_login_that_were_changed_since(db, database, journal):
    db.execute("CREATE ROLE fernet_login SUPERUSER LOGIN; ALTER ROLE fernet_login SET app.tenant = 'seven';"
               " ALTER ROLE fernet_login SET work_mem = '7MB'")
    try:
        fill(db, 1000)
        journal(*(f"current_setting('{name}')" for name in ("app.tenant", "work_mem", "random_page_cost")))
        with connect(database, user="fernet_login") as caller:
            db.execute("ALTER ROLE fernet_login SET app.tenant = 'eight'; ALTER ROLE fernet_login SET work_mem = '8MB';"
                       " ALTER ROLE fernet_login SET random_page_cost = 8")
            assert rotate(caller, workers=1)["rotated"] == 1000
        assert db.execute("SELECT DISTINCT noted FROM journal").fetchall() == [(["seven", "7MB", "4"],)]
    finally:
        db.execute("DROP TABLE secrets; DROP ROLE fernet_login")


def test_a_setting_that_the_login_could_not_make(db, database):
    # If it comes from the configuration, the server accepts it, or warns and goes on.
    fill(db, 1000)
    db.execute(f"ALTER DATABASE {database} SET default_text_search_config = 'no_such_thing'")
    try:
        with connect(database) as caller:
            assert rotate(caller, workers=1)["rotated"] == 1000
    finally:
        db.execute(f"ALTER DATABASE {database} RESET default_text_search_config")


def test_settings_that_depend_on_each_other(db, database, journal):
    fill(db, 1000)
    journal("current_setting('log_parser_stats')")
    db.execute(f"ALTER DATABASE {database} SET log_statement_stats = on")
    try:
        with connect(database) as caller:
            caller.execute("SET log_statement_stats = off; SET log_parser_stats = on")
            assert rotate(caller, workers=1)["rotated"] == 1000
        assert db.execute("SELECT DISTINCT noted FROM journal").fetchall() == [(["on"],)]
    finally:
        db.execute(f"ALTER DATABASE {database} RESET log_statement_stats")


def test_all_digits_of_a_setting(db, database, journal):
    # SHOW prints six of the digits. A plan has them all.
    fill(db, 1000)
    db.execute("CREATE FUNCTION plan() RETURNS text LANGUAGE plpgsql AS"
               " $$ DECLARE line text; BEGIN EXECUTE 'EXPLAIN SELECT * FROM pg_database' INTO line; RETURN line; END $$")
    try:
        journal("plan()")
        with connect(database) as caller:
            caller.execute("SET seq_page_cost = 1234567.25")
            plan = value(caller, "SELECT plan()")
            assert rotate(caller, workers=1)["rotated"] == 1000
        assert "1234567" in plan
        assert db.execute("SELECT DISTINCT noted FROM journal").fetchall() == [([plan],)]
    finally:
        db.execute("DROP FUNCTION plan")


def test_a_setting_of_a_library_that_is_not_loaded_yet(db, database, journal):
    """Any role can set it at first. When the library is loaded, the server drops it if the role may not set
    it."""
    db.execute("CREATE ROLE fernet_rotator LOGIN; GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
    try:
        for grant, setting in ("", "error"), ("GRANT SET ON PARAMETER plpgsql.variable_conflict TO fernet_rotator", "use_column"):
            db.execute(f"DROP TABLE IF EXISTS secrets; {grant}")
            fill(db, 1000)
            db.execute("GRANT SELECT, UPDATE ON secrets TO fernet_rotator")
            journal("current_setting('plpgsql.variable_conflict')")
            with connect(database, user="fernet_rotator") as caller:
                caller.execute("SET plpgsql.variable_conflict = 'use_column'")
                assert rotate(caller, workers=1)["rotated"] == 1000
            assert db.execute("SELECT DISTINCT noted FROM journal").fetchall() == [([setting],)]
    finally:
        db.execute("DROP TABLE secrets; DROP OWNED BY fernet_rotator; DROP ROLE fernet_rotator")


def test_privileges(db, database):
    fill(db, 1000)
    db.execute("CREATE ROLE fernet_rotator LOGIN; GRANT SELECT ON secrets TO fernet_rotator;"
               " GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
    try:
        with connect(database, user="fernet_rotator") as caller:
            for workers in 0, 2:
                with pytest.raises(errors.InsufficientPrivilege, match="permission denied for table secrets"):
                    rotate(caller, workers=workers)
            db.execute("GRANT UPDATE (value) ON secrets TO fernet_rotator; ALTER TABLE secrets ENABLE ROW LEVEL SECURITY")
            with pytest.raises(errors.InsufficientPrivilege, match="row-level security may hide rows"):
                rotate(caller, workers=2)
            db.execute("ALTER TABLE secrets DISABLE ROW LEVEL SECURITY")
            # A role that may no longer log in had done so before.
            db.execute("ALTER ROLE fernet_rotator CONNECTION LIMIT 1")
            assert rotate(caller, workers=2)["rotated"] == 1000
    finally:
        db.execute("DROP OWNED BY fernet_rotator; DROP ROLE fernet_rotator")


@pytest.mark.parametrize("statement, code", [
    ("ALTER ROLE fernet_login NOLOGIN", "28000" if major_version() < 17 else None),
    ("REVOKE fernet_rotator FROM fernet_login", "42501"),
])
def test_what_the_session_could_do_and_its_role_can_no_longer(db, database, statement, code):
    """Without workers, the call goes on: it has logged in and set its role already."""
    fill(db, 1000)
    db.execute("CREATE ROLE fernet_login LOGIN; CREATE ROLE fernet_rotator; GRANT fernet_rotator TO fernet_login;"
               " GRANT SELECT, UPDATE ON secrets TO fernet_rotator; GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
    try:
        with connect(database, user="fernet_login") as caller:
            caller.execute("SET ROLE fernet_rotator")
            db.execute(statement)
            if code:
                with pytest.raises(errors.Error) as refused:
                    rotate(caller, workers=2)
                assert refused.value.sqlstate == code
            assert rotate(caller, workers=0 if code else 2)["rotated"] == 1000
    finally:
        db.execute("DROP OWNED BY fernet_rotator; DROP ROLE fernet_login, fernet_rotator")


def test_read_only(db, sessions):
    fill(db, 100)
    caller = sessions()
    caller.execute("SET default_transaction_read_only = on")
    for workers in 0, 2:
        with pytest.raises(errors.ReadOnlySqlTransaction):
            rotate(caller, workers=workers)


@pytest.mark.parametrize("workers", ["NULL", -1])
def test_what_is_no_number_of_workers(db, sessions, workers):
    fill(db, 1)
    with pytest.raises(errors.Error, match="workers must (not be null|be at least 0)"):
        rotate(sessions(), workers=workers)


def test_keys_of_the_session_alone(db, sessions, database):
    fill(db, 100)
    caller = sessions()
    for keys in [LOST, OLD], [NEW], [OLD, NEW]:
        caller.execute("SELECT set_config('fernet.keys', %s, false)", [",".join(keys)])
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="background workers have other keys than the session") as caught:
            rotate(caller, workers=2)
        assert "fernet.keys_file" in caught.value.diag.message_hint
        assert not any(key in str(vars(caught.value.diag)) for key in keys)
    assert census(db) == {"old key": 100}
    db.execute(f"ALTER DATABASE {database} RESET fernet.keys")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="background workers have other keys"):
        rotate(sessions(), workers=2)


# A statement may have keys in it: for instance, if the caller sets them and rotates in one block.
WITH_KEYS = SimpleNamespace(call=lambda caller, batch_size, workers: caller.execute(
    f"CALL /* {NEW},{OLD} */ fernet_rotate_column('secrets', 'value', batch_size => {batch_size}, workers => {workers})"))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory is no file here")
def test_shared_memory_has_no_keys(db, sessions, held):
    fill(db, ROWS)
    caller = sessions()  # which has set them itself, too
    caller.execute("SET application_name = 'an application that has workers'")
    with held(caller, WITH_KEYS):
        shared = [path.read_bytes() for path in Path("/dev/shm").glob("PostgreSQL.*")]
        assert any(b"an application that has workers" in memory for memory in shared)
        assert not any(key.encode() in memory for memory in shared for key in (NEW, OLD))


def test_what_is_shown_as_the_statement_of_the_workers(db, sessions, held):
    fill(db, ROWS)
    with held(sessions(), WITH_KEYS) as calling:
        shown = db.execute(WORKERS.replace("count(*)", "query")).fetchall()
        assert shown == [("CALL fernet_rotate_column('public.secrets', 'value')",)] * 2
        calling.go_on()
        calling.call.result()


def test_a_key_file_of_the_session(db, database):
    fill(db, 100)
    db.execute(f"ALTER DATABASE {database} RESET fernet.keys")
    with connect(database) as caller:
        caller.execute("SELECT fernet_generate_key()")
        path = write(folder_for("/tmp") / "keys", NEW, OLD)
        caller.execute("SELECT set_config('fernet.keys_file', %s, false)", [str(path)])
        assert rotate(caller, workers=2)["rotated"] == 100


@pytest.mark.parametrize("role, path", [("fernet_rotator", "/dropped"), ("postgres", "bad")])
def test_a_key_file_that_was_set_before_the_library_was_loaded(db, database, role, path):
    """The server has dropped it, because the role may not set it, or because it is bad. The keys of the database take
    precedence."""
    db.execute("CREATE ROLE fernet_rotator LOGIN; GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO fernet_rotator")
    try:
        fill(db, 100)
        db.execute("GRANT SELECT, UPDATE ON secrets TO fernet_rotator")
        with connect(database, user=role, options=f"-c fernet.keys_file={path}") as caller:
            assert rotate(caller, workers=1)["rotated"] == 100
    finally:
        db.execute("DROP TABLE secrets; DROP OWNED BY fernet_rotator; DROP ROLE fernet_rotator")


def test_a_trigger_in_a_worker_that_sets_what_is_bad(db, sessions):
    fill(db, 10)
    db.execute("CREATE FUNCTION set_bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET fernet.keys_file = 'bad'; RETURN NEW; END $$;"
               " CREATE TRIGGER set_bad BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION set_bad()")
    try:
        for workers in 0, 1:
            with pytest.raises(errors.InvalidParameterValue, match="fernet.keys_file"):
                rotate(sessions(), workers=workers)
    finally:
        db.execute("DROP FUNCTION set_bad CASCADE")


def test_an_error_of_one_ends_all(db, sessions, conversion):
    conversion.fill(db, ROWS)
    db.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
               " RAISE 'not this one' USING ERRCODE = 'UX001', DETAIL = 'a detail', HINT = 'a hint'; END $$")
    try:
        db.execute("CREATE TRIGGER refuse BEFORE UPDATE ON secrets FOR EACH ROW WHEN (OLD.id = 15000) EXECUTE FUNCTION refuse()")
        caller = sessions()
        with pytest.raises(errors.Error) as caught:
            conversion.call(caller, batch_size=100, workers=2)
        diag = caught.value.diag
        assert (diag.sqlstate, diag.message_primary, diag.message_detail, diag.message_hint) == \
            ("UX001", "not this one", "a detail", "a hint")
        assert "PL/pgSQL function refuse() line 1 at RAISE" in diag.context and 'SQL statement "UPDATE ONLY' in diag.context
        assert caller.info.transaction_status.name == "IDLE" and value(db, WORKERS) == 0
        done, left = done_and_left(db, conversion)
        assert done > 0 and left > 0
    finally:
        db.execute("DROP FUNCTION refuse CASCADE")
    assert conversion.call(caller, workers=2) == conversion.counts(left, done)


def test_a_constraint_on_what_there_is(db, sessions):
    ENCRYPT.fill(db, 1000)
    db.execute("ALTER TABLE secrets ADD CHECK (value ~ '^secret')")
    with pytest.raises(errors.DependentObjectsStillExist):
        ENCRYPT.call(sessions(), workers=2)
    assert census(db) == {"not a token": 1000}


def test_strict(db, sessions):
    fill(db, ROWS)
    db.execute("UPDATE secrets SET value = 'plaintext' WHERE id = 15000")
    with pytest.raises(errors.InvalidTextRepresentation, match=r"value is not a Fernet token: \(\d+,\d+\) of public.secrets"):
        rotate(sessions(), strict=True, workers=2)
    assert value(db, WORKERS) == 0


def test_notices_of_triggers(db, sessions):
    fill(db, 10)
    db.execute("CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'row %', NEW.id; RETURN NEW; END $$")
    try:
        db.execute("CREATE TRIGGER tell BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION tell()")
        caller = sessions()
        told = notices(caller, "WARNING")
        rotate(caller, workers=1)
        assert sorted(told) == sorted(f"row {id}" for id in range(1, 11))
    finally:
        db.execute("DROP FUNCTION tell CASCADE")


def test_more_messages_than_a_queue_holds(db, sessions):
    fill(db, 1000)
    db.execute("CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
               " $$ BEGIN RAISE WARNING '%', repeat('x', 20000); IF NEW.id = 900 THEN RAISE 'long %', repeat('y', 100000); END IF; RETURN NEW; END $$")
    try:
        db.execute("CREATE TRIGGER tell BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION tell()")
        caller = sessions()
        told = notices(caller, "WARNING")
        with pytest.raises(errors.RaiseException, match="long y{100000}"):
            rotate(caller, workers=2)
        assert 800 < len(told) and set(map(len, told)) == {20000}
    finally:
        db.execute("DROP FUNCTION tell CASCADE")


def test_cancel(db, sessions, conversion, held):
    conversion.fill(db, ROWS)
    caller = sessions()
    with held(caller, conversion) as calling:
        assert value(db, "SELECT pg_cancel_backend(%s)", caller.info.backend_pid)
        with pytest.raises(errors.QueryCanceled, match="due to user request"):
            calling.call.result()
        assert value(db, WORKERS) == 0
    done, left = done_and_left(db, conversion)
    assert done > 0 and left > 0
    assert conversion.call(caller, workers=2) == conversion.counts(left, done)
    assert is_consistent(db)


def test_statement_timeout(db, sessions, held):
    fill(db, ROWS)
    caller = sessions()
    caller.execute("SET statement_timeout = '2s'")
    with held(caller) as calling, pytest.raises(errors.QueryCanceled, match="due to statement timeout"):
        calling.call.result()
    assert value(db, WORKERS) == 0 and is_consistent(db)


@pytest.mark.skipif(major_version() < 17, reason="the server has no transaction_timeout")
def test_transaction_timeout(db, sessions):
    fill(db, 1000)
    db.execute("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$")
    try:
        db.execute("CREATE TRIGGER slow BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION slow()")
        caller = sessions()
        caller.execute("SET transaction_timeout = '3s'")
        start = time.monotonic()
        # Each transaction is short, including that of a caller who waits for workers.
        assert rotate(caller, workers=1, batch_size=10) == ROTATE.counts(1000)
        assert time.monotonic() - start > 3
    finally:
        db.execute("DROP FUNCTION slow CASCADE")


def test_a_terminated_caller(db, sessions, held):
    fill(db, ROWS)
    caller = sessions()
    with held(caller) as calling:
        workers = calling.pids()
        db.execute("SELECT pg_terminate_backend(%s, 10000)", [caller.info.backend_pid])
        with pytest.raises(errors.OperationalError):
            calling.call.result()
        assert len(workers) == 2 and not any(map(is_alive, workers))
    done, left = done_and_left(db, ROTATE)
    assert rotate(db, workers=2) == ROTATE.counts(left, done)


def test_a_terminated_worker(db, sessions, held):
    fill(db, ROWS)
    caller = sessions()
    with held(caller) as calling:
        db.execute("SELECT pg_terminate_backend(%s)", [calling.pids()[0]])
        with pytest.raises(errors.AdminShutdown, match='terminating background worker "pg_fernet worker" due to administrator command'):
            calling.call.result()
        assert value(db, WORKERS) == 0
    # The session goes on.
    done, left = done_and_left(db, ROTATE)
    assert rotate(caller, workers=2) == ROTATE.counts(left, done)


def test_a_cancelled_worker(db, sessions, held):
    fill(db, ROWS)
    caller = sessions()
    with held(caller) as calling:
        db.execute("SELECT pg_cancel_backend(%s)", [calling.pids()[0]])
        with pytest.raises(errors.QueryCanceled):
            calling.call.result()
    assert value(db, WORKERS) == 0 and is_consistent(db)


def test_lock_timeout(db, sessions):
    fill(db, 1000)
    locker, caller = sessions(), sessions()
    caller.execute("SET lock_timeout = '300ms'")
    with locker.transaction():
        locker.execute("LOCK TABLE secrets IN SHARE MODE")
        with pytest.raises(errors.LockNotAvailable):
            rotate(caller, workers=2)
    assert census(db) == {"old key": 1000}


def test_a_locked_row_is_left_to_the_caller(db, sessions):
    fill(db, ROWS)
    locker, caller = sessions(), sessions()
    with locker.transaction():
        locker.execute("SELECT FROM secrets WHERE id IN (3, 19999) FOR UPDATE")
        with in_background(rotate, caller, workers=2) as call:
            wait_until(lambda: census(db) == {"current": ROWS - 2, "old key": 2})
            wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
            assert value(db, WORKERS) == 0
            locker.execute("COMMIT")
            assert call.result() == ROTATE.counts(ROWS)
            locker.execute("BEGIN")


@pytest.fixture
def deferred(db):
    """Lets a trigger do something when a transaction that has written certain rows commits."""
    def define(when, body):
        db.execute(f"CREATE FUNCTION deferred() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$")
        db.execute("CREATE CONSTRAINT TRIGGER deferred AFTER UPDATE ON secrets DEFERRABLE INITIALLY DEFERRED"
                   f" FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION deferred()")

    yield define
    db.execute("DROP FUNCTION IF EXISTS deferred CASCADE")


@pytest.mark.parametrize("lock_timeout", ["0", "200ms"])
def test_workers_whose_deferred_triggers_wait_for_each_other(db, sessions, deferred, lock_timeout):
    fill(db, ROWS)
    db.execute("CREATE TABLE counters AS SELECT i AS id, 0 AS n FROM generate_series(0, 1) AS i")
    try:
        count = "UPDATE counters SET n = n + 1 WHERE id ="
        deferred("OLD.id % 500 = 0", f"{count} OLD.id / 500 % 2; PERFORM pg_sleep(0.02); {count} 1 - OLD.id / 500 % 2")
        caller = sessions()
        caller.execute(f"SET lock_timeout = '{lock_timeout}'")
        assert rotate(caller, workers=2, batch_size=500) == ROTATE.counts(ROWS)
        assert db.execute("SELECT n FROM counters").fetchall() == [(ROWS / 500,)] * 2
    finally:
        db.execute("DROP TABLE counters")


def test_a_deferred_trigger_that_waits_for_the_caller(db, sessions, deferred):
    # The caller waits for the workers, but not for a lock: the server would not notice a deadlock.
    fill(db, ROWS)
    deferred("OLD.id = 15000", "PERFORM pg_advisory_xact_lock(7)")
    caller = sessions()
    caller.execute("SELECT pg_advisory_lock(7); SET statement_timeout = '10s'")
    assert rotate(caller, workers=2, batch_size=100) == ROTATE.counts(ROWS)


def test_an_error_of_a_deferred_trigger(db, sessions, deferred):
    fill(db, ROWS)
    deferred("OLD.id = 15000", "RAISE 'not this one'")
    with pytest.raises(errors.RaiseException, match="not this one"):
        rotate(sessions(), workers=2, batch_size=100)
    done, left = done_and_left(db, ROTATE)
    assert left >= 1 and value(db, WORKERS) == 0


def test_progress_is_that_of_all(db, sessions, held):
    fill(db, ROWS)
    caller = sessions()
    told = []
    caller.add_notice_handler(lambda diag: is_progress(diag.message_primary) and told.append(diag.message_primary))
    with held(caller) as calling:
        wait_until(lambda: told)
        calling.go_on()
        assert calling.call.result() == ROTATE.counts(ROWS)
    print(*told, sep="\n")
    rows = [int(re.match(r"rotating: (\d+) ", message)[1]) for message in told if message.startswith("rotating: ")]
    assert rows == sorted(rows) and 200 <= rows[0] < ROWS


def test_temporary_tables(db, sessions):
    # Another process cannot read them: the call does that itself.
    caller = sessions()
    fill(caller, 1000, table="pg_temp.secrets")
    assert rotate(caller, "pg_temp.secrets", workers=2)["rotated"] == 1000
    fill(db, 1000)
    caller.execute("CREATE TEMPORARY TABLE child () INHERITS (public.secrets)")
    with under(caller, OLD):
        caller.execute("INSERT INTO child SELECT i, fernet_encrypt('secret ' || i) FROM generate_series(1001, 1100) AS i")
    caller.execute("DROP TABLE pg_temp.secrets")
    assert rotate(caller, workers=2)["rotated"] == 1100


def test_a_partition_that_goes_meanwhile(db, sessions, held):
    db.execute("CREATE TABLE secrets (id integer, part integer, value text) PARTITION BY LIST (part)")
    for part in 1, 2:
        db.execute(f"CREATE TABLE secrets_{part} PARTITION OF secrets FOR VALUES IN ({part})")
    ROTATE.fill(db, ROWS, "INSERT INTO secrets SELECT i, 1 + i / 15001, {value}")
    other = sessions()
    with held(sessions()) as calling, in_background(other.execute, "DROP TABLE secrets_2"):
        wait_until(lambda: waits_for_lock(db, other.info.backend_pid))
        calling.go_on()
        assert calling.call.result()["rotated"] == 15_000
    assert census(db) == {"current": 15_000}


@pytest.mark.parametrize("processes, started", [(0, 0), (2, 1)])
def test_max_worker_processes(processes, started):
    # One of them is the server's own, for logical replication.
    with Cluster([NEW, OLD], "fsync = off", f"max_worker_processes = {processes}", "max_parallel_workers = 0") as cluster, \
            cluster.connect() as db:
        db.execute("CREATE EXTENSION pg_fernet")
        fill(db, ROWS)
        told = notices(db)
        assert rotate(db, workers=4)["rotated"] == ROWS
        assert told[0] == f"{started} of 4 background workers started, since max_worker_processes allows no more"
        assert len(told) == 2 and census(db) == {"current": ROWS}


def test_no_shared_memory_segment_left():
    # So few sessions are possible that one query takes all the segments that are meant for them.
    few = "max_connections = 5", "max_wal_senders = 0", "max_worker_processes = 2", "autovacuum_max_workers = 1"
    with Cluster([NEW, OLD], "fsync = off", *few) as cluster, cluster.connect() as db, cluster.connect() as other:
        db.execute("CREATE EXTENSION pg_fernet")
        fill(db, ROWS)
        # Each part of the query has a segment until its end.
        for setting in ("parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0",
                        "max_parallel_workers_per_gather = 1"):
            other.execute(f"SET {setting}")
        parts = ", ".join(f"(SELECT count(*) FROM secrets WHERE id > {i})" for i in range(200))
        with in_background(other.execute, f"SELECT {parts}, pg_sleep(1000)"):
            try:
                wait_until(lambda: value(db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == 1)
                told = notices(db)
                assert rotate(db, workers=2) == ROTATE.counts(ROWS)
                assert told[0] == "no background worker started: too many dynamic shared memory segments"
            finally:
                other.cancel()


class WithSharedMemoryOfItsOwn(Cluster):
    launcher = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"', "sh", *RUN]

    def fill_shared_memory(self, left):
        """Leaves that many bytes."""
        with open(f"/proc/{self.processes()[0]}/root/dev/shm/filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                filler.truncate(filler.tell() // 4096 * 4096 - left)


def test_no_shared_memory_left():
    if not shutil.which("unshare") or subprocess.run([*WithSharedMemoryOfItsOwn.launcher, "true"], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    with WithSharedMemoryOfItsOwn([NEW, OLD], "fsync = off", "dynamic_shared_memory_type = posix") as cluster, cluster.connect() as db:
        db.execute("CREATE EXTENSION pg_fernet")
        fill(db, ROWS)
        told = notices(db)
        # Enough for two queues and everything else, but not for eight.
        cluster.fill_shared_memory(80 << 10)
        assert rotate(db, workers=8) == ROTATE.counts(ROWS)
        assert re.fullmatch("no background worker started: could not resize shared memory segment .*: No space left on device", told[0])
        assert len(told) == 2 and db.info.transaction_status.name == "IDLE"
        cluster.write_keys([OLD, NEW])
        told.clear()
        assert rotate(db, workers=2) == ROTATE.counts(ROWS)
        assert len(told) == 1


def stop(cluster, caller, workers):
    start = time.monotonic()
    cluster.stop()
    assert time.monotonic() - start < 10


def kill_all_but_the_workers(cluster, caller, workers):
    cluster.kill([cluster.processes()[0], caller])
    # They end by themselves, and not only when the work is done, in some minutes.
    wait_until(lambda: not any(map(is_alive, workers)), seconds=10)


@pytest.mark.parametrize("end", [stop, kill_all_but_the_workers])
def test_a_server_that_ends(end):
    with Cluster([NEW, OLD], "fsync = off") as cluster:
        with cluster.connect() as db:
            db.execute("CREATE EXTENSION pg_fernet")
            fill(db, ROWS)
            db.execute("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$")
            db.execute("CREATE TRIGGER slow BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION slow()")
            caller = cluster.connect()
            with in_background(rotate, caller, workers=2, batch_size=10) as call:
                wait_until(lambda: value(db, WORKERS) == 2)
                workers = [pid for (pid,) in db.execute(WORKERS.replace("count(*)", "pid"))]
                end(cluster, caller.info.backend_pid, workers)
                with pytest.raises(errors.OperationalError):
                    call.result()
        cluster.start()
        with cluster.connect() as db:
            db.execute("DROP FUNCTION slow CASCADE")
            done, left = done_and_left(db, ROTATE)
            assert rotate(db, workers=2) == ROTATE.counts(left, done)
