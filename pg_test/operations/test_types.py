"""All types of columns that can hold tokens: found, counted, rotated, and otherwise unchanged."""

import re
import time
from contextlib import contextmanager

import pytest
from psycopg import errors

import pyca
from postgres import major_version, notices, peak_memory, value
from tables import DECRYPT, ENCRYPT, LOST, NEW, OLD, census, in_background, rotate, under, wait_until

TOKEN = re.compile(r"gAAAAA[A-Za-z0-9_=-]+")
DOMAINS = """
    CREATE DOMAIN token AS text CHECK (VALUE LIKE 'gAAA%' OR length(VALUE) < 10);
    CREATE DOMAIN tokens AS token[];
    CREATE DOMAIN document AS jsonb CHECK (VALUE ? 'a')"""
# By type: a value with several tokens, which are $1, $2 and so on.
TYPES = {
    "text": (1, "$1"),
    "varchar(300)": (2, "$1 || ', ' || $2"),
    "char(150)": (1, "$1"),
    "bytea": (1, r"'\x00ff'::bytea || convert_to('fernet:' || $1, 'UTF8') || '\x00'::bytea"),
    "json": (3, """('{"a" : "' || $1 || '", "a":1.0,"b":["' || $2 || '", "' || $3 || '"]}')::json"""),
    "jsonb": (2, "jsonb_build_object('a', $1::text, 'b', jsonb_build_array(1.50, null, $2::text))"),
    "xml": (1, "('<a b=\"&amp;\"><!-- x -->' || $1 || '</a>')::xml"),
    "aside.hstore": (2, r"""aside.hstore(ARRAY['a', 'b', 'c " \', 'd'], ARRAY[$1::text, NULL, ' , => "\', $2::text])"""),
    "aside.citext": (1, "$1::aside.citext"),
    "text[]": (2, "ARRAY[$1, NULL, '', 'x', $2]"),
    "varchar(150)[]": (4, "ARRAY[[$1, $2], [$3, $4]]"),
    "char(150)[]": (1, "ARRAY[$1, NULL]"),
    "bytea[]": (2, r"ARRAY[$1::bytea, '\x00ff'::bytea || $2::bytea || '\x00'::bytea, NULL]"),
    "json[]": (2, """ARRAY[('{"a" :"' || $1 || '"}')::json, to_json($2::text), NULL]"""),
    "jsonb[]": (2, "ARRAY[jsonb_build_array($1::text), '{}', to_jsonb($2::text)]"),
    "xml[]": (1, "ARRAY[('x <a>' || $1 || '</a>')::xml]"),
    "aside.hstore[]": (1, "ARRAY[aside.hstore('a', $1), NULL]"),
    "aside.citext[]": (1, "ARRAY[$1::aside.citext]"),
    "token": (1, "$1"),
    "token[]": (2, "ARRAY[$1, 'x', NULL, $2]::token[]"),
    "tokens": (1, "ARRAY[$1, 'x']"),
    "document": (1, "jsonb_build_object('a', $1::text)"),
}


@pytest.fixture
def db(sessions):
    """A session in a schema of its own, with all extensions that the server has, in one that is in no path."""
    db = sessions()
    db.execute("CREATE SCHEMA types; CREATE SCHEMA aside; SET search_path = types, public; SET bytea_output = escape")
    for extension in "hstore", "citext":
        if value(db, "SELECT count(*) FROM pg_available_extensions WHERE name = %s", extension):
            db.execute(f"CREATE EXTENSION {extension} SCHEMA aside")
    db.execute(DOMAINS)
    yield db
    db.execute("DROP SCHEMA types, aside CASCADE")


def make(db, type, rows=10):
    """A table of such values under the old key, with a null and, if the type has one, an empty value."""
    count, expression = TYPES[type]
    if "." in type and value(db, "SELECT to_regtype(%s) IS NULL", type):
        pytest.skip(f"no {type} here")
    tokens = [f"fernet_encrypt(id || ' secret {n}')" for n in range(1, count + 1)]
    expression = re.sub(r"\$(\d)", lambda number: f"t.v[{number[1]}]", expression)
    db.execute(f"CREATE TABLE secrets (id integer, value {type})")
    try:
        with under(db, OLD):
            db.execute(f"INSERT INTO secrets SELECT id, {expression} FROM generate_series(1, {rows}) AS id,"
                       f" LATERAL (SELECT ARRAY[{', '.join(tokens)}] AS v) AS t")
    except errors.FeatureNotSupported:
        pytest.skip(f"no {type} here")
    db.execute("INSERT INTO secrets VALUES (0)")
    return count


def contents(db, keys):
    """For each row, the value without its tokens, and their plaintexts under these keys."""
    rows = db.execute("SELECT value::text FROM secrets WHERE id > 0 ORDER BY id").fetchall()
    return [(TOKEN.sub("", text), [pyca.decrypt(keys, token) for token in TOKEN.findall(text)]) for (text,) in rows]


@pytest.mark.parametrize("trigger", [False, True], ids=["alone", "with a trigger"])
@pytest.mark.parametrize("type", TYPES)
def test_a_column(db, type, trigger):
    count = make(db, type)
    if trigger:
        # What it leaves is checked.
        db.execute("CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
                   " CREATE TRIGGER watch BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION watch()")
    before = contents(db, [OLD])
    assert all(plaintexts == [f"{id} secret {n}".encode() for n in range(1, count + 1)]
               for id, (_, plaintexts) in enumerate(before, 1))
    found = "SELECT column_name, sampled, tokens FROM fernet_find_columns() WHERE relation = 'secrets'::regclass"
    assert db.execute(found).fetchall() == [("value", 10, 10 * count)]
    with db.transaction():
        # Without keys, by their form.
        db.execute("SET LOCAL fernet.keys TO DEFAULT")
        assert db.execute(found).fetchall() == [("value", 10, 10 * count)]
    assert census(db) == {"old key": 10 * count, "null": 1}

    warnings = notices(db, "WARNING")
    assert rotate(db) == {"rotated": 10 * count, "current": 0, "unknown_key": 0, "not_a_token": 0, "nulls": 1}
    assert contents(db, [NEW]) == before
    assert census(db) == {"current": 10 * count, "null": 1}
    assert rotate(db) == {"rotated": 0, "current": 10 * count, "unknown_key": 0, "not_a_token": 0, "nulls": 1}
    assert warnings == []


# From 19 on, a backslash escapes only in E''.
STRINGS = ["escape_string_warning = off", "standard_conforming_strings = off"] if major_version() < 19 else []
# Settings that any role may change: how values, names and places are written and read, how a query is done, and what
# transactions are like.
SETTINGS = {
    "forms": ["array_nulls = off", "backslash_quote = off", "bytea_output = escape", "client_encoding = LATIN1", "DateStyle = 'German, DMY'",
              *STRINGS, "extra_float_digits = -15", "IntervalStyle = sql_standard", "quote_all_identifiers = on",
              "TimeZone = 'Asia/Kathmandu'", "transform_null_equals = on", "xmlbinary = hex",
              "xmloption = document"],
    "plans": ["bytea_output = hex", "cursor_tuple_fraction = 1", "enable_bitmapscan = off", "enable_indexscan = off", "enable_nestloop = off",
              "enable_seqscan = off", "enable_tidscan = off", "from_collapse_limit = 1", "jit = off", "join_collapse_limit = 1",
              "plan_cache_mode = force_custom_plan", "work_mem = '64kB'"],
    "transactions": ["default_transaction_deferrable = on", "default_transaction_isolation = serializable", "lock_timeout = '1d'",
                     "plan_cache_mode = force_generic_plan", "plpgsql.extra_errors = 'all'", "row_security = off",
                     "statement_timeout = '90min'"],
}


@contextmanager
def settings(db, kind):
    """A session that has changed all of these settings."""
    for setting in SETTINGS[kind]:
        db.execute(f"SET {setting}")
    yield
    for setting in SETTINGS[kind]:
        db.execute(f"RESET {setting.partition(' ')[0]}")
    db.execute("SET bytea_output = escape")


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_do_not_matter(db, kind):
    """Values with tokens in them, and documents in which a token is in two pieces, which is none."""
    rows = 12
    for type in TYPES:
        if type.startswith("aside") and value(db, "SELECT to_regtype(%s) IS NULL", type):
            continue
        count = make(db, type, rows)
        before = contents(db, [OLD])
        pieces = 0
        if type in ("json", "jsonb"):
            pieces = 1
            with under(db, OLD):
                db.execute(f"INSERT INTO secrets SELECT -1, to_{type}(ARRAY[left(t, 50), substr(t, 51)]) FROM fernet_encrypt('x') AS t")
        broken = value(db, "SELECT value::text FROM secrets WHERE id <= 0 ORDER BY id LIMIT 1")
        with settings(db, kind):
            assert census(db) == {"old key": rows * count, "null": 1} | ({"not a token": 1} if pieces else {}), type
            assert rotate(db, batch_size=11) == {"rotated": rows * count, "current": 0, "unknown_key": 0, "not_a_token": pieces, "nulls": 1}, type
            found = "SELECT column_name, sampled, tokens FROM fernet_find_columns() WHERE relation = 'secrets'::regclass"
            assert db.execute(found).fetchall() == [("value", rows + pieces, rows * count)], type
        assert contents(db, [NEW]) == before, type
        assert value(db, "SELECT value::text FROM secrets WHERE id <= 0 ORDER BY id LIMIT 1") == broken, type
        db.execute("DROP TABLE secrets")


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_do_not_matter_to_plaintexts(db, kind):
    """Encrypted by a call and by a trigger, and back."""
    for type in "text", "varchar(200)", "bytea":
        values = [b"", b"a\\b 'c'", b"\x00\xff\\x00" if type == "bytea" else "käse".encode()]
        db.execute(f"CREATE TABLE secrets (id integer, value {type}); CREATE TRIGGER encrypt BEFORE INSERT ON secrets FOR EACH ROW"
                   " WHEN (NEW.id < 0) EXECUTE FUNCTION fernet_encrypt_trigger('value')")
        insert = "INSERT INTO secrets VALUES (%s, %s)"
        for id, bytes in enumerate(values, 1):
            db.execute(insert, [id, bytes if type == "bytea" else bytes.decode()])
        with settings(db, kind):
            for id, bytes in enumerate(values, 1):
                db.execute(insert, [-id, bytes if type == "bytea" else bytes.decode()])
            assert ENCRYPT.call(db)["encrypted"] == len(values), type
        tokens = db.execute("SELECT value::text, abs(id) FROM secrets").fetchall()
        assert [pyca.decrypt([NEW], token) for token, id in tokens] == [values[id - 1] for _, id in tokens], type
        with settings(db, kind):
            assert DECRYPT.call(db)["decrypted"] == 2 * len(values), type
        for bytes, id in db.execute("SELECT value, abs(id) FROM secrets"):
            assert (bytes if type == "bytea" else bytes.encode()) == values[id - 1], type
        db.execute("DROP TABLE secrets")


PLAIN = ["text", "varchar(300)", "char(200)", "bytea", "aside.citext", "code"]


@pytest.mark.parametrize("trigger", [False, True], ids=["alone", "with a trigger"])
@pytest.mark.parametrize("type", PLAIN)
def test_there_and_back(db, type, trigger):
    """What is encrypted is what the functions on single values would encrypt, and decryption restores what was there
    before."""
    if "." in type and value(db, "SELECT to_regtype(%s) IS NULL", type):
        pytest.skip(f"no {type} here")
    db.execute("CREATE DOMAIN code AS varchar(200)")
    db.execute(f"CREATE TABLE secrets (id integer, value {type})")
    texts = ["", "a", "15 bytes of text", " blanks  ", "gAAAAA", "käse 🐘", "x" * 60]
    for id, text in enumerate(texts):
        db.execute(f"INSERT INTO secrets VALUES (%s, %s::{type})", [id, text.encode() if type == "bytea" else text])
    db.execute("INSERT INTO secrets VALUES (-1)")
    if trigger:
        db.execute("CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
                   " CREATE TRIGGER watch BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION watch()")
    before = db.execute("SELECT id, value FROM secrets ORDER BY id").fetchall()
    warnings = notices(db, "WARNING")
    assert ENCRYPT.call(db) == ENCRYPT.counts(len(texts)) | {"nulls": 1}
    tokens = db.execute("SELECT value::text::bytea FROM secrets WHERE id >= 0 ORDER BY id" if type != "bytea"
                        else "SELECT value FROM secrets WHERE id >= 0 ORDER BY id").fetchall()
    padded = str.rstrip if type == "char(200)" else str
    assert [pyca.decrypt([NEW], token.strip()).decode() for (token,) in tokens] == [padded(text) for text in texts]
    assert ENCRYPT.call(db) == ENCRYPT.counts(0, len(texts)) | {"nulls": 1}
    assert DECRYPT.call(db) == DECRYPT.counts(len(texts)) | {"nulls": 1}
    assert db.execute("SELECT id, value FROM secrets ORDER BY id").fetchall() == before
    assert DECRYPT.call(db) == DECRYPT.counts(0, len(texts)) | {"nulls": 1}
    assert warnings == []


@pytest.mark.parametrize("type", sorted({*TYPES} - {*PLAIN, "char(150)"}))
def test_what_is_not_encrypted_as_a_whole(db, type):
    make(db, type)
    before = db.execute("SELECT value::text FROM secrets ORDER BY id").fetchall()
    # The domain over text has a constraint that plaintexts might not satisfy. There is nothing in it to encrypt.
    refusal = "which cannot be encrypted or decrypted as a whole" if type != "token" else "is in constraint token_check of domain types.token"
    for conversion in [ENCRYPT, DECRYPT] if type != "token" else [DECRYPT]:
        with pytest.raises((errors.DatatypeMismatch, errors.DependentObjectsStillExist), match=refusal):
            conversion.call(db)
    assert db.execute("SELECT value::text FROM secrets ORDER BY id").fetchall() == before


@pytest.mark.parametrize("type", ["jsonb", "text[]", "json"])
def test_unknown_keys_and_no_tokens(db, type):
    """Each token counts, and a token that no key opens does not keep the others of its value from being
    rotated."""
    make(db, "jsonb")
    unknown = pyca.encrypt(LOST, b"secret", 1_700_000_000).decode()
    db.execute("UPDATE secrets SET value = jsonb_set(value, '{c}', to_jsonb(%s::text)) WHERE id = 1", [unknown])
    db.execute("INSERT INTO secrets VALUES (11, '{\"a\": \"x\", \"b\": []}')")
    if type == "text[]":
        db.execute("ALTER TABLE secrets ALTER value TYPE text[]"
                   " USING CASE WHEN value IS NOT NULL THEN ARRAY[value->>'a', value->'b'->>2, value->>'c'] END")
    else:
        db.execute(f"ALTER TABLE secrets ALTER value TYPE {type}")
    assert census(db) == {"old key": 20, "unknown key": 1, "not a token": 1, "null": 1}
    details = []
    db.add_notice_handler(lambda diag: details.append(diag.message_detail))
    assert rotate(db) == {"rotated": 20, "current": 0, "unknown_key": 1, "not_a_token": 1, "nulls": 1}
    # A document without a token is no fault.
    [detail] = filter(None, details)
    assert re.fullmatch(r"\(0,\d+\) of types.secrets: no key authenticates the Fernet token\.", detail) and ";" not in detail
    assert unknown in value(db, "SELECT value::text FROM secrets WHERE id = 1")
    assert census(db) == {"current": 20, "unknown key": 1, "not a token": 1, "null": 1}
    with pytest.raises(errors.Error) as raised:
        rotate(db, strict=True)
    assert raised.value.sqlstate == "39000"
    db.execute("DELETE FROM secrets WHERE id = 1")
    assert rotate(db, strict=True)["not_a_token"] == 1


def test_shapes_of_arrays(db):
    make(db, "text[]", rows=1)
    token, plaintext = db.execute("SELECT value[1], value FROM secrets WHERE id = 1").fetchone()
    for shape in "{}", "[-3:-2][5:5]={{%s},{%s}}", "[0:2]={NULL,%s,\"\"}", "{{{%s}}}":
        db.execute("UPDATE secrets SET value = %s WHERE id = 1", [shape.replace("%s", token)])
        rotate(db)
        rotated = value(db, "SELECT value::text FROM secrets WHERE id = 1")
        assert TOKEN.sub("%s", rotated) == shape
        assert all(pyca.decrypt([NEW], token) == b"1 secret 1" for token in TOKEN.findall(rotated))


def test_a_row_that_somebody_changes(db, sessions):
    """Its newest version is what is rotated."""
    make(db, "jsonb")
    writer, caller = sessions(), sessions()
    caller.execute("SET search_path = types, public")
    writer.execute("BEGIN; UPDATE types.secrets SET value = value || '{\"new\": true}' WHERE id = 5")
    with in_background(rotate, caller) as call:
        wait_until(lambda: value(db, "SELECT count(*) FROM types.secrets WHERE fernet_key_index(value) = 1") == 9)
        writer.execute("COMMIT")
    assert call.result()["rotated"] == 20
    assert census(db) == {"current": 20, "null": 1}
    assert value(db, "SELECT count(*) FROM secrets WHERE value ? 'new'") == 1


def test_constraints_of_elements(db):
    """An element is checked by its domain, as if a statement had written it."""
    make(db, "token[]")
    db.execute("ALTER DOMAIN token ADD CONSTRAINT short CHECK (length(VALUE) < 20) NOT VALID")
    with pytest.raises(errors.CheckViolation, match='domain token violates check constraint "short"'):
        rotate(db)
    assert census(db) == {"old key": 20, "null": 1}


def test_only_new_elements_are_checked(db):
    """A statement would not check the others, either. It takes no extra memory for each."""
    make(db, "token[]")
    db.execute("ALTER TABLE secrets ALTER value TYPE token[] USING value || ARRAY['short', NULL]::text[]")
    db.execute("ALTER DOMAIN token ADD CONSTRAINT short CHECK (length(VALUE) > 50 OR VALUE IS NULL) NOT VALID;"
               " ALTER DOMAIN token ADD CONSTRAINT present CHECK (VALUE IS NOT NULL) NOT VALID")
    assert rotate(db)["rotated"] == 20
    db.execute("UPDATE secrets SET value = value || array_fill(value[1], ARRAY[100000]) WHERE id = 1")
    before = peak_memory(db)
    assert rotate(db)["current"] == 100_020
    assert peak_memory(db) - before < 100_000


@pytest.mark.parametrize("number", [3000, 10_000])
def test_a_document_that_prints_as_a_gigabyte(db, number):
    """Reading it and rotating its tokens takes no more memory than its own size."""
    make(db, "jsonb", rows=1)
    db.execute("UPDATE secrets SET value = value || ('{\"n\": [' || repeat('1e131071, ', %s) || '1]}')::jsonb WHERE id = 1", [number])
    assert value(db, "SELECT pg_column_size(value) < 10000 FROM secrets WHERE id = 1")
    before = peak_memory(db)
    assert db.execute("SELECT tokens FROM fernet_find_columns() WHERE relation = 'secrets'::regclass").fetchall() == [(2,)]
    assert census(db) == {"old key": 2, "null": 1}
    assert value(db, "SELECT fernet_key_index(value) FROM secrets WHERE id = 1") == 2
    assert rotate(db)["rotated"] == 2
    assert census(db) == {"current": 2, "null": 1}
    assert value(db, "SELECT jsonb_array_length(value->'n') FROM secrets WHERE id = 1") == number + 1
    assert peak_memory(db) - before < 50_000


def test_keys_of_objects(db):
    """An object's key may be a token, and the object then has another order."""
    make(db, "jsonb")
    db.execute("UPDATE secrets SET value = jsonb_build_object(value->>'a', 1, value->'b'->>2, 2, 'other', value->'a') WHERE id > 0")
    assert census(db) == {"old key": 30, "null": 1}
    assert rotate(db)["rotated"] == 30
    assert census(db) == {"current": 30, "null": 1}
    assert value(db, "SELECT bool_and(value = value::text::jsonb) FROM secrets WHERE id > 0")
    for id, key, number in db.execute("SELECT id, key, v::int FROM secrets, jsonb_each(value) AS e(key, v) WHERE key <> 'other'"):
        assert pyca.decrypt([NEW], key) == f"{id} secret {number}".encode()


@pytest.mark.parametrize("type", ["json", "jsonb", "aside.hstore"])
def test_a_document_as_a_whole_is_no_token(db, type):
    """Not even if its strings, one after the other, would be one."""
    make(db, "text")
    if "." in type and value(db, "SELECT to_regtype(%s) IS NULL", type):
        pytest.skip(f"no {type} here")
    using = f"('{{\"' || left(value, 76) || '\": \"' || substr(value, 77) || '\"}}')::{type}" if "json" in type else \
        "aside.hstore(left(value, 76), substr(value, 77))"
    db.execute(f"ALTER TABLE secrets ALTER value TYPE {type} USING {using}")
    before = db.execute("SELECT value::text FROM secrets ORDER BY id").fetchall()
    assert census(db) == {"not a token": 10, "null": 1}
    assert rotate(db)["not_a_token"] == 10
    assert db.execute("SELECT value::text FROM secrets ORDER BY id").fetchall() == before
    if "json" in type:
        assert value(db, "SELECT count(*) FROM secrets WHERE fernet_rotate(value)::text = value::text") == 10


def test_a_long_array_can_be_cancelled(db):
    make(db, "text[]", rows=1)
    db.execute("UPDATE secrets SET value = array_fill(value[1], ARRAY[1000000]) WHERE id = 1")
    db.execute("SET statement_timeout = 100")
    start = time.monotonic()
    with pytest.raises(errors.QueryCanceled):
        db.execute("SELECT * FROM fernet_census('secrets', 'value')")
    assert time.monotonic() - start < 2
    db.execute("RESET statement_timeout")


@pytest.mark.parametrize("type", ["integer", "integer[]", "name", "tsvector", "jsonpath", "int4range", "name[]"])
def test_what_cannot_hold_tokens(db, type):
    db.execute(f"CREATE TABLE secrets (id integer, value {type})")
    for statement in "SELECT fernet_census('secrets', 'value')", "CALL fernet_rotate_column('secrets', 'value')":
        with pytest.raises(errors.DatatypeMismatch, match="which cannot hold tokens"):
            db.execute(statement)
    assert db.execute("SELECT FROM fernet_find_columns() WHERE relation = 'secrets'::regclass").fetchall() == []


@pytest.mark.parametrize("definition", ["AS ENUM ('x')", "AS (x text)", "AS RANGE (SUBTYPE = text)"])
def test_a_type_that_somebody_has_added_to_hstore(db, definition):
    """The owner of the extension may add types to it. What they print may depend on settings."""
    if not value(db, "SELECT count(*) FROM pg_extension WHERE extname = 'hstore'"):
        pytest.skip("no hstore here")
    db.execute(f"CREATE TYPE added {definition}; ALTER EXTENSION hstore ADD TYPE added")
    try:
        db.execute("CREATE TABLE secrets (value added)")
        example = {"AS E": "'x'", "AS (": "ROW('x')", "AS R": "'[a,b]'"}[definition[:4]]
        db.execute(f"INSERT INTO secrets VALUES ({example})")
        db.execute("SELECT FROM fernet_find_columns()")
        for statement in "SELECT FROM fernet_census('secrets', 'value')", "CALL fernet_rotate_column('secrets', 'value')":
            with pytest.raises(errors.DatatypeMismatch, match="which cannot hold tokens"):
                db.execute(statement)
        assert value(db, "SELECT value::text FROM secrets") in ("x", "(x)", "[a,b]")
    finally:
        db.execute("ALTER EXTENSION hstore DROP TYPE added")


@pytest.mark.parametrize("prepare", [False, True])
def test_arguments_that_are_sent_apart_from_the_statement(db, conversion, prepare):
    """As most drivers do. The transaction then begins before the statement, as in a block."""
    conversion.fill(db, 10)
    db.execute(f"CALL fernet_{conversion.name}_column(%s::regclass, %s::name)", ["secrets", "value"], prepare=prepare)
    assert census(db) == {conversion.after: 10}
