"""Before the library is loaded, the server does not know that fernet.keys is secret: who can read it, and who is
warned.

In sessions; test_process_kinds.py has the other processes.
"""

from contextlib import suppress

import psycopg
import pytest

from key_files import key
from postgres import column, connect, force_parallel, notices, plan, server, value
from settings import Configuration, pg_ctl, preloading

KEY = key()
WARNING = "fernet.keys is set in the configuration, but pg_fernet is not in shared_preload_libraries"
# Loads the library, if nothing has done so yet.
LOADING = "SELECT fernet_is_token('x')"
USING = "SELECT count(fernet_encrypt('x'))"


@pytest.fixture(scope="module")
def host(preload):
    with server(preloading(preload)) as host:
        with connect("postgres", host=host) as admin:
            admin.execute("CREATE EXTENSION pg_fernet")
            admin.execute("CREATE ROLE ordinary LOGIN")
            admin.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO ordinary")
        yield host


@pytest.fixture
def admin(host):
    with connect("postgres", host=host) as session:
        yield session


@pytest.fixture(params=["ALTER SYSTEM", "ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE"])
def configured(request, admin):
    """The configuration has the key, at least for the role."""
    if request.param == "ALTER SYSTEM":
        with Configuration(admin) as configuration:
            configuration.set("fernet.keys", KEY)
            yield
    else:
        whose = {"ALTER DATABASE": "DATABASE postgres", "ALTER ROLE": "ROLE ordinary",
                 "ALTER ROLE IN DATABASE": "ROLE ordinary IN DATABASE postgres"}[request.param]
        admin.execute(f"ALTER {whose} SET fernet.keys = '{KEY}'")
        yield
        admin.execute(f"ALTER {whose} RESET fernet.keys")


def test_who_can_read_the_list(host, preload, configured):
    with connect("postgres", host=host, user="ordinary") as user:
        readings = "SHOW fernet.keys", "SELECT current_setting('fernet.keys')"
        for reading in readings:
            if preload == "none":
                assert value(user, reading) == KEY
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    user.execute(reading)
        user.execute(LOADING)
        for reading in readings:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(reading)
        assert KEY not in str(user.execute("SHOW ALL").fetchall())
        assert KEY not in str(user.execute("SELECT * FROM pg_settings").fetchall())
        assert value(user, "SELECT fernet_decrypt(fernet_encrypt('hello'))") == "hello"


@pytest.mark.parametrize("using", [USING, "DO 'BEGIN PERFORM fernet_encrypt(''x''); END'",
                                   "CREATE TEMP TABLE t AS SELECT fernet_encrypt('x')"])
def test_who_is_told(host, preload, configured, using):
    """The first to use keys in a session, once."""
    with connect("postgres", host=host, user="ordinary") as user:
        told = notices(user)
        user.execute(using)
        user.execute(USING)
        assert told == ([] if preload == "shared" else [WARNING])


def test_who_is_told_by_the_library_as_it_is_loaded(host, preload, configured):
    """A session that has it preloaded. Before the first statement there is nobody who would see the warning."""
    with connect("postgres", host=host, user="ordinary") as user:
        told = notices(user)
        user.execute(LOADING)
        assert told == ([WARNING] if preload == "none" else [])
        user.execute(USING)
        assert told == ([] if preload == "shared" else [WARNING])


@pytest.mark.parametrize("own", [[], [key()]])
def test_who_is_told_of_a_list_that_comes_later(host, preload, admin, own):
    """The sessions that were already there, including one that uses keys of its own."""
    with connect("postgres", host=host) as session:
        told = notices(session)
        session.execute(LOADING)
        for keys in own:
            session.execute(f"SET fernet.keys = '{keys}'")
            session.execute(USING)
        before = value(session, "SELECT pg_conf_load_time()")
        with Configuration(admin) as configuration:
            configuration.set("fernet.keys", KEY)
            while value(session, "SELECT pg_conf_load_time()") == before:
                pass
            assert told == []
            session.execute(USING)
            session.execute(USING)
            assert told == ([] if preload == "shared" else [WARNING])


def test_who_is_told_of_the_servers_command_line(preload):
    with server(preloading(preload)) as host:
        pg_ctl(host, "restart", "-o", f"-c fernet.keys={KEY}")
        with connect("postgres", host=host) as session:
            told = notices(session)
            session.execute("CREATE EXTENSION pg_fernet")
            session.execute(USING)
            assert told == ([] if preload == "shared" else [WARNING])


def test_what_it_tells(host, preload, admin):
    told = []
    admin.execute(f"ALTER DATABASE postgres SET fernet.keys = '{KEY}'")
    with connect("postgres", host=host) as session:
        session.add_notice_handler(lambda diag: told.append((diag.severity, diag.sqlstate, diag.message_detail, diag.message_hint)))
        session.execute(USING)
    admin.execute("ALTER DATABASE postgres RESET fernet.keys")
    assert told == ([] if preload == "shared" else [(
        "WARNING", "01000", "Any role can read the keys in a server process that has not loaded the library.",
        "Add pg_fernet to shared_preload_libraries and restart the server, or use fernet.keys_file.")])


def test_parallel_workers_do_not_tell_again(host, preload, admin):
    admin.execute("CREATE TABLE tokens AS SELECT n::text AS token FROM generate_series(1, 10000) AS n")
    admin.execute(f"ALTER DATABASE postgres SET fernet.keys = '{KEY}'")
    try:
        with connect("postgres", host=host) as session:
            told = notices(session)
            force_parallel(session)
            _, workers = plan(session, "SELECT count(fernet_key_index(token)) FROM tokens")
            assert workers > 0
            session.execute(USING)
            assert told == ([] if preload == "shared" else [WARNING])
    finally:
        admin.execute("ALTER DATABASE postgres RESET fernet.keys")
        admin.execute("DROP TABLE tokens")


@pytest.mark.parametrize("set_it", [
    f"SET fernet.keys = '{KEY}'",
    f"SELECT set_config('fernet.keys', '{KEY}', false)",
    "SELECT 'a connection option'",
    "SET fernet.keys_file = '/nonexistent'",
])
def test_nobody_is_told_of_what_is_the_sessions_own(host, set_it):
    options = f"-c fernet.keys={KEY}" if "option" in set_it else ""
    with connect("postgres", host=host, options=options) as session:
        told = notices(session)
        session.execute(set_it)
        session.execute(LOADING)
        with suppress(psycopg.Error):
            session.execute(USING)
        assert told == []


@pytest.mark.parametrize("name, setting", [("fernet.keys_file", "/nonexistent"), ("fernet.keys_command", "cat /nonexistent")])
def test_nobody_is_told_of_a_file_or_a_command(host, preload, admin, name, setting):
    """But the path and the command can be read like the list: there should be no key in them."""
    with Configuration(admin) as configuration:
        configuration.set(name, setting)
        with connect("postgres", host=host, user="ordinary") as user:
            told = notices(user)
            if preload == "none":
                assert value(user, f"SHOW {name}") == setting
            user.execute(LOADING)
            with pytest.raises(psycopg.errors.lookup("F0000")):
                user.execute(USING)
            assert told == []
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(f"SHOW {name}")
            assert column(user, "SELECT name FROM pg_settings WHERE name LIKE 'fernet%'") == ["fernet.mask_log"]


def test_what_an_ordinary_role_set_before(host, preload):
    """It is dropped: the role has the keys of the configuration, or none."""
    names = "fernet.keys", "fernet.keys_file"
    with connect("postgres", host=host, user="ordinary") as user:
        for name in names:
            if preload == "none":
                user.execute(f"SET {name} = '{KEY}'")
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    user.execute(f"SET {name} = '{KEY}'")
        told = notices(user)
        user.execute(LOADING)
        assert told == ([f'permission denied to set parameter "{name}"' for name in names] if preload == "none" else [])
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            user.execute("SELECT fernet_encrypt('x')")
