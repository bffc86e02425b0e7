"""What docs/security.md says and the other tests do not show: whom one must trust, and what a token itself reveals."""

import base64
import re
import secrets

import psycopg
import pytest

import pyca
from key_files import key, server_user, write
from pages import ROOT
from postgres import column, connect, major_version, value
from settings import reload, use_file


#
# Who is trusted
#

@pytest.fixture
def role(db, database):
    """A session of an ordinary role, which the test grants something."""
    db.execute("CREATE ROLE fernet_trusted LOGIN")
    with connect(database, user="fernet_trusted") as session:
        yield session
    db.execute("DROP OWNED BY fernet_trusted; DROP ROLE fernet_trusted")


@pytest.mark.parametrize("membership, reading", [
    ("pg_read_server_files", "CREATE TEMP TABLE read (line text); COPY read FROM '{file}'; SELECT line FROM read"),
    ("pg_execute_server_program", "CREATE TEMP TABLE read (line text); COPY read FROM PROGRAM 'cat {file}'; SELECT line FROM read"),
])
def test_who_can_read_the_key_file(db, role, key_file, keys, membership, reading):
    *statements, last = reading.format(file=key_file).split("; ")
    role.execute(statements[0])
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        role.execute(statements[1])
    db.execute(f"GRANT {membership} TO fernet_trusted")
    role.execute(statements[1])
    assert column(role, last) == keys


def test_who_can_replace_the_key_file(db, role, key_file):
    db.execute("GRANT pg_write_server_files TO fernet_trusted")
    own = key()
    role.execute(f"COPY (SELECT '{own}') TO '{key_file}'")
    use_file(db, key_file)
    assert pyca.multi([own]).decrypt(value(db, "SELECT fernet_encrypt('hello')")) == b"hello"


def test_who_can_set_the_command(db, role, folder, configuration):
    db.execute("GRANT ALTER SYSTEM ON PARAMETER fernet.keys_command TO fernet_trusted")
    role.execute("SELECT fernet_is_token('x')")
    role.execute(f"ALTER SYSTEM SET fernet.keys_command = 'id -un >{folder}/who'")
    try:
        reload(db)
        with pytest.raises(psycopg.Error):
            db.execute("SELECT fernet_encrypt('x')")
        assert folder.joinpath("who").stat().st_uid == server_user()[0]
    finally:
        configuration.set("fernet.keys_command", "")


@pytest.mark.parametrize("membership", ["pg_read_server_files", "pg_execute_server_program", "pg_read_all_settings"])
def test_who_creates_roles_up_to_version_15(db, role, membership):
    db.execute("ALTER ROLE fernet_trusted CREATEROLE")
    if major_version() <= 15:
        role.execute(f"GRANT {membership} TO fernet_trusted")
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            role.execute(f"GRANT {membership} TO fernet_trusted")


@pytest.mark.parametrize("membership", ["pg_read_all_settings", "pg_monitor"])
def test_who_is_shown_the_list(db, role, membership):
    keys = key()
    db.execute("LOAD 'pg_fernet'")
    db.execute(f"ALTER ROLE fernet_trusted SET fernet.keys = '{keys}'; GRANT {membership} TO fernet_trusted")
    with connect(role.info.dbname, user="fernet_trusted") as session:
        session.execute("SELECT fernet_is_token('x')")
        assert value(session, "SHOW fernet.keys") == keys


@pytest.mark.parametrize("user", ["postgres", "fernet_trusted"])
def test_who_sees_a_statement(db, role, database, user):
    """Another session of the same role, and a superuser."""
    text = secrets.token_hex()
    role.execute(f"SELECT '{text}'")
    with connect(database, user=user) as session:
        assert text in str(column(session, "SELECT query FROM pg_stat_activity WHERE pid = %s", role.info.backend_pid))


def test_who_may_decrypt_reads_the_plaintext_and_no_key(db, role, key_file, keys):
    db.execute("GRANT EXECUTE ON FUNCTION fernet_decrypt(text) TO fernet_trusted")
    db.execute(f"ALTER ROLE fernet_trusted SET fernet.keys_file = '{key_file}'")
    with connect(role.info.dbname, user="fernet_trusted") as session:
        assert value(session, "SELECT fernet_decrypt(%s)", pyca.encrypt(keys[1], b"hello", 0).decode()) == "hello"
        for name in "fernet.keys", "fernet.keys_file":
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(f"SHOW {name}")


#
# A schema of its own: what roles need
#

def test_a_schema_of_its_own_needs_usage_and_a_path(db, role, database):
    page = re.sub(r"\s+", " ", (ROOT / "docs/security.md").read_text())
    path = re.search("`(ALTER ROLE rotator IN DATABASE app [^`]*)`", page)[1].replace("rotator", "fernet_trusted").replace("app", database, 1)
    db.execute("CREATE SCHEMA fernet; ALTER EXTENSION pg_fernet SET SCHEMA fernet")
    try:
        with pytest.raises(psycopg.errors.UndefinedFunction):
            role.execute("SELECT fernet_generate_key()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for schema fernet"):
            role.execute("SELECT fernet.fernet_generate_key()")
        db.execute("GRANT USAGE ON SCHEMA fernet TO fernet_trusted")
        role.execute("SELECT fernet.fernet_generate_key()")
        db.execute(path)
        with connect(database, user="fernet_trusted") as session:
            session.execute("SELECT fernet_generate_key()")
    finally:
        db.execute("ALTER EXTENSION pg_fernet SET SCHEMA public; DROP SCHEMA fernet")


#
# Key files: what is a statement
#

def replacing(path, new):
    """SQL that replaces the file in the middle of other statements, the first time it runs."""
    write(path.with_name("replacement"), new)
    return f"COPY (SELECT) TO PROGRAM 'cat >/dev/null; mv -f {path.with_name('replacement')} {path} || true'"


def test_several_statements_in_one_message(db, folder, keys):
    path = write(folder / "keys", keys[0])
    use_file(db, path)
    encrypt = "SELECT fernet_encrypt('hello')"
    cursor = db.execute(f"{encrypt}; {replacing(path, keys[1])}; {encrypt}")
    tokens = [cursor.fetchone()[0]]
    cursor.nextset()
    cursor.nextset()
    tokens.append(cursor.fetchone()[0])
    tokens.append(value(db, encrypt))
    assert [pyca.multi([keys[n]]).decrypt(token) for n, token in zip((0, 0, 1), tokens)] == [b"hello"] * 3


def test_a_call_that_rotates_a_column(db, folder, keys):
    path = write(folder / "keys", keys[0], keys[1])
    use_file(db, path)
    tokens = [pyca.encrypt(keys[1], b"hello", 0).decode() for _ in range(10)]
    db.execute("CREATE TABLE called AS SELECT unnest(%s::text[]) AS token", [tokens])
    db.execute(f"""CREATE FUNCTION replace_file() RETURNS trigger LANGUAGE plpgsql AS $$
                   BEGIN {replacing(path, keys[2])}; RETURN new; END $$""")
    db.execute("CREATE TRIGGER replace_file BEFORE UPDATE ON called FOR EACH ROW EXECUTE FUNCTION replace_file()")
    try:
        db.execute("CALL fernet_rotate_column('called', 'token', batch_size => 3)")
        rotated = column(db, "SELECT token FROM called")
        assert [pyca.multi([keys[0]]).decrypt(token) for token in rotated] == [b"hello"] * 10
        assert path.read_text().strip() == keys[2]
    finally:
        db.execute("DROP TABLE called; DROP FUNCTION replace_file")


#
# What it does not protect against
#

def test_a_token_is_not_bound_to_its_row(db, key_file):
    use_file(db, key_file)
    db.execute("CREATE TEMP TABLE rows AS SELECT n, fernet_encrypt('secret ' || n) AS token FROM generate_series(1, 2) AS n")
    db.execute("UPDATE rows SET token = (SELECT token FROM rows WHERE n = 2) WHERE n = 1")
    assert column(db, "SELECT fernet_decrypt(token) FROM rows") == ["secret 2"] * 2


def test_what_a_token_shows_by_itself(db, key_file):
    """The length of the plaintext, up to the next 16 bytes, and the second in which it was made."""
    use_file(db, key_file)
    lengths = {n: value(db, "SELECT length(fernet_encrypt(repeat('x', %s)))", n) for n in range(64)}
    assert len({lengths[n] for n in range(16)}) == 1
    assert len(set(lengths.values())) == 4
    before, token, after = db.execute(
        "SELECT extract(epoch FROM clock_timestamp())::int - 1, fernet_encrypt('x'), extract(epoch FROM clock_timestamp())::int + 1").fetchone()
    assert before <= int.from_bytes(base64.urlsafe_b64decode(token)[1:9], "big") <= after


def test_who_kept_an_old_token_and_its_key(db, folder, keys):
    use_file(db, write(folder / "keys", keys[0], keys[1]))
    kept = pyca.encrypt(keys[1], b"hello", 0).decode()
    assert pyca.multi([keys[0]]).decrypt(value(db, "SELECT fernet_rotate(%s)", kept)) == b"hello"
    assert pyca.multi([keys[1]]).decrypt(kept) == b"hello"
