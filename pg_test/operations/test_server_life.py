"""Calls in the second half of a server's life, and beside what only some servers have: transactions past 2^31,
prepared ones, synchronous standbys."""

import os
from contextlib import contextmanager

import pytest
from cryptography.fernet import Fernet
from psycopg import errors

from cluster import Cluster, run
from edition import SUPERUSER, install
from postgres import notices, value
from tables import NEW, OLD, census, fill, filled, in_background, plaintexts, rotate, wait_until, waits_for_lock

PER_SEGMENT = 2**20  # transactions, in a file of pg_xact


def next_xid(cluster, xid):
    """Sets the next transaction number of a server, as if it had lived that long."""
    with cluster.connect(user=SUPERUSER) as db:
        db.execute("VACUUM FREEZE")
    cluster.stop()
    run(cluster.program("pg_resetwal"), "-D", cluster.data, "-x", str(xid), "-u", str(xid - 1000))
    segment = os.path.join(cluster.data, "pg_xact", f"{xid // PER_SEGMENT:04X}")
    run("dd", "if=/dev/zero", f"of={segment}", "bs=256k", "count=1", "status=none")
    cluster.start()
    with cluster.connect(user=SUPERUSER) as db:
        # All rows are frozen, and none of them needs an older transaction.
        db.execute("UPDATE pg_class SET relfrozenxid = %s::text::xid WHERE relfrozenxid <> '0'", [str(xid - 1000)])
        db.execute("UPDATE pg_database SET datfrozenxid = %s::text::xid", [str(xid - 1000)])


@pytest.fixture
def cluster():
    with Cluster([NEW, OLD], "fsync = off", "autovacuum = off", "max_prepared_transactions = 2") as cluster:
        with cluster.connect() as db:
            install(db)
        yield cluster


def test_numbers_of_objects(cluster):
    cluster.stop()
    run(cluster.program("pg_resetwal"), "-D", cluster.data, "-o", str(3 * 10**9))
    cluster.start()
    with cluster.connect() as db, cluster.connect() as caller:
        db.execute("CREATE TABLE secrets (id integer, value text) PARTITION BY LIST (id)")
        db.execute("CREATE TABLE secrets_1 PARTITION OF secrets FOR VALUES IN (1)")
        db.execute("CREATE DOMAIN token AS text")
        db.execute("ALTER TABLE secrets ALTER value TYPE token")
        assert value(db, "SELECT min(oid::bigint) FROM pg_class WHERE relname LIKE 'secrets%'") > 2**31
        db.execute("INSERT INTO secrets VALUES (1, %s)", [Fernet(OLD).encrypt(b"secret 1").decode()])
        found = "SELECT relation::text, column_name::text, sampled, tokens FROM fernet_find_columns()"
        assert db.execute(found).fetchall() == [("secrets", "value", 1, 1)]
        # A number from a column comes sign-extended.
        of_all = "SELECT sum(tokens) FROM pg_class AS c, fernet_census(c.oid, 'value') WHERE relname LIKE 'secrets%%' AND status = %s"
        assert value(db, of_all, "old key") == 2
        with cluster.connect() as writer:
            writer.execute("BEGIN")
            writer.execute("UPDATE secrets SET id = id")
            with in_background(rotate, caller) as call:
                wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
                writer.execute("COMMIT")
                assert call.result()["rotated"] == 1
        assert is_rotated(db, 1)


def is_rotated(db, rows):
    assert census(db) == {"current": rows}
    assert {id: plaintext for id, (plaintext, _) in plaintexts(db).items()} == filled(rows)
    return True


@pytest.mark.parametrize("xid", [2**31 - 30, 2**31 + 1000, 2**32 - 30], ids=["across 2^31", "past 2^31", "across 2^32"])
def test_numbers_of_transactions(cluster, xid):
    next_xid(cluster, xid)
    with cluster.connect() as db, cluster.connect() as caller:
        fill(db, 2000)
        start = value(db, "SELECT txid_current() % (2^32)::bigint")
        assert start >= xid
        # The first look crosses the limit.
        assert rotate(caller, batch_size=20)["rotated"] == 2000
        assert is_rotated(db, 2000)
        assert (value(db, "SELECT txid_current() % (2^32)::bigint") > 2**31) == (xid < 2**32 - 1000)
        # So does a later one, for rows that were locked, changed, or frozen.
        caller.execute("SELECT set_config('fernet.keys', %s, false)", [f"{OLD},{NEW}"])
        db.execute("SELECT set_config('fernet.keys', %s, false)", [f"{OLD},{NEW}"])
        db.execute("VACUUM FREEZE secrets")
        with cluster.connect() as writer:
            writer.execute("BEGIN")
            writer.execute("UPDATE secrets SET id = id WHERE id <= 10")
            with in_background(rotate, caller) as call:
                wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
                writer.execute("COMMIT")
                assert call.result()["rotated"] == 2000
        assert is_rotated(db, 2000)


def test_a_prepared_transaction_is_waited_for(cluster):
    with cluster.connect() as db, cluster.connect() as caller:
        fill(db, 10)
        db.execute("BEGIN")
        db.execute("INSERT INTO secrets VALUES (11, %s)", [Fernet(OLD).encrypt(b"secret 11").decode()])
        db.execute("PREPARE TRANSACTION 'late'")
        told = notices(caller)
        with in_background(rotate, caller) as call:
            wait_until(lambda: told)
            assert told[0] == "waiting for a prepared transaction, which has written to public.secrets or locked it"
            db.execute("COMMIT PREPARED 'late'")
            assert call.result()["rotated"] == 11
        assert is_rotated(db, 11)


def test_a_prepared_transaction_that_the_server_has_recovered(cluster):
    with cluster.connect() as db:
        fill(db, 10)
        db.execute("BEGIN")
        db.execute("INSERT INTO secrets VALUES (11, %s)", [Fernet(OLD).encrypt(b"secret 11").decode()])
        db.execute("PREPARE TRANSACTION 'late'")
    cluster.stop()
    cluster.start()
    with cluster.connect() as db, cluster.connect() as caller:
        with in_background(rotate, caller) as call:
            wait_until(lambda: waits_for_lock(db, caller.info.backend_pid))
            db.execute("COMMIT PREPARED 'late'")
            assert call.result()["rotated"] == 11
        assert is_rotated(db, 11)


def waits_for_standby(db, session):
    return value(db, "SELECT wait_event IS NOT DISTINCT FROM 'SyncRep' FROM pg_stat_activity WHERE pid = %s",
                 session.info.backend_pid)


@contextmanager
def without_its_standby(cluster):
    """Lets every commit wait for a standby that does not exist."""
    with cluster.connect(user=SUPERUSER) as db, cluster.connect() as writer:
        told = []
        writer.add_notice_handler(told.append)

        def write():
            while not told:
                writer.execute("SELECT pg_logical_emit_message(true, '', '')")

        # Commits wait once the checkpointer, too, has read the configuration.
        db.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        db.execute("SELECT pg_reload_conf()")
        with in_background(write):
            wait_until(lambda: waits_for_standby(db, writer))
            assert value(db, "SELECT pg_cancel_backend(%s)", writer.info.backend_pid)
    yield
    with cluster.connect(user=SUPERUSER) as db:
        db.execute("SET synchronous_commit = local")
        db.execute("ALTER SYSTEM RESET synchronous_standby_names")
        db.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("how", ["cancel", "statement_timeout"])
def test_a_wait_for_a_synchronous_standby_that_is_cancelled_ends_the_call(cluster, how):
    with cluster.connect() as db, cluster.connect() as caller:
        fill(db, 1000)
        with without_its_standby(cluster):
            if how == "statement_timeout":
                caller.execute("SET statement_timeout = '1s'")
            with in_background(rotate, caller, batch_size=100) as call:
                wait_until(lambda: waits_for_standby(db, caller))
                if how == "cancel":
                    assert value(db, "SELECT pg_cancel_backend(%s)", caller.info.backend_pid)
                with pytest.raises(errors.QueryCanceled) as caught:
                    call.result()
        assert "may not have been replicated" in caught.value.diag.message_detail
        assert caught.value.diag.message_hint
        caller.execute("RESET statement_timeout")
        done = census(db)["current"]
        assert done == 100
        assert rotate(caller) == {"rotated": 900, "current": 100, "unknown_key": 0, "not_a_token": 0, "nulls": 0}
        assert is_rotated(db, 1000)
