"""Rotation: Airflow must read everything with only the new key."""

import json

import pytest
from cryptography.fernet import Fernet
from psycopg import errors

from documentation import code_block
from edition import SUPERUSER, USER
from rows import ENCRYPTED, PLAINTEXT


def test_airflow_cannot_read_the_rows_with_the_new_key_alone(airflow, new, both):
    """The other tests rest on this: without a rotation their last step fails."""
    with pytest.raises(AssertionError, match="InvalidToken"):
        airflow.read(new)
    airflow.assert_reads(ENCRYPTED, key=both)


def test_script(airflow, new, both):
    assert not airflow.check(both)[0]

    airflow.psql_ok("rotate.sql", both)

    assert airflow.check(both)[0]
    assert airflow.check(new)[0]
    airflow.assert_reads(ENCRYPTED, key=new)


def test_command_line(airflow, new, both):
    airflow.psql_ok("rotate.sql", both)

    for seeded in ENCRYPTED["connections"]:
        if seeded["conn_id"] in ("both", "unicode"):
            shown = airflow.cli("connections", "get", seeded["conn_id"], "-o", "json", key=new)
            [connection] = json.loads(shown[shown.index("[{"):])
            assert connection["password"] == seeded["password"]
            assert connection["extra_dejson"] == json.loads(seeded["extra"])
    assert "a value" in airflow.cli("variables", "get", "text", key=new)


def test_plain_statements(airflow, new, both):
    """The statements of the documentation, in a session of any client."""
    lock = code_block("Rotate without psql", "sql", containing="LOCK TABLE")
    with airflow.connect(keys=both) as connection:
        connection.execute(lock)
        with airflow.connect() as application, pytest.raises(errors.LockNotAvailable):
            application.execute(lock)
        connection.execute(code_block("Rotate without psql", "sql"))
        connection.execute(code_block("XComs", "sql"))
        if airflow.has_connection_tests:
            connection.execute(code_block("From Airflow 3.3 on", "sql"))
    airflow.assert_reads(ENCRYPTED, key=new)
    assert airflow.check(new)[0]


def test_second_run_changes_nothing(airflow, both):
    airflow.psql_ok("rotate.sql", both)
    before = airflow.snapshot()
    output = airflow.psql_ok("rotate.sql", both)
    assert airflow.snapshot() == before
    assert "connection: rows rotated: 0" in output


def test_tokens_in_the_json_of_a_trigger(airflow, old, new, both):
    """As Airflow 3 stores the arguments of a deferred task."""
    theirs = Fernet(Fernet.generate_key()).encrypt(b"theirs").decode()
    airflow.seed({"triggers": [
        {"classpath": "example.Own", "kwargs": {"secrets": [token(old, "one"), token(old, "two")], "text": "é\\"}},
        {"classpath": "example.Theirs", "kwargs": {"secret": theirs}},
    ]}, key=None)
    _, statuses = airflow.check(both)
    assert statuses["trigger.kwargs", "old key"] == ("2", 3 + 2, "no")
    assert statuses["trigger.kwargs", "unknown key"] == ("", 1, "yes")
    assert statuses["trigger.kwargs", "plaintext"] == ("", 2, "yes")

    airflow.psql_ok("encrypt.sql", old)  # leaves the JSON whose tokens could not be rotated then
    airflow.psql_ok("rotate.sql", both)

    assert airflow.check(new)[0]
    read = airflow.read(new)["triggers"]
    assert [Fernet(new).decrypt(secret) for secret in read["example.Own"]["secrets"]] == [b"one", b"two"]
    assert read["example.Own"]["text"] == "é\\"
    assert read["example.Theirs"] == {"secret": theirs}


def test_the_schema_before_2_9(airflow, old, new, both):
    """trigger.kwargs is of type json there. Airflow itself never writes tokens to it, but the class of a
    trigger may."""
    if not airflow.version.startswith("2."):
        pytest.skip("Airflow 3 is not downgraded so far")
    airflow.seed({"triggers": [
        {"classpath": "example.Own", "kwargs": {"secret": token(old, "secret"), "text": "é", "at": 1.50}},
    ]}, key=old)
    airflow.cli("db", "downgrade", "--to-version", "2.8.4", "--yes", key=old)
    with airflow.connect() as connection:
        assert connection.execute("SELECT DISTINCT pg_typeof(kwargs)::text FROM trigger").fetchall() == [("json",)]
    assert airflow.check(both)[1]["trigger.kwargs", "old key"] == ("2", 1, "no")

    airflow.psql_ok("encrypt.sql", both)
    airflow.psql_ok("rotate.sql", both)

    assert airflow.check(new)[0]
    airflow.cli("db", "migrate", key=new)
    read = airflow.read(new)
    own = read["triggers"].pop("example.Own")
    assert Fernet(new).decrypt(own["secret"]) == b"secret"
    assert (own["text"], own["at"]) == ("é", 1.50)
    assert read["triggers"] == {row["classpath"]: row["kwargs"] for row in ENCRYPTED["triggers"]}


def token(key, text):
    return Fernet(key).encrypt(text.encode()).decode()


def test_plaintext_stays_as_it_is(half_encrypted_airflow, new, both):
    airflow = half_encrypted_airflow
    airflow.psql_ok("rotate.sql", both)
    airflow.assert_reads(ENCRYPTED, PLAINTEXT, key=new)


def test_a_role_that_cannot_decrypt_may_rotate(airflow, new, both, monkeypatch):
    with airflow.connect(user=SUPERUSER) as connection:
        connection.execute("DROP ROLE IF EXISTS airflow_rotator")
        connection.execute(code_block("A role that rotates and cannot decrypt", "sql"))
        if airflow.has_connection_tests:
            connection.execute("GRANT SELECT, UPDATE ON connection_test_request TO airflow_rotator")
    airflow.set_keys(both)
    try:
        monkeypatch.setenv("PGUSER", "airflow_rotator")
        airflow.psql_ok("rotate.sql")
        airflow.psql_ok("check.sql")
        with airflow.connect() as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT fernet_decrypt(password) FROM connection")
    finally:
        monkeypatch.setenv("PGUSER", USER)
        with airflow.connect(user=SUPERUSER) as connection:
            connection.execute("DROP OWNED BY airflow_rotator")
            connection.execute("DROP ROLE airflow_rotator")
    airflow.assert_reads(ENCRYPTED, key=new)


def test_the_owner_of_the_tables_rotates(half_encrypted_airflow, old, new, both, monkeypatch):
    """As the documentation says, and with no more rights."""
    airflow = half_encrypted_airflow
    with airflow.connect(user=SUPERUSER) as connection:
        connection.execute("CREATE ROLE airflow LOGIN")
        for table, in connection.execute("SELECT oid::regclass FROM pg_class WHERE relnamespace = 'public'::regnamespace"
                                         " AND relkind = 'r'").fetchall():
            connection.execute(f"ALTER TABLE {table} OWNER TO airflow")
        connection.execute(code_block("Before you start", "sql", containing="TO airflow"))
    airflow.set_keys(both)
    try:
        monkeypatch.setenv("PGUSER", "airflow")
        for script in "rotate.sql", "encrypt.sql", "check.sql":
            assert "in schema public of airflow, pg_fernet" in airflow.psql_ok(script)
        with airflow.connect() as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT fernet_decrypt(password) FROM connection")
    finally:
        monkeypatch.setenv("PGUSER", USER)
        with airflow.connect(user=SUPERUSER) as connection:
            connection.execute("REASSIGN OWNED BY airflow TO postgres")
            connection.execute("DROP OWNED BY airflow")
            connection.execute("DROP ROLE airflow")
    airflow.assert_reads(ENCRYPTED, PLAINTEXT, key=new)


def test_airflow_in_a_schema_of_its_own(airflow, new, both, monkeypatch):
    with airflow.connect() as connection:
        connection.execute("ALTER SCHEMA public RENAME TO airflow")
    airflow.set_keys(both)
    assert "no Airflow tables" in airflow.psql("rotate.sql").stderr

    monkeypatch.setenv("PGOPTIONS", "-c search_path=airflow")
    airflow.psql_ok("rotate.sql")
    airflow.psql_ok("check.sql")
    airflow.assert_reads(ENCRYPTED, key=new)
