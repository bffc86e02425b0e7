"""What docs/managed.md types into a shell, with keys in the sessions of psql."""

import os
import subprocess

import psycopg
import pytest
from cryptography.fernet import Fernet

from owned import EDITION, owned_database, run_psql
from pages import ROOT, blocks, code_block
from postgres import column, connect, value
from pyca import fingerprint
from tables import LOST, NEW, OLD

PAGE = "docs/managed.md"


@pytest.fixture
def app(owner, tmp_path):
    """A session of the owner, with the edition in a schema of its own, tokens in public, and the files of keys."""
    (tmp_path / "new.key").write_text(NEW)
    (tmp_path / "old.key").write_text(OLD)
    with owned_database("pg_fernet_sql_psql", owner) as name, connect(name, user=owner) as app:
        app.execute("CREATE EXTENSION pgcrypto; CREATE SCHEMA fernet")
        run_psql(name, owner, EDITION / "pg_fernet_sql.sql", "fernet")
        app.execute("CREATE TABLE secrets (value varchar(200))")
        app.execute("INSERT INTO secrets VALUES (%s)", [Fernet(OLD).encrypt(b"secret").decode()])
        yield app


def run_block(app, folder, text):
    """A block of the page, for this database."""
    for name in "app", "airflow":
        text = text.replace(f"-d {name} -U {name}", f"-X -d {app.info.dbname} -U {app.info.user}")
    return subprocess.run(["bash", "-euc", text], cwd=folder, env=os.environ, check=True, capture_output=True, text=True)


def runbook():
    """The blocks of Airflow's rotation with keys, and the files that they use."""
    return [block for block in blocks(PAGE) if block.heading == "Airflow on RDS" and (block.file or "PGOPTIONS=\"" in block.text)]


def follow(app, folder, block):
    if block.file:
        (folder / block.file).write_text(block.text)
    else:
        return run_block(app, folder, block.text)


FILES = {
    "no line break at the end": (NEW, OLD, [NEW, OLD]),
    "lines": (f"{NEW}\n", f"{OLD}\n", [NEW, OLD]),
    "lines of Windows": (f"{NEW}\r\n", f"{OLD}\r\n{LOST}\r\n", [NEW, OLD, LOST]),
    "a list with blanks": (f"{NEW}\n", f"{OLD}, {LOST}\n", [NEW, OLD, LOST]),
    "a line of its own": (NEW, f"{OLD}\n\n{LOST}\n", [NEW, OLD, LOST]),
    "a comma and a line": (f" {NEW}", f"{OLD}\n,\t{LOST} ", [NEW, OLD, LOST]),
}


@pytest.mark.parametrize("new, old, keys", FILES.values(), ids=FILES)
def test_white_space_in_the_files(app, tmp_path, new, old, keys):
    """The server would take it for the end of the list, and write the rest to its log."""
    (tmp_path / "new.key").write_text(new)
    (tmp_path / "old.key").write_text(old)
    printed = run_block(app, tmp_path, code_block(PAGE, "Keys", "sh").replace("psql", "psql -At")).stdout
    assert printed.splitlines() == [f"{index}|{fingerprint(key)}" for index, key in enumerate(keys, 1)]


def test_the_keys_are_put_together_in_one_way():
    lines = [line.strip() for line in (ROOT / PAGE).read_text().splitlines() if "fernet.keys=$" in line]
    assert len(lines) == 5
    assert {line for line in lines if "old.key" in line} == {lines[0]}


@pytest.fixture
def thief(app):
    """Functions of another role, which fit the calls of the page better than ours and keep the keys; and the keys that
    they got."""
    with connect(app.info.dbname) as other:
        other.execute("""
            CREATE TABLE stolen (keys text);
            GRANT INSERT ON stolen TO PUBLIC;
            CREATE FUNCTION steal() RETURNS void LANGUAGE sql AS $$ INSERT INTO public.stolen VALUES (current_setting('fernet.keys')) $$;
            CREATE FUNCTION fernet_census(text, text) RETURNS TABLE (status text, key_index integer, tokens bigint)
                LANGUAGE sql AS $$ SELECT public.steal(); SELECT 'current', 1, 1 $$;
            CREATE PROCEDURE fernet_rotate_column(text, text) LANGUAGE sql AS $$ SELECT public.steal() $$;
            CREATE FUNCTION fernet_key_index(varchar) RETURNS integer LANGUAGE sql AS $$ SELECT public.steal(); SELECT 2 $$;
            CREATE FUNCTION fernet_rotate(varchar) RETURNS varchar LANGUAGE sql AS $$ SELECT public.steal(); SELECT $1 $$""")
        yield lambda: column(other, "SELECT keys FROM stolen")


def test_functions_in_public_are_not_called(app, thief, tmp_path):
    rotate = code_block(PAGE, "Rotate", "sh")
    statement = next(line for line in (ROOT / PAGE).read_text().split("`") if line.startswith("UPDATE public.secrets SET value = fernet_rotate"))
    update = rotate.splitlines()[0] + f'\npsql -d app -U app -c "{statement}"'
    for block in update, rotate:
        run_block(app, tmp_path, block)
        assert Fernet(NEW).decrypt(value(app, "SELECT value FROM secrets")) == b"secret"
    for block in runbook():
        follow(app, tmp_path, block)
    assert thief() == []

    # They are what would be called otherwise.
    for block in update, rotate:
        before = len(thief())
        run_block(app, tmp_path, block.replace("search_path=fernet", "search_path=fernet,public"))
        assert len(thief()) > before


def test_a_column_that_cannot_be_rotated_does_not_stop_the_others(app, tmp_path):
    app.execute("CREATE MATERIALIZED VIEW copied AS SELECT * FROM secrets")
    said = [follow(app, tmp_path, block) for block in runbook()]
    _, census, _, rotation, check = said
    assert "public.copied is not a table" in rotation.stderr
    assert census.stdout.count("old key") == 2
    assert (check.stdout.count("current"), check.stdout.count("unknown key")) == (1, 1)
    app.execute("REFRESH MATERIALIZED VIEW copied")
    assert "unknown key" not in follow(app, tmp_path, runbook()[-1]).stdout


def test_the_server_logs_what_follows_a_space(app):
    """As docs/troubleshooting.md shows it, with the key."""
    with pytest.raises(psycopg.OperationalError, match=f"invalid command-line argument for server process: {OLD}"):
        connect(app.info.dbname, options=f"-c fernet.keys={NEW}, {OLD}")
