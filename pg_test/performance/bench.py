"""Measures the cost of pg_fernet in a server, and prints it beside the targets.

The server is as initdb makes it. What is compared runs in turn, in one session; each figure is a median. Reads
criterion's measurements of the core from the given folder. If the paths are given, writes the table to JSON and a
picture of it to SVG.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import cryptography
import psycopg
from cryptography.fernet import Fernet, MultiFernet

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from bars import draw
from edition import install_sql_edition
from postgres import memory
from throwaway import refuse_another_server

NEW, OLD = (Fernet.generate_key().decode() for _ in range(2))
MORE = [Fernet.generate_key().decode() for _ in range(10)]
PLAINTEXT = "a password of 24 letters"
ROWS = 200_000
TURNS = 9
MEBIBYTE = 1 << 20


@dataclass
class Figure:
    work: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "×"
    runs: int = TURNS

    @property
    def met(self):
        """None for figures that are only for comparison, and have no target."""
        if self.at_most is not None:
            return self.measured <= self.at_most
        return None if self.at_least is None else self.measured >= self.at_least

    def __str__(self):
        target = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}" if self.at_least else ""
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{self.work:66} {self.measured:6.2f} {self.unit:6} {target:7} {verdict:7} {self.runs} runs"


class Server:
    def __init__(self):
        # A prepared statement, which psycopg makes after five runs, would keep its plan, and so its number of workers.
        self.db = psycopg.connect(autocommit=True, prepare_threshold=None)
        self.db.execute("CREATE EXTENSION pg_fernet")
        self.db.execute("SET max_parallel_workers_per_gather = 0")
        self.db.execute("CREATE SCHEMA edition")
        install_sql_edition(self.db, "edition")
        self.keys(NEW, OLD)
        # What a value of 24 bytes costs, for the picture.
        self.us = {}

    def keys(self, *keys):
        self.db.execute("SELECT set_config('fernet.keys', %s, false)", [",".join(keys)])

    def value(self, query, *arguments):
        return self.db.execute(query, arguments or None).fetchone()[0]

    def clock(self, statement):
        start = time.perf_counter()
        self.db.execute(statement)
        return time.perf_counter() - start

    def fill(self, rows, table="secrets"):
        """Tokens under the second of two keys."""
        self.keys(OLD)
        self.db.execute(f"DROP TABLE IF EXISTS {table}")
        self.db.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, value text)")
        self.db.execute(f"INSERT INTO {table} SELECT i, fernet_encrypt('{PLAINTEXT}')"
                        f" FROM generate_series(1, {rows}) AS i")
        self.db.execute(f"VACUUM ANALYZE {table}")
        self.keys(NEW, OLD)

    def memory(self, kind="RssAnon"):
        """The memory that the session's process has to itself, in bytes; as VmHWM, the most that it has had."""
        return memory(self.db, kind) * 1024

    def peak(self, query):
        """How much more memory a query takes at its peak than before, if the system lets us ask."""
        try:
            Path(f"/proc/{self.db.info.backend_pid}/clear_refs").write_text("5")
        except PermissionError:
            return None
        before = self.memory("VmHWM")
        self.db.execute(query)
        return self.memory("VmHWM") - before


def in_turn(turns=TURNS, **works):
    """Runs all work functions in every turn, and returns the median of what each returns."""
    results = {name: [] for name in works}
    for turn in range(turns):
        # Every other turn runs backwards, so that none gains by its place.
        for name in list(works)[::1 if turn % 2 else -1]:
            results[name].append(works[name]())
    return {name: statistics.median(values) for name, values in results.items()}


def update(server):
    """The whole job, with all that PostgreSQL does for it."""
    server.fill(ROWS, "before")

    def run(expression):
        server.db.execute("DROP TABLE IF EXISTS secrets")
        server.db.execute("CREATE TABLE secrets (id integer PRIMARY KEY, value text)")
        server.db.execute("INSERT INTO secrets TABLE before")
        server.db.execute("VACUUM ANALYZE secrets")
        server.db.execute("CHECKPOINT")
        seconds = server.clock(f"UPDATE secrets SET value = {expression}")
        expected = 1 if expression.startswith("fernet_rotate") else 2
        assert server.value("SELECT every(fernet_key_index(value) = %s) FROM secrets", expected)
        return seconds

    took = in_turn(plain=lambda: run("value || ''"), rotated=lambda: run("fernet_rotate(value)"))
    yield Figure(f"UPDATE with fernet_rotate against one with || '', {ROWS:,} rows",
                 took["rotated"] / took["plain"], at_most=1.22)
    server.us["plain UPDATE"] = took["plain"] / ROWS * 1e6
    server.us["UPDATE with fernet_rotate"] = took["rotated"] / ROWS * 1e6


def values(server, times):
    """Values by themselves: the time for scanning and counting the same table is subtracted."""
    server.fill(ROWS)
    server.db.execute(f"CREATE TABLE plaintexts AS SELECT '{PLAINTEXT}' AS value, '{PLAINTEXT}'::bytea AS bytes"
                      f" FROM generate_series(1, {ROWS})")
    server.db.execute("VACUUM ANALYZE plaintexts")
    both = MultiFernet([Fernet(NEW), Fernet(OLD)])
    tokens = [token for token, in server.db.execute("SELECT value::bytea FROM secrets LIMIT 5000")]

    def count(expression, table):
        return lambda: server.clock(f"SELECT count({expression}) FROM {table}") / ROWS * 1e6

    def pyca():
        start = time.perf_counter()
        for token in tokens:
            both.rotate(token)
        return (time.perf_counter() - start) / len(tokens) * 1e6

    def with_keys(keys, work):
        def run():
            server.keys(*keys)
            return work()
        return run

    key = "decode('000102030405060708090a0b0c0d0e0f', 'hex')"
    # The least that pgcrypto can do, with one vector for all; and with a vector for each value, up to base64.
    two_calls = f"hmac(encrypt_iv(bytes, {key}, {key}, 'aes-cbc'), {key}, 'sha256')"
    pgcrypto = (f"encode(hmac(encrypt_iv(convert_to(value, 'UTF8'), {key}, gen_random_bytes(16), 'aes-cbc'),"
                f" {key}, 'sha256'), 'base64')")
    took = in_turn(
        scan=count("value", "secrets"),
        scan_bytes=count("bytes", "plaintexts"),
        scan_plaintexts=count("value", "plaintexts"),
        encrypt=with_keys((NEW, OLD), count("fernet_encrypt(value)", "plaintexts")),
        encrypt_bytes=with_keys((NEW, OLD), count("fernet_encrypt(bytes)", "plaintexts")),
        two_calls=count(two_calls, "plaintexts"),
        pgcrypto=count(pgcrypto, "plaintexts"),
        rotate=with_keys((NEW, OLD), count("fernet_rotate(value)", "secrets")),
        pyca=pyca,
        two=with_keys((NEW, MORE[0]), count("coalesce(fernet_key_index(value), 0)", "secrets")),
        eleven=with_keys((NEW, *MORE), count("coalesce(fernet_key_index(value), 0)", "secrets")),
    )
    scans = {"rotate": "scan", "encrypt_bytes": "scan_bytes", "two_calls": "scan_bytes",
             "encrypt": "scan_plaintexts", "pgcrypto": "scan_plaintexts"}
    own = {name: took[name] - took[scan] for name, scan in scans.items()}
    yield Figure("fernet_encrypt against only pgcrypto's encrypt_iv and hmac", own["two_calls"] / own["encrypt_bytes"], at_least=4)
    yield Figure("the same with gen_random_bytes, convert_to and encode", own["pgcrypto"] / own["encrypt"])
    vector = times["vectors", 256, "getrandom"] / 256
    yield Figure("fernet_rotate of 24 B against only its primitives and its vector",
                 own["rotate"] / 1e6 / (times["floor", 24, "in turn"] + vector), at_most=1.25)
    yield Figure("fernet_rotate against pyca's MultiFernet.rotate", took["pyca"] / own["rotate"], at_least=40)
    yield Figure("each further key in the list", (took["eleven"] - took["two"]) / 9, at_most=0.2, unit="us/row")
    server.us |= {"fernet_rotate": own["rotate"], "fernet_encrypt": own["encrypt"],
                  "pgcrypto: the same work": own["pgcrypto"], "pyca: MultiFernet.rotate": took["pyca"]}


def ways(server):
    """The same work by each edition, by what pgcrypto can do of it by itself, and by Python, which reads and writes
    rows over the socket: {work: {way: microseconds a value}}"""
    rows = 20_000
    server.fill(rows, "before")
    both = MultiFernet([Fernet(NEW), Fernet(OLD)])
    key = "'\\x000102030405060708090a0b0c0d0e0f'"
    server.db.execute(f"""
        CREATE TABLE plain AS SELECT '{PLAINTEXT}' AS value FROM before;
        CREATE TABLE sealed AS SELECT encode(c || hmac(c, {key}, 'sha256'), 'base64') AS value
            FROM before, encrypt_iv('{PLAINTEXT}', {key}, {key}, 'aes-cbc') AS c""")
    for table in "plain", "sealed":
        server.db.execute(f"VACUUM ANALYZE {table}")
    tokens = [token for token, in server.db.execute("SELECT value::bytea FROM before LIMIT 5000")]

    def select(expression, table="before"):
        """The time for scanning and counting is subtracted."""
        return lambda: (server.clock(f"SELECT count({expression}) FROM {table}") - server.clock(f"SELECT count(value) FROM {table}")) / rows * 1e6

    def python(work):
        def run():
            start = time.perf_counter()
            for token in tokens:
                work(token)
            return (time.perf_counter() - start) / len(tokens) * 1e6
        return run

    def update(work):
        def run():
            server.db.execute("DROP TABLE IF EXISTS secrets; CREATE TABLE secrets (id integer PRIMARY KEY, value text)")
            server.db.execute("INSERT INTO secrets TABLE before")
            server.db.execute("VACUUM ANALYZE secrets")
            start = time.perf_counter()
            work()
            us = (time.perf_counter() - start) / rows * 1e6
            assert server.value("SELECT every(fernet_key_index(value) = 1) FROM secrets")
            return us
        return run

    def update_from_python():
        with server.db.transaction(), server.db.cursor() as cursor:
            read = cursor.execute("SELECT value, id FROM secrets FOR UPDATE").fetchall()
            cursor.executemany("UPDATE secrets SET value = %s WHERE id = %s", [(both.rotate(value).decode(), id) for value, id in read])

    seal = f"encode(hmac(encrypt_iv(convert_to(value, 'UTF8'), {key}, gen_random_bytes(16), 'aes-cbc'), {key}, 'sha256'), 'base64')"
    ciphertext, signature = "substring(decode(value, 'base64'), 1, 32)", "substring(decode(value, 'base64'), 33)"
    unseal = (f"CASE WHEN hmac({ciphertext}, {key}, 'sha256') = {signature}"
              f" THEN convert_from(decrypt_iv({ciphertext}, {key}, {key}, 'aes-cbc'), 'UTF8') END")
    works = {
        "encrypt": {
            "native": select("fernet_encrypt(value)", "plain"),
            "SQL edition": select("edition.fernet_encrypt(value)", "plain"),
            "pgcrypto": select(seal, "plain"),
            "Python": python(lambda token: both.encrypt(PLAINTEXT.encode()))},
        "decrypt": {
            "native": select("fernet_decrypt(value)"),
            "SQL edition": select("edition.fernet_decrypt(value)"),
            "pgcrypto": select(unseal, "sealed"),
            "Python": python(both.decrypt)},
        "rotate": {
            "native": select("fernet_rotate(value)"),
            "SQL edition": select("edition.fernet_rotate(value)"),
            "Python": python(both.rotate)},
        "find the key": {
            "native": select("fernet_key_index(value)"),
            "SQL edition": select("edition.fernet_key_index(value)")},
        f"rotate {rows:,} rows in a table": {
            "native": update(lambda: server.db.execute("UPDATE secrets SET value = fernet_rotate(value)")),
            "SQL edition": update(lambda: server.db.execute("UPDATE secrets SET value = edition.fernet_rotate(value)")),
            "Python": update(update_from_python)},
    }
    return {work: in_turn(5, **by) for work, by in works.items()}


def trigger(server):
    """The cost of encrypting on write, by one statement for all rows and by one for each."""
    key = "'\\x000102030405060708090a0b0c0d0e0f'"
    server.db.execute(f"""
        CREATE FUNCTION encrypt_with_pgcrypto() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            ciphertext bytea := encrypt_iv(convert_to(NEW.value, 'UTF8'), {key}, gen_random_bytes(16), 'aes-cbc');
        BEGIN
            NEW.value := encode(ciphertext || hmac(ciphertext, {key}, 'sha256'), 'base64');
            RETURN NEW;
        END $$""")
    for table in "none", "fernet", "pgcrypto":
        server.db.execute(f"CREATE TABLE written_{table} (id integer, value text)")
    for table, function in ("fernet", "fernet_encrypt_trigger('value')"), ("pgcrypto", "encrypt_with_pgcrypto()"):
        server.db.execute(f"CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON written_{table} FOR EACH ROW EXECUTE FUNCTION {function}")

    def at_once(table):
        def run():
            server.db.execute(f"TRUNCATE written_{table}")
            return server.clock(f"INSERT INTO written_{table} SELECT i, '{PLAINTEXT}' FROM generate_series(1, {ROWS}) AS i") / ROWS * 1e6
        return run

    def one_by_one(table):
        """With pgbench: microseconds per transaction of one client, whose commits do not wait for the disk."""
        def run():
            server.db.execute(f"TRUNCATE written_{table}")
            done = subprocess.run(
                ["pgbench", "-n", "-M", "prepared", "-t", "20000", "-f", "-"], check=True, capture_output=True, text=True,
                input=f"INSERT INTO written_{table} VALUES (1, '{PLAINTEXT}');",
                env=os.environ | {"PGOPTIONS": f"-c synchronous_commit=off -c fernet.keys={NEW}"})
            return 1e6 / float(re.search(r"tps = ([\d.]+)", done.stdout)[1])
        return run

    took = in_turn(none=at_once("none"), fernet=at_once("fernet"), pgcrypto=at_once("pgcrypto"))
    yield Figure("fernet_encrypt_trigger, one INSERT of all rows", took["fernet"] - took["none"], at_most=1.5, unit="us/row")
    yield Figure("the same by a trigger in PL/pgSQL with pgcrypto, against it",
                 (took["pgcrypto"] - took["none"]) / (took["fernet"] - took["none"]), at_least=4)
    if shutil.which("pgbench"):
        took = in_turn(none=one_by_one("none"), fernet=one_by_one("fernet"), pgcrypto=one_by_one("pgcrypto"))
        for name, table in ("fernet_encrypt_trigger", "fernet"), ("the one with pgcrypto", "pgcrypto"):
            yield Figure(f"pgbench of single INSERTs through {name}, against none", took[table] / took["none"])


def documents(server):
    """Tokens in JSON compared with the same tokens in text; and documents without any."""
    rows = 20_000
    server.fill(3 * rows, "before")
    server.db.execute("CREATE TABLE documents_before AS SELECT jsonb_object_agg('key' || id % 3, value) AS value FROM before GROUP BY id / 3")

    def run(table, type):
        server.db.execute(f"DROP TABLE IF EXISTS rotated; CREATE TABLE rotated AS SELECT value::{type} FROM {table}")
        server.db.execute("VACUUM ANALYZE rotated")
        server.db.execute("CHECKPOINT")
        seconds = server.clock("UPDATE rotated SET value = fernet_rotate(value)")
        assert server.value("SELECT every(fernet_key_index(value) = 1) FROM rotated")
        return seconds

    took = in_turn(text=lambda: run("before", "text"), json=lambda: run("documents_before", "json"),
                   jsonb=lambda: run("documents_before", "jsonb"))
    for type in "json", "jsonb":
        yield Figure(f"UPDATE of {3 * rows:,} tokens in {type}, three per document, against text", took[type] / took["text"], at_most=2)

    server.db.execute("CREATE TABLE large_documents AS SELECT jsonb_object_agg('key' || i, md5(i::text)) AS jsonb"
                      " FROM generate_series(1, 200000) AS i")
    server.db.execute("ALTER TABLE large_documents ADD json json; UPDATE large_documents SET json = jsonb::text::json")
    # A query that reads all of it, and does next to nothing with that.
    for type, read in ("json", "octet_length(json::text || '')"), ("jsonb", "jsonb ? 'none'"):
        took = in_turn(read=lambda: server.clock(f"SELECT {read} FROM large_documents"),
                       search=lambda: server.clock(f"SELECT fernet_key_index({type}) FROM large_documents"))
        yield Figure(f"{type} of 10 MB without a token: fernet_key_index against reading it", took["search"] / took["read"], at_most=2)


def large(server, floor):
    """One value of 64 MiB, compared with only its primitives and with a copy of it."""
    size = 64 * MEBIBYTE
    block = bytearray(size)

    def copy():
        start = time.perf_counter()
        bytes(block)
        return time.perf_counter() - start

    server.db.execute("""
        CREATE FUNCTION large(size integer, OUT encrypt float, OUT decrypt float) LANGUAGE plpgsql AS $$
        DECLARE
            plaintext text := repeat('x', size);
            start timestamptz := clock_timestamp();
            token text := fernet_encrypt(plaintext);
        BEGIN
            encrypt := extract(epoch FROM clock_timestamp() - start);
            start := clock_timestamp();
            plaintext := fernet_decrypt(token);
            decrypt := extract(epoch FROM clock_timestamp() - start);
        END $$""")
    took = [server.db.execute(f"SELECT * FROM large({size})").fetchone() for _ in range(TURNS)]
    copied = statistics.median(copy() for _ in range(TURNS))
    for name, seconds, steps in (("encrypt", [run[0] for run in took], ("hmac", "cbc encrypt", "base64 encode")),
                                 ("decrypt", [run[1] for run in took], ("base64 decode", "hmac", "cbc decrypt"))):
        least = sum(floor[MEBIBYTE, step] for step in steps) * 64 + copied
        yield Figure(f"64 MiB: {name} against its primitives and one copy", statistics.median(seconds) / least, at_most=1.6)

    plaintext = f"repeat('x', {size})"
    token = f"fernet_encrypt({plaintext})"
    encrypted = server.peak(f"SELECT octet_length({token})")
    decrypted = server.peak(f"SELECT octet_length(fernet_decrypt({token}))")
    if encrypted is None:
        print("64 MiB: peak memory: this user may not reset the peak of the server's process")
        return
    yield Figure("64 MiB: peak memory of encrypt, in values", encrypted / size, at_most=3, unit="", runs=1)
    # The plaintext from which it was made is still there, but is not part of decrypting.
    yield Figure("64 MiB: peak memory of decrypt, in values", decrypted / size - 1, at_most=3, unit="", runs=1)


def parallel(server):
    """All cores at once, on a table of a million tokens."""
    server.fill(1_000_000)

    def run(workers):
        def decrypt():
            server.db.execute(f"SET max_parallel_workers_per_gather = {workers}")
            try:
                return server.clock("SELECT count(fernet_decrypt(value)) FROM secrets")
            finally:
                server.db.execute("SET max_parallel_workers_per_gather = 0")
        return decrypt

    took = in_turn(5, alone=run(0), two=run(1))
    yield Figure("SELECT of a million fernet_decrypt: one more worker", took["alone"] / took["two"], at_least=1.7, runs=5)


def growth(server, most):
    """One UPDATE of more and more rows, and the time that PostgreSQL itself takes for as many."""
    took, memory = {}, {}

    def run(expression, rows):
        server.fill(rows)
        server.db.execute("CHECKPOINT")
        before = server.memory()
        seconds = server.clock(f"UPDATE secrets SET value = {expression}")
        memory[rows] = server.memory() / before
        return seconds / rows

    few = rows = 100_000
    while rows <= most:
        took[rows] = in_turn(5 if rows == few else 1, plain=lambda: run("value || ''", rows),
                             rotated=lambda: run("fernet_rotate(value)", rows))
        rows *= 10
    many = max(took)
    growth = {name: us / took[few][name] for name, us in took[many].items()}
    yield Figure(f"time per row of an UPDATE of {many:,} against {few:,}", growth["rotated"], at_most=1.2, runs=1)
    yield Figure("the same with || ''", growth["plain"], runs=1)
    yield Figure(f"memory of the session after an UPDATE of {many:,} against before", memory[many], at_most=1.05, runs=1)


def core(folder):
    """What criterion measured, in seconds: {(group, size, name): seconds}"""
    times = {}
    for path in Path(folder).glob("*/*/new/benchmark.json"):
        benchmark = json.loads(path.read_text())
        group, size = benchmark["group_id"].split("/")
        estimates = json.loads(path.with_name("estimates.json").read_text())
        times[group, int(size), benchmark["function_id"]] = estimates["median"]["point_estimate"] / 1e9
    return times


def core_figures(times):
    sizes = {24: ("24 B", 5.5, 1.25), 200: ("200 B", 4.5, None), 4096: ("4 KiB", 1.4, 1.10), MEBIBYTE: ("1 MiB", 2.3, 1.10)}
    for size, (name, faster, over) in sizes.items():
        yield Figure(f"core rotate of {name}: times faster than the fernet crate",
                     times["rotate", size, "fernet crate"] / times["rotate", size, "pg_fernet"],
                     at_least=faster, runs=100)
    for size, (name, faster, over) in sizes.items():
        if over:
            yield Figure(f"core rotate of {name} against only its primitives",
                         times["rotate", size, "pg_fernet"] / times["floor", size, "in turn"], at_most=over, runs=100)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("criterion")
    parser.add_argument("--rows", type=int, default=1_000_000, help="most rows to update at once")
    parser.add_argument("--record", type=Path, help="where to write performance.json and .svg")
    arguments = parser.parse_args()

    refuse_another_server()
    server = Server()
    times = core(arguments.criterion)
    floor = {(size, name): seconds for (group, size, name), seconds in times.items() if group == "floor"}
    machine = {
        "date": str(date.today()), "processor": processor(), "cores": os.cpu_count(),
        "load average at start": round(os.getloadavg()[0], 1),
        "server": server.value("SELECT version()"), "settings": "initdb's",
        "pyca": cryptography.__version__,
    }
    for name, value in machine.items():
        print(f"{name}: {value}")
    by_work = ways(server)
    figures = []
    # The growth comes last: after it, the server writes for minutes.
    parts = (core_figures(times), update(server), values(server, times), trigger(server), documents(server), parallel(server),
             large(server, floor), growth(server, arguments.rows))
    for part in parts:
        for figure in part:
            print(figure, flush=True)
            figures.append(figure)
    print("\nus a value of 24 bytes")
    server.us["fernet crate: rotate, no server"] = times["rotate", 24, "fernet crate"] * 1e6
    for name, us in server.us.items():
        print(f"{name:40} {us:8.2f}")
    names = list(by_work["encrypt"])
    print(f"\n{'us a value of 24 bytes':32}", *(f"{name:>12}" for name in names))
    for work, by in by_work.items():
        print(f"{work:32}", *(f"{by[name]:12.2f}" if name in by else " " * 12 for name in names))
    if arguments.record:
        result = machine | {"figures": [asdict(figure) | {"met": figure.met} for figure in figures], "us": server.us, "ways": by_work}
        (arguments.record / "performance.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        (arguments.record / "performance.svg").write_text(draw("Time per password", server.us))


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
