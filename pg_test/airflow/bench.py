"""Times rotations of the same connections, by Airflow's command and by an UPDATE.

The time to start is not counted. Airflow's command runs in a process that has run it before, and
its median time on empty tables is subtracted; the UPDATE runs in an open session. Each time is a
median: of nine runs of the UPDATE, of three of Airflow's command without its log masking, and of
one of the stock command, which takes up to minutes.
"""

import os
import secrets
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

from cryptography.fernet import Fernet

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from chart import draw
from harness import HERE, Airflow, on_server
from throwaway import refuse_another_server

VERSIONS = ("2.11.2", "3.3.2")
ROWS_STOCK = (250, 500, 1_000)
ROWS = (1_000, 5_000, 20_000)

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
KEYS = f"{NEW},{OLD}"

# Passwords as generators make them by default. Those with punctuation cost Airflow's log masking
# twice: once unchanged, and once escaped for a URL.
CHARACTERS = string.ascii_letters + string.digits + string.punctuation

UPDATE = """
    UPDATE connection SET password = fernet_rotate(password), extra = fernet_rotate(extra)
     WHERE is_encrypted AND is_extra_encrypted
"""
# The time that PostgreSQL itself takes to rewrite the rows, for comparison.
UPDATE_ALONE = UPDATE.replace("fernet_rotate(password)", "password || ''").replace(
    "fernet_rotate(extra)", "extra || ''")


def main(picture):
    refuse_another_server()
    with tempfile.TemporaryDirectory() as home:
        times = {}
        for version in VERSIONS:
            airflow = migrate(version, home)
            times |= time_all(airflow)
            report(airflow, times)
    Path(picture).write_text(draw(curves(times)))
    print(f"\nDrawn: {picture}")


def migrate(version, home):
    airflow = Airflow(version, f"bench_{version}", Path(home, version))
    on_server("CREATE DATABASE {}", airflow.database)
    airflow.cli("db", "migrate", key=OLD)
    with airflow.connect() as connection:
        connection.execute("CREATE EXTENSION pg_fernet")
    return airflow


def time_all(airflow):
    """{(version, what, rows): seconds}"""
    times = {}
    for rows in sorted({*ROWS_STOCK, *ROWS}):
        fill(airflow, rows)

        def update(statement):
            restore(airflow)
            with airflow.connect(keys=KEYS) as connection:
                connection.execute("SELECT fernet_key_index('')")  # loads the library
                connection.commit()
                return clock(lambda: (connection.execute(statement), connection.commit()))

        def command(what):
            empty(airflow)
            program = [airflow.venv / "python", HERE / "in_airflow" / "rotate.py", what]
            with subprocess.Popen(program, env=airflow.environment(KEYS), text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                next(line for line in process.stdout if line == "ready\n")
                restore(airflow)
                answer, _ = process.communicate("go\n")
            return float(answer.split()[-1])

        # In turns, so that other load on the machine affects all alike.
        runs = defaultdict(list)
        for _ in range(3):
            for _ in range(3):
                runs["alone"].append(update(UPDATE_ALONE))
                runs["update"].append(update(UPDATE))
                assert left_to_rotate(airflow) == 0
            if rows in ROWS:
                runs["unmasked"].append(command("unmasked"))
                assert left_to_rotate(airflow) == 0
        if rows in ROWS_STOCK:
            runs["stock"].append(command("stock"))
            assert left_to_rotate(airflow) == 0
        for what, seconds in runs.items():
            times[airflow.version, what, rows] = statistics.median(seconds)
    return times


def fill(airflow, rows):
    """Connections of ordinary content, under the old key, and a copy of them to start again from."""
    with airflow.connect(keys=OLD) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS plain, before")
        cursor.execute("CREATE TABLE plain (id int, password text)")
        with cursor.copy("COPY plain FROM STDIN") as copy:
            for i in range(rows):
                copy.write_row((i, "".join(secrets.choice(CHARACTERS) for _ in range(20))))
        cursor.execute("""
            TRUNCATE connection;
            INSERT INTO connection (conn_id, conn_type, host, login, port, schema, password, extra,
                                    is_encrypted, is_extra_encrypted)
            SELECT 'warehouse_' || id, 'postgres', 'db-' || id || '.example.com', 'airflow', 5432,
                   'analytics', fernet_encrypt(password), fernet_encrypt(json_build_object(
                       'sslmode', 'verify-full', 'sslrootcert', '/etc/ssl/certs/company.pem',
                       'application_name', 'airflow', 'token', md5(password))::text), true, true
              FROM plain;
            CREATE TABLE before AS TABLE connection;
        """)


def empty(airflow):
    with airflow.connect() as connection:
        connection.execute("TRUNCATE connection")


def restore(airflow):
    empty(airflow)
    with airflow.connect(autocommit=True) as connection:
        connection.execute("INSERT INTO connection SELECT * FROM before")
        connection.execute("VACUUM ANALYZE connection")
        connection.execute("CHECKPOINT")


def left_to_rotate(airflow):
    with airflow.connect(keys=NEW) as connection:
        return connection.execute(
            "SELECT count(*) FROM connection"
            " WHERE fernet_key_index(password) IS NULL OR fernet_key_index(extra) IS NULL"
        ).fetchone()[0]


def clock(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def report(airflow, times):
    with airflow.connect() as connection:
        server = connection.execute("SHOW server_version").fetchone()[0].split()[0]
    print(f"\nAirflow {airflow.version}, PostgreSQL {server}, {os.cpu_count()} cores,"
          f" load average {os.getloadavg()[2]:.1f}, {date.today()}\n")
    print("| connections | Airflow's command | s | rows/s | `UPDATE`, s | rows/s | ratio |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for what, label in (("stock", "stock"), ("unmasked", "log masking off")):
        for rows, seconds in curve(times, airflow.version, what).items():
            update = times[airflow.version, "update", rows]
            cells = [f"{rows:,}", label, f"{seconds:.2f}", f"{rows / seconds:,.0f}",
                     f"{update:.4f}", f"{rows / update:,.0f}", f"{seconds / update:,.0f}"]
            print("|", " | ".join(cells), "|")
    most = max(ROWS)
    alone, update = (times[airflow.version, what, most] for what in ("alone", "update"))
    print(f"\nRewriting the {most:,} rows takes PostgreSQL {alone:.3f} s of the {update:.3f} s.")
    sys.stdout.flush()


def curve(times, version, what):
    """{rows: seconds}"""
    return {rows: seconds for (*key, rows), seconds in times.items() if key == [version, what]}


def curves(times):
    """The curves of the picture. The UPDATE takes the same time with either schema, so one is
    drawn."""
    curves = {"pg_fernet, UPDATE": curve(times, VERSIONS[-1], "update")}
    for version in VERSIONS:
        curves[f"Airflow {version}, stock"] = curve(times, version, "stock")
        curves[f"Airflow {version}, masking off"] = curve(times, version, "unmasked")
    return curves


if __name__ == "__main__":
    main(*sys.argv[1:])
