"""fernet.mask_log: what the server log shows, in each format, and that nothing else changes."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

import pyca
from cluster import RUN
from hunt import HAS_CONTRIB
from key_files import folder_for, key
from postgres import connect, create_database, force_parallel, major_version, memory, notices, peak_memory, private_memory, server, value
from settings import reload
from tables import wait_until

CONFIGURATION = f"""
shared_preload_libraries = '{"auto_explain," * HAS_CONTRIB}pg_fernet'
logging_collector = on
log_destination = 'stderr, csvlog, jsonlog'
log_filename = 'mask.log'
log_statement = all
log_min_duration_statement = 0
log_parameter_max_length_on_error = -1
log_min_messages = debug1
deadlock_timeout = 100ms
auto_explain.log_min_duration = 0
auto_explain.log_verbose = on
"""
MEGABYTE = 1 << 20
FORMATS = {"stderr": "mask.log", "csvlog": "mask.csv", "jsonlog": "mask.json"}
MASK = "***"

# Statements that bring {key} or {text} into each part of the log that can have them, and how they end. %s is
# a parameter.
KEYS = {
    "SET fernet.keys = '{key}'": None,
    "SET fernet.keys = '{key},{key}', '{key}'": None,
    "SET fernet.keys = '{key},{piece}'": "22023",
    "SELECT set_config('fernet.keys', %s, false) IS NOT NULL": None,
    "SELECT set_config('fernet.keys', %s, false) IS NOT NULL, 1 / (random() * 0)::int": "22012",
    "DO $$ BEGIN EXECUTE 'SET fernet.keys = ''{key},{piece}'''; END $$": "22023",
    "DO $$ BEGIN RAISE WARNING '%', '{key}' USING DETAIL = '{key}', HINT = '{key}'; END $$": None,
    "DO $$ BEGIN RAISE LOG 'ä € {key} ä €'; END $$": None,
    "DO $$ BEGIN RAISE '{key}'; END $$": "P0001",
    "SELECT '{key}' /* {key} */ FROM nothing -- {key}": "42P01",
    "DO $$ BEGIN EXECUTE 'SELECT ''{key}'' FROM nothing'; END $$": "42P01",
    "PREPARE p AS SELECT '{key}'; EXECUTE p; DEALLOCATE p": None,
}
LITERALS = {
    "SELECT '{text}', E'\\'{text}', $x${text}$x$, U&'{text}'": None,
    "SELECT length(%s), length('{text}')": None,
    "SELECT length(%s), 1 / (random() * 0)::int": "22012",
    'SELECT 1 AS "it\'s", \'{text}\' AS "\'", \'{text}\' -- don\'t': None,
    "SELECT '{text}' FROM nothing": "42P01",
    "DO $$ BEGIN EXECUTE 'SELECT ''{text}'' FROM nothing'; END $$": "42P01",
    "DO $$ BEGIN PERFORM 1 / (length('{text}') * 0); END $$": "22012",
    "PREPARE p AS SELECT '{text}'; EXECUTE p; DEALLOCATE p": None,
    # What continues in another line is the same literal, with escapes if it has any.
    "SELECT E'a'\n'b\\'{text}', e'a' -- b\r\n\t'\\'{text}'": None,
    "SELECT 1 -- it's\r, '{text}'": None,
    "SELECT a$$b$$, '{text}', $$ $$ FROM (SELECT 1) AS x (a$$b$$)": None,
    "SELECT 'a' LIKE 'b' ESCAPE '\\', '{text}'": None,
}


class Logged:
    """A server that logs everything, in all formats."""

    def __init__(self, host):
        self.host = host
        self.folder = Path(host, "data", "log")

    def connect(self, database="postgres", **options):
        session = connect(database, host=self.host, **options)
        session.execute("SET client_min_messages = warning")
        return session

    def read(self, kind):
        return (self.folder / FORMATS[kind]).read_bytes()

    def mark(self):
        """Logs something, waits for it in all formats, and returns it."""
        mark = f"-- {time.monotonic_ns()}"
        with self.connect() as session:
            session.execute("SET auto_explain.log_min_duration = -1")
            session.execute(f"SELECT 1 {mark}")
        wait_until(lambda: all(mark.encode() in self.read(kind) for kind in FORMATS))
        return mark.encode()

    def logged(self, action):
        """What the action has logged, by format."""
        start = self.mark()
        action()
        end = self.mark()
        return {kind: self.read(kind).rpartition(start)[2].partition(b"\n")[2].partition(end)[0].rpartition(b"\n")[0]
                for kind in FORMATS}

    @staticmethod
    def run(session, statements, **secrets):
        for statement, sqlstate in statements.items():
            ended = None
            for part in statement.split("; ") if statement.startswith("PREPARE") else [statement]:
                for name, secret in secrets.items():
                    part = part.replace("{" + name + "}", secret)
                try:
                    session.execute(part, [next(iter(secrets.values()))] * part.count("%s") or None)
                except psycopg.Error as error:
                    ended = error.sqlstate
            assert ended == sqlstate, statement


def pieces(secret):
    return {secret[start:start + 12] for start in range(len(secret) - 11)}


def shows(log, secret):
    return any(piece.encode() in log for piece in pieces(secret))


@pytest.fixture(scope="module")
def logged():
    with server(CONFIGURATION) as host:
        with connect("postgres", host=host) as admin:
            admin.execute("CREATE EXTENSION pg_fernet; CREATE ROLE ordinary LOGIN")
        yield Logged(host)


@pytest.fixture
def session(logged):
    with logged.connect() as session:
        yield session


@pytest.fixture
def secret():
    return key()


def records(log):
    """What does not change from run to run in the JSON log."""
    for line in log.decode("utf-8", "replace").splitlines():
        record = json.loads(line)
        for name in "timestamp", "pid", "session_id", "line_num", "session_start", "vxid", "txid", "query_id":
            record.pop(name, None)
        yield {name: re.sub(r"\d+\.\d+ ms", "ms", value) if isinstance(value, str) else value for name, value in record.items()}


def test_keys_are_in_no_format(logged, session, secret):
    log = logged.logged(lambda: logged.run(session, KEYS, key=secret, piece=secret[:30]))
    for kind in FORMATS:
        assert not shows(log[kind], secret), kind
        assert log[kind].count(MASK.encode()) > 2 * len(KEYS)
        assert "ä € *** ä €".encode() in log[kind]
    # As many columns as ever.
    assert len({len(row) for row in csv.reader(log["csvlog"].decode().splitlines(keepends=True))}) == 1


def test_nothing_else_of_a_line_changes(logged, secret):
    """With the setting off, the log has the keys, and is otherwise the same."""
    def run(setting):
        with logged.connect(application_name="traced") as session:
            session.execute(f"SET fernet.mask_log = {setting}")
            log = logged.logged(lambda: logged.run(session, KEYS, key=secret, piece=secret[:30]))["jsonlog"]
        return [record for record in records(log) if record.get("application_name") == "traced"]

    masked, unmasked = run("keys"), run("off")
    assert sum(secret in str(record) for record in unmasked) > len(KEYS)
    replaced = [json.loads(json.dumps(record).replace(secret, MASK).replace(secret[:30], MASK)) for record in unmasked]
    assert masked == replaced


def test_the_client_gets_what_it_got(logged, session, secret):
    """And so does the statement itself."""
    told = notices(session)
    session.execute(f"DO $$ BEGIN RAISE WARNING '{secret}'; END $$")
    assert told == [secret]
    with pytest.raises(psycopg.errors.UndefinedTable) as error:
        session.execute(f"DO $$ BEGIN EXECUTE 'SELECT ''{secret}'' FROM nothing'; END $$")
    assert error.value.diag.internal_query == f"SELECT '{secret}' FROM nothing"
    assert error.value.diag.internal_position == str(error.value.diag.internal_query.index("nothing") + 1)
    query = f"SELECT current_query(), '{secret}'"
    assert session.execute(query).fetchone() == (query, secret)


def test_tokens_stay(logged, session, secret):
    token = pyca.encrypt(secret, b"hello", 0).decode()
    log = logged.logged(lambda: session.execute(f"SET fernet.keys = '{secret}'; SELECT fernet_decrypt('{token}')"))
    for kind in FORMATS:
        assert token.encode() in log[kind]
        assert not shows(log[kind], secret)


@pytest.mark.parametrize("statement", [
    "SET fernet.keys = '{}'",
    'SET "fernet"."keys" = \'{}\'',
    "SET fernet . keys TO '{}'",
    "SELECT set_config('fernet.keys', '{}', false) IS NOT NULL",
    "SELECT set_config('fernet.keys', %s, false) IS NOT NULL",
    "SELECT set_config('fernet.keys', %s, false) IS NOT NULL, 1 / (random() * 0)::int",
])
@pytest.mark.parametrize("gap", [" ", "\n", "\t", ". ", ";", ":", "'\n'", "' || '"])
def test_keys_with_gaps(logged, session, secret, statement, gap):
    """The server accepts them, except for an operator in SET."""
    broken = gap.join(secret[start:start + 4] for start in range(0, len(secret), 4))

    def run():
        with suppress(psycopg.errors.DivisionByZero, psycopg.errors.SyntaxError):
            session.execute(statement.replace("{}", broken), [broken] if "%s" in statement else None)

    log = logged.logged(run)
    for kind in FORMATS:
        assert MASK.encode() in log[kind]
        assert not any(part.encode() in log[kind] for part in broken.split(gap) if len(part) == 4), kind


@pytest.mark.parametrize("statement", [
    "WITH v (v, n) AS (VALUES ('{}', 'fernet.keys')) SELECT set_config(n, v, false) IS NOT NULL FROM v",
    "SELECT set_config(n, v, false) IS NOT NULL FROM (SELECT %s AS v, %s AS n) AS v",
    "SELECT set_config(n, v, false) IS NOT NULL FROM (SELECT %s AS v, %s AS n) AS v -- fernet.keys",
    "SET a.list = '{}'; SET fernet.keys = 'abc'",
    "UPDATE pg_settings SET setting = '{}' WHERE name = 'fernet.keys'",
    "DO $$ DECLARE list text := '{}'; BEGIN PERFORM set_config('fernet.keys', list, false); END $$",
    "DO $$ DECLARE list text := '{}'; BEGIN EXECUTE format('SET fernet.keys = %L', list); END $$",
])
@pytest.mark.parametrize("gap", ["", " "])
def test_keys_before_the_name(logged, session, secret, statement, gap):
    """Mistyped, with or without a blank."""
    broken = gap.join([secret[:20], secret[20:42]])

    def run():
        with suppress(psycopg.Error):
            session.execute(statement.replace("{}", broken), [broken, "fernet.keys"] if "%s" in statement else None)

    log = logged.logged(run)
    for kind in FORMATS:
        assert MASK.encode() in log[kind]
        assert not shows(log[kind], secret), kind


PARAMETERS = {"SELECT set_config('fernet.keys', %s, false) IS NOT NULL": None, "SELECT length(%s), 1 / (random() * 0)::int": "22012"}
ROW = {"CREATE TEMP TABLE refusing (x int, list text, CHECK (x > 0))": None, "INSERT INTO refusing VALUES (0, %s)": "23514"}


@pytest.mark.parametrize(("length", "statements", "shown"), [
    *((length, PARAMETERS, b"***...") for length in (12, 20, 42, 43, 60)),
    (-1, ROW, b"(0, ***,***...)"),
])
def test_keys_that_are_cut(logged, session, length, statements, shown):
    """By the length of parameters in the log, or of a row in an error."""
    keys = f"{key()},{key()}"
    session.execute(f"SET log_parameter_max_length = {length}; SET log_parameter_max_length_on_error = {length}")
    log = logged.logged(lambda: logged.run(session, statements, keys=keys))
    for kind in FORMATS:
        assert shown in log[kind]
        assert not shows(log[kind], keys)


def test_keys_beside_escapes(logged, session, secret):
    """In a URL, in JSON, in a literal, and the same again in a plan in JSON. Also with other base64 before it."""
    secret = "Ab/" + secret[3:]
    escaped = secret.replace("/", "\\/")
    session.execute("SET auto_explain.log_format = json")
    log = logged.logged(lambda: session.execute(
        rf"""SELECT 'keys%3D{secret}%2C{secret}', '{{"\u0022{escaped}": "{escaped}"}}', E'\x27{secret}\n{secret}', 'https://vault/v1/{secret}'""".encode()))
    for kind in FORMATS:
        assert log[kind].count(b"***") >= 7, kind
        assert secret[3:20].encode() not in log[kind]


def test_a_hundred_keys(logged, session):
    keys = [key() for _ in range(100)]
    log = logged.logged(lambda: session.execute(f"SET fernet.keys = '{','.join(keys)}'"))
    for kind in FORMATS:
        assert not any(shows(log[kind], each) for each in keys)
        assert ",".join([MASK] * 100).encode() in log[kind]


def test_the_reload(logged, session, secret):
    """Reported by the postmaster."""
    def configure():
        session.execute(f"ALTER SYSTEM SET fernet.keys = '{secret}'")
        reload(session)

    log = logged.logged(configure)
    try:
        for kind in FORMATS:
            assert re.search(rb'parameter \W+fernet.keys\W+ changed to \W+\*\*\*', log[kind]), kind
            assert not shows(log[kind], secret)
    finally:
        session.execute("ALTER SYSTEM RESET fernet.keys")
        reload(session)


def test_a_connection_option(logged, secret):
    def attempt():
        with pytest.raises(psycopg.OperationalError):
            logged.connect(options=f"-c fernet.keys={secret},{secret}x")
        with suppress(psycopg.OperationalError):
            logged.connect(options=f"-c fernet.keys={secret}, {secret}")

    log = logged.logged(attempt)
    for kind in FORMATS:
        assert not shows(log[kind], secret), kind
        assert b"FATAL" in log[kind]


def test_a_crash(logged, secret):
    """The postmaster reports what the process was running. Ends all sessions."""
    def crash():
        with logged.connect() as session:
            session.execute(f"SET fernet.keys = '{secret}'")
            os.kill(session.info.backend_pid, signal.SIGKILL)
            wait_until(lambda: b"reinitializing" in (logged.folder / "mask.log").read_bytes())
        wait_until(is_up)

    def is_up():
        with suppress(psycopg.OperationalError):
            logged.connect().close()
            return True

    log = logged.logged(crash)
    for kind in FORMATS:
        assert re.search(rb"Failed process was running: SET fernet.keys = '\*\*\*'", log[kind]), kind
        assert not shows(log[kind], secret)


@pytest.mark.parametrize("setting, is_shown", [("literals", False), ("keys", True)])
def test_literals(logged, session, setting, is_shown):
    text = "secret-of-somebody"
    session.execute(f"SET fernet.mask_log = {setting}")
    log = logged.logged(lambda: logged.run(session, LITERALS, text=text))
    for kind in FORMATS:
        shown = [line for line in log[kind].splitlines() if shows(line, text)]
        assert bool(shown) == is_shown, shown
        assert b"it's" in log[kind]
        assert b"don't" in log[kind]


def test_literals_that_were_prepared(logged, session):
    """The statement that EXECUTE runs is a detail of the message."""
    text = "secret-of-somebody"
    session.execute("SET fernet.mask_log = literals; SET auto_explain.log_min_duration = -1")
    statement = "PREPARE p AS SELECT 1 WHERE 'x' LIKE'{text}' OR 'x' = TEXT'{text}'; EXECUTE p; DEALLOCATE p"
    log = logged.logged(lambda: logged.run(session, {statement: None}, text=text))
    for kind in FORMATS:
        assert b"prepare: PREPARE p AS SELECT 1 WHERE '***' LIKE'***' OR" in log[kind]
        assert not shows(log[kind], text)


@pytest.mark.parametrize("name", ["o'n", "'", "o'n: x'", '"', "E'\\", "$$", "--"])
def test_literals_behind_a_name(logged, session, name):
    """That of a prepared statement is logged unchanged."""
    text = "secret-of-somebody"
    session.execute("SET fernet.mask_log = literals")

    def execute():
        session.pgconn.prepare(name.encode(), f"SELECT '{text}', length($1::text)".encode())
        session.pgconn.exec_prepared(name.encode(), [text.encode()])

    log = logged.logged(execute)
    for kind in FORMATS:
        assert b"SELECT '***', length($1::text)" in log[kind]
        assert not shows(log[kind], text)


@pytest.mark.parametrize("value", ["['{}']", "{'a': '{}'}", "{\"a\": '{}'}", "{\"it's\": '{}'}", "$1 = '{}"])
def test_parameters_behind_a_quote(logged, session, value):
    """The context of the error first shows how the value begins."""
    text = "secret-of-somebody"
    session.execute("SET fernet.mask_log = literals")

    def fail():
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            session.execute("SELECT %s::json", [value.replace("{}", text)])

    log = logged.logged(fail)
    for kind in FORMATS:
        assert b"JSON data, line 1" in log[kind]
        assert not shows(log[kind], text), kind


@pytest.mark.skipif(not HAS_CONTRIB, reason="no auto_explain")
@pytest.mark.parametrize("form", ["text", "json", "yaml", "xml"])
def test_literals_in_plans(logged, session, form):
    text = "secret-of-somebody"
    session.execute(f"SET fernet.mask_log = literals; SET auto_explain.log_format = {form}")
    log = logged.logged(lambda: session.execute(rf"""
        SELECT E'\'{text}' || relname AS "it's" -- 'one
        , E'a\\' -- it's
          '\'{text}' FROM pg_class WHERE relname = '{text}' -- "
        """.encode()))
    for kind in FORMATS:
        assert b"plan:" in log[kind]
        assert not shows(log[kind], text)


def test_literals_in_a_deadlock(logged):
    """Two statements in one detail, of two sessions."""
    text = "secret-of-somebody"

    def deadlock():
        with logged.connect() as one, logged.connect() as other:
            one.execute("CREATE TABLE locked AS SELECT n, '' AS x FROM generate_series(1, 2) AS n")
            for session in one, other:
                session.execute("SET fernet.mask_log = literals; BEGIN")
            one.execute("UPDATE locked SET x = '' WHERE n = 1")
            other.execute("UPDATE locked SET x = '' WHERE n = 2")
            one.pgconn.send_query(f"UPDATE locked SET x = '{text}' WHERE n = 2".encode())
            with suppress(psycopg.errors.DeadlockDetected):
                other.execute(f"UPDATE locked SET x = '{text}' WHERE n = 1")
            # So that both can end their transactions.
            other.rollback()
            while one.pgconn.get_result():
                pass
            one.rollback()

    log = logged.logged(deadlock)
    for kind in FORMATS:
        assert b"deadlock detected" in log[kind]
        assert not shows(log[kind], text)


@pytest.mark.skipif(major_version() >= 19, reason="the server knows no other strings any more")
def test_old_strings(logged, session):
    text = "secret-of-somebody"
    session.execute("SET fernet.mask_log = literals; SET standard_conforming_strings = off; SET escape_string_warning = off")

    def run():
        session.execute(rf"SELECT 'a\'{text}', '{text}'")
        # Parameters have no escapes.
        with pytest.raises(psycopg.errors.DivisionByZero):
            session.execute("SELECT %s, %s, 1 / (random() * 0)::int", ["a\\", text])
        # Read with the setting as it was.
        session.execute(rf"SET standard_conforming_strings = on; SELECT 'a\'{text}'")
        session.execute(rf"SET standard_conforming_strings = off; SELECT 'a\', '{text}'")

    log = logged.logged(run)
    assert not any(shows(log[kind], text) for kind in FORMATS)


@pytest.mark.parametrize(("encoding", "statement"), [
    ("LATIN1", "SELECT 'ÄÖ{}ÿ'".encode("latin-1")),
    # Cut short, and text that is in no encoding.
    ("SQL_ASCII", b"SELECT 'a\xff\xc3{}\xe2\x82', '{}\xf0\x9f' -- \x80{}\xc3"),
], ids=["LATIN1", "SQL_ASCII"])
def test_another_encoding(logged, secret, encoding, statement):
    create_database("masked", encoding, host=logged.host)
    with logged.connect("masked", client_encoding=encoding) as session:
        log = logged.logged(lambda: session.execute(statement.replace(b"{}", secret.encode())))
        session.execute("SET fernet.mask_log = literals")
        literals = logged.logged(lambda: session.execute(statement.replace(b"{}", secret.encode())))
    for kind in FORMATS:
        assert statement.replace(b"{}", MASK.encode()) in log[kind], kind
        assert re.sub(rb"'[^']+'", b"'***'", statement).replace(b"{}", MASK.encode()) in literals[kind], kind


def test_what_is_no_text(logged, session, secret):
    def attempt():
        with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
            session.execute(b"SET fernet.keys = '" + secret.encode() + b"', '\xff" + secret.encode() + b"'")

    log = logged.logged(attempt)
    for kind in FORMATS:
        assert b"invalid byte sequence" in log[kind]
        assert not shows(log[kind], secret)


def test_parallel_workers(logged, session, secret):
    session.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 10000) AS n")
    force_parallel(session)

    def fail():
        with pytest.raises(psycopg.errors.DivisionByZero):
            session.execute(f"SELECT sum(n / (n - n)) FROM rows WHERE '{secret}' <> ''")

    log = logged.logged(fail)
    for kind in FORMATS:
        assert b"division by zero" in log[kind]
        assert not shows(log[kind], secret)


def test_who_may_set_it(logged):
    with logged.connect(user="ordinary") as user:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            user.execute("SET fernet.mask_log = off")
        assert value(user, "SHOW fernet.mask_log") == "keys"
        with logged.connect() as admin:
            admin.execute("GRANT SET ON PARAMETER fernet.mask_log TO ordinary")
        user.execute("SET fernet.mask_log = off")


def test_setting_it_for_all_sessions(logged, session):
    """As docs/security.md says."""
    text = "secret-of-somebody"
    session.execute("ALTER SYSTEM SET fernet.mask_log = 'literals'")
    try:
        reload(session)
        with logged.connect() as other:
            log = logged.logged(lambda: other.execute(f"SELECT '{text}'"))
    finally:
        session.execute("ALTER SYSTEM RESET fernet.mask_log")
        reload(session)
    for kind in FORMATS:
        assert b"SELECT '***'" in log[kind]
        assert not shows(log[kind], text)


def test_values_it_takes(logged, session):
    with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
        session.execute("SET fernet.mask_log = everything")
    assert error.value.diag.message_hint == "Available values: off, keys, literals."


@pytest.mark.parametrize("setting", ["keys", "literals"])
def test_it_keeps_no_memory(session, secret, setting):
    session.execute(f"SET fernet.mask_log = {setting}")

    def tell(times):
        session.execute(f"DO $$ BEGIN FOR n IN 1..{times} LOOP RAISE LOG '% {secret}', n; END LOOP; END $$")

    tell(100)
    before = private_memory(session)
    tell(5000)
    assert private_memory(session) - before < 256


@pytest.mark.skipif(not shutil.which("prlimit"), reason="no prlimit")
@pytest.mark.parametrize(("setting", "expression", "error"), [("keys", "'{}'", None), ("literals", "1 / (length('{}') - 44)", "22012")])
def test_out_of_memory(logged, secret, setting, expression, error):
    """If there is no memory for the masked text, or for the line, there is an error or another text, and the session
    goes on."""
    # More than the library has in reserve.
    statement = f"SELECT {expression.format(secret)} /* {'x' * 5 * MEGABYTE} */"
    refused = []

    def attempt():
        """With more and more room, until there is enough."""
        def limit(size):
            subprocess.run([*RUN, "prlimit", f"--pid={session.info.backend_pid}", f"--as={size}:"], cwd="/", check=True)

        for room in itertools.count(step=MEGABYTE // 2):
            with logged.connect() as session:
                session.execute(f"SET log_min_duration_statement = -1; SET fernet.mask_log = {setting}")
                limit(memory(session, "VmSize") * 1024 + room)
                try:
                    session.execute(statement)
                    return
                except psycopg.Error as refusal:
                    refused.append(refusal.sqlstate)
                if refused[-1] == error:
                    return
                limit("unlimited")
                assert value(session, "SELECT 1") == 1

    log = logged.logged(attempt)
    assert set(refused) == {"53200", error} - {None}
    for kind in FORMATS:
        assert not any(piece.encode() in log[kind] for piece in pieces(secret))
        assert b"(not logged: no memory to mask it)" in log[kind]
        assert b"PANIC" not in log[kind]


@pytest.mark.parametrize("setting", ["keys", "literals"])
@pytest.mark.parametrize("part", ["''--", "''--\n", "\"--\n--'"])
def test_a_hostile_text(session, part, setting):
    """Any role can have one logged. Nothing interrupts the masking, so it must not take long."""
    session.execute(f"SET fernet.mask_log = {setting}")
    start = time.monotonic()
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        session.execute(f"SELECT ('fernet.keys ' || repeat($${part}$$, {2 * MEGABYTE // len(part)}))::int")
    assert time.monotonic() - start < 5


def test_it_costs_nothing_while_off(session):
    """Compared with a long statement, which the server does not log here."""
    def duration(setting):
        session.execute(f"SET fernet.mask_log = {setting}")
        start = time.monotonic()
        session.execute(f"DO $$ BEGIN FOR n IN 1..30 LOOP RAISE WARNING 'short'; END LOOP; END $$ -- {'a ' * MEGABYTE}")
        return time.monotonic() - start

    session.execute("SET log_statement = none; SET log_min_duration_statement = -1; SET client_min_messages = error")
    assert duration("off") < duration("keys") / 5


def test_memory_for_many_literals():
    """A few times the size of the message."""
    size = 16 * MEGABYTE

    def peak(setting):
        with connect("postgres", host=host) as session:
            session.execute(f"SET client_min_messages = error; SET fernet.mask_log = {setting}")
            session.execute(f"DO $$ BEGIN RAISE WARNING '%', 'fernet.keys' || repeat($x$'a',$x$, {size // 4}); END $$")
            return peak_memory(session) * 1024

    with server("shared_preload_libraries = 'pg_fernet'") as host:
        unmasked = peak("off")
        for setting in "keys", "literals":
            assert (peak(setting) - unmasked) / size < 8, setting


@pytest.mark.parametrize("setting", ["keys", "literals"])
def test_a_long_statement(secret, setting):
    long = MEGABYTE
    text = f"SELECT '{secret}', '{'x' * long} {secret * 10}', E'{'a ' * long}', '{secret},', '{chr(39) * 2 * long}' /* {'it ' * long} */, $${'- ' * long}$$"
    with server("shared_preload_libraries = 'pg_fernet'", "log_statement = all") as host:
        with connect("postgres", host=host) as session:
            session.execute(f"SET fernet.mask_log = {setting}")
            session.execute(text)
        log = Path(host, "data", "server.log").read_bytes()
    (line,) = [line for line in log.splitlines() if b"SELECT" in line]
    assert not shows(line.replace(b"x" * 1000, b"").replace(b"- " * 1000, b""), secret)
    assert line.endswith(b"*/, $$" + (b"- " * long if setting == "keys" else MASK.encode()) + b"$$")


def test_without_preloading():
    """It counts in a session that has loaded the library. A role that may not set it cannot set it earlier,
    either."""
    with server("log_statement = all") as host:
        with connect("postgres", host=host) as admin:
            admin.execute("CREATE EXTENSION pg_fernet; CREATE ROLE ordinary LOGIN")
        before, after = key(), key()
        with connect("postgres", host=host, user="ordinary") as user:
            user.execute(f"SET fernet.mask_log = off; SELECT '{before}'")
            told = notices(user)
            user.execute("SELECT fernet_is_token('x')")
            assert told == ['permission denied to set parameter "fernet.mask_log"']
            user.execute(f"SELECT '{after}'")
        log = Path(host, "data", "server.log").read_bytes()
        assert shows(log, before)
        assert not shows(log, after)


#
# Together with another library that has such a hook
#

WATCH = """
#include "postgres.h"
#include "fmgr.h"

PG_MODULE_MAGIC;

static emit_log_hook_type previous;

static void
watch(ErrorData *edata)
{
    FILE *seen = fopen("seen", "a");

    fprintf(seen, "%s\\n", edata->message);
    fclose(seen);
    if (previous)
        previous(edata);
    if (strstr(edata->message, "unwanted"))
    {
        edata->output_to_server = false;
        ereport(LOG, errmsg("kept out with %s", "KEY"));
    }
}

PGDLLEXPORT void
_PG_init(void)
{
    previous = emit_log_hook;
    emit_log_hook = watch;
}
"""


@pytest.fixture(scope="module")
def watch():
    """A library that writes down each message before it is logged. It replaces some messages by its own, with a key in
    it."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    # Not in a folder of pytest's, which closes those to other users whenever it starts.
    folder = folder_for(os.environ["PGHOST"])
    source, library = folder / "watch.c", folder / "watch.so"
    source.write_text(WATCH.replace("KEY", key()))
    headers = subprocess.run([os.environ["PG_CONFIG"], "--includedir-server"], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["cc", "-shared", "-fPIC", "-I", headers, "-o", library, source], check=True)
    return library


@pytest.mark.parametrize("is_first", [True, False])
def test_beside_another_hook(watch, secret, is_first):
    libraries = [str(watch), "pg_fernet"] if is_first else ["pg_fernet", str(watch)]
    with server(f"shared_preload_libraries = '{','.join(libraries)}'") as host:
        with connect("postgres", host=host) as session:
            told = notices(session)
            for message in f"wanted {secret}", f"unwanted {secret}", "wanted as it is":
                session.execute(f"DO $$ BEGIN RAISE WARNING '{message}'; END $$")
            assert told == [f"wanted {secret}", f"unwanted {secret}", "wanted as it is"]
        seen = Path(host, "data", "seen").read_text().splitlines()
        log = Path(host, "data", "server.log").read_text()
    masked = ["wanted ***", "unwanted ***", "wanted as it is"]
    unmasked = [] if is_first else [f"wanted {secret}", f"unwanted {secret}"]
    assert sorted(line for line in seen if "wanted" in line) == sorted(masked + unmasked)
    assert re.findall(r"WARNING:  (.*)", log) == ["wanted ***", "wanted as it is"]
    assert set(re.findall(r"LOG:  (kept out .*)", log)) == {"kept out with ***"}
