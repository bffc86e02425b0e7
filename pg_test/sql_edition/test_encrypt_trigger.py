"""fernet_encrypt_trigger: how it differs here. Errors of COPY show its line here."""

import psycopg
import pytest
from cryptography.fernet import Fernet

from postgres import connect, notices, set_keys, value
from tables import LOST, NEW, OLD

TRIGGER = "CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger({})"


@pytest.fixture
def sessions(sessions):
    return lambda: sessions(NEW, OLD)


@pytest.fixture
def db(sessions):
    db = sessions()
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")
    yield db
    db.execute("DROP TABLE IF EXISTS secrets CASCADE")


@pytest.fixture
def writer(db, database, owner):
    """A role that may write to the table, but may do nothing in the schema of the functions."""
    with connect(database) as admin:
        admin.execute("CREATE ROLE fernet_writer LOGIN")
        yield "fernet_writer"
        admin.execute("DROP OWNED BY fernet_writer; DROP ROLE fernet_writer")


def test_a_writer_brings_the_keys_and_needs_no_other_right(db, database, writer):
    db.execute("CREATE TABLE secrets (id integer, value text)")
    db.execute(TRIGGER.format("'value'"))
    db.execute("GRANT INSERT, UPDATE ON secrets TO fernet_writer")
    with connect(database, user=writer, options="-c search_path=public") as session:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no Fernet keys are configured") as refusal:
            session.execute("INSERT INTO secrets VALUES (1, 'a plaintext')")
        assert "a plaintext" not in str(refusal.value.diag.context)
        set_keys(session, NEW)
        session.execute("INSERT INTO secrets VALUES (1, 'a plaintext')")
        for forbidden in "SELECT value FROM secrets", "SELECT fernet_decrypt('x')", "SELECT fernet_encrypt('x')":
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(forbidden)
    assert Fernet(NEW).decrypt(value(db, "SELECT value FROM secrets")) == b"a plaintext"


def test_every_type(db):
    """The length and the domain of a column are checked for its token, and the other columns do not change."""
    db.execute("DROP DOMAIN IF EXISTS short; CREATE DOMAIN short AS varchar(120) CHECK (length(VALUE) <> 100);"
               "CREATE TABLE secrets (dropped integer, t text, v varchar(100), c char(125), d short, b bytea, \"A \"\"q\"\"\" text,"
               " other jsonb, n numeric, ts timestamptz, a text[]); ALTER TABLE secrets DROP dropped")
    db.execute(TRIGGER.format("'t', 'v', 'c', 'd', 'b', 'A \"q\"'"))
    other = "'{\"a\": 1.50}', 1.50, 'infinity', '{a,NULL}'"
    db.execute(f"INSERT INTO secrets VALUES ('text', 'fifteen letters', 'blanks  ', 'sixteen letters.', '\\x00ff', 'quoted', {other})")
    row = db.execute("SELECT t, v, c, d, b, \"A \"\"q\"\"\" FROM secrets").fetchone()
    assert [Fernet(NEW).decrypt(token.rstrip()) for token in row] == [
        b"text", b"fifteen letters", b"blanks", b"sixteen letters.", b"\x00\xff", b"quoted"]
    assert value(db, f"SELECT (other::text, n::text, ts, a) = ({other.replace(', 1.50', ', $$1.50$$')}) FROM secrets")
    assert value(db, "SELECT octet_length(c) FROM secrets") == 125
    for statement, code in [("v = 'sixteen letters.'", "22001"), ("d = 'fifteen letters'", "23514"), ("c = repeat('x', 32)", "22001")]:
        with pytest.raises(psycopg.Error) as refusal:
            db.execute(f"UPDATE secrets SET {statement}")
        assert refusal.value.sqlstate == code


def test_what_no_key_opens_stays_where_it_is_and_only_there(db):
    lost = Fernet(LOST).encrypt(b"x").decode()
    db.execute("CREATE TABLE secrets (id integer, value text)")
    db.execute("INSERT INTO secrets VALUES (1, %s)", [lost])
    db.execute(TRIGGER.format("'value'"))
    db.execute("UPDATE secrets SET id = 2")
    for statement in "INSERT INTO secrets VALUES (3, %s)", "UPDATE secrets SET value = 'fernet:' || %s":
        with pytest.raises(psycopg.errors.ExternalRoutineInvocationException, match='no key authenticates the Fernet token: column "value" of public.secrets'):
            db.execute(statement, [lost])
    assert value(db, "SELECT value FROM secrets") == lost


def test_a_token_with_other_text_beside_it_stays_where_it_is_and_only_there(db):
    token = Fernet(OLD).encrypt(b"x").decode()
    db.execute("CREATE TABLE secrets (id integer, value text)")
    db.execute("INSERT INTO secrets VALUES (1, %s)", [f"fernet:{token}"])
    db.execute(TRIGGER.format("'value'"))
    db.execute("UPDATE secrets SET id = 2")
    # The last has the form of a token as a whole.
    for written in f"fernet: {token}", f"{token},{token}", f"gPASSWORD{'x' * 55}{token}":
        with pytest.raises(psycopg.errors.InvalidTextRepresentation, match='token with other text beside it: column "value" of public.secrets'):
            db.execute("UPDATE secrets SET value = %s", [written])
    db.execute("UPDATE secrets SET value = %s", [token + "\n"])
    assert value(db, "SELECT value FROM secrets") == token + "\n"


def test_keys_change_between_executions_of_a_prepared_statement(db):
    """In a generic plan, too, and if the setting was set only in a transaction."""
    db.execute("SET plan_cache_mode = force_generic_plan; PREPARE encrypt AS SELECT fernet_encrypt($1::text)")
    for key in NEW, OLD, NEW:
        set_keys(db, key)
        assert Fernet(key).decrypt(value(db, "EXECUTE encrypt('x')")) == b"x"
    set_keys(db, "")
    with db.transaction():
        db.execute("SELECT set_config('fernet.keys', %s, true)", [OLD])
        assert Fernet(OLD).decrypt(value(db, "EXECUTE encrypt('x')")) == b"x"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no Fernet keys are configured"):
        db.execute("EXECUTE encrypt('x')")


def test_a_column_under_the_trigger_is_not_decrypted(db):
    """The trigger encrypts each plaintext again, and the call says so."""
    db.execute("CREATE TABLE secrets (id integer, value text)")
    db.execute(TRIGGER.format("'value'"))
    db.execute("INSERT INTO secrets SELECT i, 'x' FROM generate_series(1, 10) AS i")
    told = notices(db, "WARNING")
    assert db.execute("CALL fernet_decrypt_column('secrets', 'value')").fetchone()[0] == 0
    assert told == ["still encrypted: 10 values"]
