"""Whatever a column holds, each function returns a result or an error of the contract, and the session goes on."""

from collections import Counter
from hashlib import sha256

import psycopg
import pytest

import hostile
import pyca
from postgres import connect, create_database, drop_database, set_keys, value

DATABASE = "pg_fernet_hostile"

NOT_A_TOKEN, NO_KEY, NOT_TEXT, TIME = "22P02", "39000", "22021", "22000"

IS_TOKEN, KEY_INDEX, TIMESTAMP = "fernet_is_token({})", "fernet_key_index({})", "fernet_timestamp({})"
DECRYPT, ROTATE = "fernet_decrypt_bytea({})", "fernet_rotate({})"
ENCRYPT = "fernet_decrypt_bytea(fernet_encrypt(bytes)) = bytes"
ENCRYPT_TEXT = "fernet_decrypt(fernet_encrypt(words)) = words"

# Calls that decrypt, with a column, and the errors that they may end with.
OPENING = {
    "fernet_decrypt({})": {NOT_A_TOKEN, NO_KEY, NOT_TEXT},
    "fernet_decrypt({}, '1 day')": {NOT_A_TOKEN, NO_KEY, NOT_TEXT, TIME},
    "fernet_decrypt({}, '1 day', '2023-11-15Z')": {NOT_A_TOKEN, NO_KEY, NOT_TEXT, TIME},
    f"sha256({DECRYPT})": {NOT_A_TOKEN, NO_KEY},
    "fernet_decrypt_bytea({}, '1 day')": {NOT_A_TOKEN, NO_KEY, TIME},
    "fernet_decrypt_bytea({}, '1 day', '2023-11-15Z')": {NOT_A_TOKEN, NO_KEY, TIME},
    f"fernet_decrypt_bytea({ROTATE}) = {DECRYPT}": {NOT_A_TOKEN, NO_KEY},
    f"fernet_key_index({ROTATE})": {NOT_A_TOKEN, NO_KEY},
}
OF_TOKENS = OPENING | {IS_TOKEN: set(), KEY_INDEX: set(), TIMESTAMP: {NOT_A_TOKEN, NO_KEY}}
CALLS = OF_TOKENS | {ENCRYPT: set(), ENCRYPT_TEXT: set()}


@pytest.fixture
def keys(rng):
    return [pyca.key_of(rng) for _ in range(3)]


@pytest.fixture(params=[("UTF8", "EXTENDED"), ("UTF8", "EXTERNAL"), ("LATIN1", "MAIN"), ("SQL_ASCII", "EXTENDED")], ids="-".join)
def kind(request):
    """The encoding of a database, and a storage. Dropping the database ends what still runs in it, and the log says so:
    it is dropped after `healthy` has looked."""
    create_database(DATABASE, request.param[0])
    yield request.param
    drop_database(DATABASE)


@pytest.fixture
def table(kind, healthy, rng, keys):
    """A session with a table of the values, as bytea and, where they are text, as text; and the values."""
    encoding, storage = kind
    made = list(hostile.values(rng, keys, pyca.key_of(rng)))
    with connect(DATABASE, client_encoding="UTF8" if encoding == "UTF8" else "LATIN1") as session:
        session.execute("SET log_error_verbosity = verbose")
        session.execute("CREATE EXTENSION pg_fernet")
        session.execute("CREATE TABLE hostile (n integer PRIMARY KEY, bytes bytea, words text)")
        for column in "bytes", "words":
            session.execute(f"ALTER TABLE hostile ALTER {column} SET STORAGE {storage}")
        with session.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO hostile SELECT n, bytes, CASE WHEN is_text THEN convert_from(bytes, getdatabaseencoding()) END"
                " FROM (VALUES (%s::integer, %b::bytea, %s)) AS t (n, bytes, is_text)",
                [(n, value, is_text(value, encoding)) for n, value in enumerate(made)])
        session.execute("VACUUM ANALYZE hostile")
        set_keys(session, *keys)
        yield session, made, encoding


def is_text(value, encoding):
    if b"\0" in value:
        return False
    try:
        value.decode("utf-8" if encoding == "UTF8" else "latin-1")
        return True
    except UnicodeDecodeError:
        return False


def outcomes(session, call):
    """The outcome of a call for each row, by number: (result, None), or (None, SQLSTATE)."""
    session.execute(f"""
        CREATE OR REPLACE FUNCTION pg_temp.attempt(row_n integer, OUT result text, OUT code text) LANGUAGE plpgsql AS $$
        BEGIN
            SELECT left(({call})::text, 100) INTO STRICT result FROM hostile WHERE n = row_n;
        EXCEPTION WHEN OTHERS THEN
            code := sqlstate;
        END $$""")
    return session.execute("SELECT a.result, a.code FROM hostile, pg_temp.attempt(n) AS a ORDER BY n").fetchall()


def test_every_function(table, keys):
    session, made, encoding = table
    process = session.info.backend_pid
    calls, codes = 0, Counter()
    for column in "bytes", "words":
        present = [row[0] for row in session.execute(f"SELECT {column} IS NOT NULL FROM hostile ORDER BY n")]
        results = {}
        for call, allowed in CALLS.items():
            if call == ENCRYPT_TEXT and encoding == "SQL_ASCII":
                allowed = {NOT_TEXT}
            results[call] = outcomes(session, call.format(column, column))
            seen = Counter(code for _, code in results[call])
            assert set(seen) <= {None, *allowed}, call
            calls, codes = calls + len(made), codes + seen
        # Not just any result, but Python's, in all its versions.
        for token, is_there, row in zip(made, present, zip(*results.values(), strict=True), strict=True):
            outcome = dict(zip(CALLS, row, strict=True))
            assert {outcome[ENCRYPT][0], outcome[ENCRYPT_TEXT][0]} <= {"true", None}
            if pyca.is_disputed(token):
                continue
            for call, expected in (oracle(keys, token) if is_there else dict.fromkeys(OF_TOKENS, (None, None))).items():
                assert outcome[call] == expected, (call, token[:500])
    assert session.info.backend_pid == process and value(session, "SELECT 1") == 1
    print(f"{len(made)} values, {calls} calls: {dict(codes)}")
    assert calls > 90_000 and set(codes) == {None, NOT_A_TOKEN, NO_KEY, NOT_TEXT, TIME}


def oracle(keys, token):
    """The outcome that a call must have, if Python knows it."""
    if not pyca.is_token(token):
        # Rotation may find a token in it.
        calls = [call for call in OF_TOKENS if "rotate" not in call or not tokens_inside(token)]
        return dict.fromkeys(calls, (None, NOT_A_TOKEN)) | {IS_TOKEN: ("false", None), KEY_INDEX: key_index(keys, token)}
    outcome = {IS_TOKEN: ("true", None)}
    signer = pyca.authenticator(keys, token)
    if signer is None:
        return dict.fromkeys(OF_TOKENS, (None, NO_KEY)) | outcome | {KEY_INDEX: (None, None)}
    outcome[KEY_INDEX] = key_index(keys, token)
    plaintext = pyca.decrypt(keys, token)
    if plaintext is None:
        return dict.fromkeys(OPENING, (None, NO_KEY)) | outcome
    return outcome | {
        f"sha256({DECRYPT})": ("\\x" + sha256(plaintext).hexdigest(), None),
        f"fernet_decrypt_bytea({ROTATE}) = {DECRYPT}": ("true", None),
        f"fernet_key_index({ROTATE})": ("1", None),
    }


def tokens_inside(value):
    """None of the large values holds any, and Python would take far too long to tell."""
    return pyca.tokens_inside(value) if len(value) < 10_000 else []


def key_index(keys, token):
    openers = [pyca.opener(keys, inside) for inside in [token, *tokens_inside(token)]]
    places = [opener + 1 for opener in openers if opener is not None]
    return (str(max(places)) if places else None), None


def test_whole_columns(table, keys):
    session, made, _ = table
    disputed = [n for n, token in enumerate(made) if pyca.is_disputed(token)]
    session.execute("DELETE FROM hostile WHERE n = ANY(%s)", [disputed])
    made = [token for token in made if not pyca.is_disputed(token)]
    found = {row[0] for row in session.execute("SELECT column_name FROM fernet_find_columns() WHERE relation = 'hostile'::regclass")}
    assert found == {"bytes", "words"}
    for column in found:
        statuses = Counter()
        for token, is_there in zip(made, session.execute(f"SELECT {column} IS NOT NULL FROM hostile ORDER BY n"), strict=True):
            opener = pyca.opener(keys, token)
            statuses["nulls" if not is_there[0] else
                     "current" if opener == 0 else
                     "rotated" if opener is not None else
                     "unknown_key" if pyca.is_token(token) else "not_a_token"] += 1
        assert len(statuses) == (4 if column == "bytes" else 5)

        census = Counter()
        for status, tokens in session.execute("SELECT status, tokens FROM fernet_census('hostile', %s)", [column]):
            census[status] += tokens
        assert +census == {STATUS.get(status, status): tokens for status, tokens in statuses.items()}

        # Twice, the first time in tiny batches: the second call finds nothing to do. What no key opens stays
        # unchanged.
        bad = (f"SELECT sha256(string_agg(sha256({column}::bytea), '' ORDER BY n)) FROM hostile"
               f" WHERE fernet_key_index({column}) IS NULL")
        if column == "words":
            bad = bad.replace("words::bytea", "convert_to(words, getdatabaseencoding())")
        before = value(session, bad)
        assert rotate_column(session, column, 3) == statuses
        statuses["current"] += statuses.pop("rotated")
        assert rotate_column(session, column, 10_000) == statuses
        assert value(session, bad) == before
        with pytest.raises(psycopg.Error) as error:
            session.execute("CALL fernet_rotate_column('hostile', %s, strict => true)", [column])
        assert error.value.sqlstate in (NOT_A_TOKEN, NO_KEY)


# What fernet_census calls the counts of fernet_rotate_column.
STATUS = {"rotated": "old key", "unknown_key": "unknown key", "not_a_token": "not a token", "nulls": "null"}


def rotate_column(session, column, batch_size):
    cursor = session.execute("CALL fernet_rotate_column('hostile', %s, %s)", [column, batch_size])
    return +Counter(dict(zip((column.name for column in cursor.description), cursor.fetchone(), strict=True)))
