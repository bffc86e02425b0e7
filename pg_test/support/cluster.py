"""Servers of our own, to be killed, copied and replicated."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

import psycopg

from edition import SQL, SUPERUSER, USER, prepare
from postgres import connect, value
from tables import wait_until

# The user that a server runs as: with-server says how to become it.
RUN = shlex.split(os.environ.get("PG_FERNET_RUN", ""))


def run(*command, cwd="/", **options):
    done = subprocess.run([*RUN, *command], cwd=cwd, text=True, capture_output=True, **options)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


class Cluster:
    """A server with a key file, in a folder of its own. Its programs are those on PATH, or in a given folder."""

    # The options with which the server is started.
    launcher = RUN

    def __init__(self, keys, *settings, base=None, programs="", environment={}):
        self.programs, self.process = programs, None
        self.environment = os.environ | environment
        self.dir = tempfile.mkdtemp(prefix="pg_fernet_")
        os.chmod(self.dir, 0o755)
        if RUN:
            shutil.chown(self.dir, "postgres")
        self.data = os.path.join(self.dir, "data")
        if base:
            run(self.program("pg_basebackup"), "-h", base.dir, "-U", "postgres", "-D", self.data, "-R", "-c", "fast")
        else:
            self.init("--data-checksums")
        self.settings = "\n".join([
            *(["primary_conninfo = 'host=%s user=postgres'" % base.dir] if base else []),
            "listen_addresses = ''", f"unix_socket_directories = '{self.dir}'",
            *([] if SQL else [f"fernet.keys_file = '{self.dir}/keys'", "shared_preload_libraries = 'pg_fernet'"]), *settings])
        self.write("data/postgresql.auto.conf", self.settings)
        self.write_keys(keys)
        self.start()
        if SQL and not base:
            prepare(host=self.dir)

    def program(self, name):
        return os.path.join(self.programs, name)

    def init(self, *options):
        run(self.program("initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C",
            "--no-sync", *options)

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        run("sh", "-c", 'umask 077; cat >"$0"', path, input=text + "\n")

    def write_keys(self, keys):
        """Gives the server other keys, which sessions then use."""
        if not SQL:
            self.write("keys", "\n".join(keys))
            return
        self.write("data/postgresql.auto.conf", f"{self.settings}\nfernet.keys = '{','.join(keys)}'")
        if self.process:
            run(self.program("pg_ctl"), "reload", "-D", self.data)

            def known():
                with self.connect() as session:
                    return value(session, "SHOW fernet.keys") == ",".join(keys)

            wait_until(known)

    def start(self):
        deadline = time.monotonic() + 60
        with open(os.path.join(self.dir, "log"), "a") as log:
            # A child of ours: when it is killed, it is gone, and does not remain as a zombie that keeps its
            # lock file.
            self.process = subprocess.Popen([*self.launcher, self.program("postgres"), "-D", self.data], cwd="/", stdout=log, stderr=log,
                                            env=self.environment)
        while True:
            try:
                return self.connect(user=SUPERUSER).close()
            except psycopg.OperationalError as error:
                assert self.process.poll() is None and time.monotonic() < deadline, f"{error}\n{self.log()[-2000:]}"
            time.sleep(0.02)

    def log(self):
        with open(os.path.join(self.dir, "log")) as log:
            return log.read()

    def connect(self, database="postgres", user=USER):
        return connect(database, host=self.dir, user=user)

    def stop(self, mode="fast"):
        subprocess.run([*RUN, self.program("pg_ctl"), "stop", "-m", mode, "-D", self.data], cwd="/", capture_output=True)
        self.process.wait()

    def kill_session(self, *pids):
        """Kills a process that serves a session, the first that still exists. The server then ends all sessions, and
        recovers."""
        def recoveries():
            return self.log().count("ready to accept connections")

        def crashes():
            return self.log().count("terminating any other active server processes")

        recovered, crashed = recoveries(), crashes()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                # A session that is ending by itself can be killed without any effect.
                wait_until(lambda: crashes() > crashed, 5)
                break
            except (ProcessLookupError, AssertionError):
                pass
        wait_until(lambda: recoveries() > recovered)

    def processes(self):
        """All processes of the server, the first of them in front."""
        with open(os.path.join(self.data, "postmaster.pid")) as file:
            first = int(file.readline())
        # The kernel's own list of children lacks some if one ends meanwhile.
        processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [first, *(pid for pid in processes if status(pid)[1:] == [str(first)])]

    def kill(self, processes=None):
        """Kills all processes of the server without giving them time to clean up. If processes are given, kills only
        those, and waits for the end of the others."""
        kill(*(processes or self.processes()))
        self.process.wait()

        def are_gone():
            left = self.left()
            # A process that started too late to be listed may wait for a lock that another one had, and never end.
            kill(*([] if processes else left))
            return not left

        # A process that is still ending keeps the next server from starting.
        wait_until(are_gone)

    def left(self):
        """The existing processes, with or without the first one."""
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and self.has(pid)]

    def has(self, pid):
        """Whether a process is one of the server's, with or without the first one: they work in its folder."""
        try:
            return os.readlink(f"/proc/{pid}/cwd") == self.data
        except OSError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop("immediate")
        shutil.rmtree(self.dir)


def kill(*pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def status(pid):
    """The state of a process and its parent, or nothing if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def is_alive(pid):
    return status(pid)[:1] not in ([], ["Z"], ["X"])
