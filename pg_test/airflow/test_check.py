"""check.sql succeeds only if everything is under the first key, and lists what is not."""

import pytest
from cryptography.fernet import Fernet

ALL_CURRENT = {
    ("connection.password", "current"): ("1", 3, "yes"),
    ("connection.extra", "current"): ("1", 4, "yes"),
    ("variable.val", "current"): ("1", 5, "yes"),
    ("trigger.kwargs", "current"): ("1", 3, "yes"),
    # Each Iceberg table has one more token: the class of its catalog.
    ("xcom.value", "current"): ("1", 7, "yes"),
}
TESTS_CURRENT = {
    ("connection_test_request.password", "current"): ("1", 1, "yes"),
    ("connection_test_request.extra", "current"): ("1", 1, "yes"),
}


def all_current(airflow):
    return ALL_CURRENT | (TESTS_CURRENT if airflow.has_connection_tests else {})


def change(airflow, statement, *parameters):
    with airflow.connect() as connection:
        assert connection.execute(statement, parameters).rowcount == 1


def test_everything_is_under_the_first_key(airflow, old):
    assert airflow.check(old) == (True, all_current(airflow))


def test_everything_is_under_an_old_key(airflow, both):
    succeeded, statuses = airflow.check(both)
    assert not succeeded
    assert statuses == {
        (column, "old key"): ("2", values, "no")
        for (column, _), (_, values, _) in all_current(airflow).items()
    }


def test_no_key_opens_anything(airflow, new):
    succeeded, statuses = airflow.check(new)
    assert not succeeded
    assert statuses["connection.password", "unknown key"] == ("", 3, "no")
    assert not any(ok == "yes" for _, _, ok in statuses.values())


def test_plaintext(half_encrypted_airflow, old):
    succeeded, statuses = half_encrypted_airflow.check(old)
    assert not succeeded
    assert statuses["connection.extra", "plaintext"] == ("", 2, "no")
    assert statuses["variable.val", "plaintext"] == ("", 2, "no")
    # Airflow 3 stores the arguments of a deferred task as JSON: that is no failure.
    assert statuses["trigger.kwargs", "plaintext"] == ("", 1, "yes")


@pytest.mark.parametrize("statement, column, status", [
    ("UPDATE connection SET password = 'no token' WHERE conn_id = 'both'",
     "connection.password", "not a token"),
    ("UPDATE connection SET is_extra_encrypted = false WHERE conn_id = 'both'",
     "connection.extra", "flag missing"),
    ("UPDATE variable SET val = '' WHERE key = 'empty'", "variable.val", "not a token"),
    ("UPDATE trigger SET kwargs = 'no token' WHERE classpath = 'example.Nested'",
     "trigger.kwargs", "not a token"),
])
def test_one_value_out_of_order(airflow, old, statement, column, status):
    change(airflow, statement)
    succeeded, statuses = airflow.check(old)
    assert not succeeded
    assert statuses[column, status][1:] == (1, "no")


def test_the_values_out_of_order_are_named(airflow, old):
    stranger = Fernet(Fernet.generate_key()).encrypt(b"x").decode()
    change(airflow, "UPDATE connection SET password = %s WHERE conn_id = 'unicode'", stranger)
    assert "connection.password,unicode,unknown key" in airflow.psql("check.sql", old).stdout


def test_what_looks_like_a_token_in_an_xcom(airflow, old):
    """Only what Airflow cannot read is a failure."""
    theirs = Fernet(Fernet.generate_key()).encrypt(b"x").decode()
    airflow.push({"text": f"a token: {theirs}"})
    succeeded, statuses = airflow.check(old)
    assert succeeded
    assert statuses["xcom.value", "unknown key"] == ("", 1, "yes")

    lost = Fernet.generate_key().decode()
    airflow.push({"lost": [{"delta": {"secret": "x"}}]}, key=lost)
    assert not airflow.check(old)[0]
    assert "xcom.value,a_dag/a_run/a_task/lost,unknown key" in airflow.psql("check.sql", old).stdout


def test_nothing_stored(empty_airflow, old):
    assert empty_airflow.check(old) == (True, {})


def test_nothing_is_changed(airflow, both):
    before = airflow.snapshot()
    airflow.check(both)
    assert airflow.snapshot() == before
