"""Servers of our own, to be killed, copied and replicated."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

import psycopg

from tables import connect

# The user that a server runs as: with-server tells how to become it.
RUN = shlex.split(os.environ.get("PG_FERNET_RUN", ""))


def run(*command, **options):
    done = subprocess.run([*RUN, *command], cwd="/", text=True, capture_output=True, **options)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


class Cluster:
    """A server with a key file, in a folder of its own."""

    def __init__(self, keys, *settings, base=None):
        self.dir = tempfile.mkdtemp(prefix="pg_fernet_")
        os.chmod(self.dir, 0o755)
        if RUN:
            shutil.chown(self.dir, "postgres")
        self.data = os.path.join(self.dir, "data")
        if base:
            run("pg_basebackup", "-h", base.dir, "-U", "postgres", "-D", self.data, "-R", "-c", "fast")
        else:
            run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.write("keys", "\n".join(keys))
        self.write("data/postgresql.auto.conf", "\n".join([
            *(["primary_conninfo = 'host=%s user=postgres'" % base.dir] if base else []),
            "listen_addresses = ''", f"unix_socket_directories = '{self.dir}'",
            f"fernet.keys_file = '{self.dir}/keys'", "session_preload_libraries = 'pg_fernet'", *settings]))
        self.start()

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        run("sh", "-c", 'umask 077; cat >"$0"', path, input=text + "\n")

    def start(self):
        log = os.path.join(self.dir, "log")
        # Right after a kill, processes of the old server may still be on their way out.
        deadline = time.monotonic() + 60
        while True:
            try:
                run("pg_ctl", "start", "-w", "-D", self.data, "-l", log)
                return
            except AssertionError:
                assert time.monotonic() < deadline, open(log).read()
                time.sleep(0.2)

    def connect(self, database="postgres"):
        return connect(database, host=self.dir, user="postgres")

    def connect_again(self):
        """Connects to a server that restarts by itself."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.connect()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def kill(self, *more):
        """Kills the server's first process, and others of its processes, with no time to clean up."""
        with open(os.path.join(self.data, "postmaster.pid")) as pid:
            first = int(pid.readline())
        for pid in (first, *more):
            os.kill(pid, signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run([*RUN, "pg_ctl", "stop", "-m", "immediate", "-D", self.data], cwd="/", capture_output=True)
        shutil.rmtree(self.dir)
