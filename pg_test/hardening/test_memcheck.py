"""Under valgrind's memcheck, the regression tests show no invalid access, and repeated calls show no leak
that grows.

The server is not built for valgrind, and causes complaints of its own, so only those count that have the
library on the stack. memcheck sees memory contexts as blocks, but not their chunks, except large ones.
"""

import os
import re
import shutil
import subprocess
import time

import pytest

import pyca
from cluster import is_alive
from key_files import folder_for, write
from postgres import ROOT, connect, server, set_keys, value
from soak import SOAK
from tables import encrypt_writes

pytestmark = [pytest.mark.skipif(not SOAK, reason="takes minutes: in make soak"),
              pytest.mark.skipif(not shutil.which("valgrind"), reason="no valgrind")]

# Padding that the server writes to its files uninitialised, and where it moves the regular expressions that it keeps.
OF_THE_SERVER = re.compile(r"Syscall param pwrite64\(buf\)|Source and destination overlap.*\n.*\n.*by 0x\w+: RE_compile_and_cache ")
LEAK = re.compile(r"([\d,]+) (?:\([^)]*\) )?bytes in [\d,]+ blocks are definitely lost")


@pytest.fixture
def memcheck(monkeypatch, database):
    """A server under valgrind: its PGHOST, and the folder in which each process leaves its log."""
    folder = folder_for(os.environ["PGHOST"])
    monkeypatch.setenv("PG_FERNET_POSTGRES", str(write(folder / "postgres", "#!/bin/sh", (
        "exec valgrind --quiet --trace-children=yes --vgdb=no --error-limit=no --num-callers=50 --leak-check=full"
        f" --show-leak-kinds=definite --log-file='{folder}/%p.log' '{shutil.which('postgres')}' \"$@\""), mode=0o755)))
    monkeypatch.setenv("PGCTLTIMEOUT", "600")
    with server("shared_buffers = '16MB'") as host:
        yield host, folder


def complaints(log):
    """What memcheck reports with the library on the stack: accesses, and leaks."""
    blocks = re.split(r"^==\d+== \n", log.read_text(errors="replace"), flags=re.MULTILINE)
    ours = [block for block in blocks if "pg_fernet.so" in block]
    leaks = [block for block in ours if LEAK.search(block)]
    return [block for block in ours if block not in leaks and not OF_THE_SERVER.search(block)], leaks


def test_regression_tests(memcheck):
    host, folder = memcheck
    done = subprocess.run([ROOT / "scripts" / "regress"], env=os.environ | {"PGHOST": host}, text=True, capture_output=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    logs = list(folder.glob("*.log"))
    assert len(logs) > 11  # a process for each test, and the server's own
    for log in logs:
        invalid, _ = complaints(log)
        assert invalid == []


CALLS = [
    "fernet_encrypt('hello')", "fernet_encrypt('hello'::bytea)", "fernet_decrypt(old)", "fernet_decrypt(old::bytea)",
    "fernet_decrypt(old, '100 years')", "fernet_decrypt(old, '1000000 years')", "fernet_decrypt_bytea(old)",
    "fernet_decrypt_bytea(old::bytea, '100 years')", "fernet_rotate(old)", "fernet_rotate(old::bytea)", "fernet_key_index(old)",
    "fernet_rotate(to_json(old))", "fernet_rotate(jsonb_build_array(old, NULL, large))", "fernet_key_index(to_jsonb(lost))",
    "(SELECT sum(tokens) FROM fernet_census('samples', 'list'))", "(SELECT sum(tokens) FROM fernet_census('samples', 'document'))",
    "fernet_key_index(lost)", "fernet_is_token(old)", "fernet_timestamp(old)", "fernet_generate_key()",
    "fernet_encrypt(repeat(old, 1000))", "fernet_decrypt(fernet_rotate(large))",
    "(SELECT count(*) FROM fernet_keys())", "(SELECT sum(tokens) FROM fernet_census('samples', 'old'))",
    "(SELECT sum(tokens) FROM fernet_find_columns(10))", "write('hello')", "write(old)", "tell('hello')", "set_config('fernet.keys', current_setting('fernet.keys'), false)",
    # These fail.
    "fernet_decrypt('plaintext')", "fernet_rotate(lost)", "fernet_decrypt_bytea(old, '1 s')", "set_config('fernet.keys', 'x', false)",
    "(SELECT sum(tokens) FROM fernet_census('samples', 'nothing'))", "write(lost)",
    # An error of the server's that passes through pgrx.
    "(SELECT sum(tokens) FROM fernet_census('failing', 'token'))",
]


def test_leaks(memcheck, rng):
    host, folder = memcheck
    new, old, lost = (pyca.key_of(rng) for _ in range(3))
    with connect("postgres", host=host) as db:
        db.execute("CREATE EXTENSION pg_fernet")
        db.execute("CREATE TABLE samples AS SELECT %s::text AS old, %s::text AS lost, %s::text AS large",
                   [pyca.encrypt(key, plaintext, 1_700_000_000).decode() for key, plaintext in [(old, b"hello"), (lost, b"hello"), (old, b"x" * 50_000)]])
        db.execute("ALTER TABLE samples ADD list text[], ADD document jsonb;"
                   " UPDATE samples SET list = ARRAY[[old, NULL], [lost, large]], document = jsonb_build_object('a', old, 'b', large)")
        db.execute("ALTER TABLE samples ADD plaintext char(200) DEFAULT 'hello'; CREATE TABLE written (value varchar)")
        encrypt_writes(db, "written")
        db.execute("CREATE FUNCTION write(text) RETURNS text LANGUAGE sql AS 'INSERT INTO written VALUES ($1) RETURNING value'")
        # A message for the log, with a key and a literal to mask.
        db.execute(f"CREATE FUNCTION tell(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE LOG '{new} %', quote_literal($1); RETURN $1; END $$")
        db.execute("CREATE VIEW failing AS SELECT (1 / length(left(old, 0)))::text AS token FROM samples")
        db.execute("""
            CREATE FUNCTION repeatedly(call text, times integer) RETURNS void LANGUAGE plpgsql AS $$
            BEGIN
                FOR i IN 1..times LOOP
                    BEGIN
                        EXECUTE 'SELECT ' || call || ' FROM samples';
                    EXCEPTION WHEN OTHERS THEN
                        NULL;
                    END;
                END LOOP;
            END $$""")
    lost_bytes = {}
    for times in 100, 1000:
        with connect("postgres", host=host) as session:
            set_keys(session, new, old)
            session.execute("SET fernet.mask_log = literals")
            for call in CALLS:
                value(session, "SELECT repeatedly(%s, %s)", call, times)
            for turn in range(times // 20):
                for column in "old", "list", "document":
                    session.execute("CALL fernet_rotate_column('samples', %s)", [column])
                for procedure in "encrypt", "decrypt":
                    session.execute(f"CALL fernet_{procedure}_column('samples', 'plaintext')")
                set_keys(session, *((old, new) if turn % 2 else (new, old)))
            pid = session.info.backend_pid
        while is_alive(pid):
            time.sleep(0.1)
        invalid, leaks = complaints(folder / f"{pid}.log")
        assert invalid == []
        assert LEAK.search((folder / f"{pid}.log").read_text(errors="replace"))  # memcheck does see leaks: the server's own
        lost_bytes[times] = sum(int(LEAK.search(leak)[1].replace(",", "")) for leak in leaks)
    print(lost_bytes)
    assert lost_bytes[1000] == lost_bytes[100], "\n".join(leaks)
