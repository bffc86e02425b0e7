"""Calls that end early, and the calls after them."""

import time

import pytest
from psycopg import errors

from edition import FEWER, SQL, SUPERUSER, install
from postgres import connect, value
from tables import LOST, NEW, OLD, census, contents, fill, filled, rotate, rotation_held_at, under, wait_until

ROWS = 50_000 // FEWER


def notices_of(db):
    """Collects severity, message and detail of the notices that a session gets."""
    notices = []
    db.add_notice_handler(lambda n: notices.append((n.severity, n.message_primary, n.message_detail)))
    return notices


def is_consistent(db):
    return contents(db) == filled(ROWS)


def test_cancel(db, sessions, conversion):
    conversion.fill(db, ROWS)
    caller = sessions()
    with rotation_held_at(db, caller, 2000, conversion, batch_size=500) as (call, _):
        assert value(db, "SELECT pg_cancel_backend(%s)", caller.info.backend_pid)
        with pytest.raises(errors.QueryCanceled):
            call.result()
    done = census(db)
    assert 1000 <= done[conversion.after] < 2000
    assert is_consistent(db)
    # The same session continues where it was.
    assert conversion.call(caller) == conversion.counts(done[conversion.before], done[conversion.after])
    assert census(db) == {conversion.after: ROWS}
    assert is_consistent(db)


def test_statement_timeout(db, sessions, conversion):
    conversion.fill(db, ROWS)
    caller = sessions()
    done = [0]
    while True:
        # On a busy machine little time may be too little even to find that all is done.
        caller.execute(f"SET statement_timeout = {100 * len(done)}")
        try:
            counts = conversion.call(caller, batch_size=200)
            break
        except errors.QueryCanceled:
            assert is_transaction_over(caller)
            done.append(census(db).get(conversion.after, 0))
    assert done == sorted(done) and done[-1] > 0
    assert counts == conversion.counts(ROWS - done[-1], done[-1])
    assert census(db) == {conversion.after: ROWS}
    assert is_consistent(db)


def is_transaction_over(db):
    return db.info.transaction_status == 0


def test_a_terminated_session(db, sessions, conversion):
    conversion.fill(db, ROWS)
    caller = sessions()
    with rotation_held_at(db, caller, 2000, conversion, batch_size=500) as (call, _):
        db.execute("SELECT pg_terminate_backend(%s)", [caller.info.backend_pid])
        with pytest.raises(errors.OperationalError):
            call.result()
    done = census(db)
    assert 1000 <= done[conversion.after] < 2000
    assert conversion.call(db)[conversion.done] == done[conversion.before]
    assert census(db) == {conversion.after: ROWS}


def test_an_error_in_a_trigger(db, sessions, conversion):
    conversion.fill(db, 1000)
    db.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
               " $$ BEGIN IF NEW.id = 777 THEN RAISE 'not this one'; END IF; RETURN NEW; END $$")
    try:
        db.execute("CREATE TRIGGER refuse BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION refuse()")
        with pytest.raises(errors.RaiseException, match="not this one"):
            conversion.call(db, batch_size=100)
        assert is_transaction_over(db)
        # The batch of that row is undone, but not those before it.
        done = census(db)
        assert 500 < done[conversion.after] < 777 and done[conversion.before] == 1000 - done[conversion.after]
    finally:
        db.execute("DROP FUNCTION refuse CASCADE")
    assert conversion.call(db)[conversion.done] == done[conversion.before]


def test_keys_that_change_meanwhile(db, sessions, database):
    # The call keeps the keys with which it started.
    fill(db, ROWS)
    server = connect(database, [NEW], user=SUPERUSER)
    server.execute(f"ALTER SYSTEM SET fernet.keys = '{NEW},{OLD}'")
    server.execute("SELECT pg_reload_conf()")
    caller = sessions()
    caller.execute("RESET fernet.keys")
    wait_until(lambda: value(caller, "SHOW fernet.keys") != "")
    other = sessions()
    other.execute("RESET fernet.keys")
    with rotation_held_at(db, caller, 2000, batch_size=500) as (call, go_on):
        server.execute(f"ALTER SYSTEM SET fernet.keys = '{LOST}'")
        try:
            server.execute("SELECT pg_reload_conf()")
            wait_until(lambda: value(other, "SHOW fernet.keys") == LOST)
            go_on()
            assert call.result()["rotated"] == ROWS
        finally:
            server.execute("ALTER SYSTEM RESET fernet.keys")
            server.execute("SELECT pg_reload_conf()")
            server.close()
    assert census(db) == {"current": ROWS}


@pytest.mark.skipif(SQL, reason="a procedure in PL/pgSQL needs its functions to the end")
def test_an_extension_that_is_dropped_meanwhile(db, sessions, conversion):
    conversion.fill(db, ROWS)
    caller = sessions()
    try:
        with rotation_held_at(db, caller, 2000, conversion, batch_size=500) as (call, go_on):
            db.execute("DROP EXTENSION pg_fernet")
            go_on()
            assert call.result() == conversion.counts(ROWS)
    finally:
        install(db)
    assert census(db) == {conversion.after: ROWS}


def test_bad_values_are_counted_named_and_left_alone(db, sessions):
    rows = 100_000 // FEWER
    hundredth = rows // 100
    fill(db, rows)
    with under(db, LOST):
        db.execute("UPDATE secrets SET value = 'plaintext ' || id WHERE mod(id, 100) = 7")
        db.execute("UPDATE secrets SET value = fernet_encrypt('lost') WHERE mod(id, 100) = 13")
        db.execute("UPDATE secrets SET value = NULL WHERE mod(id, 100) = 17")
    bad = "SELECT md5(string_agg(id || coalesce(value, 'NULL') || ctid || xmin, '' ORDER BY id)) FROM secrets" \
          " WHERE mod(id, 100) IN (7, 13, 17)"
    before = value(db, bad)
    caller = sessions()
    notices = notices_of(caller)
    counts = rotate(caller)
    assert counts == {"rotated": 97 * hundredth, "current": 0, "unknown_key": hundredth, "not_a_token": hundredth, "nulls": hundredth}
    assert value(db, bad) == before
    assert census(db) == {"current": 97 * hundredth, "unknown key": hundredth, "not a token": hundredth, "null": hundredth}
    # A warning names the first five, without their values.
    [(_, message, detail)] = [notice for notice in notices if notice[0] == "WARNING"]
    assert message == f"left as they are: {hundredth} tokens that no key opens, {hundredth} values without a token"
    places = [part.split(" of ")[0] for part in detail.split("; ")]
    assert len(places) == 6 and places.pop() == "and others."
    named = db.execute("SELECT mod(id, 100) FROM secrets WHERE ctid = ANY (%s::tid[])", [places]).fetchall()
    assert len(named) == 5 and all(rest in (7, 13) for (rest,) in named)
    assert "plaintext" not in detail


def test_notices(db, sessions):
    fill(db, 30_000)
    caller = sessions()
    notices = notices_of(caller)
    with rotation_held_at(db, caller, 15_000, batch_size=100) as (call, go_on):
        time.sleep(1)  # notices are as far apart
        go_on()
        call.result()
    messages = [message for _, message, _ in notices]
    print(*messages, sep="\n")
    assert {severity for severity, _, _ in notices} == {"NOTICE"}
    assert messages[-1].startswith("rotated 30000 tokens in 30000 rows in ")
    # Some, but far fewer than the 300 batches.
    progress = [message for message in messages if message.startswith("rotating: ")]
    assert 1 <= len(progress) < 100
    assert all(" of about 30" in message and message.endswith(" left") for message in progress)
