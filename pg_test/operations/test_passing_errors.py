"""An error of the server that passes through the CALL, the census or fernet_find_columns() stays as the server made it."""

import pytest
from psycopg import errors

from cluster import Cluster
from edition import install
from postgres import create_database
from tables import NEW, OLD, under

RAISE = r"""BEGIN RAISE EXCEPTION USING ERRCODE = 'UX001', MESSAGE = 'no: %s', DETAIL = 'detail %s', HINT = 'hint %s',
    SCHEMA = 'a schema', TABLE = 'a table', COLUMN = 'a column', CONSTRAINT = 'a constraint', DATATYPE = 'a type'; END"""


@pytest.fixture(scope="module")
def cluster():
    """A server in whose environment pgrx is told that it may put backtraces into errors."""
    with Cluster([NEW, OLD], "fsync = off", environment={"RUST_BACKTRACE": "1"}) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=["UTF8", "LATIN1", "EUC_JP"])
def session(cluster, request):
    """A session in a database with that encoding, and text that only that encoding has."""
    text = {"UTF8": "Ā 🐘", "LATIN1": "naïve café", "EUC_JP": "日本語"}[request.param]
    name = f"errors_{request.param}".lower()
    create_database(name, request.param, host=cluster.dir)
    with cluster.connect(name) as session:
        install(session)
        yield session, text


@pytest.fixture
def table(session):
    db, _ = session
    with under(db, OLD):
        db.execute("CREATE TABLE secrets (id integer, value text)")
        db.execute("INSERT INTO secrets SELECT i, fernet_encrypt('x') FROM generate_series(1, 3) AS i")
    yield db
    db.execute("DROP TABLE secrets CASCADE")
    db.execute("DROP FUNCTION IF EXISTS fail CASCADE")


@pytest.fixture(params=["", ", workers => 1"], ids=["alone", "a worker"])
def call(request):
    """A rotation, by the session or by a background worker."""
    return f"CALL fernet_rotate_column('secrets', 'value'{request.param})"


def raised(db, statement):
    with pytest.raises(errors.Error) as caught:
        db.execute(statement)
    assert db.info.transaction_status.name == "IDLE"
    return caught.value.diag


def is_whole(diag, text):
    assert diag.sqlstate == "UX001"
    assert (diag.message_primary, diag.message_detail, diag.message_hint) == (f"no: {text}", f"detail {text}", f"hint {text}")
    assert (diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name, diag.datatype_name) == \
        ("a schema", "a table", "a column", "a constraint", "a type")
    assert "PL/pgSQL function fail() line 1 at RAISE" in diag.context
    return True


def test_an_error_of_a_trigger(table, session, call):
    db, text = session
    db.execute(f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $${RAISE.replace('%s', text)}$$")
    db.execute("CREATE TRIGGER fail BEFORE UPDATE ON secrets FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION fail()")
    diag = raised(db, call)
    assert is_whole(diag, text)
    assert 'SQL statement "UPDATE ONLY public.secrets' in diag.context


def test_an_error_of_a_trigger_as_a_batch_is_committed(table, session, call):
    db, text = session
    db.execute(f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $${RAISE.replace('%s', text)}$$")
    db.execute("CREATE CONSTRAINT TRIGGER fail AFTER UPDATE ON secrets DEFERRABLE INITIALLY DEFERRED"
               " FOR EACH ROW EXECUTE FUNCTION fail()")
    assert is_whole(raised(db, call), text)


def test_an_error_of_a_view(table, session):
    db, text = session
    db.execute(f"CREATE FUNCTION fail() RETURNS text LANGUAGE plpgsql AS $${RAISE.replace('%s', text)}$$")
    db.execute("CREATE VIEW failing AS SELECT fail() AS value")
    assert is_whole(raised(db, "SELECT * FROM fernet_census('failing', 'value')"), text)


def test_an_error_of_a_constraint(table, session, call):
    db, text = session
    name = text.replace(" ", "_")
    db.execute(f'ALTER TABLE secrets ADD CONSTRAINT "{name}" CHECK (fernet_key_index(value) = 2) NOT VALID')
    diag = raised(db, call)
    assert (diag.sqlstate, diag.schema_name, diag.table_name, diag.constraint_name) == ("23514", "public", "secrets", name)
    assert diag.message_primary == f'new row for relation "secrets" violates check constraint "{name}"'
    assert diag.message_detail.startswith("Failing row contains (")


def test_an_error_of_ours_has_no_backtrace(table, session):
    db, _ = session
    db.execute("INSERT INTO secrets VALUES (4, 'plain')")
    for statement in ("CALL fernet_rotate_column('secrets', 'value', strict => true)",
                      "CALL fernet_rotate_column('secrets', 'value', strict => true, workers => 1)", "SELECT fernet_rotate('plain')",
                      "SELECT fernet_decrypt('plain')", "CALL fernet_rotate_column('secrets', 'gone')"):
        diag = raised(db, statement)
        assert diag.message_detail is None and diag.message_hint
