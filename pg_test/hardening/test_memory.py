"""A session needs no more memory after five million calls than after a thousand: after 100,000 calls in `make
test`. Calls for whole columns take milliseconds: there are ten thousand of them, and two hundred in `make test`."""

import pytest

import pyca
from postgres import connect, peak_memory, private_memory, set_keys, value
from settings import Configuration
from soak import count
from tables import encrypt_writes, wait_until

MEGABYTE = 1024
CALLS = count(100_000, 5_000_000)
WHOLE_COLUMNS = count(200, 10_000)  # of a hundred values each


@pytest.fixture(scope="module", autouse=True)
def no_autovacuum():
    """Once it has analyzed the catalogs, a session plans its statements again, and holds 1.3 MB of statistics more."""
    with connect("postgres") as session, Configuration(session) as configuration:
        configuration.set("autovacuum", "off")
        wait_until(lambda: not value(session, "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'autovacuum%%'"))
        yield


@pytest.fixture
def tokens(db, rng):
    new, old, lost = (pyca.key_of(rng) for _ in range(3))
    set_keys(db, new, old)
    db.execute("LOAD 'pg_fernet'")
    db.execute("SET jit = off")  # takes 20 MB
    two_blocks = pyca.decode(pyca.encrypt(old, bytes(20), 1_700_000_000))
    samples = {
        "new": pyca.encrypt(new, b"hello, world", 1_700_000_000),
        "old": pyca.encrypt(old, b"hello, world", 1_700_000_000),
        "lost": pyca.encrypt(lost, b"hello, world", 1_700_000_000),
        "late": pyca.encrypt(old, b"hello, world", 2**64 - 1),
        "not_text": pyca.encrypt(old, b"\xff", 1_700_000_000),
        "badly_padded": pyca.sign(old, two_blocks[:-32 - 16]),
        "plaintext": b"hello, world",
    }
    db.execute("CREATE TEMP TABLE tokens AS SELECT " + ", ".join(f"%s::text AS {name}" for name in samples),
               [sample.decode() for sample in samples.values()])


def growth(db, run, calls):
    """By how much memory grows over two halves of that many calls, after the first thousand. `run` makes some, and
    returns their number."""
    assert run(1000) == 1000
    sizes = [private_memory(db)]
    for _ in range(2):
        assert run(calls // 2) == calls // 2
        sizes.append(private_memory(db))
    return sizes[1] - sizes[0], sizes[2] - sizes[1]


@pytest.mark.parametrize("call", [
    "fernet_rotate(new)", "fernet_rotate(old)", "fernet_rotate(old::bytea)",
    "fernet_rotate(to_jsonb(old))::text", "fernet_rotate(to_json(old))::text", "fernet_key_index(jsonb_build_array(old, new))",
    "coalesce(fernet_key_index(to_json(plaintext)), 0)",
    "fernet_encrypt(plaintext)", "fernet_encrypt(plaintext::bytea)",
    "fernet_decrypt(old)", "fernet_decrypt(old::bytea)", "fernet_decrypt_bytea(old)", "fernet_decrypt_bytea(old::bytea)",
    "fernet_decrypt(old, '100 years', clock_timestamp())", "fernet_decrypt(old::bytea, '100 years', clock_timestamp())",
    "fernet_decrypt_bytea(old, '100 years', clock_timestamp())", "fernet_decrypt_bytea(old::bytea, '100 years', clock_timestamp())",
    "fernet_is_token(old)", "fernet_is_token(plaintext::bytea)", "fernet_timestamp(old)", "fernet_timestamp(late::bytea)",
    "fernet_key_index(old)", "fernet_key_index(old::bytea)", "coalesce(fernet_key_index(lost), 0)",
    "coalesce(fernet_key_index(plaintext || a), 0)", "fernet_generate_key()",
    "(SELECT count(fingerprint) FROM fernet_keys() WHERE a > 0)",
    # The sum is past the end of timestamptz: an error of the server's is caught each time.
    "fernet_decrypt(old, '1000000 years', clock_timestamp())",
])
def test_every_function(db, tokens, call):
    def run(calls):
        return value(db, f"SELECT count({call}) FROM tokens, generate_series(1, 1000) AS a, generate_series(1, {calls // 1000}) AS b")

    first, second = growth(db, run, CALLS)
    assert first < MEGABYTE
    assert second < MEGABYTE // 4


@pytest.mark.parametrize(("code", "call"), [
    ("55000", "fernet_decrypt(old)"),
    ("22023", "set_config('fernet.keys', plaintext, false)"),
    ("F0000", "fernet_decrypt(old)"),
    ("22P02", "fernet_rotate(plaintext)"),
    ("39000", "fernet_decrypt(lost)"),
    ("39000", "fernet_rotate(jsonb_build_array(old, lost))"),
    ("39000", "fernet_decrypt_bytea(badly_padded::bytea)"),
    ("22000", "fernet_decrypt(old, '1 s')"),
    ("22000", "fernet_decrypt_bytea(late, '1 s')"),
    ("22021", "fernet_decrypt(not_text)"),
])
def test_every_error_caught(db, tokens, code, call):
    if code in ("55000", "F0000"):
        db.execute("RESET fernet.keys")
    if code == "F0000":
        db.execute("SET fernet.keys_file = '/nonexistent/keys'")
    db.execute(f"""
        CREATE FUNCTION pg_temp.catch(code text, times integer) RETURNS bigint LANGUAGE plpgsql AS $$
        DECLARE
            caught bigint := 0;
        BEGIN
            FOR i IN 1..times LOOP
                BEGIN
                    PERFORM {call} FROM tokens;
                EXCEPTION WHEN OTHERS THEN
                    IF sqlstate = code THEN caught := caught + 1; END IF;
                END;
            END LOOP;
            RETURN caught;
        END $$""")
    first, second = growth(db, lambda times: value(db, "SELECT pg_temp.catch(%s, %s)", code, times), count(20_000, CALLS))
    assert first < MEGABYTE
    assert second < MEGABYTE // 4
    # The session is as it was.
    if code not in ("55000", "F0000"):
        assert value(db, "SELECT fernet_key_index(fernet_encrypt('x'))") == 1


@pytest.mark.parametrize("statement", [
    # Two short series: the memory of the server's buffers for a long one grows without the trigger, too.
    "INSERT INTO written SELECT plaintext FROM tokens, generate_series(1, 1000) AS a, generate_series(1, {times} / 1000) AS b",
    "DO $$ BEGIN FOR i IN 1..{times} LOOP INSERT INTO written VALUES ('hello, world'); END LOOP; END $$",
    "DO $$ BEGIN FOR i IN 1..{times} LOOP BEGIN INSERT INTO written SELECT lost FROM tokens;"
    " EXCEPTION WHEN external_routine_invocation_exception THEN NULL; END; END LOOP; END $$",
], ids=["one statement", "a statement for each row", "refused"])
def test_the_trigger(db, tokens, statement):
    # What is in a temporary table is in the session's own memory.
    db.execute("CREATE UNLOGGED TABLE written (value text)")
    encrypt_writes(db, "written")

    def run(times):
        db.execute(statement.format(times=times))
        return times

    try:
        first, second = growth(db, run, count(40_000, CALLS))
        assert value(db, "SELECT count(*) FROM written") == (0 if "EXCEPTION" in statement else 1000 + count(40_000, CALLS))
    finally:
        db.execute("DROP TABLE written")
    assert first < MEGABYTE
    assert second < MEGABYTE // 4


@pytest.mark.parametrize("type", ["text", "char(200)", "bytea"])
def test_columns_there_and_back(db, tokens, type):
    db.execute(f"CREATE TEMP TABLE there AS SELECT ('secret ' || n)::{type} AS value FROM generate_series(1, 100) AS n")
    db.execute("SET client_min_messages = error")

    def run(values):
        for _ in range(values // 100):
            for procedure in "encrypt", "decrypt":
                assert db.execute(f"CALL fernet_{procedure}_column('there', 'value', 40)").fetchone()[0] == 100
        return values

    first, second = growth(db, run, 100 * WHOLE_COLUMNS)
    assert first < MEGABYTE
    assert second < MEGABYTE // 4


@pytest.mark.parametrize("type", ["text", "jsonb", "text[]"])
@pytest.mark.parametrize("call", [
    "SELECT sum(tokens) FROM fernet_census('hundred', 'token')",
    "SELECT sum(sampled) FROM fernet_find_columns() WHERE relation = 'hundred'::regclass",
    "CALL fernet_rotate_column('hundred', 'token', 40)",
])
def test_whole_columns(db, tokens, call, type):
    """Of a hundred values, so that all of them are sampled."""
    db.execute("CREATE TEMP TABLE hundred AS SELECT CASE WHEN n % 10 = 0 THEN lost ELSE old END AS token FROM tokens, generate_series(1, 100) AS n")
    using = {"text": "token", "jsonb": "to_jsonb(token)", "text[]": "ARRAY[token]"}[type]
    db.execute(f"ALTER TABLE hundred ALTER token TYPE {type} USING {using}")
    db.execute("SET client_min_messages = error")

    def run(values):
        for _ in range(values // 100):
            cursor = db.execute(call)
            assert sum(cursor.fetchone()) == 100
        return values

    first, second = growth(db, run, 100 * WHOLE_COLUMNS)
    assert first < MEGABYTE
    assert second < MEGABYTE // 4


def test_large_values(db, rng):
    """Each is 2 MB, out of line, so that it is fetched into memory again for each row."""
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    set_keys(db, old)
    db.execute("CREATE TEMP TABLE large AS SELECT fernet_encrypt(%s::bytea) AS token", [rng.randbytes(1_500_000)])
    set_keys(db, new, old)
    db.execute("SET jit = off")

    def peak(rows):
        value(db, "SELECT sum(length(fernet_decrypt_bytea(fernet_rotate(token)))) FROM large, generate_series(1, %s)", rows)
        return private_memory(db)

    few = peak(2)
    assert peak(count(100, 5000)) - few < 2 * MEGABYTE


def test_large_values_of_a_view(db, rng):
    """They are all stored in their rows, so that few rows are fetched at a time."""
    set_keys(db, pyca.key_of(rng))
    db.execute("CREATE TEMP VIEW large AS SELECT repeat('x', 1000000) AS value FROM generate_series(1, 200)")
    before = peak_memory(db)
    assert value(db, "SELECT tokens FROM fernet_census('large', 'value') WHERE status = 'not a token'") == 200
    assert peak_memory(db) - before < 60 * MEGABYTE


def test_changes_of_the_setting(db, rng):
    """Each drops the keys before it."""
    lists = [",".join(pyca.key_of(rng) for _ in range(100)) for _ in range(2)]

    def run(times):
        return value(db, "SELECT count(fernet_encrypt(set_config('fernet.keys', (%s::text[])[1 + n %% 2], false)::bytea))"
                         " FROM generate_series(1, %s) AS n", lists, times)

    first, second = growth(db, run, count(2000, 200_000))
    assert first + second < 2 * MEGABYTE
