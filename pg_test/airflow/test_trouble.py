"""What can go wrong: errors must change nothing, and no change of Airflow's may be lost."""

import subprocess
import time

import pytest
from cryptography.fernet import Fernet

from documentation import code_block
from harness import SCRIPTS, psql_environment
from rows import ENCRYPTED


def damage(token):
    """The same token with another last byte of its signature."""
    return token[:-5] + ("A" if token[-5] != "A" else "B") + token[-4:]


@pytest.mark.parametrize("table, column, where", [
    ("connection", "extra", "conn_id = 'long'"),
    ("variable", "val", "key = 'json'"),
    ("trigger", "kwargs", "classpath = 'example.Nested'"),
])
def test_one_damaged_token_rolls_everything_back(airflow, both, table, column, where):
    with airflow.connect() as connection:
        token = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()[0]
        connection.execute(f"UPDATE {table} SET {column} = %s WHERE {where}", [damage(token)])
    before = airflow.snapshot()

    done = airflow.psql("rotate.sql", both)

    assert done.returncode == 3
    assert "39000" in done.stderr
    assert airflow.snapshot() == before


@pytest.mark.parametrize("script", ["rotate.sql", "encrypt.sql", "check.sql"])
def test_no_keys(half_encrypted_airflow, script):
    before = half_encrypted_airflow.snapshot()
    done = half_encrypted_airflow.psql(script)
    assert done.returncode == 3
    assert "55000" in done.stderr
    assert half_encrypted_airflow.snapshot() == before


@pytest.mark.parametrize("script", ["rotate.sql", "encrypt.sql", "check.sql"])
def test_bad_key(half_encrypted_airflow, old, script):
    before = half_encrypted_airflow.snapshot()
    bad = old[:-5]
    done = half_encrypted_airflow.psql(script, f"{old},{bad}")
    assert done.returncode != 0
    assert "key 2 of fernet.keys is not a valid Fernet key" in done.stderr
    assert bad not in done.stdout + done.stderr
    assert half_encrypted_airflow.snapshot() == before


def test_new_key_alone(airflow, new):
    before = airflow.snapshot()
    done = airflow.psql("rotate.sql", new)
    assert done.returncode == 3
    assert "39000" in done.stderr
    assert airflow.snapshot() == before


def test_not_an_airflow_database(old):
    done = subprocess.run(["psql", "-X", "-f", SCRIPTS / "rotate.sql"], env=psql_environment(old),
                          text=True, capture_output=True)
    assert done.returncode == 3
    assert "no Airflow tables" in done.stderr


def test_old_key_dropped_too_early(airflow, old, new, both):
    """Airflow reads variables as None, and connections not at all, until the old key is back."""
    airflow.seed({"variables": [{"key": "later", "val": "new value"}]}, key=both)
    read = airflow.run("airflow", "variables", "get", "text", key=new, check=False)
    assert "a value" not in read.stdout

    airflow.psql_ok("rotate.sql", both)

    assert "a value" in airflow.cli("variables", "get", "text", key=new)
    assert "new value" in airflow.cli("variables", "get", "later", key=new)


def test_row_inserted_under_the_old_key_during_the_pass(airflow, old, new, both):
    """One process was not restarted yet: the check finds its row, and a second pass rotates it."""
    with airflow.connect(keys=both) as connection:
        connection.execute(code_block("Rotate without psql", "sql"))
        airflow.seed({"connections": [{"conn_id": "late", "conn_type": "http", "password": "p"}]},
                     key=old)
    assert not airflow.check(both)[0]
    assert "connection.password,late,old key" in airflow.psql("check.sql", both).stdout

    airflow.psql_ok("rotate.sql", both)

    assert airflow.check(both)[0]
    assert airflow.read(new)["connections"]["late"]["password"] == "p"


def test_half_done_rotation(airflow, new, both):
    with airflow.connect(keys=both) as connection:
        connection.execute("UPDATE connection SET password = fernet_rotate(password)"
                           " WHERE conn_id IN ('both', 'unicode')")
    airflow.psql_ok("rotate.sql", both)
    assert airflow.check(new)[0]
    airflow.assert_reads(ENCRYPTED, key=new)


def test_plaintext_under_a_flag(airflow, old):
    """A process without a key had loaded the connection before encrypt.sql ran; this is what it stores."""
    airflow.seed({"connections": [{"conn_id": "broken", "conn_type": "http", "password": "first"}]},
                 key=None)
    editor = airflow.editor("broken", key=None)
    editor.do("load")
    airflow.psql_ok("encrypt.sql", old)
    editor.do("change second", "commit")
    editor.close()
    assert "connection.password,broken,not a token" in airflow.psql("check.sql", old).stdout

    with airflow.connect() as connection:
        connection.execute(code_block("When something fails", "sql", containing="NOT fernet.fernet_is_token"))
    airflow.psql_ok("encrypt.sql", old)

    assert airflow.check(old)[0]
    assert airflow.read(old)["connections"]["broken"]["password"] == "second"


def test_connection_edited_while_the_script_waits_for_it(airflow, old, new, both):
    """Airflow comes first: the script waits, says whom it waits for, and rotates the new password."""
    editor = airflow.editor("both", key=old)
    editor.do("load", "change edited meanwhile", "flush")
    rotation = start(airflow, "rotate.sql", both)
    wait_for(airflow, AT_A_LOCK_OR_ASLEEP)
    with airflow.connect() as connection:
        writer = connection.execute("SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'"
                                    " AND datname = current_database()").fetchone()[0]
    time.sleep(1.5)

    editor.do("commit")
    editor.close()

    told = rotation.communicate(timeout=60)[1]
    assert rotation.returncode == 0
    assert "waiting until nobody else writes to public.connection, " in told and "public.trigger, public.variable\n" in told
    assert f"Processes: {writer}.\n" in told
    assert airflow.check(new)[0]
    assert airflow.read(new)["connections"]["both"]["password"] == "edited meanwhile"


EDIT_CONNECTION = "UPDATE connection SET login = 'edited' WHERE conn_id = '{}'"


@pytest.mark.parametrize("script, first_row, last_row", [
    ("rotate.sql", "both", "long"),
    ("encrypt.sql", "plain_both", "plain_extra"),
])
@pytest.mark.parametrize("first_write", [
    EDIT_CONNECTION,
    "SELECT FROM connection WHERE conn_id = '{}' FOR UPDATE",
    "UPDATE variable SET description = 'edited'",
])
def test_a_transaction_that_writes_in_another_order(half_encrypted_airflow, old, new, script, first_row, last_row,
                                                    first_write):
    """Neither it nor the script meets a deadlock."""
    airflow = half_encrypted_airflow
    with airflow.connect() as application:
        application.execute(first_write.format(last_row))
        running = start(airflow, script, f"{new},{old}" if script == "rotate.sql" else old)
        wait_for(airflow, AT_A_LOCK_OR_ASLEEP)
        application.execute(EDIT_CONNECTION.format(first_row))
    assert running.communicate(timeout=60)[1] == ""
    assert running.returncode == 0
    with airflow.connect() as connection:
        edited = connection.execute("SELECT login, fernet_is_token(coalesce(password, extra)) FROM connection"
                                    " WHERE conn_id = %s", [first_row]).fetchone()
    assert edited == ("edited", True)


def start(airflow, script, keys):
    return subprocess.Popen(airflow.psql_command(script), env=psql_environment(keys), text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_connection_edited_after_the_update_and_before_its_commit(airflow, new, both):
    """The UPDATE comes first: Airflow waits, and what it had loaded before does no harm."""
    editor = airflow.editor("both", key=both)
    editor.do("load", "change edited meanwhile")
    with airflow.connect(keys=both) as connection:
        connection.execute(code_block("Rotate without psql", "sql"))
        editor.start("commit")
        wait_for(airflow, AT_A_LOCK)
    editor.wait("commit")
    editor.close()

    airflow.psql_ok("rotate.sql", both)  # on 3.3 there is connection_test_request left
    assert airflow.check(new)[0]
    both_now = airflow.read(new)["connections"]["both"]
    assert both_now == {"password": "edited meanwhile", "extra": '{"sslmode": "require"}'}


@pytest.mark.parametrize("script", ["rotate.sql", "encrypt.sql"])
def test_tasks_that_write_xcoms(airflow, both, script):
    """No script waits for running tasks; a row that a task is about to replace is left."""
    with airflow.connect() as task:
        task.execute("DELETE FROM xcom WHERE key = 'delta'")
        done = airflow.psql(script, both)
        assert (done.returncode, done.stderr) == (0, "")
        if script == "rotate.sql":
            assert "xcom: rows rotated: 2\n" in done.stdout
        task.rollback()
    if script == "rotate.sql":
        assert airflow.check(both)[1]["xcom.value", "old key"] == ("2", 2, "no")
        airflow.psql_ok("rotate.sql", both)
        assert airflow.check(both)[0]


def test_documents_with_tokens_that_no_key_opens(airflow, old, new, both):
    """They do not stop the script. The old tokens beside them are rotated by hand."""
    lost = Fernet.generate_key().decode()
    mixed = [Fernet(key).encrypt(b"x").decode() for key in (lost, old)]
    airflow.push({"lost": {"delta": {"secret": "x"}}}, key=lost)
    airflow.push({"mixed": mixed})
    airflow.seed({"triggers": [{"classpath": "example.Mixed", "kwargs": {"secrets": mixed}}]}, key=None)

    airflow.psql_ok("rotate.sql", both)

    succeeded, statuses = airflow.check(both)
    assert not succeeded
    assert statuses["xcom.value", "current"] == ("1", 7, "yes")
    assert statuses["xcom.value", "old key"] == statuses["trigger.kwargs", "old key"] == ("2", 1, "no")
    with airflow.connect(keys=both, autocommit=True) as connection:
        for call in code_block("When something fails", "sql", containing="CALL").splitlines():
            connection.execute(call)
        connection.execute("DELETE FROM xcom WHERE key = 'lost'")
    assert airflow.check(both)[0]
    read = airflow.read(new)
    for secrets in read["xcoms"]["mixed"], read["triggers"]["example.Mixed"]["secrets"]:
        assert Fernet(new).decrypt(secrets[1]) == b"x"


AT_A_LOCK = "wait_event_type = 'Lock'"
# The scripts wait in steps, and hold no lock meanwhile.
AT_A_LOCK_OR_ASLEEP = f"({AT_A_LOCK} OR wait_event = 'PgSleep')"


def wait_for(airflow, what):
    """Waits until a session in the database does."""
    waiting = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {what}"
    deadline = time.monotonic() + 60
    with airflow.connect(autocommit=True) as connection:
        while connection.execute(waiting).fetchone()[0] == 0:
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.02)


def test_airflow_itself_stops_at_a_plaintext_trigger(half_encrypted_airflow, old, both):
    """Why the documentation says this about airflow rotate-fernet-key; rotate.sql passes over it."""
    done = half_encrypted_airflow.run("airflow", "rotate-fernet-key", key=both, check=False)
    assert done.returncode != 0
    assert "InvalidToken" in done.stdout + done.stderr

    half_encrypted_airflow.psql_ok("encrypt.sql", old)
    half_encrypted_airflow.cli("rotate-fernet-key", key=both)
    _, statuses = half_encrypted_airflow.check(both)
    # It leaves XComs out, as the documentation says, too.
    assert [place for place, (_, _, ok) in statuses.items() if ok == "no"] == [("xcom.value", "old key")]
