"""Keys in the configuration, and what code of an ordinary role can read of them in each kind of server process.

A process that has not loaded the library does not know that fernet.keys is secret. Sessions load what is in
session_preload_libraries, and parallel workers what their leader has loaded; the other kinds do neither.
"""

from contextlib import contextmanager

import psycopg
import pytest

from key_files import key
from postgres import column, connect, force_parallel, major_version, plan, server, value
from settings import preloading
from tables import wait_until

VERSION = major_version()
KEY = key()
REFUSED = "refused"
# May see what kind of process it is in, but not secret settings.
OWNER = "CREATE ROLE owner LOGIN IN ROLE pg_read_all_stats"

# Says in which kind of process it runs, and what it reads there. It is not immutable, though it says so: otherwise it
# could not be in an index.
SPY = """
    CREATE OR REPLACE FUNCTION spy() RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
    DECLARE
        kind text := (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid());
    BEGIN
        RETURN kind || ': ' || coalesce(current_setting('fernet.keys', true), 'nothing');
    EXCEPTION WHEN insufficient_privilege THEN
        RETURN kind || ': refused';
    END $$"""

CONFIGURATION = f"""
fernet.keys = '{KEY}'
wal_level = logical
autovacuum_naptime = 1s
autovacuum_analyze_threshold = 0
autovacuum_analyze_scale_factor = 0
wal_retrieve_retry_interval = 100ms
"""
# With it, the publisher sends each change at once, and so leaves each transaction to a worker of its own. Up to 16,
# it can crash a subscriber.
AT_ONCE = "options=-cdebug_logical_replication_streaming=immediate"


@pytest.fixture(scope="module")
def host(preload):
    with server(preloading(preload), CONFIGURATION) as host:
        with connect("postgres", host=host) as admin:
            admin.execute(OWNER)
            admin.execute("CREATE ROLE replicator LOGIN REPLICATION")
            for database in "published", "subscribed":
                admin.execute(f"CREATE DATABASE {database}")
                with connect(database, host=host) as session:
                    session.execute("CREATE EXTENSION pg_fernet")
                    session.execute("CREATE SCHEMA AUTHORIZATION owner")
            yield host


@pytest.fixture
def owner(host):
    """A session of an ordinary role, which has a schema of its name."""
    with connect("subscribed", host=host, user="owner") as session:
        session.execute(SPY)
        yield session


def test_sessions(owner, preload):
    assert value(owner, "SELECT spy()") == f"client backend: {KEY if preload == 'none' else REFUSED}"


def test_parallel_workers(owner, preload):
    reading = "SELECT max(current_setting('fernet.keys') || n) FROM many"
    owner.execute("CREATE TABLE many AS SELECT ' ' || n AS n FROM generate_series(1, 1000) AS n")
    force_parallel(owner)
    if preload == "none":
        assert plan(owner, reading)[1] > 0
        assert value(owner, reading) == f"{KEY} 999"
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refusal:
            owner.execute(reading)
        assert "parallel worker" in refusal.value.diag.context
    owner.execute("DROP TABLE many")


def test_autovacuum_workers(owner, preload):
    """They compute the statistics of an index on an expression, which its owner may read."""
    owner.execute("CREATE TABLE analyzed (n int)")
    owner.execute("CREATE INDEX spied ON analyzed (spy(), n)")
    owner.execute("INSERT INTO analyzed SELECT generate_series(1, 100)")
    seen = wait_until(lambda: column(owner, "SELECT unnest(most_common_vals::text::text[]) FROM pg_stats WHERE tablename = 'spied'"))
    assert seen == [f"autovacuum worker: {REFUSED if preload == 'shared' else KEY}"]
    owner.execute("DROP TABLE analyzed")


@pytest.mark.parametrize("replication", ["database", "true"])
def test_walsenders(host, preload, replication):
    """They serve a role with REPLICATION, and answer its SHOW."""
    with connect("subscribed", host=host, user="replicator", replication=replication) as session:
        if preload == "shared":
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SHOW fernet.keys")
        else:
            # As text, or, without a database, as bytes.
            assert value(session, "SHOW fernet.keys") in (KEY, KEY.encode())


@contextmanager
def subscription(host, streaming):
    """From a database to another one of the same server, which cannot make the slot by itself."""
    with connect("published", host=host) as publisher, connect("subscribed", host=host) as subscriber:
        publisher.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        publisher.execute("SELECT pg_create_logical_replication_slot('slot', 'pgoutput')")
        subscriber.execute(
            f"CREATE SUBSCRIPTION subscription CONNECTION 'host={host} dbname=published user=postgres"
            f" {AT_ONCE if streaming == 'parallel' else ''}' PUBLICATION everything"
            f" WITH (create_slot = false, slot_name = slot, streaming = {streaming})")
        try:
            yield publisher
            # Disabling one while it works can crash it, too.
            end = value(publisher, "SELECT pg_current_wal_lsn()::text")
            wait_until(lambda: value(publisher, "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots", end))
        finally:
            subscriber.execute("ALTER SUBSCRIPTION subscription DISABLE")
            subscriber.execute("ALTER SUBSCRIPTION subscription SET (slot_name = NONE)")
            subscriber.execute("DROP SUBSCRIPTION subscription")
            wait_until(lambda: not value(publisher, "SELECT active FROM pg_replication_slots"))
            publisher.execute("SELECT pg_drop_replication_slot('slot')")
            publisher.execute("DROP PUBLICATION everything")


@pytest.mark.parametrize("streaming", ["off", pytest.param("parallel", marks=pytest.mark.skipif(VERSION < 16, reason="new in 16"))])
def test_logical_replication_workers(host, owner, preload, streaming):
    """One copies a table at first; another applies later changes, or leaves that to parallel workers."""
    with connect("published", host=host) as publisher:
        publisher.execute("CREATE TABLE owner.replicated (n int PRIMARY KEY)")
        publisher.execute("INSERT INTO owner.replicated VALUES (1)")
    for statement in (
        "CREATE TABLE replicated (n int PRIMARY KEY)",
        "CREATE TABLE seen (n int, what text, in_parallel boolean)",
        # The rights are the owner's, whatever the worker's are.
        """CREATE OR REPLACE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
           BEGIN
               INSERT INTO owner.seen
               SELECT new.n, owner.spy(), to_jsonb(s)->>'leader_pid' IS NOT NULL
               FROM pg_stat_subscription AS s WHERE pid = pg_backend_pid();
               RETURN new;
           END $$""",
        "CREATE TRIGGER note BEFORE INSERT ON replicated FOR EACH ROW EXECUTE FUNCTION note()",
        "ALTER TABLE replicated ENABLE ALWAYS TRIGGER note",
    ):
        owner.execute(statement)
    try:
        with subscription(host, streaming) as publisher:
            wait_until(lambda: column(owner, "SELECT n FROM seen WHERE n = 1"))
            # Until then, the worker that copies applies changes, too.
            wait_until(lambda: value(owner, "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"))
            # The first changes after that may go to the worker that already exists.
            for n in range(2, 100):
                publisher.execute("INSERT INTO owner.replicated VALUES (%s)", [n])
                if wait_until(lambda: column(owner, "SELECT in_parallel FROM seen WHERE n = %s", n)) == [streaming == "parallel"]:
                    break
        copies, applies = ("tablesync worker", "apply worker") if VERSION >= 17 else ("worker", "worker")
        kinds = [f"logical replication {copies}",
                 f"logical replication {'parallel worker' if streaming == 'parallel' else applies}"]
        keys = REFUSED if preload == "shared" else KEY
        seen = owner.execute("SELECT what, in_parallel FROM seen WHERE n IN (1, %s) ORDER BY n", [n]).fetchall()
        assert seen == [(f"{kinds[0]}: {keys}", False), (f"{kinds[1]}: {keys}", streaming == "parallel")]
    finally:
        owner.execute("DROP TABLE replicated, seen")
        with connect("published", host=host) as publisher:
            publisher.execute("DROP TABLE owner.replicated")
