"""The runbook of docs/managed.md on real Airflow: as a role that owns the database and its tables, and has no other rights."""

import os
import subprocess

import pytest

from harness import on_server
from pages import ROOT, blocks
from rows import ENCRYPTED

ROLE = "airflow_on_rds"


@pytest.fixture
def managed(airflow):
    """Airflow in a database of that role, without the native extension."""
    on_server("CREATE ROLE {} LOGIN", ROLE)
    try:
        on_server("ALTER DATABASE {} OWNER TO {}", airflow.database, ROLE)
        with airflow.connect() as session:
            session.execute("DROP EXTENSION IF EXISTS pg_fernet; DROP SCHEMA fernet CASCADE")
            for table, in session.execute("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace").fetchall():
                session.execute(f"ALTER TABLE {table} OWNER TO {ROLE}")
        yield airflow
    finally:
        on_server("ALTER DATABASE {} OWNER TO {}", airflow.database, os.environ["PGUSER"])
        with airflow.connect() as session:
            session.execute(f"REASSIGN OWNED BY {ROLE} TO CURRENT_USER; DROP OWNED BY {ROLE}")
        on_server("DROP ROLE {}", ROLE)


def test_runbook(managed, old, tmp_path):
    environment = managed.environment(old)
    environment["PATH"] = f"{managed.venv}:{environment['PATH']}"
    (tmp_path / "sql").symlink_to(ROOT / "sql")
    printed = []
    for block in blocks("docs/managed.md"):
        if block.heading != "Airflow on RDS":
            continue
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        else:
            commands = block.text.replace("-d airflow -U airflow", f"-d {managed.database} -U {ROLE}")
            done = subprocess.run(["bash", "-euc", commands], cwd=tmp_path, env=environment, text=True, capture_output=True)
            assert done.returncode == 0, f"{block}: {done.stderr}"
            printed.append(done.stdout)
    *_, before, _, after = printed
    assert before.count("old key") >= 4 and "unknown key" not in before
    assert after == before.replace("old key", "current").replace("|         2 |", "|         1 |")
    new = (tmp_path / "new.key").read_text().strip()
    managed.assert_reads(ENCRYPTED, key=new)
