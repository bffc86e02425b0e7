"""The parts of docs/airflow.md that no other test runs."""

import base64
import hashlib
import os
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest
from cryptography.fernet import Fernet

from documentation import code_block
from harness import HERE
from rows import ENCRYPTED

ALEMBIC_ENV = """
import os

from alembic import context
from sqlalchemy import create_engine

with create_engine(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]).begin() as connection:
    context.configure(connection=connection, version_table="our_version")
    context.run_migrations()
"""


def test_alembic_migration(airflow, new, both, tmp_path):
    """Run by Airflow's own Alembic, beside Airflow's own version table."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ALEMBIC_ENV)
    (tmp_path / "versions" / "rotate.py").write_text(code_block("An Alembic migration", "python"))
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {tmp_path}\n")
    airflow.set_keys(both)

    airflow.run("alembic", "-c", tmp_path / "alembic.ini", "upgrade", "head", key=both)

    if airflow.has_connection_tests:
        with airflow.connect() as connection:
            connection.execute(code_block("From Airflow 3.3 on", "sql"))
    assert airflow.check(new)[0]
    airflow.assert_reads(ENCRYPTED, key=new)


def test_rotation_with_a_key_file(airflow, old, new):
    """The documented way to give the server its keys: no session names a key."""
    file = Path(os.environ["PGDATA"], "fernet.keys")

    def write(*keys):
        # The server refuses a file that another user owns or may read.
        as_server = os.environ.get("PG_FERNET_RUN", "").split()
        subprocess.run([*as_server, "sh", "-c", f"umask 077; cat > {file}"], text=True, check=True,
                       input="\n".join(keys))

    statement = code_block("Before you start", "sql", containing="fernet.keys_file")
    statement = statement.replace("/etc/postgresql/fernet.keys", str(file))
    with airflow.connect() as connection:
        connection.execute(statement.replace("airflow", f'"{airflow.database}"'))

    write(old)
    airflow.psql_ok("check.sql")
    write(new, old)
    airflow.psql_ok("rotate.sql")
    write(new)
    airflow.psql_ok("check.sql")
    airflow.assert_reads(ENCRYPTED, key=new)


def test_fingerprints_of_airflows_list(airflow, old, new, both):
    command = code_block("Before you start", "sh", containing="hashlib")
    env = airflow.environment(both)
    env["PATH"] = f"{airflow.venv}:{env['PATH']}"
    printed = subprocess.check_output(["bash", "-c", command], env=env, text=True)
    of_the_keys = [
        hashlib.sha256(base64.urlsafe_b64decode(key)).hexdigest()[:16] for key in (new, old)
    ]
    assert printed.split() == of_the_keys
    with airflow.connect(keys=both) as connection:
        of_the_server = connection.execute("SELECT fingerprint FROM fernet_keys()").fetchall()
    assert [fingerprint for fingerprint, in of_the_server] == of_the_keys


def test_a_key_a_line_gives_airflow_the_first_alone(airflow, old, new):
    """Why the documentation warns of a fernet_key_cmd that prints lines."""
    def decrypt(key):
        token = Fernet(key).encrypt(b"opened").decode()
        return run_in(airflow, f"{new}\n{old}", f"""
            from airflow.models.crypto import get_fernet
            print(get_fernet().decrypt(b"{token}").decode())
        """)

    assert decrypt(new) == "opened"
    with pytest.raises(AssertionError, match="InvalidToken"):
        decrypt(old)


def test_a_key_from_the_server(empty_airflow):
    """A new installation: Airflow takes a key of fernet_generate_key."""
    with empty_airflow.connect() as connection:
        key = connection.execute(code_block("A new installation", "sql")).fetchone()[0]
    empty_airflow.seed({"variables": [{"key": "first", "val": "value"}]}, key=key)
    assert empty_airflow.check(key) == (True, {("variable.val", "current"): ("1", 1, "yes")})
    assert "value" in empty_airflow.cli("variables", "get", "first", key=key)


def test_a_changed_list_makes_the_link_to_a_bundle_disappear(empty_airflow, old, new, both):
    """Why the documentation says to restart the DAG processor of Airflow 3 at each step."""
    if empty_airflow.version.startswith("2."):
        pytest.skip("Airflow 2 has no DAG bundles")
    signed = run_in(empty_airflow, old, """
        from airflow.dag_processing.bundles.manager import _sign_bundle_url
        print(_sign_bundle_url("https://example.com/{version}", "main"))
    """)
    render = f"""
        from airflow.models.dagbundle import DagBundleModel
        bundle = DagBundleModel(name="main")
        bundle.signed_url_template = "{signed}"
        print(bundle.render_url("v1"))
    """
    assert run_in(empty_airflow, old, render) == "https://example.com/v1"
    assert run_in(empty_airflow, both, render) == "None"


def test_a_table_in_an_xcom_of_before_the_key(empty_airflow, old):
    """Why the documentation says to run such tasks again."""
    empty_airflow.push({"table": {"delta": {"secret": "plain"}}})
    empty_airflow.psql_ok("encrypt.sql", old)
    with pytest.raises(AssertionError, match="InvalidToken"):
        empty_airflow.read(old)


def test_a_table_among_the_arguments_of_a_deferred_task(airflow, old, new, both):
    """Both stores of them in Airflow 3: the one that the scripts search, and the one that they do not."""
    if airflow.version.startswith("2."):
        pytest.skip("Airflow 2 stores no such tables there")
    begin = f"""
        import json, sys
        sys.path.insert(0, {str(HERE / "in_airflow")!r})
        from airflow.models import Trigger
        from airflow.models.taskinstance import TaskInstance
        from airflow.sdk.serde import deserialize, serialize
        from airflow.utils.session import create_session
        from xcoms import with_tables, without_tables
        with create_session() as session:
            task = session.query(TaskInstance).one()
    """
    run_in(airflow, old, begin + """
            task.next_kwargs = serialize({"table": with_tables({"delta": {"secret": "s"}})})
            trigger = Trigger(classpath="example.Deferred", kwargs={})
            trigger.encrypted_kwargs = json.dumps(task.next_kwargs)
            session.add(trigger)
            print("stored")
    """)

    airflow.psql_ok("rotate.sql", both)
    with airflow.connect(keys=both, autocommit=True) as connection:
        connection.execute("CALL fernet.fernet_rotate_column('task_instance', 'next_kwargs')")

    assert airflow.check(new)[0]
    read = run_in(airflow, new, begin + """
            trigger = session.query(Trigger).filter_by(classpath="example.Deferred").one()
            print(without_tables([trigger.kwargs, deserialize(task.next_kwargs)]))
    """)
    assert read == str([{"table": {"delta": {"secret": "s"}}}] * 2)


def run_in(airflow, key, program):
    """Runs a Python program in Airflow's environment; returns the last line that it prints."""
    return airflow.run("python", "-c", dedent(program), key=key).stdout.splitlines()[-1]
