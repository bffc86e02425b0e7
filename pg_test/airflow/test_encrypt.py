"""Encryption: of plaintext by encrypt.sql, and by fernet_encrypt for Airflow to read."""

import re

import pytest
from cryptography.fernet import Fernet

from documentation import code_block
from rows import ENCRYPTED, PLAINTEXT, SECRET


def test_script(half_encrypted_airflow, old):
    airflow = half_encrypted_airflow
    succeeded, statuses = airflow.check(old)
    assert not succeeded
    assert statuses["connection.password", "plaintext"] == ("", 2, "no")

    airflow.psql_ok("encrypt.sql", old)

    assert airflow.check(old)[0]
    assert SECRET not in repr(airflow.snapshot())
    airflow.assert_reads(ENCRYPTED, PLAINTEXT, key=old)


def test_encrypt_then_rotate(half_encrypted_airflow, old, new, both):
    airflow = half_encrypted_airflow
    airflow.psql_ok("encrypt.sql", old)
    airflow.psql_ok("rotate.sql", both)
    assert airflow.check(new)[0]
    airflow.assert_reads(ENCRYPTED, PLAINTEXT, key=new)


def test_second_run_changes_nothing(half_encrypted_airflow, old):
    airflow = half_encrypted_airflow
    airflow.psql_ok("encrypt.sql", old)
    before = airflow.snapshot()
    airflow.psql_ok("encrypt.sql", old)
    assert airflow.snapshot() == before


def test_flags_and_empty_values_are_left_as_airflow_leaves_them(half_encrypted_airflow, old):
    airflow = half_encrypted_airflow
    airflow.psql_ok("encrypt.sql", old)
    with airflow.connect() as connection:
        flags = dict(connection.execute(
            "SELECT conn_id, ARRAY[is_encrypted, is_extra_encrypted] FROM connection").fetchall())
        assert flags["empty"] == flags["neither"] == flags["plain_neither"] == [False, False]
        assert flags["plain_both"] == [True, True]
        assert flags["plain_password"] == [True, False]
        assert flags["plain_extra"] == [False, True]
        stored = connection.execute(
            "SELECT password, extra FROM connection WHERE conn_id = 'empty'").fetchone()
        assert stored == (None, "")
        unflagged = connection.execute("SELECT count(*) FROM variable WHERE NOT is_encrypted")
        assert unflagged.fetchone() == (0,)


def test_one_half_of_a_connection(airflow, old):
    """A connection whose password was set after Airflow got its key, and its extra before."""
    airflow.seed({"connections": [{"conn_id": "half", "conn_type": "http", "extra": '{"a": 1}'}]},
                 key=None)
    editor = airflow.editor("half", key=old)
    editor.do("load", "change hunter2", "commit")
    editor.close()

    airflow.psql_ok("encrypt.sql", old)

    assert airflow.check(old)[0]
    assert airflow.read(old)["connections"]["half"] == {"password": "hunter2", "extra": '{"a": 1}'}


def test_token_without_its_flag_gets_the_flag_alone(airflow, old):
    """The state that an encryption by hand leaves if it forgets the flags."""
    with airflow.connect() as connection:
        connection.execute("UPDATE connection SET is_encrypted = false, is_extra_encrypted = false")
        connection.execute("UPDATE variable SET is_encrypted = false")
    succeeded, statuses = airflow.check(old)
    assert not succeeded
    assert statuses["variable.val", "flag missing"] == ("1", 5, "no")

    airflow.psql_ok("encrypt.sql", old)

    assert airflow.check(old)[0]
    airflow.assert_reads(ENCRYPTED, key=old)


def test_a_token_of_somebody_else(airflow, old, new):
    """Airflow still returns it undecrypted, until it is encrypted by hand."""
    theirs = Fernet(Fernet.generate_key()).encrypt(b"theirs").decode()
    rows = {"connections": [], "triggers": [], "connection_tests": [], "variables": [{"key": "their_token", "val": theirs}]}
    airflow.seed(rows, key=None)
    assert airflow.check(old)[1]["variable.val", "unknown key"] == ("", 1, "no")

    done = airflow.psql("encrypt.sql", old)

    assert done.returncode == 0
    assert "left as they are: 1\n" in done.stderr and "variable.val,their_token" in done.stdout
    assert theirs not in done.stdout + done.stderr
    airflow.assert_reads(ENCRYPTED, rows, key=old)
    assert airflow.check(old)[1]["variable.val", "unknown key"] == ("", 1, "no")

    with airflow.connect(keys=old) as connection:
        connection.execute(code_block("When something fails", "sql", containing="their_token"))
    assert airflow.psql_ok("encrypt.sql", old)
    assert airflow.check(old)[0]
    airflow.assert_reads(ENCRYPTED, rows, key=old)


def test_a_token_of_somebody_else_in_the_json_of_a_trigger(airflow, old, new, both):
    """Inside another token, neither it nor the tokens beside it could be rotated once the key is known."""
    lost = Fernet.generate_key().decode()
    theirs, ours = (Fernet(key).encrypt(b"secret").decode() for key in (lost, old))
    held = [theirs, f"v1-{theirs}", f"a line\n{theirs}", f"{ours};{theirs}"]
    image = {"image": "gAAAAA" * 10}
    airflow.seed({"triggers": [{"classpath": f"example.Theirs{number}", "kwargs": {"secret": text}} for number, text in enumerate(held)]
                  + [{"classpath": "example.Image", "kwargs": image}]}, key=None)

    printed = airflow.psql_ok("encrypt.sql", old)

    assert "trigger: rows encrypted: 1\ntrigger: rows left, since their JSON holds tokens: 4\n" in printed
    airflow.psql_ok("rotate.sql", f"{both},{lost}")
    read = airflow.read(new)["triggers"]
    assert read["example.Image"] == image
    for number, text in enumerate(held):
        secret = read[f"example.Theirs{number}"]["secret"]
        tokens = re.findall("gAAAAA[^;]+", secret)
        assert len(tokens) == text.count("gAAAAA")
        assert all(Fernet(new).decrypt(token) == b"secret" for token in tokens)


def test_an_error_leaves_everything_as_it_was(half_encrypted_airflow):
    airflow = half_encrypted_airflow
    before = airflow.snapshot()
    assert airflow.psql("encrypt.sql").returncode == 3  # no keys are set
    assert airflow.snapshot() == before


def test_nulls_of_airflow_2(airflow, old):
    """Airflow 2 allows NULL for a flag, which is plaintext, and for the value of a variable."""
    if not airflow.version.startswith("2."):
        pytest.skip("Airflow 3 allows neither")
    with airflow.connect() as connection:
        connection.execute("INSERT INTO connection (conn_id, conn_type, password, extra) VALUES"
                           " ('ancient', 'http', 'secret', NULL), ('older', 'http', NULL, '{}')")
        connection.execute("INSERT INTO variable (key, val, is_encrypted)"
                           " VALUES ('none', NULL, NULL), ('ancient', 'secret', NULL)")

    airflow.psql_ok("encrypt.sql", old)

    assert airflow.check(old)[0]
    read = airflow.read(old)
    assert read["connections"]["ancient"] == {"password": "secret", "extra": None}
    assert read["connections"]["older"] == {"password": None, "extra": "{}"}
    assert (read["variables"]["none"], read["variables"]["ancient"]) == (None, "secret")


def test_airflow_reads_what_fernet_encrypt_wrote(empty_airflow, new):
    airflow, rows = empty_airflow, ENCRYPTED
    with airflow.connect(keys=new) as connection:
        for row in rows["connections"]:
            connection.execute(
                "INSERT INTO connection"
                " (conn_id, conn_type, password, is_encrypted, extra, is_extra_encrypted)"
                " VALUES (%s, %s, fernet_encrypt(%s), %s, fernet_encrypt(%s), %s)",
                (row["conn_id"], row["conn_type"], row.get("password") or None,
                 bool(row.get("password")), row.get("extra"), "extra" in row))
        for row in rows["variables"]:
            connection.execute("INSERT INTO variable (key, val, is_encrypted)"
                               " VALUES (%s, fernet_encrypt(%s), true)", (row["key"], row["val"]))
    read = airflow.read(new)
    assert read["variables"] == {row["key"]: row["val"] for row in rows["variables"]}
    assert read["connections"] == {
        row["conn_id"]: {"password": row.get("password") or None, "extra": row.get("extra")}
        for row in rows["connections"]
    }
