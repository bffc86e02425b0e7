"""Without preloading, the library is loaded with the first call; with it, keys are hidden from the start."""

import time

import psycopg
import pytest

from edition import install
import pyca
from postgres import column, connect, notices, server, set_keys, value
from settings import preloading

KEYS = ["MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=", "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI="]
FINGERPRINTS = [pyca.fingerprint(key) for key in KEYS]
FINGERPRINTS_NOW = "SELECT fingerprint FROM fernet_keys() ORDER BY key_index"


@pytest.fixture(scope="module")
def host(preload):
    with server(preloading(preload), f"fernet.keys = '{','.join(KEYS)}'") as host:
        with connect("postgres", host=host) as admin:
            install(admin)
            admin.execute("CREATE ROLE ordinary LOGIN")
            admin.execute("GRANT EXECUTE ON FUNCTION fernet_keys(), fernet_decrypt(text), fernet_encrypt(text) TO ordinary")
        yield host


@pytest.fixture
def admin(host):
    with connect("postgres", host=host) as session:
        yield session


@pytest.fixture
def user(host):
    with connect("postgres", host=host, user="ordinary") as session:
        yield session


def warnings_of(session, query):
    warnings = notices(session)
    session.execute(query)
    return warnings


def test_a_warning_where_the_keys_could_be_read(admin, preload):
    """By anyone, in a process that has not loaded the library."""
    warning = "fernet.keys is set in the configuration, but pg_fernet is not in shared_preload_libraries"
    assert warnings_of(admin, "SELECT fernet_encrypt('x')") == ([] if preload == "shared" else [warning])
    assert warnings_of(admin, "SELECT fernet_encrypt('x')") == []


def test_keys_of_the_configuration_file(admin, user):
    for session in (admin, user):
        assert column(session, FINGERPRINTS_NOW) == FINGERPRINTS
    token = value(user, "SELECT fernet_encrypt('hello')")
    assert pyca.multi(KEYS).decrypt(token) == b"hello"
    assert value(user, "SELECT fernet_decrypt(%s)", pyca.encrypt(KEYS[1], b"hello", 0).decode()) == "hello"


def test_an_ordinary_role_is_not_shown_the_keys(user, preload):
    if preload == "none":
        # Known: before the library is loaded, the server does not know that the setting is secret.
        value(user, "SELECT fernet_is_token('x')")
    for query in ("SHOW fernet.keys", "SELECT current_setting('fernet.keys')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            user.execute(query)
    assert [row[0] for row in user.execute("SHOW ALL") if row[0].startswith("fernet")] == ["fernet.mask_log"]
    assert column(user, "SELECT name FROM pg_settings WHERE name LIKE 'fernet%'") == ["fernet.mask_log"]
    # The view of the file itself is for superusers.
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        user.execute("SELECT * FROM pg_file_settings")


def test_an_ordinary_role_sets_no_keys(user, preload, rng):
    set_own = "SELECT set_config('fernet.keys', %s, false)"
    if preload == "none":
        # Accepted at first, and dropped with a warning when the library is loaded.
        user.execute(set_own, [pyca.key_of(rng)])
        assert 'permission denied to set parameter "fernet.keys"' in warnings_of(user, "SELECT fernet_is_token('x')")
        # Nor are other keys used in their place.
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            user.execute(FINGERPRINTS_NOW)
        return
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            user.execute(set_own, [pyca.key_of(rng)])
    assert column(user, FINGERPRINTS_NOW) == FINGERPRINTS


def test_a_list_in_the_first_statement(admin, preload):
    """Before the library is loaded, the server does not know that the setting is a list."""
    both = f"SET fernet.keys = '{KEYS[1]}', '{KEYS[0]}'"
    if preload == "none":
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            admin.execute(both)
        admin.execute("LOAD 'pg_fernet'")
    admin.execute(both)
    assert column(admin, FINGERPRINTS_NOW) == FINGERPRINTS[::-1]


def test_typing_mistakes(admin, preload):
    mistake = "SET fernet.key = 'x'"
    if preload == "none":
        admin.execute(mistake)
        assert 'invalid configuration parameter name "fernet.key", removing it' in warnings_of(admin, "SELECT fernet_is_token('x')")
    with pytest.raises(psycopg.errors.InvalidName):
        admin.execute(mistake)


def test_alter_system_and_reload(admin, host, preload, rng):
    """A running session has the new list from its next statement after the reload."""
    new = pyca.key_of(rng)
    assert column(admin, FINGERPRINTS_NOW) == FINGERPRINTS  # loads the library

    def reload(expected):
        value(admin, "SELECT pg_reload_conf()")
        for _ in range(1200):
            if column(admin, FINGERPRINTS_NOW) == expected:
                return
            time.sleep(0.05)
        assert column(admin, FINGERPRINTS_NOW) == expected

    with pytest.raises(psycopg.errors.InvalidParameterValue) as refusal:
        admin.execute(f"ALTER SYSTEM SET fernet.keys = '{KEYS[0]}', 'bad'")
    assert refusal.value.diag.message_primary == "key 2 of fernet.keys is not a valid Fernet key"
    try:
        admin.execute(f"ALTER SYSTEM SET fernet.keys = '{new}', '{KEYS[0]}', '{KEYS[1]}'")
        reload([pyca.fingerprint(new), *FINGERPRINTS])
        with connect("postgres", host=host) as another:
            assert column(another, FINGERPRINTS_NOW) == [pyca.fingerprint(new), *FINGERPRINTS]
    finally:
        admin.execute("ALTER SYSTEM RESET fernet.keys")
        reload(FINGERPRINTS)


def test_a_setting_of_the_session_outlives_a_reload(admin):
    set_keys(admin, KEYS[1])
    value(admin, "SELECT pg_reload_conf()")
    time.sleep(0.2)
    assert column(admin, FINGERPRINTS_NOW) == FINGERPRINTS[1:]
