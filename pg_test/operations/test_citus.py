"""Tables that Citus distributes: a call on one node converts and counts all shards where they are.

Skipped if the server has no Citus, which is not installed for these tests."""

import os
import re
import threading

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg import errors

from cluster import Cluster
from pages import code_block
from postgres import value
from tables import LOST, NEW, OLD, ROTATE, census, contents, encrypt_writes, fill, filled, in_background, rotate, under, wait_until

with psycopg.connect() as server:
    if not value(server, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'citus')"):
        pytest.skip("Citus is NOT tested: this server does not have it", allow_module_level=True)

ROWS = int(os.environ.get("PG_FERNET_ROWS", 20_000))
SHARDS = 8
SETTINGS = ("fsync = off", "shared_preload_libraries = 'citus,pg_fernet'", "citus.node_conninfo = 'sslmode=disable'",
            f"citus.shard_count = {SHARDS}", "max_connections = 100")


@pytest.fixture(scope="module")
def nodes():
    """A coordinator and two workers."""
    keys = NEW, OLD
    with Cluster(keys, *SETTINGS) as coordinator, Cluster(keys, *SETTINGS) as one, Cluster(keys, *SETTINGS) as other:
        for node in coordinator, one, other:
            with node.connect() as db:
                db.execute("CREATE EXTENSION citus")
        with coordinator.connect() as db:
            # Without reference tables, the coordinator holds no rows itself.
            db.execute("SELECT citus_set_coordinator_host(%s, 5432)", [coordinator.dir])
            for worker in one, other:
                db.execute("SELECT citus_add_node(%s, 5432)", [worker.dir])
            db.execute("CREATE EXTENSION pg_fernet")  # on the workers, too
        yield coordinator, one, other


@pytest.fixture
def coordinator(nodes):
    return nodes[0]


@pytest.fixture
def workers(nodes):
    return nodes[1:]


@pytest.fixture
def db(coordinator):
    with coordinator.connect() as db:
        yield db
    with coordinator.connect() as db:
        db.execute("DROP TABLE IF EXISTS secrets")


def distribute(db, rows, copies=1, conversion=ROTATE):
    db.execute("CREATE TABLE secrets (id integer PRIMARY KEY, value text)")
    if copies == "everywhere":
        db.execute("SELECT create_reference_table('secrets')")
    else:
        db.execute(f"SET citus.shard_replication_factor = {copies}")
        db.execute("SELECT create_distributed_table('secrets', 'id')")
    conversion.fill(db, rows, "INSERT INTO secrets SELECT i, {value}")


def on_each(db, command):
    """Runs a command on every node by itself."""
    for success, result in db.execute("SELECT success, result FROM run_command_on_all_nodes(%s)", [command]):
        assert success, result


def test_one_call_converts_all_shards(db, conversion):
    distribute(db, ROWS, conversion=conversion)
    assert census(db) == {conversion.before: ROWS}
    assert conversion.call(db) == conversion.counts(ROWS)
    assert census(db) == {conversion.after: ROWS}
    assert contents(db) == filled(ROWS)
    assert all(conversion.is_new(found) for (found,) in db.execute("SELECT value FROM secrets"))
    assert conversion.call(db) == conversion.counts(0, ROWS)


def test_any_node_can_be_called(db, workers, conversion):
    distribute(db, 1000, conversion=conversion)
    with workers[0].connect() as worker:
        assert census(worker) == {conversion.before: 1000}
        assert conversion.call(worker) == conversion.counts(1000)
    assert census(db) == {conversion.after: 1000}


def test_in_batches_with_a_commit_after_each(db, workers, conversion):
    distribute(db, 4000, conversion=conversion)
    conversion.call(db, batch_size=100)
    batches = [count for _, count in db.execute(
        "SELECT shardid, result::integer FROM run_command_on_shards('secrets', 'SELECT count(DISTINCT xmin::text) FROM %s')")]
    assert len(batches) == SHARDS and min(batches) > 3


def test_all_shards_at_once(db, workers):
    distribute(db, 2000)
    blockers = []
    for worker in workers:
        blocker = worker.connect()
        blocker.execute("BEGIN")
        for (shard,) in blocker.execute("SELECT table_name || '_' || shardid FROM citus_shards WHERE nodename = %s"
                                        " AND table_name = 'secrets'::regclass", [worker.dir]).fetchall():
            blocker.execute(f"SELECT FROM {shard} LIMIT 1 FOR UPDATE")
        blockers.append((blocker, worker))
    with in_background(rotate, db) as call:
        for blocker, worker in blockers:
            with worker.connect() as other:
                wait_until(lambda: value(other, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                                                " AND query LIKE 'CALL%%'") == SHARDS // 2)
        for blocker, worker in blockers:
            blocker.close()
        assert call.result()["rotated"] == 2000


def test_bad_values_are_counted_and_named(db):
    distribute(db, 1000)
    db.execute("UPDATE secrets SET value = 'plaintext' WHERE mod(id, 100) = 7")
    db.execute("UPDATE secrets SET value = %s WHERE mod(id, 100) = 13", [Fernet(LOST).encrypt(b"lost").decode()])
    db.execute("UPDATE secrets SET value = NULL WHERE mod(id, 100) = 17")
    warnings = []
    db.add_notice_handler(lambda n: n.severity == "WARNING" and warnings.append((n.message_primary, n.message_detail)))
    assert rotate(db) == {"rotated": 970, "current": 0, "unknown_key": 10, "not_a_token": 10, "nulls": 10}
    assert census(db) == {"current": 970, "unknown key": 10, "not a token": 10, "null": 10}
    [(message, detail)] = warnings
    assert message == "left as they are: 10 tokens that no key opens, 10 values without a token"
    assert detail.count(" of public.secrets_") == 5 and detail.endswith("; and others.") and "plaintext" not in detail
    refusal = r"shards failed, for instance on .*: (value is not a|no key authenticates the) Fernet token: \("
    with pytest.raises(errors.ExternalRoutineException, match=refusal):
        rotate(db, strict=True)


def test_names_that_need_quotes(db):
    table, column = """ "o'Brien %s"."we""ird \\ % %1$L" """.strip(), """ "V a'lue \\ %I" """.strip()
    db.execute("""CREATE SCHEMA "o'Brien %s" """)
    db.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, {column} bytea)")
    try:
        call = [table, column[1:-1]]
        db.execute("SELECT create_distributed_table(%s, 'id')", [table])
        with under(db, OLD):
            db.execute(f"INSERT INTO {table} SELECT i, fernet_encrypt('x')::bytea FROM generate_series(1, 100) AS i")
        assert db.execute("CALL fernet_rotate_column(%s, %s)", call).fetchone() == (100, 0, 0, 0, 0)
        assert db.execute("SELECT status, tokens FROM fernet_census(%s, %s) WHERE tokens > 0", call).fetchall() == [("current", 100)]
    finally:
        db.execute("""DROP SCHEMA "o'Brien %s" CASCADE""")


def test_a_partitioned_table(db):
    db.execute("CREATE TABLE secrets (id integer, day integer, value text) PARTITION BY RANGE (day)")
    db.execute("CREATE TABLE secrets_1 PARTITION OF secrets FOR VALUES FROM (1) TO (2)")
    db.execute("CREATE TABLE secrets_2 PARTITION OF secrets FOR VALUES FROM (2) TO (3)")
    db.execute("SELECT create_distributed_table('secrets', 'id')")
    with under(db, OLD):
        db.execute("INSERT INTO secrets SELECT i, 1 + i % 2, fernet_encrypt('x') FROM generate_series(1, 1000) AS i")
    assert rotate(db, "secrets_2")["rotated"] == 500
    assert census(db) == {"current": 500, "old key": 500}
    assert rotate(db) == {"rotated": 500, "current": 500, "unknown_key": 0, "not_a_token": 0, "nulls": 0}
    assert census(db) == {"current": 1000}


def test_a_role_needs_its_privileges_on_each_node(db, coordinator, conversion):
    name = conversion.name
    distribute(db, 100, conversion=conversion)
    db.execute("CREATE ROLE fernet_rotator LOGIN")
    try:
        db.execute("GRANT SELECT, UPDATE ON secrets TO fernet_rotator")
        # Citus does not pass on privileges for functions of an extension.
        on_each(db, "GRANT EXECUTE ON FUNCTION fernet_census TO fernet_rotator")
        db.execute(f"GRANT EXECUTE ON PROCEDURE fernet_{name}_column TO fernet_rotator")
        with coordinator.connect(user="fernet_rotator") as rotator:
            with pytest.raises(errors.ExternalRoutineException, match=f"permission denied for procedure fernet_{name}_shard"):
                conversion.call(rotator)
            on_each(db, f"GRANT EXECUTE ON PROCEDURE fernet_{name}_shard TO fernet_rotator")
            assert conversion.call(rotator) == conversion.counts(100)
            assert census(rotator) == {conversion.after: 100}
            with pytest.raises(errors.InsufficientPrivilege):
                rotator.execute("SELECT fernet_decrypt(value) FROM secrets")
            db.execute("REVOKE UPDATE ON secrets FROM fernet_rotator")
            db.execute("UPDATE secrets SET value = %s WHERE id = 1", [conversion.value("one")])
            with pytest.raises(errors.ExternalRoutineException, match="1 of 8 shards .*: permission denied for table secrets_"):
                conversion.call(rotator)
    finally:
        db.execute("DROP OWNED BY fernet_rotator")
        db.execute("DROP ROLE fernet_rotator")


@pytest.mark.parametrize("keys, reason", [
    ([], "no Fernet keys are configured|a list holds one or more keys|fernet.keys_file"),
    ([OLD], "keys are not those of the calling node"),
    ([OLD, NEW], "keys are not those of the calling node"),
], ids=["none", "no new key", "another order"])
def test_a_worker_with_other_keys_is_named(db, workers, conversion, keys, reason):
    distribute(db, 1000, conversion=conversion)
    worker = workers[1]
    worker.write("keys", "\n".join(keys))
    try:
        for call in census, conversion.call:
            with pytest.raises(errors.ExternalRoutineException) as caught:
                call(db)
            message = caught.value.diag.message_primary
            assert message.startswith(f"{SHARDS // 2} of {SHARDS} shards failed, for instance on {worker.dir}:5432: ")
            assert re.search(reason, message)
            assert workers[0].dir not in str(caught.value)
            assert not any(key in str(caught.value) for key in (NEW, OLD))
    finally:
        worker.write("keys", f"{NEW}\n{OLD}")
    # The shards on the other worker are done, and none on this one.
    done = census(db)[conversion.after]
    assert 0 < done < 1000
    assert conversion.call(db) == conversion.counts(1000 - done, done)


def test_a_worker_without_the_extension_is_named(db, workers):
    distribute(db, 100)
    worker = workers[0]
    with worker.connect() as session:
        session.execute("SET citus.enable_ddl_propagation = off")
        session.execute("DROP EXTENSION pg_fernet")
        try:
            with pytest.raises(errors.ExternalRoutineException, match=f"{worker.dir}:5432: procedure .*fernet_rotate_shard.* does not exist"):
                rotate(db)
            with pytest.raises(errors.ExternalRoutineException, match=f"{worker.dir}:5432: function .*fernet_census.* does not exist"):
                census(db)
        finally:
            session.execute("CREATE EXTENSION pg_fernet")
    assert rotate(db)["rotated"] + rotate(db)["current"] >= 100
    assert census(db) == {"current": 100}


def test_a_worker_that_is_down_is_named(db, coordinator, workers):
    distribute(db, 100)
    worker = workers[0]
    worker.stop()
    try:
        with coordinator.connect() as caller, pytest.raises(errors.ExternalRoutineException, match=f"on {worker.dir}:5432: .*connect"):
            rotate(caller)
    finally:
        worker.start()
    with coordinator.connect() as caller:
        rotate(caller)
        assert census(caller) == {"current": 100}


def test_cancel_stops_the_workers(db, coordinator, workers, conversion):
    distribute(db, ROWS, conversion=conversion)
    caller = coordinator.connect()
    busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'CALL%%'"
    with in_background(conversion.call, caller, batch_size=10) as call:
        with workers[0].connect() as worker:
            wait_until(lambda: value(worker, busy) > 0)
            assert value(db, "SELECT pg_cancel_backend(%s::integer)", caller.info.backend_pid)
            with pytest.raises(errors.QueryCanceled):
                call.result()
            wait_until(lambda: value(worker, busy) == 0, seconds=5)
    done = census(db).get(conversion.after, 0)
    assert done < ROWS
    assert conversion.call(db) == conversion.counts(ROWS - done, done)


def test_no_update_is_lost(db, coordinator, rng, conversion):
    distribute(db, ROWS, conversion=conversion)
    written, stop = {}, threading.Event()

    def write():
        with coordinator.connect() as writer:
            while not stop.is_set():
                id, plaintext = rng.randint(1, ROWS), f"written: {rng.random()}"
                writer.execute("UPDATE secrets SET value = %s WHERE id = %s",
                               [rng.choice([conversion.value, conversion.new_value])(plaintext), id])
                written[id] = plaintext

    with coordinator.connect() as caller, in_background(write):
        wait_until(lambda: written)
        try:
            conversion.call(caller, batch_size=100)
        finally:
            stop.set()
    print(f"{len(written)} rows written meanwhile")
    conversion.call(db)
    assert census(db) == {conversion.after: ROWS}
    assert contents(db) == filled(ROWS) | written


TRIGGER = code_block("docs/operations.md", "Citus", "sql", "CREATE TRIGGER")


def test_the_trigger_fires_where_a_row_is(db, workers):
    distribute(db, 0)
    with pytest.raises(errors.InternalError_, match="triggers are not supported on distributed tables"):
        encrypt_writes(db, "secrets")
    for command in TRIGGER.split(";"):
        db.execute(command)
    db.execute("RESET citus.enable_unsafe_triggers")
    db.execute("INSERT INTO secrets SELECT i, 'secret ' || i FROM generate_series(1, 500) AS i")
    with db.cursor().copy("COPY secrets FROM STDIN") as copy:
        for id in range(501, 1001):
            copy.write(f"{id}\twritten\n")
    with workers[0].connect() as worker:
        worker.execute("UPDATE secrets SET value = 'secret ' || id::text WHERE id > 500")
    assert census(db) == {"current": 1000}
    assert contents(db) == filled(1000)
    # With that node's own keys.
    workers[1].write("keys", "")
    try:
        with pytest.raises(errors.InvalidParameterValue):
            db.execute("UPDATE secrets SET value = 'plaintext'")
    finally:
        workers[1].write("keys", f"{NEW}\n{OLD}")
    assert contents(db) == filled(1000)


@pytest.mark.parametrize("copies", [2, "everywhere"])
def test_the_trigger_makes_copies_differ(db, copies):
    """As docs/operations.md says."""
    distribute(db, 0, copies=copies)
    db.execute("SET citus.enable_unsafe_triggers = on")
    encrypt_writes(db, "secrets")
    db.execute("INSERT INTO secrets VALUES (1, 'one')")
    tokens = db.execute("SELECT result FROM run_command_on_placements('secrets', 'SELECT max(value) FROM %s') WHERE result <> ''").fetchall()
    assert len(set(tokens)) == len(tokens) == (2 if copies == 2 else 3)


def test_in_a_transaction_the_census_sees_its_changes(db):
    distribute(db, 100)
    with db.transaction():
        db.execute("UPDATE secrets SET value = NULL WHERE id <= 10")
        assert census(db) == {"old key": 90, "null": 10}
        db.execute("ALTER TABLE secrets ADD COLUMN more text")  # locks every shard
        assert census(db) == {"old key": 90, "null": 10}
        with pytest.raises(errors.InvalidTransactionTermination), db.transaction():
            rotate(db)


# Citus evaluates the query once, and sends the result to every copy.
UPDATE = code_block("docs/operations.md", "In one statement", "sql")


@pytest.mark.parametrize("copies", [1, 2, "everywhere"])
def test_one_atomic_update(db, copies):
    distribute(db, 1000, copies=copies)
    db.execute("UPDATE secrets SET value = %s WHERE id = 2", [value(db, "SELECT value FROM secrets WHERE id = 1")])
    db.execute("UPDATE secrets SET value = NULL WHERE id = 3")
    with pytest.raises(errors.FeatureNotSupported, match="must not be VOLATILE"):
        db.execute("UPDATE secrets SET value = fernet_rotate(value)")
    with db.transaction(force_rollback=True):
        db.execute(UPDATE)
        assert census(db) == {"current": 999, "null": 1}
    assert census(db) == {"old key": 999, "null": 1}
    db.execute(UPDATE)
    assert census(db) == {"current": 999, "null": 1}
    found = plaintexts_of_all(db)
    assert found == filled(1000) | {2: "secret 1", 3: None}


def plaintexts_of_all(db):
    return dict(db.execute("SELECT id, fernet_decrypt(value) FROM secrets").fetchall())


@pytest.mark.parametrize("copies", [2, "everywhere"])
def test_copies_stay_the_same(db, copies):
    distribute(db, 100, copies=copies)
    with pytest.raises(errors.FeatureNotSupported, match="public.secrets has copies of its rows on several nodes"):
        rotate(db)
    assert census(db) == {"old key": 100}
    db.execute(UPDATE)
    found = db.execute("""
        SELECT count(*), count(DISTINCT result) FROM run_command_on_placements(
            'secrets', 'SELECT md5(string_agg(value, '''' ORDER BY id)) FROM %s')
        GROUP BY shardid""").fetchall()
    assert found == ([(2, 1)] * SHARDS if copies == 2 else [(3, 1)])


def test_a_local_table_that_citus_manages(db):
    fill(db, 100)
    db.execute("SELECT citus_add_local_table_to_metadata('secrets')")
    assert census(db) == {"old key": 100}
    assert rotate(db)["rotated"] == 100
    assert census(db) == {"current": 100}


def test_columns_are_found(db):
    distribute(db, 1000)
    assert db.execute("SELECT relation::text, column_name, tokens > 0 FROM fernet_find_columns()").fetchall() == \
        [("secrets", "value", True)]


def test_names_in_the_path_of_the_caller_or_of_a_worker_mean_nothing(db, workers):
    distribute(db, 1000)
    db.execute("CREATE SCHEMA traps")
    try:
        db.execute("SET citus.enable_ddl_propagation = off")
        db.execute("CREATE TABLE traps.pg_dist_partition (logicalrelid regclass, repmodel \"char\")")
        db.execute("CREATE TABLE traps.pg_dist_shard (logicalrelid regclass, shardid bigint)")
        db.execute("CREATE FUNCTION traps.run_command_on_placements(table_name regclass, command text, parallel bool DEFAULT true,"
                   " OUT nodename text, OUT nodeport int, OUT shardid bigint, OUT success bool, OUT result text)"
                   " RETURNS SETOF record LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END'")
        for worker in workers:
            with worker.connect() as session:
                session.execute("SET citus.enable_ddl_propagation = off")
                for (shard,) in session.execute("SELECT table_name || '_' || shardid FROM citus_shards"
                                                " WHERE table_name = 'secrets'::regclass").fetchall():
                    session.execute(f"CREATE TABLE traps.{shard} (id integer, value text)")
                session.execute("ALTER DATABASE postgres SET search_path = traps, public")
        db.execute("SET search_path = traps, pg_catalog, public")
        assert rotate(db, "public.secrets")["rotated"] == 1000
        assert census(db, "public.secrets") == {"current": 1000}
        db.execute("RESET search_path")
    finally:
        db.execute("SET citus.enable_ddl_propagation = off")
        db.execute("DROP SCHEMA traps CASCADE")
        for worker in workers:
            with worker.connect() as session:
                session.execute("SET citus.enable_ddl_propagation = off")
                session.execute("ALTER DATABASE postgres RESET search_path")
                session.execute("DROP SCHEMA traps CASCADE")
        db.execute("RESET citus.enable_ddl_propagation")
