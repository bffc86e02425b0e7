"""Whatever the environment says, the scripts and the tests use only the server that they have started."""

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parents[2]

# Restarts the throwaway server so that it listens on TCP, and logs all statements.
ANOTHER = """
$PG_FERNET_RUN pg_ctl restart -w -D "$PGDATA" -l "$PGDATA/server.log" \
    -o "-p {port} -c listen_addresses=127.0.0.1 -c log_connections=on -c log_statement=all" >/dev/null
echo "$PGDATA"
cat >/dev/null
"""

# Variables of libpq, of psql and of the server's programs: each is set so that it leads elsewhere, or makes a
# client fail. libpq itself names its others.
MISLEADING = {
    "PGCHANNELBINDING": "require",
    "PGCLIENTENCODING": "LATIN1",
    "PGDATA": "/no/where",
    "PGDATESTYLE": "German",
    "PGGSSENCMODE": "require",
    "PGLOADBALANCEHOSTS": "random",
    "PGMINPROTOCOLVERSION": "3.2",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGREQUIREPEER": "nobody",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSYSCONFDIR": "/no/where",
    "PGTARGETSESSIONATTRS": "read-only",
    "PGTZ": "Asia/Kathmandu",
    "PG_COLOR": "always",
}


class Another:
    """A server that is not ours."""

    def __init__(self, data, port):
        self.log = Path(data, "server.log")
        self.address = {"PGHOST": "127.0.0.1", "PGHOSTADDR": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres",
                        "PGDATABASE": "postgres"}

    def asked(self):
        """Connections and statements, as it logs them."""
        return re.findall(r"(connection received|(?:statement|execute .*?): .*)", self.log.read_text())


@pytest.fixture(scope="module")
def another():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # It lasts until the input of its command ends.
    with subprocess.Popen([ROOT / "scripts/with-server", "sh", "-c", ANOTHER.format(port=port)],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Another(process.stdout.readline().strip(), port)
        process.stdin.close()


@pytest.fixture(scope="module")
def misleading(another, tmp_path_factory):
    """Every variable there is."""
    home = tmp_path_factory.mktemp("home")
    services = home / "services.conf"
    services.write_text("[another]\nhost=127.0.0.1\nport=%(PGPORT)s\nuser=postgres\n" % another.address)
    (home / "psqlrc").write_text("\\echo read\n")
    theirs = {option.envvar.decode(): "1" for option in psycopg.pq.Conninfo.get_defaults() if option.envvar}
    return theirs | MISLEADING | another.address | {
        "PGSERVICE": "another", "PGSERVICEFILE": str(services), "PSQLRC": str(home / "psqlrc")}


def run(*command, environment):
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, text=True, capture_output=True)


@pytest.fixture(scope="module")
def left(misleading):
    """The variables that are left beside a throwaway server, and how it answers."""
    done = run("scripts/with-server", "sh", "-c", "psql -Atc 'SHOW data_directory'; env", environment=misleading)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert first == variables["PGDATA"]
    return variables


def test_libpq_tells_its_variables(misleading):
    assert {"PGHOSTADDR", "PGSERVICE", "PGPASSFILE", "PGSSLCERT", "PGREQUIREPEER"} <= set(misleading)


def test_no_variable_reaches_a_throwaway_server(misleading, left):
    ours = {"PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSFILE", "PSQLRC"}
    assert set(misleading) & set(left) <= ours
    assert {name for name in ours if left[name] == misleading.get(name)} <= {"PGUSER", "PGDATABASE"}
    assert left["PG_CONFIG"] == os.environ["PG_CONFIG"]


def test_the_demo(another, misleading):
    before = another.asked()
    done = run("scripts/demo", environment=misleading)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20,001 rows. Done." in done.stdout
    assert another.asked() == before


@pytest.fixture
def programs():
    """A folder for programs that the server's user can run."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_server_that_is_not_the_one_just_started(another, programs):
    """psql finds its way to another server in some other way."""
    real = Path(subprocess.run([os.environ["PG_CONFIG"], "--bindir"], text=True, capture_output=True).stdout.strip())
    for program in "initdb", "pg_ctl", "postgres":
        (programs / program).symlink_to(real / program)
    for name, text in {"psql": f"exec env {shlex.join(f'{n}={v}' for n, v in another.address.items())} {real}/psql \"$@\"",
                       "pg_config": f"echo {programs}"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    done = run("scripts/with-server", "echo", "started", environment={"PG_CONFIG": str(programs / "pg_config")})
    assert done.returncode == 1
    assert f"error: this reaches the server in {another.log.parent}, not the one just started in" in done.stderr
    assert done.stdout == ""


STARTED = {"PG_FERNET_RUN": "", "PGDATA": "/tmp/pg_fernet.another/data"}


@pytest.mark.parametrize("started, command", [
    ({}, ["scripts/demo.py"]),
    (STARTED, ["scripts/demo.py"]),
    ({}, ["pg_test/airflow/bench.py", "/dev/null"]),
    ({}, ["pg_test/operations/bench.py", "1000"]),
    ({}, ["pg_test/performance/bench.py", "."]),
    *(({}, ["-m", "pytest", "-p", "no:cacheprovider", "-x", f"pg_test/{suite}"])
      for suite in ("airflow", "documentation", "hardening", "interop", "operations", "security")),
])
def test_without_with_server(another, started, command):
    """Nothing is written to a server that with-server has not started, not even if it has started one as
    well."""
    before = another.asked()
    done = run(sys.executable, *command, environment=another.address | started)
    assert done.returncode == 1
    assert "not a throwaway one: run it with scripts/with-server" in done.stdout + done.stderr
    words = {line.rpartition(": ")[2].split()[0] for line in another.asked()[len(before):]}
    assert {"connection", "SELECT"} <= words <= {"connection", "BEGIN", "SELECT", "COMMIT", "ROLLBACK"}


def test_regress_is_for_any_server(another):
    """`make installcheck` is for that."""
    done = run("scripts/regress", "schema", environment=another.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("CREATE DATABASE" in line for line in another.asked())
