"""fernet.keys_command: when it runs, who may set it, and how it ends."""

import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from cluster import RUN, Cluster, is_alive
from key_files import folder_for, key, needs_root, write
from postgres import connect, force_parallel, notices, plan, server, server_log, value
from pyca import fingerprint
from settings import fingerprints, pg_ctl, refusal, reload
from tables import wait_until

FAILURE = "could not get Fernet keys from fernet.keys_command: "


@pytest.fixture
def command(configuration):
    """Sets the command."""
    return lambda text: configuration.set("fernet.keys_command", text)


@pytest.fixture
def counted(command, folder, key_file):
    """A command that prints the keys; counts how often it has run."""
    runs = folder / "runs"
    command(f"echo run >>{runs}; cat {key_file}")
    return lambda: len(runs.read_text().splitlines()) if runs.exists() else 0


#
# When it runs
#

def test_once_per_session_until_the_next_reload(db, sessions, counted, key_file, keys):
    assert counted() == 0
    for _ in range(3):
        assert fingerprints(db) == [fingerprint(key) for key in keys]
        db.execute("SELECT fernet_encrypt(n::text) FROM generate_series(1, 100) AS n")
    assert counted() == 1

    another = sessions()
    assert counted() == 1
    another.execute("SELECT fernet_encrypt('hello')")
    assert counted() == 2

    # A new output does not count until then.
    new = key()
    write(key_file, new)
    assert fingerprints(db) == [fingerprint(key) for key in keys]
    reload(db)
    assert counted() == 2
    assert fingerprints(db) == fingerprints(db) == [fingerprint(new)]
    assert counted() == 3
    reload(another)
    assert fingerprints(another) == [fingerprint(new)]
    assert counted() == 4


def test_not_where_no_key_is_needed(db, counted):
    db.execute("SELECT fernet_is_token('x'), fernet_generate_key()")
    assert counted() == 0


def test_each_parallel_worker_runs_it(db, counted):
    db.execute("CREATE TABLE command_tokens AS SELECT fernet_encrypt(n::text) AS token FROM generate_series(1, 1000) AS n")
    try:
        force_parallel(db)
        before = counted()
        # Long enough that none of them is too late for its part.
        _, workers = plan(db, "SELECT count(fernet_decrypt(token) || pg_sleep(0.001)) FROM command_tokens")
        assert workers > 0
        assert counted() == before + workers
    finally:
        db.execute("DROP TABLE command_tokens")


def test_each_background_worker_runs_it(db, counted):
    db.execute("CREATE TABLE command_tokens AS SELECT fernet_encrypt(n::text) AS token FROM generate_series(1, 20000) AS n")
    try:
        before = counted()
        db.execute("CALL fernet_rotate_column('command_tokens', 'token', workers => 2)")
        assert counted() == before + 2
    finally:
        db.execute("DROP TABLE command_tokens")


def test_after_a_failure_it_runs_again(db, command, folder, keys):
    path = folder / "keys"
    command(f"cat {path}")
    assert refusal(db, "F0000") == FAILURE + "it ended with exit status: 1"
    write(path, *keys)
    assert fingerprints(db) == [fingerprint(key) for key in keys]


def test_after_a_reload_the_last_good_keys_are_not_used(db, counted, key_file):
    token = value(db, "SELECT fernet_encrypt('hello')")
    key_file.unlink()
    assert value(db, f"SELECT fernet_decrypt('{token}')") == "hello"
    reload(db)
    refusal(db, "F0000", f"SELECT fernet_decrypt('{token}')")


def test_a_reload_does_not_run_it_again_where_it_is_on_the_command_line(keys):
    """The server does not set again what it was given there."""
    with server() as host:
        folder = folder_for(host)
        file = write(folder / "keys", keys[0])
        program = write(folder / "print", "#!/bin/sh", f"cat {file}", mode=0o700)
        pg_ctl(host, "restart", "-o", f"-c fernet.keys_command={program}")
        with connect("postgres", host=host) as session:
            session.execute("CREATE EXTENSION pg_fernet")
            assert fingerprints(session) == [fingerprint(keys[0])]
            write(file, keys[1])
            reload(session)
            assert fingerprints(session) == [fingerprint(keys[0])]
        with connect("postgres", host=host) as another:
            assert fingerprints(another) == [fingerprint(keys[1])]


#
# What it prints, and how it ends
#

@pytest.mark.parametrize("text, sqlstate, message", [
    ("echo bad", "22023", "key 1 of fernet.keys_command is not a valid Fernet key"),
    ("true", "22023", "fernet.keys_command: the key list is empty"),
    ("cat {0}; exit 3", "F0000", FAILURE + "it ended with exit status: 3"),
    ("cat {0}; kill -9 $$", "F0000", FAILURE + "it ended with signal: 9 (SIGKILL)"),
    # None of the server's signals are blocked in it.
    ("kill -TERM $$; cat {0}", "F0000", FAILURE + "it ended with signal: 15 (SIGTERM)"),
    ("kill -INT 0; cat {0}", "F0000", FAILURE + "it ended with signal: 2 (SIGINT)"),
    ("kill -9 0; cat {0}", "F0000", FAILURE + "it ended with signal: 9 (SIGKILL)"),
    ("kill -9 $PPID; cat {0}", "F0000", FAILURE + "the process that watched it was killed"),
    ("exec >&-; sleep 0.2; exit 3", "F0000", FAILURE + "it ended with exit status: 3"),
    ("(sleep 0.2; cat {0}) &", "22023", "fernet.keys_command: the key list is empty"),
    ("no-such-program", "F0000", FAILURE + "it ended with exit status: 127"),
    ("yes", "F0000", FAILURE + "more than 1 MiB"),
    ("cat {0}; head -c 1048576 /dev/zero | tr '\\0' '#'", "F0000", FAILURE + "more than 1 MiB"),
])
def test_a_bad_end(db, command, key_file, text, sqlstate, message):
    command(text.format(key_file))
    assert refusal(db, sqlstate) == message


@pytest.mark.parametrize("text", [
    "cat {0}",
    "tr '\\n' , <{0}",
    # It has no standard input: a command that reads ends at once.
    "cat; cat {0}",
    # The maximum size, in pieces.
    "cat {0}; echo; head -c 1048000 /dev/zero | tr '\\0' '#'",
    "while read key; do echo $key; sleep 0.1; done <{0}",
    # The output ends well before the command does.
    "cat {0}; exec >&-; sleep 0.3",
    # A descendant that lives on is not waited for, whether it has closed the output or not.
    "sleep 15 >/dev/null & cat {0}",
    "sleep 15 & cat {0}",
    "setsid sleep 15 & cat {0}",
    "(while sleep 0.01; do echo '#'; done) & cat {0}; kill -STOP $!",
])
def test_a_good_end(db, command, key_file, keys, text):
    command(text.format(key_file))
    started = time.monotonic()
    assert fingerprints(db) == [fingerprint(key) for key in keys]
    assert time.monotonic() - started < 5


def test_it_has_no_file_of_the_servers(db, command, folder, key_file):
    """Neither the client's connection nor a table's file."""
    db.execute("CREATE TEMP TABLE t AS SELECT 1")
    command(f"ls /proc/self/fd >{folder}/files; cat {key_file}")
    assert value(db, "SELECT count(*) FROM t, fernet_keys()") == 3
    # The last is ls's own, for the folder.
    assert (folder / "files").read_text().split() == ["0", "1", "2", "3"]


def test_it_runs_in_the_data_directory(db, command, folder, key_file):
    command(f"pwd >{folder}/where; cat {key_file}")
    fingerprints(db)
    assert (folder / "where").read_text().strip() == os.environ["PGDATA"]


def test_the_client_of_a_session_that_ends_knows_at_once(db, sessions, command, key_file):
    """Nobody else has its connection open."""
    command(f"setsid sleep 15 & cat {key_file}")
    session = sessions()
    fingerprints(session)
    started = time.monotonic()
    db.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT pg_sleep(20)")
    assert time.monotonic() - started < 5


def test_what_it_says_on_standard_error_goes_nowhere(db, command, key_file):
    told = notices(db)
    with server_log() as lines:
        command(f"echo 'a secret of the client' >&2; cat {key_file}")
        db.execute("SELECT fernet_encrypt('hello')")
        command("echo 'a secret of the client' >&2; echo 'a secret of the list'; exit 1")
        refusal(db, "F0000")
    assert not told
    # The log has the command on reload; lines that begin otherwise do not have it.
    assert not [line for line in lines if "secret" in line and "fernet.keys_command" not in line]


#
# Until when
#

def processes(path, count):
    """The ids that the processes of a command have written down."""
    wait_until(lambda: path.exists() and len(path.read_text().split()) >= count, 30)
    return [int(id) for id in path.read_text().split()]


def survivors(ids):
    """The processes that do not end even within a moment. The test ends them."""
    deadline = time.monotonic() + 1
    while any(map(is_alive, ids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = list(filter(is_alive, ids))
    for id in left:
        os.kill(id, signal.SIGKILL)
    return left


FOREVER = "echo $$ >>{0}; (sleep 15 & echo $! >>{0}; wait) & sleep 15 & echo $! >>{0}; wait"


@pytest.mark.parametrize("end, error", [
    ("SELECT pg_cancel_backend({0})", psycopg.errors.QueryCanceled),
    ("SELECT pg_terminate_backend({0})", psycopg.errors.AdminShutdown),
    ("SET statement_timeout = '500ms'", psycopg.errors.QueryCanceled),
    ("SET transaction_timeout = '500ms'", psycopg.errors.TransactionTimeout),
], ids=["cancel", "terminate", "statement_timeout", "transaction_timeout"])
def test_it_is_killed_with_its_children(db, sessions, command, folder, end, error):
    command(FOREVER.format(folder / "ids"))
    session = sessions()
    if "transaction_timeout" in end and session.info.server_version < 170000:
        pytest.skip("there is none before PostgreSQL 17")
    if end.startswith("SET"):
        session.execute(end)
    else:
        def stop():
            processes(folder / "ids", 3)
            db.execute(end.format(session.info.backend_pid))
        threading.Thread(target=stop).start()
    started = time.monotonic()
    with pytest.raises(error):
        session.execute("SELECT fernet_encrypt('hello')")
    assert time.monotonic() - started < 2
    assert not survivors(processes(folder / "ids", 3))


def test_it_is_killed_when_the_client_is_lost(db, command, folder, database):
    command(FOREVER.format(folder / "ids"))
    client = subprocess.Popen(["psql", "-X", "-c", "SET client_connection_check_interval = '100ms'",
                               "-c", "SELECT fernet_encrypt('hello')", database])
    ids = processes(folder / "ids", 3)
    client.kill()
    client.wait()
    assert not survivors(ids)


@pytest.mark.parametrize("mode", ["immediate", "fast", "restart"])
def test_it_is_killed_when_the_server_ends(folder, mode):
    """Even if its processes have no time to do it."""
    with server(f"fernet.keys_command = '{FOREVER.format(folder / 'ids')}'", "shared_preload_libraries = 'pg_fernet'") as host:
        with connect("postgres", host=host) as admin:
            admin.execute("CREATE EXTENSION pg_fernet")
        session = connect("postgres", host=host)
        session.pgconn.send_query(b"SELECT fernet_encrypt('hello')")
        ids = processes(folder / "ids", 3)
        pg_ctl = shlex.split(os.environ["PG_FERNET_RUN"]) + ["pg_ctl", "-D", f"{host}/data"]
        how = ["restart", "-m", "immediate", "-l", f"{host}/data/server.log"] if mode == "restart" else ["stop", "-m", mode]
        subprocess.run([*pg_ctl, *how], check=True, cwd="/", stdout=subprocess.DEVNULL)
        assert not survivors(ids)
        session.close()


def test_it_has_ten_seconds(sessions, command, folder):
    """Two at a time: one that keeps its output open, and one that has closed it."""
    first = f"mkdir {folder}/first 2>/dev/null"
    command(f"echo $$ >>{folder}/ids; {first} || exec >&-; sleep 15 & echo $! >>{folder}/ids; wait")

    def run(session):
        started = time.monotonic()
        message = refusal(session, "F0000")
        return message, time.monotonic() - started

    with ThreadPoolExecutor() as pool:
        ends = list(pool.map(run, [sessions(), sessions()]))
    assert [message for message, _ in ends] == [FAILURE + "it took longer than 10 s"] * 2
    assert all(10 <= seconds < 12 for _, seconds in ends)
    assert not survivors(processes(folder / "ids", 4))


@pytest.fixture
def as_another(folder):
    """A prefix that lets a command run as another user for good, as sudo does."""
    program = folder / "as_another"
    shutil.copy(shutil.which("setpriv"), program)
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    return f"{program} --reuid=65534"


@needs_root
def test_what_runs_with_other_rights_is_waited_for(sessions, command, folder, key_file, keys, as_another):
    # For as long as it runs. Until it has the other rights, it is killed at the end of the command.
    has_them = folder / "has_them"
    os.mkfifo(has_them)
    has_them.chmod(0o666)
    command(f"{as_another} sh -c 'echo >&3; exec sleep 2' 3>{has_them} & read _ <{has_them}; cat {key_file}")
    started = time.monotonic()
    assert fingerprints(sessions()) == [fingerprint(key) for key in keys]
    assert 2 <= time.monotonic() - started < 10

    command(f"{as_another} sleep 20 & echo $! >>{folder}/ids; wait")

    def run(session):
        started = time.monotonic()
        with pytest.raises(psycopg.Error) as error:
            fingerprints(session)
        return error.value.diag.message_primary, time.monotonic() - started

    cancelled = sessions()
    cancelled.execute("SET statement_timeout = '2s'")
    with ThreadPoolExecutor() as pool:
        (late, late_seconds), (early, early_seconds) = pool.map(run, [sessions(), cancelled])
    assert (late, early) == (FAILURE + "it took longer than 10 s", "canceling statement due to statement timeout")
    assert 12 <= late_seconds < 18 and 4 <= early_seconds < 10
    # It was not killed.
    assert len(survivors(processes(folder / "ids", 2))) == 2


class WithoutProc(Cluster):
    launcher = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc && exec "$@"', "sh", *RUN]


@needs_root
def test_without_proc(keys):
    """What a command leaves behind, or puts into a session of its own, is not found there."""
    if subprocess.run([*WithoutProc.launcher, "true"], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    with WithoutProc(keys) as cluster, cluster.connect() as session:
        session.execute("CREATE EXTENSION pg_fernet")
        ids = Path(cluster.dir, "ids")

        def use(command):
            ids.unlink(missing_ok=True)
            cluster.write("data/postgresql.auto.conf", f"{cluster.settings}\nfernet.keys_file = ''\nfernet.keys_command = '{command}'")
            reload(session)

        use(f"sleep 2 & cat {cluster.dir}/keys")
        started = time.monotonic()
        assert fingerprints(session) == [fingerprint(key) for key in keys]
        assert time.monotonic() - started >= 2

        session.execute("SET statement_timeout = '2s'")
        for command, left in (f"sleep 20 & echo $! >{ids}; wait", 0), (f"setsid sleep 20 & echo $! >{ids}; wait", 1):
            use(command)
            with pytest.raises(psycopg.errors.QueryCanceled):
                fingerprints(session)
            assert len(survivors(processes(ids, 1))) == left


#
# Who may set it
#

def test_only_in_the_configuration_file(db, sessions, database):
    db.execute("LOAD 'pg_fernet'")
    for statement in (
        "SET fernet.keys_command = 'true'",
        "SET LOCAL fernet.keys_command = 'true'",
        "SELECT set_config('fernet.keys_command', 'true', false)",
        f"ALTER DATABASE {database} SET fernet.keys_command = 'true'",
        "ALTER ROLE CURRENT_USER SET fernet.keys_command = 'true'",
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET fernet.keys_command = 'true' AS 'SELECT 1'",
    ):
        with pytest.raises(psycopg.errors.CantChangeRuntimeParam):
            db.execute(statement)


@pytest.fixture
def ordinary(db):
    db.execute("CREATE ROLE fernet_ordinary LOGIN")
    db.execute("GRANT EXECUTE ON FUNCTION fernet_encrypt(text) TO fernet_ordinary")
    yield "fernet_ordinary"
    db.execute("DROP OWNED BY fernet_ordinary")
    db.execute("DROP ROLE fernet_ordinary")


@pytest.mark.parametrize("way", ["SET", "connection option", "ALTER ROLE"])
@pytest.mark.parametrize("user", ["postgres", "ordinary"])
def test_a_command_that_was_set_before_the_library_was_loaded_does_not_run(db, sessions, folder, ordinary, user, way):
    """By then the server did not know that it is only for the configuration file."""
    user = ordinary if user == "ordinary" else user
    mark = folder / "mark"
    setting = f"fernet.keys_command = 'touch {mark}'"
    if way == "ALTER ROLE":
        sessions().execute(f"ALTER ROLE {user} SET {setting}")
    try:
        session = sessions(user=user, options=f"-c fernet.keys_command=touch\\ {mark}" if way == "connection option" else "")
        if way == "SET":
            session.execute("SET " + setting)
        assert value(session, "SHOW fernet.keys_command") == f"touch {mark}"
        told = notices(session)
        refusal(session, "55000")
        assert not mark.exists()
        assert told == ['parameter "fernet.keys_command" cannot be changed now']
    finally:
        db.execute(f"ALTER ROLE {user} RESET fernet.keys_command")
