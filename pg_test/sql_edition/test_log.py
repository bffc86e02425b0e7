"""What the server logs about the queries in our functions has no key in it, and no plaintext."""

import base64
import re

import psycopg
import pytest

from edition import SCRIPT
from postgres import connect, server_log
from tables import NEW, OLD

SECRET = "hunter2 and more"
# One column of each kind, in which each kind of look finds something; six rows, since the first five get plans with
# constants.
TABLE = """
    CREATE TABLE secrets AS SELECT fernet_encrypt('hunter2 and more') AS token, fernet_encrypt('hunter2 and more')::bytea AS bytes,
        concat('hunter2 and more, ', fernet_encrypt('x'), '/', fernet_encrypt('x')) AS text,
        ARRAY[fernet_encrypt('hunter2 and more'), NULL, 'hunter2 and more, ' || fernet_encrypt('x')] AS list,
        jsonb_build_object('hunter2 and more', fernet_encrypt('hunter2 and more'), 'x', 'hunter2 and more, ' || fernet_encrypt('x')) AS document,
        'hunter2 and more' || repeat(' gAAA', 60) AS plain
    FROM generate_series(1, 6)"""
# Queries of a DO block, like those of a procedure, do not count as nested.
BLOCK = """
    DO $$
    DECLARE
        token text := fernet_encrypt(current_setting('test.secret'));
    BEGIN
        FOR i IN 1 .. 6 LOOP
            PERFORM fernet_decrypt(token);
            token := fernet_rotate(token || ',' || token);
            PERFORM fernet_rotate(json_build_array(token)), fernet_key_index(current_setting('test.secret') || token);
            token := fernet_encrypt(current_setting('test.secret'));
        END LOOP;
    END $$"""
STATEMENTS = [
    *(f"SELECT * FROM fernet_census('secrets', '{name}')" for name in ("token", "bytes", "text", "list", "document", "plain")),
    *(f"CALL fernet_rotate_column('secrets', '{name}')" for name in ("token", "bytes", "text", "list", "document", "plain")),
    *(f"CALL fernet_{what}_column('secrets', '{name}')" for what in ("decrypt", "encrypt") for name in ("token", "bytes", "plain")),
    "SELECT * FROM fernet_find_columns()", "SELECT * FROM fernet_keys()"]


@pytest.fixture
def watched(db, owner):
    """From now on, the owner's sessions log plans with all that auto_explain can show; if wanted, also those of nested
    statements."""
    with connect("postgres") as admin:
        try:
            admin.execute("LOAD 'auto_explain'")
        except psycopg.errors.UndefinedFile:
            pytest.skip("no auto_explain in this server: what it logs is NOT TESTED here")

    def watch(nested):
        with connect("postgres") as admin:
            admin.execute(f"""
                ALTER ROLE {owner} SET session_preload_libraries = 'auto_explain';
                ALTER ROLE {owner} SET auto_explain.log_min_duration = 0;
                ALTER ROLE {owner} SET auto_explain.log_verbose = on;
                ALTER ROLE {owner} SET auto_explain.log_nested_statements = {nested};
                ALTER ROLE {owner} SET debug_print_plan = on;
                ALTER ROLE {owner} SET debug_pretty_print = off""")

    db.execute("SELECT set_config('fernet.keys', %s, false)", [f"{OLD},{NEW}"])
    db.execute(TABLE)
    yield watch
    with connect("postgres") as admin:
        admin.execute(f"ALTER ROLE {owner} RESET ALL")
    db.execute("DROP TABLE secrets")


def shown(secret, log):
    """Tells whether the log has these bytes: unchanged, in hexadecimal digits, or byte by byte, as a constant in a
    printed plan."""
    numbers = " ".join(str(byte - 256 if byte > 127 else byte) for byte in secret)
    return secret.decode("latin1") in log or secret.hex() in log or numbers in log


@pytest.mark.parametrize("nested", ["off", "on"])
@pytest.mark.parametrize("written", [f"{NEW},{OLD}", f" {NEW[:20]} {NEW[20:]} , {OLD[:9]} {OLD[9:]}"], ids=["keys", "keys with blanks"])
def test_no_plan_has_a_key_or_a_plaintext_in_it(watched, sessions, nested, written):
    watched(nested)
    session = sessions()
    session.execute("SELECT set_config('fernet.keys', %s, false), set_config('test.secret', %s, false)", [written, SECRET])
    with server_log() as lines:
        for statement in STATEMENTS:
            session.execute(statement)
        session.execute(BLOCK)
    log = " ".join(" ".join(lines).split())
    assert "Query Text: SELECT ARRAY" in log or "_fernet_tokens(value, is_document, keys)" in log
    assert "CONST" in log
    for key in NEW, OLD:
        for half in base64.b64decode(key.translate(str.maketrans("-_", "+/")))[:16], base64.urlsafe_b64decode(key)[16:]:
            assert not shown(half, log)
        assert key[:20] not in log and key[20:] not in log
    assert not shown(SECRET.encode(), log)


@pytest.mark.parametrize("start_to_end", [r"FOR [\w, ]+ IN\s+(?:SELECT|WITH|EXECUTE)\b.*?\bLOOP\b", r"OPEN \w+.*?;"], ids=["loop", "cursor"])
def test_no_cursor_has_the_keys(start_to_end):
    """The variables in its query become parameters, which auto_explain logs from PostgreSQL 16 on. A FOR loop over a query
    has one, too."""
    queries = re.findall(start_to_end, SCRIPT.read_text(), re.DOTALL)
    assert queries
    for query in queries:
        assert not re.search(r"\bkeys\b", query), query


def test_what_is_logged_of_the_trigger(watched, db, sessions):
    """No key; with nested statements, and of COPY, what is written: the page says so."""
    db.execute("CREATE TABLE written (value text); CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON written FOR EACH ROW"
               " EXECUTE FUNCTION fernet_encrypt_trigger('value')")
    watched("off")
    session = sessions(NEW, OLD)
    with server_log() as lines:
        session.execute("INSERT INTO written VALUES (concat('hunter2', ' and more'))")
    assert SECRET not in "".join(lines)
    with server_log() as lines, session.cursor().copy("COPY written FROM STDIN") as copy:
        copy.write_row([SECRET])
    assert f'COPY written, line 1: "{SECRET}"' in "".join(lines)
    assert not any(key in line for line in lines for key in (NEW[:20], OLD[:20], base64.urlsafe_b64decode(NEW).hex(), base64.urlsafe_b64decode(OLD).hex()))
    db.execute("DROP TABLE written")
