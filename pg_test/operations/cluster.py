"""Servers of our own, to be killed, copied and replicated."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

import psycopg

from tables import connect, wait_until

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
        # A child of ours: when it is killed, it is gone, and not a zombie that keeps its lock file.
        with open(os.path.join(self.dir, "log"), "a") as log:
            self.process = subprocess.Popen([*RUN, "postgres", "-D", self.data], cwd="/", stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.connect().close()
            except psycopg.OperationalError as error:
                assert time.monotonic() < deadline, error
            if self.process.poll() is not None:
                # Others of the old server's processes are still on their way out.
                time.sleep(0.05)
                return self.start()
            time.sleep(0.02)

    def connect(self, database="postgres"):
        return connect(database, host=self.dir, user="postgres")

    def kill_session(self, pid):
        """Kills a process that serves a session. The server then ends all of them, and recovers."""
        def recoveries():
            with open(os.path.join(self.dir, "log")) as log:
                return log.read().count("ready to accept connections")

        before = recoveries()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: recoveries() > before)

    def kill(self, *more):
        """Kills the server's first process, and others of its processes, with no time to clean up."""
        with open(os.path.join(self.data, "postmaster.pid")) as pid:
            first = int(pid.readline())
        for pid in (first, *more):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run([*RUN, "pg_ctl", "stop", "-m", "immediate", "-D", self.data], cwd="/", capture_output=True)
        self.process.wait()
        shutil.rmtree(self.dir)
