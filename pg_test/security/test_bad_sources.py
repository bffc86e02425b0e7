"""A source of keys that is set and bad is an error, wherever it was set: never the next source, never older keys."""

import os
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from key_files import key, write
from postgres import connect, force_parallel, notices, plan, server, value
from pyca import fingerprint
from settings import fingerprints, refusal, reload, use_file

KEY, ANOTHER = key(), key()
BAD_KEY = "key {} of fernet.keys is not a valid Fernet key"
BAD_PATH = "fernet.keys_file must be the absolute path of a file"
# Bad lists, each with its message.
LISTS = [
    ("bad", BAD_KEY.format(1)),
    (f"{KEY},", BAD_KEY.format(2)),
    (f"{KEY} {ANOTHER}", BAD_KEY.format(1)),
    (f"{KEY};{ANOTHER}", BAD_KEY.format(1)),
    (f"{KEY},{ANOTHER}\\n{KEY}", BAD_KEY.format(2)),
    ("", "fernet.keys: the key list is empty"),
]


@pytest.fixture
def configured(db):
    """Puts lines into the configuration file, which can hold what ALTER SYSTEM refuses."""
    path = Path(os.environ["PGDATA"], "postgresql.conf")
    before = path.read_text()

    def configure(*lines):
        path.write_text(before + "\n".join(lines) + "\n")
        reload(db)

    yield configure
    path.write_text(before)
    reload(db)


@pytest.mark.parametrize("bad, message", LISTS)
def test_in_the_configuration(sessions, configured, key_file, keys, bad, message):
    """For a session that has keys already, and for a new one."""
    old = sessions()
    configured(f"fernet.keys = '{KEY}'", f"fernet.keys_file = '{key_file}'")
    assert fingerprints(old) == [fingerprint(KEY)]
    configured(f"fernet.keys = '{bad}'", f"fernet.keys_file = '{key_file}'")
    for session in old, sessions():
        for _ in range(2):
            assert refusal(session, "22023") == message
        assert value(session, "SELECT fernet_is_token('x')") is False
    # Until it is corrected or removed.
    configured(f"fernet.keys = '{ANOTHER}'", f"fernet.keys_file = '{key_file}'")
    assert fingerprints(old) == [fingerprint(ANOTHER)]
    configured(f"fernet.keys_file = '{key_file}'")
    assert fingerprints(old) == [fingerprint(key) for key in keys]


@pytest.mark.parametrize("bad", [KEY, f"{KEY},{ANOTHER}", "keys", "/" + KEY[1:]])
def test_a_path_in_the_configuration(sessions, configured, key_file, keys, bad):
    old = sessions()
    configured(f"fernet.keys_command = 'cat {key_file}'")
    assert fingerprints(old) == [fingerprint(key) for key in keys]
    configured(f"fernet.keys_file = '{bad}'", f"fernet.keys_command = 'cat {key_file}'")
    for session in old, sessions():
        assert refusal(session, "22023") == BAD_PATH
    configured(f"fernet.keys_command = 'cat {key_file}'")
    assert fingerprints(old) == [fingerprint(key) for key in keys]


@contextmanager
def set_for(whose, name, text):
    """Sets it in a session that has not loaded the library, so that nothing checks the value."""
    with connect("postgres") as admin:
        admin.execute(f"ALTER {whose} SET {name} = '{text}'")
    try:
        yield
    finally:
        with connect("postgres") as admin:
            admin.execute(f"ALTER {whose} RESET {name}")


@pytest.mark.parametrize("whose", ["DATABASE {}", "ROLE CURRENT_USER", "ROLE CURRENT_USER IN DATABASE {}"])
@pytest.mark.parametrize("name, bad, message", [
    ("fernet.keys", f"{KEY} {ANOTHER}", BAD_KEY.format(1)), ("fernet.keys_file", KEY, BAD_PATH)])
def test_for_a_database_or_a_role(database, sessions, configuration, key_file, whose, name, bad, message):
    configuration.set("fernet.keys_file" if name == "fernet.keys" else "fernet.keys_command",
                      key_file if name == "fernet.keys" else f"cat {key_file}")
    with set_for(whose.format(database), name, bad):
        session = sessions()
        assert refusal(session, "22023") == message
        # A value set for the session takes precedence over it.
        session.execute("SELECT set_config('fernet.keys', %s, false)", [KEY])
        assert fingerprints(session) == [fingerprint(KEY)]


@pytest.mark.parametrize("way", ["SET", "connection option"])
@pytest.mark.parametrize("name, bad, message", [
    ("fernet.keys", f"{KEY};{ANOTHER}", BAD_KEY.format(1)), ("fernet.keys_file", KEY, BAD_PATH)])
def test_in_a_session_before_the_library_was_loaded(sessions, configuration, key_file, way, name, bad, message):
    configuration.set("fernet.keys_command", f"cat {key_file}")
    session = sessions(options=f"-c {name}={bad}" if way == "connection option" else "")
    if way == "SET":
        session.execute(f"SET {name} = '{bad}'")
    assert refusal(session, "22023") == message
    # What needs no key still works, in parallel workers, too.
    force_parallel(session)
    session.execute("CREATE TABLE bad_sources AS SELECT n::text AS value FROM generate_series(1, 10000) AS n")
    try:
        _, workers = plan(session, "SELECT count(*) FROM bad_sources WHERE fernet_is_token(value)")
        assert workers > 0
    finally:
        session.execute("DROP TABLE bad_sources")


DROPPED = "{} was set before pg_fernet was loaded, and is not in effect"


@pytest.fixture
def ordinary(db):
    db.execute("CREATE ROLE fernet_ordinary LOGIN")
    db.execute("GRANT EXECUTE ON FUNCTION fernet_keys(), fernet_key_index(text) TO fernet_ordinary")
    yield "fernet_ordinary"
    db.execute("DROP OWNED BY fernet_ordinary")
    db.execute("DROP ROLE fernet_ordinary")


@pytest.mark.parametrize("way", ["SET", "connection option"])
@pytest.mark.parametrize("name, next_source", [("fernet.keys", "fernet.keys_file"), ("fernet.keys_file", "fernet.keys_command")])
def test_what_a_role_may_not_set(sessions, configured, key_file, ordinary, way, name, next_source):
    """The server drops it, and with a connection option also the value from the configuration."""
    before = key_file if name == "fernet.keys_file" else KEY
    configured(f"{name} = '{before}'", f"{next_source} = '{'cat /nonexistent' if 'command' in next_source else key_file}'")
    session = sessions(user=ordinary, options=f"-c {name}={ANOTHER}" if way == "connection option" else "")
    if way == "SET":
        session.execute(f"SET {name} = '{ANOTHER}'")
    told = notices(session)
    for _ in range(2):
        assert refusal(session, "55000", "SELECT * FROM fernet_keys()") == DROPPED.format(name)
    assert f'permission denied to set parameter "{name}"' in told
    reload(sessions())
    assert refusal(session, "55000", "SELECT * FROM fernet_keys()") == DROPPED.format(name)
    # Nor by parallel workers, and not after RESET.
    force_parallel(session)
    assert refusal(session, "55000", "SELECT count(fernet_key_index(proname::text)) FROM pg_proc") == DROPPED.format(name)
    session.execute("RESET ALL")
    assert refusal(session, "55000", "SELECT * FROM fernet_keys()") == DROPPED.format(name)
    # Not for other sessions.
    assert len(fingerprints(sessions(user=ordinary))) > 0


def test_what_was_taken_out_of_the_configuration(sessions, configured, key_file, keys):
    """Later servers show a setting without a value as empty, which a list must not be."""
    with connect("postgres") as old:
        configured(f"fernet.keys = '{KEY}'", f"fernet.keys_file = '{key_file}'")
        assert value(old, "SHOW fernet.keys") == KEY
        configured(f"fernet.keys_file = '{key_file}'")
        assert value(old, "SELECT pg_backend_pid()")
    assert fingerprints(sessions()) == [fingerprint(key) for key in keys]


def test_what_somebody_elses_code_has_set(db, sessions, configured, key_file, ordinary):
    """A superuser's own list is then lost, and no other is used."""
    configured(f"fernet.keys_file = '{key_file}'")
    db.execute("CREATE FUNCTION planted() RETURNS text LANGUAGE sql SECURITY DEFINER"
               " AS $$ SELECT set_config('fernet.keys', 'x', false) $$")
    db.execute(f"ALTER FUNCTION planted() OWNER TO {ordinary}")
    session = sessions()
    session.execute(f"SET fernet.keys = '{KEY}'")
    session.execute("SELECT planted()")
    assert refusal(session, "55000") == DROPPED.format("fernet.keys")
    session.execute(f"SET fernet.keys = '{KEY}'")
    assert fingerprints(session) == [fingerprint(KEY)]
    db.execute("DROP FUNCTION planted()")


def test_where_the_library_is_loaded_by_a_parallel_worker(sessions, configured, database, key_file):
    """In parallel operation the server accepts no value for a setting, and would drop it for the session."""
    configured(f"fernet.keys = '{KEY}'", f"fernet.keys_file = '{key_file}'")
    session = sessions()
    session.execute("CREATE FUNCTION called_by_name(token text) RETURNS text PARALLEL SAFE LANGUAGE plpgsql"
                    " AS $$ DECLARE plaintext text; BEGIN EXECUTE 'SELECT fernet_decrypt($1)' INTO plaintext USING token;"
                    " RETURN plaintext; END $$")
    session.execute("CREATE TABLE parallel_tokens AS SELECT fernet_encrypt(n::text) AS token FROM generate_series(1, 1000) AS n")
    try:
        for leader in "off", "on":
            session = sessions()
            force_parallel(session)
            session.execute(f"SET parallel_leader_participation = {leader}")
            query = "SELECT count(called_by_name(token)) FROM parallel_tokens"
            assert refusal(session, "25000", query) == (
                "cannot load pg_fernet during a parallel operation, since fernet.keys is set")
            assert fingerprints(session) == [fingerprint(KEY)]
            _, workers = plan(session, query)
            assert workers > 0
    finally:
        session.execute("DROP TABLE parallel_tokens")
        session.execute("DROP FUNCTION called_by_name(text)")


@pytest.mark.parametrize("bad, message", LISTS)
def test_whoever_sets_it_is_told(db, database, bad, message):
    """In a session that has the library; the earlier value stays."""
    db.execute("LOAD 'pg_fernet'")
    db.execute("SELECT set_config('fernet.keys', %s, false)", [KEY])
    bad = bad.replace("\\n", "\n")
    for statement in (
        f"SET fernet.keys = '{bad}'",
        f"SET LOCAL fernet.keys = '{bad}'",
        f"SELECT set_config('fernet.keys', '{bad}', false)",
        *([f"ALTER SYSTEM SET fernet.keys = '{bad}'"] if "\n" not in bad else []),
        f"ALTER DATABASE {database} SET fernet.keys = '{bad}'",
        f"ALTER ROLE CURRENT_USER SET fernet.keys = '{bad}'",
        f"CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET fernet.keys = '{bad}' AS 'SELECT 1'",
    ):
        with pytest.raises(psycopg.Error) as refused:
            db.execute(statement)
        assert (refused.value.sqlstate, refused.value.diag.message_primary) == ("22023", message)
        assert refused.value.diag.message_hint.startswith("Separate keys by commas")
    assert fingerprints(db) == [fingerprint(KEY)]


def test_a_file_that_was_appended_to(db, folder, keys):
    """Its last line did not end: the appended key is not lost silently."""
    path = write(folder / "keys")
    path.write_text(keys[0])
    use_file(db, path)
    assert fingerprints(db) == [fingerprint(keys[0])]
    with path.open("a") as file:
        file.write(keys[1] + "\n")
    assert refusal(db, "22023") == "key 1 of fernet.keys_file is not a valid Fernet key"


@pytest.mark.parametrize("separator", [" ", "\t", ";", " # the old one: ", "\r"])
def test_two_keys_on_a_line(db, folder, configuration, keys, separator):
    path = write(folder / "keys", separator.join(keys[:2]))
    if "#" in separator:
        use_file(db, path)
        assert fingerprints(db) == [fingerprint(keys[0])]  # a comment
        return
    use_file(db, path)
    assert refusal(db, "22023") == "key 1 of fernet.keys_file is not a valid Fernet key"
    db.execute("RESET fernet.keys_file")
    configuration.set("fernet.keys_command", f"cat {path}")
    assert refusal(db, "22023") == "key 1 of fernet.keys_command is not a valid Fernet key"


def test_a_server_that_begins_with_it(key_file):
    """It runs, and writes to its log once; no key is used. It recovers with a reload."""
    with server("shared_preload_libraries = 'pg_fernet'", f"fernet.keys = '{KEY} {ANOTHER}'",
                f"fernet.keys_file = '{key_file}'") as host:
        log = Path(host, "data", "server.log")

        def warnings():
            return log.read_text().count("WARNING:  " + BAD_KEY.format(1))

        assert warnings() == 1
        with connect("postgres", host=host) as session:
            session.execute("CREATE EXTENSION pg_fernet")
            told = notices(session)
            assert refusal(session, "22023") == BAD_KEY.format(1)
            session.execute(f"ALTER SYSTEM SET fernet.keys = '{KEY}'")
            reload(session)
            assert fingerprints(session) == [fingerprint(KEY)]
            with Path(host, "data", "postgresql.auto.conf").open("a") as file:
                file.write(f"fernet.keys = '{KEY} {ANOTHER}'\n")
            with connect("postgres", host=host):
                reload(session)
                assert refusal(session, "22023") == BAD_KEY.format(1)
            assert warnings() == 2
            assert not told
        assert ANOTHER not in log.read_text().replace(f'changed to "{KEY} {ANOTHER}"', "")
