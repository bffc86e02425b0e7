"""Hot standby and logical replication: tokens replicate as data, keys do not."""

import pytest
from psycopg import errors

from cluster import Cluster
from edition import SUPERUSER, foreign_data_wrapper, install, map_user
from postgres import create_database, drop_database, value
from tables import NEW, OLD, census, fill, in_background, rotate, rotation_held_at, wait_until, waits_for_lock


@pytest.fixture(scope="module")
def primary():
    with Cluster([NEW, OLD], "wal_level = logical", "fsync = off") as primary:
        with primary.connect() as db:
            install(db)
        yield primary


def test_hot_standby(primary):
    with primary.connect() as db, Cluster([NEW, OLD], "fsync = off", base=primary) as standby:
        fill(db, 1000)
        db.execute("CREATE UNLOGGED TABLE cache AS SELECT value FROM secrets")
        with standby.connect() as replica:
            assert value(replica, "SELECT pg_is_in_recovery()")
            caught_up(db, replica)
            assert census(replica) == {"old key": 1000}
            assert value(replica, "SELECT tokens FROM fernet_find_columns() WHERE relation = 'secrets'::regclass") == 1000
            with pytest.raises(errors.ReadOnlySqlTransaction):
                rotate(replica)
            assert rotate(db)["rotated"] == 1000
            caught_up(db, replica)
            assert census(replica) == {"current": 1000}
            # A standby without the new key must be noticed before the rotation, not after it.
            standby.write_keys([OLD])
            wait_until(lambda: census(replica) == {"unknown key": 1000})
        db.execute("DROP TABLE secrets")


def test_a_standby_promoted_half_way_completes_the_rotation(primary):
    # With feedback, the dead rows of the rotation do not interrupt the census on the standby.
    settings = "fsync = off", "hot_standby_feedback = on", "wal_receiver_status_interval = 1s"
    with primary.connect() as db, primary.connect() as caller, Cluster([NEW, OLD], *settings, base=primary) as standby:
        fill(db, 30_000)
        with standby.connect() as replica:
            caught_up(db, replica)
        with standby.connect(user=SUPERUSER) as admin, standby.connect() as replica, rotation_held_at(db, caller, 20_000, batch_size=100) as (call, go_on):
            wait_until(lambda: census(replica).get("current", 0) > 1000)
            value(admin, "SELECT pg_promote()")
            go_on()
            call.result()
            half = census(replica)
            assert 1000 < half["current"] < 20_000 and half["current"] + half["old key"] == 30_000
            assert rotate(replica)["rotated"] == half["old key"]
            assert census(replica) == {"current": 30_000}
        db.execute("DROP TABLE secrets")


def test_a_conflict_with_recovery_while_columns_are_looked_for(primary):
    """It ends the session, for the tables are read in subtransactions: elsewhere, the server would only cancel the statement."""
    with (primary.connect() as db, primary.connect() as locker,
          Cluster([NEW, OLD], "fsync = off", "max_standby_streaming_delay = 0", base=primary) as standby):
        fill(db, 1000)
        db.execute("CREATE TABLE seen AS TABLE secrets")
        with standby.connect() as replica, standby.connect() as watcher:
            caught_up(db, watcher)
            replica.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT")
            db.execute("DELETE FROM seen")
            locker.execute("BEGIN; LOCK TABLE secrets")
            wait_until(lambda: value(watcher, "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock')"))
            with in_background(replica.execute, "SELECT FROM fernet_find_columns()") as found:
                wait_until(lambda: waits_for_lock(watcher, replica.info.backend_pid))
                db.execute("VACUUM seen")
                with pytest.raises(errors.Error, match="terminating connection due to conflict with recovery"):
                    found.result()
        locker.execute("COMMIT")
        db.execute("DROP TABLE secrets, seen")


def caught_up(primary, replica):
    position = value(primary, "SELECT pg_current_wal_lsn()")
    wait_until(lambda: value(replica, "SELECT pg_last_wal_replay_lsn() >= %s", position))


def test_logical_replication(primary):
    create_database("subscriber", host=primary.dir)
    with primary.connect() as db, primary.connect(user=SUPERUSER) as publisher:
        with primary.connect("subscriber") as replica, primary.connect("subscriber", user=SUPERUSER) as subscriber:
            install(replica)
            replica.execute("CREATE TABLE secrets (id integer PRIMARY KEY, value text)")
            fill(db, 1000)
            db.execute("CREATE PUBLICATION secrets FOR TABLE secrets")
            # If both are on one server, the slot must be made first.
            publisher.execute("SELECT pg_create_logical_replication_slot('secrets', 'pgoutput')")
            subscriber.execute(f"CREATE SUBSCRIPTION secrets CONNECTION 'host={primary.dir} user=postgres dbname=postgres'"
                               " PUBLICATION secrets WITH (create_slot = false)")
            wait_until(lambda: census(replica) == {"old key": 1000})
            assert rotate(db)["rotated"] == 1000
            wait_until(lambda: census(replica) == {"current": 1000})
            assert value(db, "SELECT md5(string_agg(value, '' ORDER BY id)) FROM secrets") == \
                value(replica, "SELECT md5(string_agg(value, '' ORDER BY id)) FROM secrets")
            subscriber.execute("DROP SUBSCRIPTION secrets")
    drop_database("subscriber", host=primary.dir)


def test_postgres_fdw(primary):
    with primary.connect() as db:
        foreign_data_wrapper(host=primary.dir)
        create_database("remote", host=primary.dir)
        with primary.connect("remote") as remote:
            fill_remote(db, remote)
            db.execute(f"CREATE SERVER remote FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{primary.dir}', dbname 'remote')")
            map_user("remote", host=primary.dir)
            db.execute("CREATE FOREIGN TABLE there (id integer, value text) SERVER remote OPTIONS (table_name 'secrets')")
            # The values are replicated, and this server's own keys are used: the other one has no extension.
            assert census(db, "there") == {"old key": 10}
            with pytest.raises(errors.WrongObjectType):
                rotate(db, "there")
            db.execute("UPDATE there SET value = fernet_rotate(value) WHERE fernet_key_index(value) > 1")
            assert census(db, "there") == {"current": 10}
        db.execute("DROP SERVER remote CASCADE")
        drop_database("remote", host=primary.dir)


def fill_remote(db, remote):
    fill(db, 10, table="here")
    remote.execute("CREATE TABLE secrets (id integer, value text)")
    for row in db.execute("TABLE here").fetchall():
        remote.execute("INSERT INTO secrets VALUES (%s, %s)", row)
    db.execute("DROP TABLE here")
