"""Databases, sessions and servers for the tests."""

import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from edition import SQL, USER, prepare, superuser

ROOT = Path(__file__).parents[2]


def major_version():
    """The version of the server whose pg_config the environment names."""
    version = subprocess.run([os.environ["PG_CONFIG"], "--version"], check=True, capture_output=True, text=True).stdout
    return int(re.search(r"\d+", version)[0])


def connect(database, keys=(), **options):
    """Opens a session that has these keys. Each statement is a transaction."""
    session = psycopg.connect(dbname=database, autocommit=True, **options)
    if keys:
        session.execute("SELECT fernet_generate_key()")  # loads the library
        set_keys(session, *keys)
    return session


def create_database(name, encoding="UTF8", **options):
    drop_database(name, **options)
    with superuser(**options) as server:
        server.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C'")
                       .format(sql.Identifier(name), sql.Identifier(USER), sql.Literal(encoding)))


def drop_database(name, **options):
    with superuser(**options) as server:
        server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def set_keys(session, *keys):
    session.execute("SELECT set_config('fernet.keys', %s, false)", [",".join(keys)])


def value(session, query, *parameters):
    """The single value of a query's only row."""
    (row,) = session.execute(query, parameters or None).fetchall()
    return row[0]


def column(session, query, *parameters):
    return [row[0] for row in session.execute(query, parameters or None)]


def is_progress(message):
    """Whether it is one of those that a CALL sends every second, and a fast one not at all."""
    return re.match("(rotating|encrypting|decrypting|checking what was written meanwhile|counting what is left): ", message)


def notices(session, severity=None):
    """Collects into a list the notices and warnings, or those of one severity, that the session sends from now
    on, but not its progress."""
    collected = []
    session.add_notice_handler(
        lambda diag: collected.append(diag.message_primary)
        if severity in (None, diag.severity) and not is_progress(diag.message_primary) else None)
    return collected


def attempts(session, expression, tokens):
    """Evaluates an SQL expression of type text for each token, which is $1, a bytea. Gives the outcome for
    each: (value, None) or (None, SQLSTATE)."""
    session.execute("""
        CREATE OR REPLACE FUNCTION pg_temp.attempt(expression text, token bytea, OUT result text, OUT code text)
        LANGUAGE plpgsql AS $$
        BEGIN
            EXECUTE 'SELECT ' || expression INTO result USING token;
        EXCEPTION WHEN OTHERS THEN
            code := sqlstate;
        END $$""")
    return session.execute(
        "SELECT result, code FROM unnest(%s::bytea[]) WITH ORDINALITY AS t (token, n),"
        " LATERAL pg_temp.attempt(%s, token) ORDER BY n", [tokens, expression]).fetchall()


def plan(session, query):
    """Runs a query; returns its plan and how many parallel workers took part."""
    (explained,) = value(session, "EXPLAIN (ANALYZE, FORMAT JSON) " + query)

    def workers(node):
        return node.get("Workers Launched", 0) + sum(map(workers, node.get("Plans", ())))

    return explained["Plan"], workers(explained["Plan"])


def force_parallel(session):
    """Lets workers do all the work of a query on any table."""
    for setting in ("parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0",
                    "max_parallel_workers_per_gather = 2", "parallel_leader_participation = off"):
        session.execute("SET " + setting)


def private_memory(session):
    """The kilobytes that the session's process has to itself, without what it shares with others."""
    return memory(session, "RssAnon")


def peak_memory(session):
    """The most kilobytes that the session's process has had."""
    return memory(session, "VmHWM")


def memory(session, kind):
    status = Path(f"/proc/{session.info.backend_pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(kind + ":")]
    return int(line.split()[1])


@contextmanager
def server_log():
    """Collects into a list the lines that the server logs meanwhile."""
    lines = []
    with Path(os.environ["PGDATA"], "server.log").open(errors="replace") as log:
        log.seek(0, os.SEEK_END)
        yield lines
        lines.extend(log)


@contextmanager
def server(*settings):
    """A throwaway server of its own with these lines in postgresql.conf; yields its PGHOST."""
    # The server lasts until the input of its command ends.
    process = subprocess.Popen(
        [ROOT / "scripts" / "with-server", "sh", "-c", 'echo "$PGHOST"; cat >/dev/null'],
        env=os.environ | {"PG_FERNET_CONF": "\n".join(settings)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    host = process.stdout.readline().strip()
    try:
        assert host, "the server did not start"
        if SQL:
            prepare(host=host)
        yield host
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()
