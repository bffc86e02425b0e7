"""What docs/operations.md says about connection poolers, tested with PgBouncer."""

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import psycopg
import pytest

from key_files import folder_for, server_user, write
from postgres import connect, notices, value
from settings import fingerprints
from tables import in_background, wait_until

PGBOUNCER = shutil.which("pgbouncer")

pytestmark = pytest.mark.skipif(not PGBOUNCER, reason="PgBouncer is not installed")


class Pooler:
    """PgBouncer in front of the server, by default with one server connection for all clients."""

    def __init__(self, database, folder, *settings):
        self.database, self.folder = database, folder
        users = write(folder / "users", '"postgres" ""', '"app" ""')
        file = write(folder / "pgbouncer.ini", "[databases]", f"* = host={os.environ['PGHOST']}", "[pgbouncer]",
                     "listen_addr =", f"unix_socket_dir = {folder}", "auth_type = trust",
                     f"auth_file = {users}",
                     "admin_users = postgres", "default_pool_size = 1", *settings)
        self.log = (folder / "log").open("w+")
        user, group = server_user()
        self.process = subprocess.Popen([PGBOUNCER, file], cwd="/", stdout=self.log, stderr=self.log, user=user, group=group)

    def connect(self, user="app", database=None, **options):
        return connect(database or self.database, host=str(self.folder), port=6432, user=user, **options)

    def wait(self):
        """Waits until it answers."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.connect().close()
            except psycopg.OperationalError as error:
                self.log.seek(0)
                assert self.process.poll() is None and time.monotonic() < deadline, f"{error}\n{self.log.read()}"
            time.sleep(0.02)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


@contextmanager
def pooler(database, *settings):
    pooler = Pooler(database, folder_for(os.environ["PGHOST"]), *settings)
    try:
        pooler.wait()
        yield pooler
    finally:
        pooler.end()


@pytest.fixture(scope="module")
def app(database):
    """A role of applications, which may set keys and do everything with them."""
    with connect(database) as admin:
        admin.execute("CREATE ROLE app LOGIN")
        admin.execute("GRANT SET ON PARAMETER fernet.keys TO app")
        admin.execute("GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO app")
        admin.execute("GRANT CREATE ON SCHEMA public TO app")
        yield "app"
        admin.execute("DROP OWNED BY app")
        admin.execute("DROP ROLE app")


@pytest.fixture
def by_transaction(database, app):
    with pooler(database, "pool_mode = transaction") as by_transaction:
        yield by_transaction


@pytest.fixture
def by_session(database, app):
    with pooler(database, "pool_mode = session") as by_session:
        yield by_session


@pytest.fixture(params=["transaction", "session"])
def either(request, database, app):
    with pooler(database, f"pool_mode = {request.param}") as either:
        yield either


@pytest.fixture
def file_for_all(db, database, key_file):
    """The key file, for every session in the database."""
    db.execute("LOAD 'pg_fernet'")
    db.execute(f"ALTER DATABASE {database} SET fernet.keys_file = '{key_file}'")
    yield key_file
    db.execute(f"ALTER DATABASE {database} RESET fernet.keys_file")


def has_keys(session):
    try:
        session.execute("SELECT fernet_encrypt('hello')")
        return True
    except psycopg.Error as error:
        assert "no Fernet keys are configured" in str(error)
        return False


def test_a_key_file_serves_every_client(file_for_all, either, keys):
    for _ in range(2):
        with either.connect() as client:
            assert len(fingerprints(client)) == len(keys)
    with either.connect() as client:
        write(file_for_all, keys[0])
        assert len(fingerprints(client)) == 1


def test_server_connections_keep_the_settings_they_started_with(file_for_all, either, db, database, folder, keys):
    def known():
        with either.connect() as client:
            return len(fingerprints(client))

    assert known() == len(keys)
    db.execute(f"ALTER DATABASE {database} SET fernet.keys_file = '{write(folder / 'other', keys[0])}'")
    assert known() == len(keys)
    with either.connect("postgres", "pgbouncer") as console:
        console.execute("RECONNECT")
    wait_until(lambda: known() == 1)


def test_what_is_set_stays_for_the_next_client(by_transaction, keys):
    with by_transaction.connect() as first:
        first.execute(f"SET fernet.keys = '{keys[0]}'")
        token = value(first, "SELECT fernet_encrypt('secret of the first')")
    with by_transaction.connect() as second:
        assert value(second, "SELECT fernet_decrypt(%s)", token) == "secret of the first"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            second.execute("SHOW fernet.keys")


def test_and_not_for_another_user_or_database(by_transaction, keys):
    with by_transaction.connect() as first:
        first.execute(f"SET fernet.keys = '{keys[0]}'")
        with by_transaction.connect("postgres") as second:
            assert not has_keys(second)


def test_what_is_set_may_be_gone_in_the_next_transaction(database, app, keys):
    with pooler(database, "pool_mode = transaction", "default_pool_size = 2") as two:
        with two.connect() as first, two.connect() as second:
            first.execute(f"SET fernet.keys = '{keys[0]}'")
            with second.transaction():
                assert has_keys(second)
                assert not has_keys(first)


def test_set_local_ends_with_the_transaction(either, keys):
    with either.connect() as first:
        with first.transaction():
            first.execute(f"SET LOCAL fernet.keys = '{keys[0]}'")
            assert has_keys(first)
        assert not has_keys(first)
    with either.connect() as second:
        assert not has_keys(second)


def test_by_session_what_is_set_is_reset(by_session, keys):
    with by_session.connect() as first:
        first.execute(f"SET fernet.keys = '{keys[0]}'")
        assert has_keys(first)
        process = value(first, "SELECT pg_backend_pid()")
    with by_session.connect() as second:
        assert value(second, "SELECT pg_backend_pid()") == process
        assert not has_keys(second)


def test_options_are_refused(either, keys):
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        either.connect(options=f"-c fernet.keys={keys[0]}")


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_options_that_are_ignored_are_dropped(database, app, keys, mode):
    with pooler(database, f"pool_mode = {mode}", "ignore_startup_parameters = options") as ignoring:
        with ignoring.connect(options=f"-c fernet.keys={keys[0]}") as client:
            assert not has_keys(client)


def version():
    printed = subprocess.run([PGBOUNCER, "--version"], text=True, capture_output=True).stdout
    return tuple(map(int, re.search(r"(\d+)\.(\d+)", printed).groups()))


def test_keys_cannot_be_tracked(database, app, keys):
    if version() < (1, 20):
        pytest.skip("this PgBouncer has no track_extra_parameters")
    with pooler(database, "pool_mode = transaction", "track_extra_parameters = fernet.keys") as tracking:
        with tracking.connect() as first:
            first.execute(f"SET fernet.keys = '{keys[0]}'")
        with tracking.connect() as second:
            assert has_keys(second)


@pytest.fixture
def secrets(db, keys, file_for_all):
    """A table of the application's, with tokens under old keys and a plaintext that is not committed yet."""
    db.execute("CREATE TABLE secrets (value text)")
    db.execute("ALTER TABLE secrets OWNER TO app")
    with db.transaction():
        db.execute("SELECT set_config('fernet.keys', %s, true)", [keys[1]])
        db.execute("INSERT INTO secrets SELECT fernet_encrypt(i::text) FROM generate_series(1, 1000) AS i")
    yield
    db.execute("DROP TABLE secrets")


@pytest.fixture
def writer(secrets, sessions):
    """A session with a transaction that a rotation waits for."""
    writer = sessions()
    writer.execute("BEGIN")
    writer.execute("INSERT INTO secrets VALUES ('plaintext')")
    return writer


CALL = "CALL fernet_rotate_column('secrets', 'value', batch_size => 100)"


def wait_for_batches(db, keys):
    """Until each is committed, the call waits for the writer."""
    with db.transaction():
        db.execute("SELECT set_config('fernet.keys', %s, true)", [",".join(keys)])
        wait_until(lambda: value(db, "SELECT max(fernet_key_index(value)) FROM secrets") == 1)


def test_a_rotation_keeps_its_server_connection_through_its_commits(writer, either, db, keys):
    def ask():
        with either.connect() as other:
            return value(other, "SELECT 1")

    with either.connect() as client:
        told = notices(client)
        with in_background(lambda: client.execute(CALL).fetchone()) as call:
            wait_for_batches(db, keys)
            with in_background(ask) as answer:
                time.sleep(0.3)
                assert answer.is_alive() and call.is_alive()
                writer.execute("COMMIT")
                assert call.result() == (1000, 0, 0, 1, 0)
                client.close()
                assert answer.result() == 1
    assert any(message.startswith("rotated 1000 tokens") for message in told)


def test_a_rotation_is_cancelled_through_the_pooler(writer, either, db, keys):
    with either.connect() as client, in_background(client.execute, CALL) as call:
        wait_for_batches(db, keys)
        client.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            call.result()
    writer.execute("ROLLBACK")
