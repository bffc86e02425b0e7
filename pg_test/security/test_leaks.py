"""Where keys and plaintexts can be read by roles that are not meant to read them: the tables in
docs/security.md."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from hunt import CONFIGURATION, DEFINITIONS, HAS_CONTRIB, USES, WAYS, Hunt
from postgres import major_version, server

VERSION = major_version()
IN_A_STATEMENT = {*WAYS, *DEFINITIONS}
IN_A_REFUSED_STATEMENT = {*(f"{way}, refused" for way in WAYS), "SET fernet.keys_file", "SET fernet.keys_file, damaged"}
IN_A_DEFINITION = {way for way in DEFINITIONS if way.startswith("CREATE ")}
IN_A_FUNCTION = {"CREATE FUNCTION", "CREATE FUNCTION, body", "CREATE FUNCTION, parsed body"}
# ALTER ROLE with a bad list, which the server accepts if it does not know the setting yet.
LATER = "taken at first, refused"
# In the middle of which another role's code asks for the statement.
ASKED = "several statements"
LITERALS = {"encrypt a literal", "encrypt a literal in somebody's table"}
PARAMETERS = {"encrypt a parameter", "encrypt a parameter in somebody's table", "encrypt a parameter, and fail later"}
IN_GLOBAL = {"ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", LATER, "CREATE SUBSCRIPTION"}
IN_BASE = {*IN_A_FUNCTION, "CREATE SERVER", "CREATE VIEW", "materialized view", "statistics"}
# In files they can be compressed, so that a search may or may not find them.
COMPRESSED = {"CREATE VIEW", "CREATE FUNCTION, parsed body"}
# Statements that the server parses into a query, not a command.
IN_A_QUERY = {"set_config()", "DO", "DECLARE"}
# Of the other statements, it shows the text from 16 on.
IN_A_PARSED_QUERY = {*IN_A_QUERY, "PREPARE", "CREATE FUNCTION, body", "CREATE FUNCTION, parsed body"}
IN_A_PARSED_STATEMENT = IN_A_STATEMENT if VERSION >= 16 else IN_A_PARSED_QUERY

# All of these are PostgreSQL's own doing. What is not listed is found nowhere: keys in a file or from a command, what
# is rotated or decrypted.
EXPECTED = {
    # The statements of users, which the server shows and logs.
    "log: log_statement": {*IN_A_STATEMENT, *IN_A_REFUSED_STATEMENT, LATER, ASKED, *LITERALS},
    "log: log_min_duration_statement": IN_A_STATEMENT,
    "log: log_min_duration_sample": IN_A_STATEMENT,
    "log: log_transaction_sample_rate": IN_A_STATEMENT,
    "log: parameters of a statement": {"parameter", "parameter, refused", *PARAMETERS},
    # And those of other messages, such as auto_explain's.
    "log: parameters of an error": {"parameter", "parameter, refused", "encrypt a parameter, and fail later", *(PARAMETERS if HAS_CONTRIB else ())},
    "log: statement of an error": {*IN_A_REFUSED_STATEMENT, "encrypt a literal in a deadlock"},
    "log: statement of another message": IN_A_STATEMENT,
    "log: context": {"DO", "DO, refused"},
    "log: auto_explain": {*IN_A_QUERY - {"DO"}, "parameter", ASKED, *LITERALS,
                          "encrypt a parameter", "encrypt a parameter in somebody's table", "parameter, in a plan"},
    "log: debug_print_parse": IN_A_PARSED_STATEMENT,
    "log: debug_print_rewritten": IN_A_PARSED_STATEMENT,
    "log: debug_print_plan": {*IN_A_QUERY, "parameter", "parameter, in a printed plan"},
    "log: crash": {"SET"},
    "log: deadlock": {"encrypt a literal in a deadlock"},
    "client: context": {"DO, refused"},
    "client: parameters of an error": {"parameter, refused", "encrypt a parameter, and fail later"},
    "EXPLAIN": {"encrypt a literal", "encrypt a parameter"},
    "as pg_monitor: pg_stat_activity": {*IN_A_STATEMENT, *IN_A_REFUSED_STATEMENT, LATER, ASKED},
    "as pg_monitor: pg_stat_statements": {"DO", *IN_A_DEFINITION},
    "data directory: pg_stat_tmp": {"DO", *IN_A_DEFINITION},
    "data directory: pg_stat": {"DO", *IN_A_DEFINITION},
    "current_query()": {*IN_A_DEFINITION, "CREATE FUNCTION", ASKED, "encrypt a literal in somebody's table"},
    "pg_prepared_statements, in the session": {"PREPARE"},
    "pg_cursors, in the session": {"DECLARE"},

    # The configuration.
    "SHOW before the library is loaded": {
        "ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", "ALTER SYSTEM",
        "postgresql.conf", "postgresql.conf, refused", "command line"},
    "log: reload": {"ALTER SYSTEM", "postgresql.conf", "postgresql.conf, refused"},
    "log: syntax error": {"postgresql.conf, without quotes"},
    "pg_file_settings, as a superuser": {"ALTER SYSTEM", "postgresql.conf", "postgresql.conf, refused"},
    "data directory: postgresql.conf": {"postgresql.conf", "postgresql.conf, refused", "postgresql.conf, without quotes"},
    "data directory: postgresql.auto.conf": {"ALTER SYSTEM"},
    "data directory: postmaster.opts": {"command line"},
    "ps": {"command line"},

    # The catalogs, which everybody can read.
    "catalog: pg_db_role_setting": {"ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", LATER},
    "catalog: pg_roles": {"ALTER ROLE", LATER},
    "catalog: pg_user": {"ALTER ROLE", LATER},
    "catalog: pg_proc": IN_A_FUNCTION,
    "catalog: pg_views": {"CREATE VIEW"},
    "catalog: pg_rewrite": {"CREATE VIEW"},
    "catalog: pg_foreign_server": {"CREATE SERVER"},

    # The files.
    "data directory: base": IN_BASE,
    "data directory: global": IN_GLOBAL,
    "data directory: pg_wal": IN_BASE | IN_GLOBAL,
    "pg_basebackup, with REPLICATION": IN_BASE | IN_GLOBAL,
    "pg_dump": {"ALTER DATABASE", "ALTER ROLE IN DATABASE", "CREATE FUNCTION", *IN_A_DEFINITION},
    "pg_dumpall": {"ALTER DATABASE", "ALTER ROLE", "ALTER ROLE IN DATABASE", LATER, "CREATE FUNCTION", *IN_A_DEFINITION},

    # The fate of a decrypted plaintext is up to the query: here a cast of it fails, and it is stored.
    "client: message": {"cast"},
    "log: message": {"cast"},
    "pg_stats_ext_exprs, for the owner": {"statistics"},
}

# Older servers keep more statements with the constants in them.
if VERSION < 18:
    for place in "as pg_monitor: pg_stat_statements", "data directory: pg_stat_tmp", "data directory: pg_stat":
        EXPECTED[place] = {*IN_A_STATEMENT, LATER, ASKED} - {"set_config()", "PREPARE"}
        if VERSION < 16:
            EXPECTED[place] |= {"encrypt a literal"}  # of an EXPLAIN
        if VERSION >= 17:
            EXPECTED[place] -= {"DECLARE"}

# From 19 on, log_lock_waits is on: a session that waits long for a lock is logged.
if VERSION >= 19:
    EXPECTED["log: statement of another message"] = {*IN_A_STATEMENT, "encrypt a literal in a deadlock"}

EXPECTED |= {place.replace("catalog", "as pg_monitor"): labels for place, labels in EXPECTED.items() if place.startswith("catalog: ")}

# With the library preloaded, the server knows that the setting is secret, and fernet.mask_log keeps keys out of
# the log.
PLAINTEXTS = {*USES, "encrypt a literal in a deadlock", "parameter, in a plan", "parameter, in a printed plan"}
PRELOADED = {
    **{place: labels & PLAINTEXTS if place.startswith("log: ") else labels - {LATER}
       for place, labels in EXPECTED.items()},
    "SHOW before the library is loaded": set(),
    "as pg_monitor: pg_stat_activity": EXPECTED["as pg_monitor: pg_stat_activity"],
    # As the numbers of their bytes.
    "log: debug_print_parse": IN_A_PARSED_QUERY,
    "log: debug_print_rewritten": IN_A_PARSED_QUERY,
    "log: debug_print_plan": EXPECTED["log: debug_print_plan"],
    # Pieces of a key, if nothing says that they are.
    "log: syntax error": EXPECTED["log: syntax error"],
}

IN_FILES = {"data directory: base", "data directory: pg_wal", "pg_basebackup, with REPLICATION"}
OF_CONTRIB = {"log: auto_explain", "as pg_monitor: pg_stat_statements", "data directory: pg_stat_tmp", "data directory: pg_stat"}


# The first with masking off, the other with the default.
@pytest.fixture(scope="module", params=["not preloaded", "preloaded"])
def preload(request):
    return request.param


@pytest.fixture(scope="module")
def found(preload):
    """By place, what was found there."""
    libraries = ["pg_stat_statements", "auto_explain"] * HAS_CONTRIB + ["pg_fernet"] * (preload == "preloaded")
    masking = "fernet.mask_log = off" if preload == "not preloaded" else ""
    with server(f"shared_preload_libraries = '{','.join(libraries)}'", masking, CONFIGURATION) as host, ExitStack() as stack:
        yield Hunt(host, stack).run_everything()


@pytest.mark.parametrize("place", EXPECTED)
def test_known_places(found, preload, place):
    if place in OF_CONTRIB and not HAS_CONTRIB:
        pytest.skip("this server comes without pg_stat_statements and auto_explain")
    expected = EXPECTED if preload == "not preloaded" else PRELOADED
    ignored = COMPRESSED if place in IN_FILES else set()
    assert found.get(place, set()) - ignored == expected[place] - ignored


def test_nowhere_else(found):
    assert found.keys() <= EXPECTED.keys()


#
# The tables of docs/security.md
#

# The ways in the left column, by how the row begins.
ROWS = {
    "`fernet.keys_file`": {"file", "file, refused", "command", "command, refused"},
    "a connection option": {"connection option", "connection option, refused"},
    "`SET`": {"SET", "SET LOCAL"},
    "`set_config()` with": {"parameter"},
    "`set_config()`": {"set_config()"},
    "`DO`": {"DO"},
    "`PREPARE`": {"PREPARE"},
    "`DECLARE`": {"DECLARE"},
    "`CREATE FUNCTION`": IN_A_FUNCTION,
    "`CREATE VIEW`": {"CREATE VIEW"},
    "`CREATE SERVER`": {"CREATE SERVER"},
    "`CREATE SUBSCRIPTION`": {"CREATE SUBSCRIPTION"},
    "`ALTER DATABASE": {"ALTER DATABASE", "ALTER ROLE IN DATABASE"},
    "`ALTER ROLE": {"ALTER ROLE"},
    "`ALTER SYSTEM`": {"ALTER SYSTEM"},
    "`postgresql.conf`": {"postgresql.conf", "postgresql.conf, without quotes"},
    "the server's command line": {"command line"},
}

# What the page calls a place, if that is not its name.
NAMES = {
    "log: statement of an error": "`log_min_error_statement`",
    "log: statement of another message": "`log_min_error_statement`",
    "log: parameters of a statement": "`log_parameter_max_length`",
    "log: parameters of an error": "`log_parameter_max_length_on_error`",
    "client: parameters of an error": "`log_parameter_max_length_on_error`",
    "log: context": "context",
    "client: context": "context",
    "SHOW before the library is loaded": "`SHOW`",
    "log: reload": "reload",
    "log: syntax error": "syntax error",
}
# Tried with some of the ways only, or with plaintexts.
NOT_IN_THE_TABLES = {"log: crash", "log: deadlock", "current_query()", "pg_basebackup, with REPLICATION", "EXPLAIN",
                     "client: message", "log: message", "pg_stats_ext_exprs, for the owner"}
# What one version shows, and another does not.
SOMETIMES = {"`pg_stat_statements`", "`pg_stat_tmp`", "`pg_stat`", "`debug_print_parse`", "`debug_print_rewritten`"}


def rows_of_the_page():
    """For each row, the places with preloading and with masking, and the additional ones without. Names on the page
    that cover several places are spelled out."""
    section = Path(__file__).parents[2].joinpath("docs", "security.md").read_text()
    section = section.partition("## Where keys can be read\n")[2].partition("\nMore about statements")[0]
    rows = {row: places for row, *places in re.findall(r"^\| (.*?) \| (.*?) \|(?: (.*) \|)?$", section, re.MULTILINE)}
    short = {row: places for row, places in rows.items() if row.startswith("*")}
    assert short
    for row, columns in rows.items():
        if row not in short:
            for name, columns_of_name in short.items():
                columns = [places.replace(name, stands_for) for places, stands_for in zip(columns, columns_of_name)]
            yield row, columns


@pytest.mark.parametrize("beginning", ROWS)
def test_documented(found, preload, beginning):
    names = {place: NAMES.get(place, "`" + place.split(": ")[-1].split(",")[0] + "`") for place in EXPECTED.keys() - NOT_IN_THE_TABLES}
    labels = {*ROWS[beginning], *(f"{label}, refused" for label in ROWS[beginning])}
    where = {names[place] for place in names if found.get(place, set()) & labels}
    with_preloading, more_without = next(columns for row, columns in rows_of_the_page() if row.startswith(beginning))
    row = with_preloading if preload == "preloaded" else f"{with_preloading}; {more_without}"
    documented = {name for name in names.values() if name in row}
    missing = SOMETIMES | (set() if HAS_CONTRIB else {"`auto_explain`"}) | ({"`base`", "`pg_wal`"} if labels & COMPRESSED else set())
    assert where - documented == set()
    assert documented - where <= missing


def test_every_row_is_tested():
    assert all(any(row.startswith(beginning) for beginning in ROWS) for row, _ in rows_of_the_page() if row not in ("keys from", "---"))


def test_every_place_is_documented():
    text = Path(__file__).parents[2].joinpath("docs", "security.md").read_text()
    names = [NAMES.get(place, place.split(": ")[-1].split(",")[0]) for place in EXPECTED]
    assert [name for name in names if name not in text] == []
