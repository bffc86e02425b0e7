"""fernet_encrypt_trigger together with everything else that writes to a table: rotation, replication, dumps, foreign
tables, other encodings."""

import subprocess
import threading
from contextlib import contextmanager

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg import errors

from cluster import Cluster
from edition import FEWER, SUPERUSER, create_role, drop_role, foreign_data_wrapper, install, map_user, superuser
from postgres import column, connect, create_database, drop_database, notices, private_memory, server_log, set_keys, value
from tables import LOST, NEW, OLD, census, fill, filled, in_background, plaintexts, rotate, wait_until

TRIGGER = "CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('value')"
ROWS = 20_000


def create(db, type="text", table="secrets"):
    db.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, value {type})")
    db.execute(TRIGGER.format(table))


def write_in_plaintext(db, stop, written, number):
    """Inserts rows of its own and updates others', until it is told to stop."""
    row = 0
    while not stop.is_set():
        row += 1
        new, changed = ROWS + 2 * row + number, 2 * row + number
        for id in new, changed:
            db.execute("INSERT INTO secrets VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET value = excluded.value", [id, f"written {id}"])
            written[id] = f"written {id}"


def test_writers_beside_a_rotation(db, sessions):
    """Two sessions write plaintext, and the rotation's own updates pass the trigger, too: nothing is encrypted twice,
    and nothing is lost."""
    fill(db, ROWS)
    db.execute(TRIGGER.format("secrets"))
    warnings = notices(db, "WARNING")
    stop, written = threading.Event(), {}
    with in_background(write_in_plaintext, sessions(), stop, written, 0), in_background(write_in_plaintext, sessions(), stop, written, 1):
        try:
            wait_until(lambda: len(written) > 10)
            result = rotate(db, batch_size=1000)
        finally:
            stop.set()
    assert warnings == []
    assert result["rotated"] > ROWS / 2 and result["not_a_token"] == result["unknown_key"] == 0
    assert census(db).keys() == {"current"}
    expected = filled(ROWS) | written
    assert plaintexts(db) == {id: (plaintext, NEW) for id, plaintext in expected.items()}


def test_keys_of_a_file_change_between_statements():
    with Cluster([OLD], "fsync = off") as server, server.connect() as session:
        install(session)
        create(session)
        session.execute("INSERT INTO secrets VALUES (1, 'one')")
        server.write("keys", f"{NEW}\n{OLD}")
        session.execute("INSERT INTO secrets VALUES (2, 'two')")
        session.execute("UPDATE secrets SET id = id + 10")
        assert plaintexts(session) == {11: ("one", OLD), 12: ("two", NEW)}
        server.write("keys", "no key")
        with pytest.raises(errors.InvalidParameterValue):
            session.execute("INSERT INTO secrets VALUES (3, 'three')")


def test_large_values(db):
    """Stored out of line, and compressed if possible."""
    create(db)
    db.execute("ALTER TABLE secrets ADD other text")
    for id, plaintext in enumerate(("x" * 1_000_000, "é" * 500_000), 1):
        db.execute("INSERT INTO secrets VALUES (%s, %s)", [id, plaintext])
    before = column(db, "SELECT value FROM secrets ORDER BY id")
    db.execute("UPDATE secrets SET other = 'x'")
    assert column(db, "SELECT value FROM secrets ORDER BY id") == before
    assert [Fernet(NEW).decrypt(token).decode() for token in before] == ["x" * 1_000_000, "é" * 500_000]
    # Tokens of a lost key may stay, whether they are written again or not.
    set_keys(db, LOST)
    db.execute("UPDATE secrets SET other = 'y'")
    db.execute("UPDATE secrets SET value = value || ''")
    with pytest.raises(errors.ExternalRoutineInvocationException):
        db.execute("UPDATE secrets SET value = (SELECT value FROM secrets WHERE id = 1) WHERE id = 2")
    assert column(db, "SELECT value FROM secrets ORDER BY id") == before


def test_a_long_statement_needs_no_more_memory_than_a_short_one(db):
    create(db, "varchar(1000)")

    def insert(rows):
        db.execute(f"INSERT INTO secrets SELECT i, 'secret ' || i FROM generate_series(1, {rows}) AS i")
        size = private_memory(db)
        db.execute("TRUNCATE secrets")
        return size

    insert(1000)
    before = insert(1000)
    assert insert(100_000 // FEWER) - before < 1024
    for _ in range(2):
        db.execute("DO $$ BEGIN FOR i IN 1..%s LOOP INSERT INTO secrets VALUES (i, 'x'); END LOOP; END $$; TRUNCATE secrets" % (20_000 // FEWER))
    assert private_memory(db) - before < 1024


def test_citext(db):
    try:
        db.execute("CREATE EXTENSION citext")
    except psycopg.Error:
        pytest.skip("citext is not installed here")
    create(db, "citext")
    db.execute("INSERT INTO secrets VALUES (1, 'Secret')")
    assert plaintexts(db) == {1: ("Secret", NEW)}
    db.execute("DROP EXTENSION citext CASCADE")


@pytest.mark.parametrize(("encoding", "plaintext"), [("LATIN1", "größe"), ("EUC_JP", "日本語"), ("SQL_ASCII", "größe")])
def test_encodings(encoding, plaintext):
    create_database("fernet_trigger", encoding)
    try:
        with connect("fernet_trigger") as db:
            install(db)
            set_keys(db, NEW)
            if encoding != "SQL_ASCII":
                db.execute("SET client_encoding = 'UTF8'")
            create(db)
            create(db, "char(150)", "padded")
            for table in "secrets", "padded":
                db.execute(f"INSERT INTO {table} VALUES (1, %s)", [plaintext])
                token = value(db, f"SELECT value::bytea FROM {table}")
                assert Fernet(NEW).decrypt(token.strip()).decode() == plaintext
            if encoding == "SQL_ASCII":
                with pytest.raises(errors.CharacterNotInRepertoire, match='UTF-8: column "value" of public.secrets'):
                    db.execute(r"INSERT INTO secrets VALUES (2, E'gr\xf6\xdfe')")
    finally:
        drop_database("fernet_trigger")


REFUSALS = {
    "no keys": ("text", (), "55000"),
    "a token that no key opens": ("text", (NEW,), "39000"),
    "too long": ("varchar(99)", (NEW,), "22001"),
    "a domain": ("of_secrets", (NEW,), "23514"),
}


@pytest.mark.parametrize(("type", "keys", "code"), REFUSALS.values(), ids=REFUSALS)
def test_no_error_has_a_plaintext_in_it(db, sessions, type, keys, code):
    """COPY adds the line that it has read to errors, but not to these, neither for the client nor in the log."""
    db.execute("DROP DOMAIN IF EXISTS of_secrets CASCADE; CREATE DOMAIN of_secrets AS text CHECK (length(value) < 100)")
    create(db, type)
    db.execute("RESET fernet.keys")
    if keys:
        set_keys(db, *keys)
    secret = "tell nobody" if code != "39000" else "tell nobody " + Fernet(LOST).encrypt(b"x").decode()
    with server_log() as log, pytest.raises(psycopg.Error) as error:
        with db.cursor().copy("COPY secrets FROM STDIN") as copy:
            copy.write(f"1\t{secret}\n")
    assert error.value.sqlstate == code
    told = "".join(str(getattr(error.value.diag, name)) for name in dir(error.value.diag) if not name.startswith("_"))
    assert "tell nobody" not in told
    assert any("ERROR" in line for line in log)
    assert "tell nobody" not in "".join(log)
    db.execute("DROP DOMAIN of_secrets CASCADE")


def test_nor_where_another_trigger_writes_the_row(db):
    create(db)
    db.execute("CREATE TEMP TABLE incoming (value text)")
    db.execute("CREATE FUNCTION pg_temp.pass_on() RETURNS trigger LANGUAGE plpgsql AS"
               " $$ BEGIN INSERT INTO secrets VALUES (length(NEW.value), NEW.value); RETURN NEW; END $$")
    db.execute("CREATE TRIGGER pass_on BEFORE INSERT ON incoming FOR EACH ROW EXECUTE FUNCTION pg_temp.pass_on()")
    db.execute("RESET fernet.keys")
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as error, db.cursor().copy("COPY incoming FROM STDIN") as copy:
        copy.write("tell nobody\n")
    assert "PL/pgSQL function" in error.value.diag.context and "tell nobody" not in error.value.diag.context
    set_keys(db, NEW)
    with pytest.raises(errors.UniqueViolation) as error, db.cursor().copy("COPY incoming FROM STDIN") as copy:
        copy.write("one\ntwo\n")
    assert "COPY incoming, line 2" in error.value.diag.context


def test_other_errors_of_copy_still_name_their_line(db):
    create(db)
    with pytest.raises(errors.InvalidTextRepresentation) as error, db.cursor().copy("COPY secrets FROM STDIN") as copy:
        copy.write("1\tone\n2\ttwo\nthree\tthree\n")
    assert "COPY secrets, line 3, column id" in error.value.diag.context
    # Nor do later errors lose it after one of ours was caught.
    db.execute("RESET fernet.keys")
    with pytest.raises(errors.DivisionByZero) as error:
        db.execute(r"""
            DO $$ BEGIN
                BEGIN
                    COPY secrets FROM PROGRAM 'printf "1\tone\n"';
                EXCEPTION WHEN object_not_in_prerequisite_state THEN
                    NULL;
                END;
                PERFORM 1 / 0;
            END $$""")
    assert "PL/pgSQL function inline_code_block line 7 at PERFORM" in error.value.diag.context


REFUSED = {
    "a token that no key opens": (Fernet(LOST).encrypt(b"x").decode(), errors.ExternalRoutineInvocationException),
    "a token in other text": ("password: " + Fernet(NEW).encrypt(b"x").decode(), errors.InvalidTextRepresentation),
}


@pytest.mark.parametrize("stored, error", REFUSED.values(), ids=REFUSED)
def test_a_row_with_a_refused_value_stays_in_its_partition(db, stored, error):
    """Elsewhere, it would be a new row. In its place, its other columns can change."""
    db.execute("CREATE TABLE secrets (id integer, value text, region text) PARTITION BY LIST (region)")
    for region in "ab":
        db.execute(f"CREATE TABLE secrets_{region} PARTITION OF secrets FOR VALUES IN ('{region}')")
    db.execute("INSERT INTO secrets VALUES (1, %s, 'a')", [stored])
    db.execute(TRIGGER.format("secrets"))
    with pytest.raises(error):
        db.execute("UPDATE secrets SET region = 'b'")
    db.execute("UPDATE secrets SET id = 2")
    assert db.execute("TABLE secrets_a").fetchall() == [(2, stored, "a")]


def test_dump_and_restore(db, database):
    """Data are restored unchanged: pg_restore creates triggers after it has loaded them."""
    create(db)
    db.execute("INSERT INTO secrets SELECT i, 'secret ' || i FROM generate_series(1, 100) AS i")
    create_database("fernet_restored")
    try:
        dump = subprocess.run(["pg_dump", "-d", database, "-t", "secrets"], check=True, capture_output=True, text=True).stdout
        with connect("fernet_restored") as restored:
            install(restored)
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "fernet_restored"], input=dump, check=True, text=True, capture_output=True)
        with connect("fernet_restored", keys=[NEW]) as restored:
            assert restored.execute("TABLE secrets").fetchall() == db.execute("TABLE secrets").fetchall()
            restored.execute("INSERT INTO secrets VALUES (101, 'secret 101')")
            assert plaintexts(restored) == {id: (f"secret {id}", NEW) for id in range(1, 102)}
    finally:
        drop_database("fernet_restored")


@pytest.mark.parametrize("options, keys, succeeds", [([], [NEW], True), ([], [], False), (["--disable-triggers"], [], True)],
                         ids=["with the keys", "without", "without, and without triggers"])
def test_data_alone_come_back_through_the_trigger(db, database, monkeypatch, options, keys, succeeds):
    create(db)
    db.execute("INSERT INTO secrets SELECT i, 'secret ' || i FROM generate_series(1, 10) AS i")
    before = db.execute("TABLE secrets").fetchall()
    dump = subprocess.run(["pg_dump", "-d", database, "-U", SUPERUSER, "-t", "secrets", "--data-only", *options],
                          check=True, capture_output=True, text=True).stdout
    db.execute("TRUNCATE secrets")
    monkeypatch.setenv("PGOPTIONS", f"-c fernet.keys={','.join(keys)}" if keys else "")
    restored = subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-U", SUPERUSER], input=dump, text=True, capture_output=True)
    assert ("no Fernet keys are configured" in restored.stderr, restored.returncode == 0) == (not succeeds, succeeds)
    assert db.execute("TABLE secrets").fetchall() == (before if succeeds else [])


def test_a_trigger_keeps_the_extension(db):
    create(db)
    with pytest.raises(errors.DependentObjectsStillExist):
        db.execute("DROP EXTENSION pg_fernet")
    db.execute("CREATE SCHEMA elsewhere; ALTER EXTENSION pg_fernet SET SCHEMA elsewhere")
    try:
        # A role that writes need not see it, either.
        create_role("fernet_writer")
        db.execute("GRANT INSERT ON secrets TO fernet_writer; SET ROLE fernet_writer")
        db.execute("INSERT INTO secrets VALUES (1, 'one')")
        db.execute("RESET ROLE")
        assert plaintexts(db) == {1: ("one", NEW)}
    finally:
        db.execute("RESET ROLE; DROP OWNED BY fernet_writer")
        drop_role("fernet_writer")
        db.execute("ALTER EXTENSION pg_fernet SET SCHEMA public; DROP SCHEMA elsewhere")


def test_old_copies(db, database):
    """What docs/columns.md says about earlier plaintexts: where they stay, and until when."""
    db.execute("CREATE TABLE secrets (id integer PRIMARY KEY, value text)")
    db.execute("INSERT INTO secrets SELECT i, 'plaintext ' || i % 10 FROM generate_series(1, 1000) AS i")
    db.execute("ANALYZE secrets")
    db.execute(TRIGGER.format("secrets"))
    db.execute("UPDATE secrets SET id = id")
    assert census(db) == {"current": 1000}

    def places():
        with superuser(database) as session:
            return places_seen_by(session)

    def places_seen_by(session):
        session.execute("CHECKPOINT")
        return {
            "statistics": value(session, "SELECT count(*) FROM pg_stats WHERE tablename = 'secrets' AND most_common_vals::text LIKE '%plaintext%'"),
            "file": value(session, "SELECT position('plaintext 7'::bytea IN pg_read_binary_file(pg_relation_filepath('secrets')))"),
        }

    assert all(places().values())
    db.execute("VACUUM FULL secrets")
    db.execute("ANALYZE secrets")
    assert not any(places().values())


@pytest.fixture(scope="module")
def publisher():
    with Cluster([NEW], "wal_level = logical", "fsync = off") as server:
        create_database("subscriber", host=server.dir)
        for database in "postgres", "subscriber":
            with server.connect(database) as db:
                install(db)
        yield server


@contextmanager
def subscribed(publisher, table):
    """Replicates a table that both databases have. Returns the superuser's session on the subscriber."""
    with publisher.connect(user=SUPERUSER) as admin, publisher.connect("subscriber", user=SUPERUSER) as subscriber:
        admin.execute(f"CREATE PUBLICATION {table} FOR TABLE {table}")
        admin.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [table])
        subscriber.execute(f"CREATE SUBSCRIPTION {table} CONNECTION 'host={publisher.dir} user=postgres dbname=postgres'"
                           f" PUBLICATION {table} WITH (create_slot = false)")
        try:
            yield subscriber
        finally:
            subscriber.execute(f"DROP SUBSCRIPTION {table}")


def test_logical_replication(publisher):
    """A subscriber applies changes as with session_replication_role = replica: triggers fire there only if they are
    enabled always."""
    with publisher.connect() as db, publisher.connect("subscriber") as replica:
        db.execute("CREATE TABLE secrets (id integer PRIMARY KEY, value text)")
        db.execute("INSERT INTO secrets VALUES (1, 'copied at first')")
        create(replica)
        replica.execute("ALTER TABLE secrets ENABLE ALWAYS TRIGGER encrypt")

        def there(id):
            return value(replica, "SELECT max(value) FROM secrets WHERE id = %s", id)

        with subscribed(publisher, "secrets"):
            wait_until(lambda: there(1))
            db.execute("INSERT INTO secrets VALUES (2, 'inserted'), (3, 'to be changed')")
            db.execute("UPDATE secrets SET value = 'changed' WHERE id = 3")
            wait_until(lambda: there(3) and plaintexts(replica)[3][0] == "changed")
            assert plaintexts(replica) == {1: ("copied at first", NEW), 2: ("inserted", NEW), 3: ("changed", NEW)}
            assert plaintext_rows(db) == 3

            replica.execute("ALTER TABLE secrets ENABLE TRIGGER encrypt")
            db.execute("INSERT INTO secrets VALUES (4, 'not encrypted')")
            wait_until(lambda: there(4))
            assert there(4) == "not encrypted"


def test_what_a_subscriber_cannot_apply(publisher):
    """It looks for a row by the plaintext, where there is no key; and it stores no token that it cannot open."""
    with publisher.connect() as db, publisher.connect("subscriber") as replica:
        db.execute("CREATE TABLE unkeyed (id integer, value text); ALTER TABLE unkeyed REPLICA IDENTITY FULL")
        replica.execute("CREATE TABLE unkeyed (id integer, value text)")
        replica.execute(TRIGGER.format("unkeyed") + "; ALTER TABLE unkeyed ENABLE ALWAYS TRIGGER encrypt")

        def applied():
            return plaintexts(replica, table="unkeyed")

        with subscribed(publisher, "unkeyed") as subscriber:
            db.execute("INSERT INTO unkeyed VALUES (1, 'first')")
            wait_until(lambda: applied() == {1: ("first", NEW)})
            db.execute("UPDATE unkeyed SET value = 'changed'")
            db.execute("INSERT INTO unkeyed VALUES (2, 'second')")
            wait_until(lambda: 2 in applied())
            assert applied()[1] == ("first", NEW)

            db.execute("INSERT INTO unkeyed VALUES (3, %s)", [Fernet(LOST).encrypt(b"x").decode()])
            db.execute("INSERT INTO unkeyed VALUES (4, 'fourth')")
            wait_until(lambda: value(subscriber, "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = 'unkeyed'"))
            assert applied().keys() == {1, 2}


def plaintext_rows(db):
    return value(db, "SELECT count(*) FROM secrets WHERE NOT fernet_is_token(value)")


def test_foreign_table(publisher):
    """Values for another server are encrypted before they leave this one."""
    with publisher.connect() as db:
        foreign_data_wrapper(host=publisher.dir)
        create_database("remote", host=publisher.dir)
        with publisher.connect("remote") as remote:
            remote.execute("CREATE TABLE secrets (id integer, value text)")
            db.execute(f"CREATE SERVER remote FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{publisher.dir}', dbname 'remote')")
            map_user("remote", host=publisher.dir)
            db.execute("CREATE FOREIGN TABLE there (id integer, value text) SERVER remote OPTIONS (table_name 'secrets')")
            db.execute(TRIGGER.format("there"))
            db.execute("INSERT INTO there VALUES (1, 'one'), (2, NULL)")
            db.execute("UPDATE there SET value = 'two' WHERE id = 2")
            assert plaintexts(remote, [NEW]) == {1: ("one", NEW), 2: ("two", NEW)}
        db.execute("DROP SERVER remote CASCADE")
        drop_database("remote", host=publisher.dir)
