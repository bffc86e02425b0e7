"""Where keys and plaintexts can be read that nobody meant to be read there: the list in docs/security.md."""

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from hunt import CONFIGURATION, HAS_CONTRIB, WAYS, Hunt
from postgres import server

IN_A_STATEMENT = set(WAYS)
IN_A_REFUSED_STATEMENT = {*(f"{way}, refused" for way in WAYS), "SET fernet.keys_file", "SET fernet.keys_file, damaged"}
# ALTER ROLE with a bad list, which the server takes if it does not know the setting yet.
LATER = "taken at first, refused"

# All of them are PostgreSQL's own doing. What is not listed is found nowhere: keys in a file or from a command, what is
# rotated or decrypted.
EXPECTED = {
    # The statements of users, which the server shows and logs.
    "log: log_statement": {*IN_A_STATEMENT, *IN_A_REFUSED_STATEMENT, LATER, "encrypt a literal"},
    "log: parameters of a statement": {"parameter", "parameter, refused", "encrypt a parameter"},
    "log: statement of an error": IN_A_REFUSED_STATEMENT,
    "log: context": {"DO, refused"},
    "log: auto_explain": {"set_config()", "parameter", "encrypt a literal", "encrypt a parameter"},
    "client: context": {"DO, refused"},
    "EXPLAIN": {"encrypt a literal", "encrypt a parameter"},
    "pg_stat_activity, as pg_monitor": {*IN_A_STATEMENT, *IN_A_REFUSED_STATEMENT, LATER},
    "pg_stat_statements, as pg_monitor": {"DO"},
    "data directory: pg_stat_tmp": {"DO"},

    # The configuration.
    "SHOW before the library is loaded": {
        "ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", "ALTER SYSTEM",
        "postgresql.conf", "postgresql.conf, refused", "command line"},
    "log: reload": {"ALTER SYSTEM", "postgresql.conf", "postgresql.conf, refused"},
    "log: syntax error": {"postgresql.conf, without quotes"},
    "data directory: postgresql.conf": {"postgresql.conf", "postgresql.conf, refused", "postgresql.conf, without quotes"},
    "data directory: postgresql.auto.conf": {"ALTER SYSTEM"},
    "data directory: postmaster.opts": {"command line"},
    "ps": {"command line"},

    # The catalogs, which everybody can read.
    "catalog: pg_db_role_setting": {"ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", LATER},
    "catalog: pg_roles": {"ALTER ROLE", LATER},
    "catalog: pg_user": {"ALTER ROLE", LATER},
    "catalog: pg_proc": {"CREATE FUNCTION"},
    "data directory: base": {"CREATE FUNCTION"},
    "data directory: global": {"ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", LATER},
    "data directory: pg_wal": {"ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", LATER, "CREATE FUNCTION"},
    "pg_dump": {"ALTER DATABASE", "ALTER ROLE IN DATABASE", "CREATE FUNCTION"},
    "pg_dumpall": {"ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", LATER, "CREATE FUNCTION"},

    # What a plaintext becomes once it is decrypted is up to the query: here it is the input of a cast that fails.
    "client: message": {"cast"},
    "log: message": {"cast"},
}

# Older servers keep more statements with the constants in them.
VERSION = int(subprocess.run([os.environ["PG_CONFIG"], "--version"], check=True, capture_output=True, text=True).stdout.split()[1].split(".")[0])
if VERSION < 18:
    for place in "pg_stat_statements, as pg_monitor", "data directory: pg_stat_tmp":
        EXPECTED[place] = {*IN_A_STATEMENT, LATER} - {"set_config()"}
        if VERSION < 16:
            EXPECTED[place] |= {"encrypt a literal"}  # of an EXPLAIN

# With the library preloaded, the server knows what it deals with.
PRELOADED = {
    **{place: labels - {LATER} for place, labels in EXPECTED.items()},
    "SHOW before the library is loaded": set(),
    "log: reload": {"ALTER SYSTEM", "postgresql.conf", "postgresql.conf, refused"},
    "log: log_statement": EXPECTED["log: log_statement"],
    "log: statement of an error": {*IN_A_REFUSED_STATEMENT, LATER},
    "pg_stat_activity, as pg_monitor": EXPECTED["pg_stat_activity, as pg_monitor"],
}

OF_CONTRIB = {"log: auto_explain", "pg_stat_statements, as pg_monitor", "data directory: pg_stat_tmp"}


@pytest.fixture(scope="module", params=["not preloaded", "preloaded"])
def preload(request):
    return request.param


@pytest.fixture(scope="module")
def found(preload):
    """By place, what was found there."""
    libraries = ["pg_stat_statements", "auto_explain"] * HAS_CONTRIB + ["pg_fernet"] * (preload == "preloaded")
    with server(f"shared_preload_libraries = '{','.join(libraries)}'", CONFIGURATION) as host, ExitStack() as stack:
        yield Hunt(host, stack).run_everything()


@pytest.mark.parametrize("place", EXPECTED)
def test_known_places(found, preload, place):
    if place in OF_CONTRIB and not HAS_CONTRIB:
        pytest.skip("this server comes without pg_stat_statements and auto_explain")
    expected = EXPECTED if preload == "not preloaded" else PRELOADED
    assert found.get(place, set()) == expected[place]


def test_nowhere_else(found):
    assert found.keys() <= EXPECTED.keys()


def test_documented():
    """Each place is named in the documentation."""
    text = Path(__file__).parents[2].joinpath("docs", "security.md").read_text()
    names = [place.split(": ")[-1].split(",")[0].split(" before")[0] for place in EXPECTED]
    assert [name for name in names if name not in text] == []
