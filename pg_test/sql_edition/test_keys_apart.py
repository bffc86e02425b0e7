"""The recipe of docs/managed.md for a role that rotates without being able to decrypt."""

import base64
import subprocess

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg import errors, sql

from pages import code_block
from postgres import column, connect, notices, server_log, value
from tables import LOST, NEW, OLD

HEADING = "Rotate without being able to decrypt"
PAGE = "docs/managed.md"
KEYS = "SELECT coalesce(current_setting('fernet.keys', true), '')"


@pytest.fixture
def vault(db, database, owner, tmp_path):
    """The owner's session: ten tokens under the old key, and the keys in the recipe's table, where the page puts them."""
    with connect("postgres") as server:
        server.execute("CREATE ROLE rotator LOGIN")
    try:
        # The recipe has the edition in a schema of its own.
        recipe = code_block(PAGE, HEADING, "sql").replace("fernet.fernet_", "public.fernet_")
        db.execute("CREATE TABLE secrets (id integer, value text)")
        for id in range(10):
            db.execute("INSERT INTO secrets VALUES (%s, %s)", [id, Fernet(OLD).encrypt(b"secret").decode()])
        db.execute(recipe)
        store_keys(database, owner, tmp_path, NEW, OLD)
        yield db
    finally:
        db.execute("DROP SCHEMA IF EXISTS vault CASCADE; DROP TABLE IF EXISTS secrets")
        with connect(database) as server:
            server.execute("DROP OWNED BY rotator; DROP ROLE rotator")


def store_keys(database, owner, folder, new, old):
    """From two files."""
    (folder / "new.key").write_text(new)
    (folder / "old.key").write_text(old)
    commands = code_block(PAGE, HEADING, "sh", "vault.keys").replace("-d app -U app", f"-d {database} -U {owner}")
    subprocess.run(["bash", "-euc", commands], cwd=folder, check=True)


@pytest.fixture
def rotator(vault, database):
    with connect(database, user="rotator", options="-c search_path=public") as session:
        yield session


def test_it_rotates(vault, rotator):
    done = rotator.execute("UPDATE public.secrets SET value = vault.rotate(value) WHERE vault.key_index(value) > 1")
    assert done.rowcount == 10
    assert {Fernet(NEW).decrypt(token) for token in column(vault, "SELECT value FROM secrets")} == {b"secret"}
    assert rotator.execute("UPDATE public.secrets SET value = vault.rotate(value) WHERE vault.key_index(value) > 1").rowcount == 0


def test_the_list_is_replaced(vault, database, owner, tmp_path):
    """By what is in the files, with any white space; and nothing of it is in a statement."""
    with connect("postgres") as server:
        server.execute(f"ALTER ROLE {owner} SET log_statement = 'all'")
    with server_log() as lines:
        store_keys(database, owner, tmp_path, f"{LOST}\r\n", f" {NEW},\t{OLD} \n\n")
        assert column(vault, "SELECT list FROM vault.keys") == [f"{LOST},{NEW},{OLD}"]
        store_keys(database, owner, tmp_path, LOST, "")
        assert column(vault, "SELECT list FROM vault.keys") == [LOST]
    with connect("postgres") as server:
        server.execute(f"ALTER ROLE {owner} RESET log_statement")
    assert any("COPY  vault.keys" in line for line in lines)
    assert not any(key in line for key in (LOST, NEW, OLD) for line in lines)


@pytest.mark.parametrize("statement", ["SELECT * FROM vault.keys", "SELECT fernet_decrypt(value) FROM secrets", "SELECT * FROM fernet_keys()",
                                       "SELECT fernet_encrypt('x')"])
def test_it_may_do_nothing_else(rotator, statement):
    with pytest.raises(errors.InsufficientPrivilege):
        rotator.execute(statement)


@pytest.mark.parametrize("before", ["", Fernet.generate_key().decode()])
def test_it_never_sees_the_keys(rotator, before):
    """Neither in the transaction, nor after an error, nor in the same statement; what it had set itself stays."""
    if before:
        rotator.execute("SELECT set_config('fernet.keys', %s, false)", [before])
    with rotator.transaction():
        seen = column(rotator, "SELECT vault.rotate(value) || vault.key_index(value) || coalesce(current_setting('fernet.keys', true), '')"
                               " FROM secrets")
        assert not any(key in text for text in seen for key in (OLD, NEW))
        assert value(rotator, KEYS) == before
        for bad in "not a token", Fernet(Fernet.generate_key()).encrypt(b"x").decode():
            with pytest.raises(psycopg.Error) as error, rotator.transaction():
                rotator.execute("SELECT vault.rotate(%s)", [bad])
            assert not any(key in str(error.value) for key in (OLD, NEW))
            assert value(rotator, KEYS) == before
        caught = "DO $$ BEGIN PERFORM vault.rotate('x'); EXCEPTION WHEN OTHERS THEN RAISE NOTICE '%%', current_setting('fernet.keys', true); END $$"
        told = notices(rotator)
        rotator.execute(caught.replace("%%", "%"))
        assert told in (["<NULL>"], [before])
    assert value(rotator, KEYS) == before


def test_its_objects_in_the_path_mean_nothing(vault, rotator, database):
    """It may make functions with the names that the recipe uses, in a schema of its own and for the session."""
    with connect("postgres") as server:
        server.execute(sql.SQL("GRANT CREATE, TEMPORARY ON DATABASE {} TO rotator").format(sql.Identifier(database)))
    rotator.execute("""
        CREATE SCHEMA trap; GRANT USAGE ON SCHEMA trap TO PUBLIC;
        CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'trapped: %', $2; END $$;
        CREATE FUNCTION trap.string_agg_step(text, text, text) RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
        CREATE AGGREGATE trap.string_agg(text, text) (SFUNC = trap.string_agg_step, STYPE = text);
        CREATE FUNCTION pg_temp.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT NULL::text';
        CREATE TEMPORARY TABLE keys (key text, added timestamptz);
        SET search_path = trap, pg_temp, pg_catalog, public""")
    assert rotator.execute("UPDATE public.secrets SET value = vault.rotate(value) WHERE vault.key_index(value) > 1").rowcount == 10


def test_no_plan_has_a_key_or_a_plaintext_in_it(rotator):
    """A role that may call a function may have the plans of its queries printed, with the constants in them."""
    rotator.execute("SET client_min_messages = log; SET debug_print_plan = on; SET debug_print_rewritten = on; SET debug_print_parse = on")
    told = []
    rotator.add_notice_handler(lambda notice: told.append(f"{notice.message_primary} {notice.message_detail}"))
    for expression in "$1", "'x ' || $1", "'gAAA' || repeat('A', 200) || $1":
        for function in "rotate", "key_index":
            rotator.execute(f"SELECT vault.{function}({expression})".replace("$1", "%s::text"), [Fernet(OLD).encrypt(b"hunter2 and more").decode()])
    shown = " ".join(" ".join(told).split())
    assert "vault" in shown or "CONST" in shown
    # A constant is printed byte by byte, as signed numbers.
    for secret in *(base64.urlsafe_b64decode(key) for key in (NEW, OLD)), b"hunter2 and more":
        for part in secret[:16], secret[-16:]:
            assert " ".join(str(byte - 256 if byte > 127 else byte) for byte in part) not in shown
