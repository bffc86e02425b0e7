"""Airflow in its own virtual environment, and its metadata database on the test server."""

import csv
import json
import os
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

from edition import superuser
from rows import expected

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "sql" / "airflow"


def on_server(statement, *names):
    """Runs a statement that may not run in a transaction block."""
    names = [sql.Identifier(name) for name in names]
    with superuser() as server:
        server.execute(sql.SQL(statement).format(*names))


class Airflow:
    """One version of Airflow and one metadata database."""

    def __init__(self, version, database, home):
        self.version, self.database, self.home = version, database, home
        self.venv = Path(os.environ["PG_FERNET_CACHE"], f"airflow-{version}", "bin")

    @property
    def url(self):
        user, host = os.environ["PGUSER"], os.environ["PGHOST"]
        return f"postgresql+psycopg2://{user}@/{self.database}?host={host}"

    @property
    def has_connection_tests(self):
        return not self.version.startswith("2.")

    # What Airflow does. `key` is its setting fernet_key; None means that it is not set.

    def environment(self, key):
        return os.environ | {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__FERNET_KEY": key or "",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.url,
        }

    def run(self, *command, key=None, check=True, **options):
        done = subprocess.run(
            [self.venv / command[0], *command[1:]],
            env=self.environment(key), text=True, capture_output=True, **options,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} failed\n{done.stdout}\n{done.stderr}")
        return done

    def cli(self, *arguments, key):
        return self.run("airflow", *arguments, key=key).stdout

    def seed(self, rows, key):
        if not self.has_connection_tests:
            rows = {name: part for name, part in rows.items() if name != "connection_tests"}
        self.run("python", HERE / "in_airflow" / "seed.py", key=key, input=json.dumps(rows))

    def push(self, xcoms, key=None):
        """Pushes XComs as a task does."""
        self.seed({"xcoms": xcoms}, key=key)

    def read(self, key):
        """Everything as Airflow's models decrypt it."""
        tables = ["connection_tests"] if self.has_connection_tests else []
        done = self.run("python", HERE / "in_airflow" / "read.py", *tables, key=key)
        return json.loads(done.stdout.splitlines()[-1])

    def assert_reads(self, *seeded, key):
        """With only this key, Airflow reads all that was seeded, and nothing else."""
        values = expected(*seeded)
        if not self.has_connection_tests:
            del values["connection_tests"]
        assert self.read(key) == values

    def editor(self, conn_id, key):
        return Editor([self.venv / "python", HERE / "in_airflow" / "edit.py", conn_id],
                      self.environment(key))

    # What the administrator does.

    def connect(self, keys=None, **options):
        connection = psycopg.connect(dbname=self.database, options="-c search_path=public,fernet", **options)
        if keys is not None:
            with connection.transaction():
                connection.execute("SELECT set_config('fernet.keys', %s, false)", [keys])
        return connection

    def set_keys(self, keys):
        """Sets fernet.keys for every new session in the database."""
        with superuser() as server:
            server.execute(sql.SQL("ALTER DATABASE {} SET fernet.keys = {}").format(
                sql.Identifier(self.database), sql.Literal(keys)))

    def psql_command(self, script):
        return ["psql", "-X", "--csv", "-v", "VERBOSITY=verbose", "-d", self.database,
                "-f", SCRIPTS / script]

    def psql(self, script, keys=None):
        """Runs a script of sql/airflow in psql, with fernet.keys set to `keys`."""
        return subprocess.run(self.psql_command(script), env=psql_environment(keys), text=True,
                              capture_output=True, timeout=60)

    def psql_ok(self, script, keys=None):
        done = self.psql(script, keys)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check(self, keys):
        """Runs check.sql: whether it succeeded, and {(column, status): (key_index, tokens, ok)}."""
        done = self.psql("check.sql", keys)
        if done.returncode != 0:
            assert "not every value is under the first key" in done.stderr, done.stderr
        table = done.stdout.split("The first 20")[0]
        statuses = {
            (row["column"], row["status"]): (row["key_index"], int(row["tokens"]), row["ok"])
            for row in csv.DictReader(table.splitlines()[1:])
            if row["ok"]
        }
        return done.returncode == 0, statuses

    def snapshot(self):
        """Every row of the tables that hold tokens, with the version of the row."""
        tables = ["connection", "variable", "trigger", "xcom"]
        if self.has_connection_tests:
            tables.append("connection_test_request")
        with self.connect() as connection:
            return {
                table: connection.execute(
                    f"SELECT ctid, xmin, t.* FROM {table} t ORDER BY ctid"
                ).fetchall()
                for table in tables
            }


def psql_environment(keys):
    return os.environ if keys is None else os.environ | {"PGOPTIONS": f"-c fernet.keys={keys}"}


class Editor:
    """A running Airflow process that edits a connection step by step."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def start(self, step):
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()

    def wait(self, step):
        for line in self.process.stdout:
            if line.strip() == f"done: {step.split()[0]}":
                return
        raise AssertionError(f"Airflow ended before: {step}")

    def do(self, *steps):
        for step in steps:
            self.start(step)
            self.wait(step)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0
