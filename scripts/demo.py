"""The main job, told step by step: rotate the Fernet tokens of a metadata database in SQL."""

import json
import sys
import time
from pathlib import Path

import psycopg
from cryptography.fernet import Fernet, MultiFernet

sys.path.insert(0, str(Path(__file__).parents[1] / "pg_test" / "support"))

from throwaway import refuse_another_server

CONNECTIONS, VARIABLES, TRIGGERS = 20_000, 5_000, 200

# The tables and columns of Airflow 2.11 that hold tokens, without columns that do not matter here.
SCHEMA = """
CREATE TABLE connection (
    id serial PRIMARY KEY, conn_id text UNIQUE NOT NULL, conn_type text NOT NULL, login text,
    password text, extra text, is_encrypted boolean, is_extra_encrypted boolean);
CREATE TABLE variable (
    id serial PRIMARY KEY, key text UNIQUE, val text, is_encrypted boolean);
CREATE TABLE trigger (
    id serial PRIMARY KEY, classpath text NOT NULL, kwargs text NOT NULL);
"""

CENSUS = """
SELECT what, key_index AS "under key", count(*) AS tokens
FROM (SELECT 'connection.password', fernet_key_index(password) FROM connection WHERE is_encrypted
      UNION ALL
      SELECT 'connection.extra', fernet_key_index(extra) FROM connection WHERE is_extra_encrypted
      UNION ALL
      SELECT 'variable.val', fernet_key_index(val) FROM variable WHERE is_encrypted
      UNION ALL
      SELECT 'trigger.kwargs', fernet_key_index(kwargs) FROM trigger) AS t (what, key_index)
WHERE key_index IS NOT NULL
GROUP BY what, key_index ORDER BY what, key_index"""

ROTATE = [
    "UPDATE connection SET password = fernet_rotate(password) WHERE is_encrypted",
    "UPDATE connection SET extra = fernet_rotate(extra) WHERE is_extra_encrypted",
    "UPDATE variable SET val = fernet_rotate(val) WHERE is_encrypted",
    "UPDATE trigger SET kwargs = fernet_rotate(kwargs) WHERE fernet_is_token(kwargs)",
]

FINGERPRINT = "SELECT md5(string_agg(c::text, '' ORDER BY id)) FROM connection AS c"


def title(text):
    print(f"\n\033[1m{text}\033[0m\n")


def say(text):
    print(f"  {text}")


def show(statement, shown=None):
    print("  \033[36m" + "\n  ".join((shown or statement).strip().splitlines()) + ";\033[0m")


def run(conn, statement, shown=None):
    """Shows a statement, runs it, and shows what it returns."""
    show(statement, shown)
    cursor = conn.execute(statement)
    if cursor.description:
        heads = [column.name for column in cursor.description]
        rows = [[str(value) for value in row] for row in cursor]
        widths = [max(map(len, column)) for column in zip(heads, *rows)]
        for row in [heads, ["-" * width for width in widths], *rows]:
            print("    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)))
        print()
    return cursor


def refused(conn, statement):
    """Shows a statement that must fail and its error, and that the table has not changed."""
    before = conn.execute(FINGERPRINT).fetchone()
    show(statement)
    try:
        conn.execute(statement)
    except psycopg.Error as error:
        say(f"\033[31mERROR:  {error.sqlstate}: {error.diag.message_primary}\033[0m")
        say(f"HINT:  {error.diag.message_hint}")
    else:
        raise SystemExit("this statement should have been refused")
    assert conn.execute(FINGERPRINT).fetchone() == before
    say("Nothing changed: the table is, byte for byte, what it was.\n")


def copy(conn, table, columns, rows):
    with conn.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as writer:
        for row in rows:
            writer.write_row(row)


def fill(conn, key):
    """Fills the tables as Airflow would, and returns the plaintext of each token."""
    fernet = Fernet(key)
    plaintexts = {}

    def encrypt(plaintext):
        token = fernet.encrypt(plaintext.encode()).decode()
        plaintexts[token] = plaintext
        return token

    def connection(n):
        if n % 20 == 0:  # neither password nor extra
            return f"conn_{n}", "http", "me", None, None, False, False
        extra = encrypt(json.dumps({"region": "eu-central-1", "role": f"role-{n}"}))
        if n % 20 == 1:  # saved before encryption was turned on
            return f"conn_{n}", "postgres", "me", f"plaintext-{n}", extra, False, True
        return f"conn_{n}", "postgres", "me", encrypt(f"pässword-{n}"), extra, True, True

    copy(conn, "connection",
         "conn_id, conn_type, login, password, extra, is_encrypted, is_extra_encrypted",
         map(connection, range(CONNECTIONS)))
    copy(conn, "variable", "key, val, is_encrypted",
         ((f"var_{n}", f"plaintext-{n}", False) if n % 50 == 0 else
          (f"var_{n}", encrypt(f"value {n}"), True) for n in range(VARIABLES)))
    copy(conn, "trigger", "classpath, kwargs",
         (("airflow.triggers.temporal.DateTimeTrigger", encrypt(json.dumps({"moment": n})))
          for n in range(TRIGGERS)))
    conn.execute("ANALYZE")
    return plaintexts


def tokens(conn):
    return [row[0] for row in conn.execute("""
        SELECT password FROM connection WHERE is_encrypted UNION ALL
        SELECT extra FROM connection WHERE is_extra_encrypted UNION ALL
        SELECT val FROM variable WHERE is_encrypted UNION ALL
        SELECT kwargs FROM trigger""")]


def main():
    refuse_another_server()
    conn = psycopg.connect("", autocommit=True)
    conn.add_notice_handler(lambda notice: say(f"{notice.severity}:  {notice.message_primary}"))
    old = Fernet.generate_key().decode()

    title("1. A metadata database, as Airflow leaves it")
    conn.execute(SCHEMA)
    plaintexts = fill(conn, old)
    say(f"{CONNECTIONS:,} connections, {VARIABLES:,} variables and {TRIGGERS:,} triggers hold "
        f"{len(plaintexts):,} tokens,")
    say("made by Python's cryptography under one key. Some values are NULL, some still plaintext.")

    title("2. Install the extension, make a new key, put it before the old one")
    run(conn, "CREATE EXTENSION pg_fernet")
    show("SELECT fernet_generate_key()")
    new = conn.execute("SELECT fernet_generate_key()").fetchone()[0]
    say(f"  {new[:6]}…  a new key; a real one would now go into Airflow's configuration\n")
    run(conn, f"SET fernet.keys = '{new},{old}'", "SET fernet.keys = 'new_key,old_key'")
    run(conn, "SELECT * FROM fernet_keys()")

    title("3. Before: everything is under the old key, number 2 of the list")
    run(conn, CENSUS)

    title("4. Rotate")
    before = tokens(conn)
    conn.execute("CREATE TEMP TABLE before (token text)")
    copy(conn, "before", "token", ([token] for token in before))
    start = time.perf_counter()
    conn.execute("SELECT count(fernet_rotate(token)) FROM before")
    alone = time.perf_counter() - start
    start = time.perf_counter()
    with conn.transaction():
        rows = sum(run(conn, statement).rowcount for statement in ROTATE)
    ours = time.perf_counter() - start
    print()
    say(f"{rows:,} tokens in {ours:.2f} s: {rows / ours:,.0f} a second, in one transaction.")
    say(f"Most of it is PostgreSQL's, for writing the rows: fernet_rotate alone does "
        f"{rows / alone:,.0f} a second.")
    ring = MultiFernet([Fernet(new), Fernet(old)])
    start = time.perf_counter()
    for token in before:
        ring.rotate(token)
    theirs = time.perf_counter() - start
    say(f"Python's MultiFernet.rotate alone, on the same tokens: {rows / theirs:,.0f} a second.")

    title("5. After: everything is under the new key, number 1")
    run(conn, CENSUS)

    title("6. Drop the old key, and read everything back")
    run(conn, f"SET fernet.keys = '{new}'", "SET fernet.keys = 'new_key'")
    run(conn, """SELECT count(fernet_decrypt(password)) AS passwords, min(fernet_decrypt(password)) AS one
FROM connection WHERE is_encrypted""")
    fernet = Fernet(new)
    after = tokens(conn)
    assert sorted(fernet.decrypt(token).decode() for token in after) == sorted(plaintexts.values())
    assert not set(before) & set(after)
    say(f"Python opens all {len(after):,} tokens with the new key alone, and finds what it encrypted.")

    title("7. What can go wrong: the old key was dropped too early")
    say("A scheduler that still runs with the old key saves a connection:")
    late = Fernet(old).encrypt(b"late").decode()
    run(conn, "INSERT INTO connection (conn_id, conn_type, password, is_encrypted) "
        f"VALUES ('late', 'http', '{late}', true)",
        "INSERT INTO connection (conn_id, …, password, is_encrypted) "
        "VALUES ('late', …, 'gAAAAAB…', true)")
    refused(conn, ROTATE[0])
    say("The way out is in the hint: put the old key back, behind the new one.")
    run(conn, f"SET fernet.keys = '{new},{old}'", "SET fernet.keys = 'new_key,old_key'")
    run(conn, ROTATE[0])
    assert fernet.decrypt(conn.execute(
        "SELECT password FROM connection WHERE conn_id = 'late'").fetchone()[0]) == b"late"

    title("8. What can go wrong: a plaintext among the tokens")
    say("The condition on is_encrypted was forgotten:")
    refused(conn, "UPDATE connection SET password = fernet_rotate(password)")
    say("Encrypt what is still plaintext, as Airflow would, and it is no longer in the way:")
    run(conn, """UPDATE connection SET password = fernet_encrypt(password), is_encrypted = true
WHERE NOT is_encrypted AND password <> ''""")
    cursor = run(conn, "UPDATE connection SET password = fernet_rotate(password)")
    say(f"{cursor.rowcount:,} rows. Done.\n")


main()
