"""fernet_find_columns: many tables, few locks, and which tables count on their own. Columns of citext."""

import os
import time

import pytest
from psycopg import errors

from cluster import Cluster
from edition import SUPERUSER, create_role, drop_role, foreign_data_wrapper, install, map_user
from postgres import notices, value
from tables import NEW, OLD, fill, in_background, wait_until, waits_for_lock

FIND = "SELECT relation::text, column_name, sampled, tokens FROM fernet_find_columns()"
LOCKS = "SELECT count(*) FROM pg_locks WHERE pid = %s"


def found(session, condition="true"):
    """What is found, as "relation.column": (sampled, tokens)."""
    rows = session.execute(f"{FIND} WHERE {condition}").fetchall()
    assert len({row[:2] for row in rows}) == len(rows), rows
    return {f"{relation}.{column}": (sampled, tokens) for relation, column, sampled, tokens in rows}


@pytest.fixture
def told(db):
    """Collects what warnings tell the session."""
    return notices(db, "WARNING")


@pytest.fixture
def db(sessions):
    """A session in a schema of its own."""
    db = sessions()
    db.execute("CREATE SCHEMA found")
    db.execute("SET search_path = found, public")
    yield db
    db.execute("RESET ROLE")
    db.execute("DROP SCHEMA found CASCADE")


@pytest.fixture
def role(db):
    """Becomes a role that has only the given rights on relations of the schema."""
    create_role("fernet_finder")
    db.execute("GRANT USAGE ON SCHEMA found TO fernet_finder")
    db.execute("GRANT EXECUTE ON FUNCTION fernet_find_columns TO fernet_finder")

    def become(*rights):
        for right in rights:
            db.execute(f"GRANT {right} TO fernet_finder")
        db.execute("SET ROLE fernet_finder")

    yield become
    db.execute("RESET ROLE")
    db.execute("DROP OWNED BY fernet_finder")
    drop_role("fernet_finder")


def test_ten_thousand_tables_take_few_locks():
    # Room for some 4,000 locks. Each table has an index and a TOAST table, too.
    with Cluster([NEW, OLD], "fsync = off", "max_connections = 40") as cluster, cluster.connect() as db, cluster.connect() as other:
        install(db)
        db.execute("""
            DO $$ BEGIN
                FOR i IN 1 .. 10000 LOOP
                    EXECUTE format('CREATE TABLE t%s (id integer, value text)', to_char(i, 'FM00000'));
                    IF i % 200 = 0 THEN COMMIT; END IF;
                END LOOP;
            END $$""")
        db.execute("CREATE TABLE parts (id integer PRIMARY KEY, value text) PARTITION BY RANGE (id)")
        db.execute("""
            DO $$ BEGIN
                FOR i IN 1 .. 200 LOOP
                    EXECUTE format('CREATE TABLE part_%s PARTITION OF parts FOR VALUES FROM (%s) TO (%s)', i, i, i + 1);
                END LOOP;
            END $$""")
        db.execute("INSERT INTO parts SELECT i, fernet_encrypt('x') FROM generate_series(1, 200) AS i")
        for table in "t00001", "t10000":
            db.execute(f"INSERT INTO {table} SELECT 1, fernet_encrypt('x')")
        expected = {"parts.value": (200, 200), "t00001.value": (1, 1), "t10000.value": (1, 1)}

        start = time.monotonic()
        assert found(db) == expected
        taken = time.monotonic() - start
        print(f"{taken:.1f} s")
        assert taken < 10

        def found_behind(table):
            """What is found; the locks held while the table cannot be read; and those held afterwards."""
            other.execute("BEGIN")
            other.execute(f"LOCK TABLE {table}")
            with cluster.connect() as caller, caller.transaction(), in_background(found, caller) as call:
                pid = caller.info.backend_pid
                wait_until(lambda: waits_for_lock(db, pid))
                during = value(db, LOCKS, pid)
                other.execute("COMMIT")
                assert call.result() == expected
                return during, value(db, LOCKS, pid)

        assert max(found_behind("t10000")) < 40
        assert max(found_behind("part_200")) < 40


def test_locks_and_settings_of_the_caller_stay(db):
    fill(db, 10)
    with db.transaction():
        db.execute("LOCK TABLE secrets IN SHARE MODE")
        db.execute("SET LOCAL work_mem = '5MB'")
        assert found(db) == {"secrets.value": (10, 10)}
        modes = "SELECT array_agg(mode) FROM pg_locks WHERE relation = 'secrets'::regclass AND pid = pg_backend_pid()"
        assert value(db, modes) == ["ShareLock"]
        assert value(db, "SHOW work_mem") == "5MB"
        # It wrote nothing, and so needs no transaction number.
        assert value(db, "SELECT pg_current_xact_id_if_assigned() IS NULL")
    # Rows that the caller has not committed, while a cursor is open.
    with db.transaction():
        db.execute("DECLARE rows CURSOR FOR TABLE secrets")
        db.execute("FETCH 1 FROM rows")
        db.execute("INSERT INTO secrets SELECT 11, fernet_encrypt('x')")
        assert found(db) == {"secrets.value": (11, 11)}
        assert len(db.execute("FETCH ALL FROM rows").fetchall()) == 9


def test_in_the_leader_of_a_parallel_query(db):
    fill(db, 10_000)
    db.execute("SET parallel_setup_cost = 0")
    db.execute("SET parallel_tuple_cost = 0")
    db.execute("SET min_parallel_table_scan_size = 0")
    query = "SELECT count(*), (SELECT sum(tokens) FROM fernet_find_columns()) FROM secrets"
    assert db.execute(query).fetchone() == (10_000, 1000)


def test_what_cannot_be_read_is_named_and_the_rest_found(db, told, sessions):
    fill(db, 10)
    db.execute("CREATE TABLE locked AS TABLE secrets")
    other = sessions()
    with other.transaction():
        other.execute("LOCK TABLE found.locked")
        db.execute("SET lock_timeout = '10ms'")
        assert found(db) == {"secrets.value": (10, 10)}
        assert told == ["could not read found.locked: canceling statement due to lock timeout"]
        # In a transaction, too, which goes on.
        with db.transaction():
            assert found(db) == {"secrets.value": (10, 10)}
            assert value(db, "SELECT count(*) FROM secrets") == 10
        db.execute("RESET lock_timeout")
        # What ends the statement is not about the table.
        db.execute("SET statement_timeout = '100ms'")
        with pytest.raises(errors.QueryCanceled, match="statement timeout"):
            found(db)
        db.execute("RESET statement_timeout")
        with in_background(found, db) as call:
            wait_until(lambda: waits_for_lock(other, db.info.backend_pid))
            other.execute("SELECT pg_cancel_backend(%s)", [db.info.backend_pid])
            with pytest.raises(errors.QueryCanceled, match="user request"):
                call.result()
    assert found(db) == {"locked.value": (10, 10), "secrets.value": (10, 10)}


def test_children_stand_for_themselves(db, told, role):
    fill(db, 10, table="parent")
    db.execute("CREATE TABLE child (more text) INHERITS (parent)")
    db.execute("CREATE TABLE grandchild () INHERITS (child)")
    db.execute("INSERT INTO child SELECT 1, fernet_encrypt('x'), fernet_encrypt('y') FROM generate_series(1, 3)")
    db.execute("INSERT INTO grandchild SELECT 1, fernet_encrypt('x'), 'more'")
    assert found(db) == {"child.value": (3, 3), "child.more": (3, 3), "grandchild.value": (1, 1), "parent.value": (10, 10)}
    assert told == []
    role("SELECT ON parent, grandchild")
    assert found(db) == {"grandchild.value": (1, 1), "parent.value": (10, 10)}
    assert told == ["left out found.child: it can be read only through its parent"]


def partition(db, partitions, rows):
    """Makes a table with partitions by list, and rows of tokens in each."""
    db.execute("CREATE TABLE parts (id integer, value text, other text) PARTITION BY LIST (id)")
    for i in range(1, partitions + 1):
        db.execute(f"CREATE TABLE part_{i} (value text, id integer, other text)")  # in another order
        db.execute(f"ALTER TABLE parts ATTACH PARTITION part_{i} FOR VALUES IN ({i})")
    db.execute(f"INSERT INTO parts SELECT i, fernet_encrypt('x'), 'y' FROM generate_series(1, {partitions}) AS i, generate_series(1, {rows})")
    db.execute("ANALYZE parts")


def test_a_partitioned_table_stands_for_its_partitions(db, told):
    partition(db, 3, 10)
    db.execute("CREATE TABLE below PARTITION OF parts FOR VALUES IN (4) PARTITION BY LIST (value)")
    db.execute("CREATE TABLE deep PARTITION OF below DEFAULT")
    db.execute("INSERT INTO parts SELECT 4, fernet_encrypt('x'), fernet_encrypt('y')")
    assert found(db) == {"parts.value": (31, 31), "parts.other": (31, 1)}
    # No more than requested, over all of them.
    assert db.execute("SELECT column_name, sampled, tokens FROM fernet_find_columns(15)").fetchall() == \
        [("value", 15, 15), ("other", 15, 1)]
    assert told == []


@pytest.mark.parametrize("seen_through", ["parts", "each partition"])
def test_many_small_partitions_are_sampled(db, told, role, seen_through):
    # 16 of 200 blocks are sampled, each of them the only one of its partition.
    partition(db, 200, 60)
    rights = ["SELECT ON ALL TABLES IN SCHEMA found"] if seen_through != "parts" else []
    role("SELECT ON parts", *rights)
    [(sampled, tokens)] = found(db).values()
    assert sampled == tokens and 100 <= sampled <= 1000
    assert told == []


def test_rights_to_partitions(db, told, role):
    partition(db, 3, 10)
    db.execute("UPDATE parts SET other = fernet_encrypt('y')")
    role("SELECT (value) ON parts")
    assert found(db) == {"parts.value": (30, 30)}
    db.execute("RESET ROLE")
    db.execute("REVOKE SELECT (value) ON parts FROM fernet_finder")
    role("SELECT ON part_1", "SELECT (other) ON part_2")
    assert found(db) == {"part_1.value": (10, 10), "part_1.other": (10, 10), "part_2.other": (10, 10)}
    db.execute("RESET ROLE")
    # It may read some partitions by themselves, and the others only through the table.
    role("SELECT ON parts")
    assert found(db) == {"parts.value": (30, 30), "parts.other": (30, 30)}
    assert told == []


@pytest.mark.parametrize("rights, locked", [
    ("SELECT ON ALL TABLES IN SCHEMA found", ["part_3"]),
    ("SELECT ON parts", ["part_1", "part_2", "part_3", "parts"]),
], ids=["each partition", "only their table"])
def test_locks_on_partitions(db, sessions, role, rights, locked):
    partition(db, 3, 10)
    role(rights)
    other = sessions()
    locks = ("SELECT coalesce(array_agg(relation::regclass::text ORDER BY relation::regclass::text), '{}') FROM pg_locks"
             " JOIN pg_class AS c ON c.oid = relation WHERE relnamespace = 'found'::regnamespace AND pid = %s")
    other.execute("SET search_path = found, public; BEGIN; LOCK TABLE part_3")
    with db.transaction(), in_background(found, db) as call:
        wait_until(lambda: waits_for_lock(other, db.info.backend_pid))
        during = value(other, locks, db.info.backend_pid)
        other.execute("COMMIT")
        assert call.result() == {"parts.value": (30, 30)}
        assert (during, value(other, locks, db.info.backend_pid)) == (locked, [])


def test_where_it_does_not_look(db, sessions, told):
    """For docs/operations.md to say: what is left out here is left out without a word."""
    fill(db, 1)
    sessions().execute("CREATE TEMP TABLE of_others AS SELECT value FROM found.secrets")
    db.execute("SELECT lo_from_bytea(0, value::bytea) FROM secrets")
    db.execute("CREATE VIEW seen AS SELECT value FROM secrets; CREATE MATERIALIZED VIEW without_data AS TABLE secrets WITH NO DATA")
    assert found(db) == {"secrets.value": (1, 1)}
    assert told == []
    db.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


def test_the_largest_number_looks_at_every_row(db):
    """One token in a table, and one in the partitions of another, after 20,000 plaintexts."""
    db.execute("CREATE TABLE alone (id integer, value text)")
    db.execute("CREATE TABLE parts (id integer, value text) PARTITION BY LIST (id)")
    for i in range(3):
        db.execute(f"CREATE TABLE part_{i} PARTITION OF parts FOR VALUES IN ({i})")
    for table in "alone", "parts":
        db.execute(f"INSERT INTO {table} SELECT i % 3, repeat('plain', 100) FROM generate_series(1, 20000) AS i")
        db.execute(f"INSERT INTO {table} SELECT 2, fernet_encrypt('x')")
    every = FIND.replace("()", "(2147483647)")
    assert sorted(db.execute(every).fetchall()) == [("alone", "value", 20_001, 1), ("parts", "value", 20_001, 1)]


@pytest.fixture
def servers(db, sessions):
    """Foreign servers: one that can be reached, with a table of tokens, and one that cannot."""
    foreign_data_wrapper(db.info.dbname)
    db.execute("CREATE TABLE public.far (id integer, value text, other text)")
    db.execute("INSERT INTO public.far SELECT 9, fernet_encrypt('far')")
    host = os.environ["PGHOST"]
    for name, port in ("near", db.info.port), ("nowhere", 1):
        db.execute(f"CREATE SERVER {name} FOREIGN DATA WRAPPER postgres_fdw"
                   f" OPTIONS (host '{host}', port '{port}', dbname '{db.info.dbname}')")
        map_user(name, db.info.dbname)
    yield "near", "nowhere"
    db.execute("DROP SERVER near CASCADE; DROP SERVER nowhere CASCADE")
    db.execute("DROP TABLE public.far")


@pytest.mark.parametrize("server", [0, 1], ids=["reachable", "unreachable"])
def test_foreign_members_are_left_out(db, told, servers, server):
    options = f"SERVER {servers[server]} OPTIONS (schema_name 'public', table_name 'far')"
    db.execute(f"CREATE FOREIGN TABLE alone (id integer, value text) {options}")
    fill(db, 10, table="parent")
    db.execute(f"CREATE FOREIGN TABLE child () INHERITS (parent) {options}")
    partition(db, 2, 10)
    db.execute(f"CREATE FOREIGN TABLE part_9 PARTITION OF parts FOR VALUES IN (9) {options}")
    here = {"parent.value": (10, 10), "part_1.value": (10, 10), "part_2.value": (10, 10)}
    assert found(db, "relation <> 'public.far'::regclass") == here
    assert told == ["left out found.child: it is a foreign table", "left out found.part_9: it is a foreign table"]


def test_unlogged_members_on_a_standby():
    with Cluster([NEW, OLD], "fsync = off") as primary, primary.connect() as db:
        install(db)
        partition(db, 2, 10)
        db.execute("CREATE UNLOGGED TABLE part_3 PARTITION OF parts FOR VALUES IN (3)")
        fill(db, 10, table="parent")
        db.execute("CREATE UNLOGGED TABLE child () INHERITS (parent)")
        db.execute("CREATE UNLOGGED TABLE cache AS TABLE parent")
        assert found(db) == {"cache.value": (10, 10), "parent.value": (10, 10), "parts.value": (20, 20)}
        with Cluster([NEW, OLD], "fsync = off", base=primary) as standby, standby.connect() as replica:
            told = []
            replica.add_notice_handler(lambda n: told.append((n.severity, n.message_primary)))
            assert found(replica) == {"parent.value": (10, 10), "part_1.value": (10, 10), "part_2.value": (10, 10)}
            assert told == [("WARNING", f"left out public.{table}: unlogged tables cannot be read on a standby")
                            for table in ("cache", "child", "part_3")]


def test_a_damaged_table_is_named():
    with Cluster([NEW, OLD], "fsync = off") as cluster, cluster.connect() as db:
        install(db)
        fill(db, 10)
        db.execute("CREATE TABLE damaged AS TABLE secrets")
        with cluster.connect(user=SUPERUSER) as admin:
            admin.execute("CHECKPOINT")
        os.remove(os.path.join(cluster.data, value(db, "SELECT pg_relation_filepath('damaged')")))
        with cluster.connect() as caller:
            told = notices(caller)
            assert found(caller) == {"secrets.value": (10, 10)}
            [message] = told
            assert message.startswith("could not read public.damaged: could not open file")


@pytest.fixture
def citext(db):
    """The extension, in a schema that is in nobody's path."""
    db.execute("CREATE SCHEMA aside")
    try:
        db.execute("CREATE EXTENSION citext SCHEMA aside")
    except errors.FeatureNotSupported:
        db.execute("DROP SCHEMA aside")
        pytest.skip("citext is not installed here")
    yield
    db.execute("DROP SCHEMA aside CASCADE")


def test_citext(db, citext):
    db.execute("CREATE DOMAIN token AS aside.citext CHECK (VALUE::text <> '')")
    db.execute("CREATE TABLE secrets (id integer, value aside.citext, other token)")
    db.execute(f"SELECT set_config('fernet.keys', '{OLD}', false)")
    db.execute("INSERT INTO secrets SELECT i, t, t FROM generate_series(1, 10) AS i, fernet_encrypt(i::text) AS t")
    db.execute(f"SELECT set_config('fernet.keys', '{NEW},{OLD}', false)")
    assert found(db) == {"secrets.value": (10, 10), "secrets.other": (10, 10)}
    # No operator or cast made by another role is found through the path.
    db.execute("CREATE FUNCTION equal(aside.citext, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$")
    db.execute("CREATE OPERATOR = (LEFTARG = aside.citext, RIGHTARG = text, FUNCTION = equal)")
    db.execute("SET search_path = found, pg_catalog, public")
    for column in "value", "other":
        assert status(db, column) == {"old key": 10}
        assert db.execute(f"CALL fernet_rotate_column('secrets', '{column}')").fetchone() == (10, 0, 0, 0, 0)
        assert status(db, column) == {"current": 10}
    assert value(db, "SELECT bool_and(fernet_decrypt(value::text) = id::text AND pg_typeof(other) = 'token'::regtype) FROM secrets")


def status(db, column):
    return dict(db.execute("SELECT status, tokens FROM fernet_census('secrets', %s) WHERE tokens > 0", [column]).fetchall())


ENUM = "CREATE TYPE citext AS ENUM ('x')"
STORED_AS_TEXT = """
    CREATE TYPE citext;
    CREATE FUNCTION citextin(cstring) RETURNS citext LANGUAGE internal IMMUTABLE STRICT AS 'textin';
    CREATE FUNCTION citextout(citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
    CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, LIKE = text);
    CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT"""


@pytest.mark.parametrize("definition", [ENUM, STORED_AS_TEXT], ids=["enum", "stored as text"])
def test_a_type_that_is_only_called_citext(db, citext, definition):
    db.execute(definition)
    db.execute("CREATE TABLE secrets (value citext)")
    db.execute("INSERT INTO secrets VALUES ('x')")
    assert_cannot_hold_tokens(db)
    if definition == ENUM:
        # The owner of the extension may add types to it.
        db.execute("ALTER EXTENSION citext ADD TYPE found.citext")
        try:
            assert_cannot_hold_tokens(db)
        finally:
            db.execute("ALTER EXTENSION citext DROP TYPE found.citext")


def assert_cannot_hold_tokens(db):
    assert found(db) == {}
    for statement in "SELECT * FROM fernet_census('secrets', 'value')", "CALL fernet_rotate_column('secrets', 'value')":
        with pytest.raises(errors.DatatypeMismatch, match=r"is of type (found\.)?citext, which cannot hold tokens") as caught:
            db.execute(statement)
        assert "citext" in caught.value.diag.message_hint
