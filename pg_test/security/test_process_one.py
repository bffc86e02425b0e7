"""fernet.keys_command if the postmaster is process 1, as in a container. If a child that it does not know fails or
is killed, the postmaster takes that for the crash of a server process, and restarts the server."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import psycopg
import pytest

from cluster import Cluster
from key_files import key
from postgres import force_parallel, value
from pyca import fingerprint
from settings import refusal
from tables import wait_until

KEY = key()
# Marks the processes of a command, to tell them from those of another run of these tests.
SLEEP = f"sleep {1_000_000 + os.getpid()}"


def in_namespace(proc):
    """A prefix that makes a command process 1, as the server's user."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", *["--mount-proc"] * (proc != "machine's")]
    if os.geteuid():
        unshare += ["--user", "--map-current-user"]
    if proc == "hidden":
        # As systemd sets it with ProtectProc=invisible.
        unshare += ["sh", "-c", 'mount -o remount,hidepid=2 /proc && exec "$@"', "sh"]
    return unshare if os.geteuid() else [*unshare, "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


class Container(Cluster):
    """A server whose postmaster is process 1. Without a /proc of its own, it sees the machine's, which has other
    numbers for its processes."""

    def __init__(self, proc):
        self.launcher = in_namespace(proc)
        super().__init__([KEY], "shared_preload_libraries = 'pg_fernet'", "client_connection_check_interval = '100ms'")

    def stop(self, mode="fast"):
        # Not by its number, which is that of another process here.
        self.process.kill()
        self.process.wait()

    def set_command(self, session, command):
        """Sets it for all sessions; this session has it by then."""
        quoted = command.replace("'", "''")
        self.write("data/postgresql.auto.conf", f"{self.settings}\nfernet.keys_file = ''\nfernet.keys_command = '{quoted}'")
        session.execute("SELECT pg_reload_conf()")
        while value(session, "SHOW fernet.keys_command") != command:
            time.sleep(0.01)

    def starts(self):
        return self.log().count("ready to accept connections")


@pytest.fixture(scope="module", params=["own", "hidden", "machine's"])
def server(request):
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("no unshare and setpriv here")
    if subprocess.run([*in_namespace(request.param), "true"], capture_output=True).returncode:
        pytest.skip("a namespace of processes cannot be made here")
    with Container(request.param) as server:
        with server.connect() as session:
            assert session.info.backend_pid < 1000  # where processes are numbered from 1
            session.execute("CREATE EXTENSION pg_fernet")
        yield server


@pytest.fixture
def session(server):
    session = server.connect()
    yield session
    session.close()


@pytest.fixture
def bystander(server):
    """Another session, which ends if the server restarts. At the end, nothing of the command is left."""
    with server.connect() as session:
        starts = server.starts()
        yield session
        wait_until(lambda: not left(), 10)
        time.sleep(0.2)
        assert value(session, "SELECT 1") == 1
        assert server.starts() == starts


def left():
    """The processes of a command that have not ended."""
    return [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and SLEEP.split() == command_line(pid)]


def command_line(pid):
    try:
        return (pid / "cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def start(server, session, command):
    """Lets a session run the command, and waits until the command has started all its processes."""
    server.set_command(session, command)
    session.pgconn.send_query(b"SELECT fernet_encrypt('hello')")
    wait_until(lambda: len(left()) == command.count(SLEEP), 10)


# What a command has started when it is ended: children, their children, sessions of their own.
COMMANDS = {
    "pipe": f"{SLEEP} | cat",
    "background": f"{SLEEP} & (sleep 0.1; exit 7) & {SLEEP}",
    "double fork": f"(setsid {SLEEP} &); (setsid sh -c '{SLEEP} & {SLEEP}' &); {SLEEP}",
    "deaf": f"trap '' TERM INT HUP QUIT; {SLEEP} & {SLEEP}",
    "stopped": f"{SLEEP} & sleep 0.2; kill -STOP $! $$",
    "output closed": f"exec >&-; {SLEEP} & {SLEEP}",
}


@pytest.mark.parametrize("name, end", [*((name, end) for name in COMMANDS for end in ("cancel", "terminate")),
                                       ("pipe", "timeout"), ("pipe", "lost client"), ("double fork", "lost client")])
def test_a_command_that_is_ended(server, bystander, session, name, end):
    if end == "timeout":
        session.execute("SET statement_timeout = '2s'")
    start(server, session, COMMANDS[name])
    if end == "lost client":
        session.close()
        return
    if end != "timeout":
        bystander.execute(f"SELECT pg_{end}_backend({session.info.backend_pid})")
    assert session.pgconn.get_result().error_field(ord("C")) == (b"57P01" if end == "terminate" else b"57014")
    # Not at once, but by the time that the client knows; after a FATAL error, shortly after.
    assert end == "terminate" or not left()


@pytest.mark.parametrize("command", [
    f"(sleep 0.5; exit 7) & echo {KEY}",
    f"{SLEEP} & echo {KEY}",
    f"setsid {SLEEP} & echo {KEY}",
    f"(setsid {SLEEP} & setsid {SLEEP} &); echo {KEY}",
    f"{SLEEP} | cat & echo {KEY}",
    f"echo {KEY}; {SLEEP} & kill -STOP $!",
])
def test_what_a_command_leaves_behind(server, bystander, session, command):
    server.set_command(session, command)
    started = time.monotonic()
    assert value(session, "SELECT fingerprint FROM fernet_keys()") == fingerprint(KEY)
    assert time.monotonic() - started < 5
    assert not left()
    time.sleep(0.5)


@pytest.mark.parametrize("command", [f"{SLEEP} & kill -9 $$", f"{SLEEP} & exit 3", f"setsid {SLEEP} & yes", "kill -SEGV $$"])
def test_a_command_that_fails(server, bystander, session, command):
    server.set_command(session, command)
    refusal(session, "F0000")
    assert not left()


def test_a_program_that_nobody_may_look_into(server, bystander, session):
    """Processes with capabilities are like that, too. A /proc with hidepid does not show them, even to their
    parent."""
    program = Path(server.dir, "sleep")
    shutil.copy(shutil.which("sleep"), program)
    program.chmod(0o111)
    server.set_command(session, f"export PATH={server.dir}:$PATH; {SLEEP} & (setsid {SLEEP} &); echo {KEY}")
    assert value(session, "SELECT fingerprint FROM fernet_keys()") == fingerprint(KEY)
    assert not left()


def test_parallel_workers(server, bystander, session):
    """Each of them runs it."""
    server.set_command(session, f"echo {KEY}")
    session.execute("CREATE TABLE tokens AS SELECT fernet_encrypt(n::text) AS token FROM generate_series(1, 1000) AS n")
    server.set_command(session, f"{SLEEP} | cat")
    force_parallel(session)
    session.execute("SET statement_timeout = '1s'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        session.execute("SELECT count(fernet_decrypt(token)) FROM tokens")
    session.execute("DROP TABLE tokens")


def test_a_server_process_that_is_killed(server):
    """That is a crash, and the server restarts, but only once."""
    session = server.connect()
    start(server, session, COMMANDS["double fork"])
    starts = server.starts()
    with server.connect() as other, pytest.raises(psycopg.OperationalError):
        other.execute("CREATE TEMP TABLE nothing ()")
        other.execute(f"COPY nothing FROM PROGRAM 'kill -9 {session.info.backend_pid}'")
        other.execute("SELECT pg_sleep(10)")
    wait_until(lambda: server.starts() > starts, 10)
    wait_until(lambda: not left(), 10)
    time.sleep(0.5)
    assert server.starts() == starts + 1
    with server.connect() as other:
        assert value(other, "SELECT 1") == 1
