"""A hunt for leaks: sets keys in every way, uses plaintexts in every way, and searches every place where they might be
read.

Each way has its own keys, and each use its own plaintext.
"""

import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psycopg
import pytest

import pyca
from key_files import folder_for, write
from postgres import connect, create_database, force_parallel, major_version, plan, value
from settings import pg_ctl, use_file
from traces import Traces, search_error, search_json_log, search_text_log

LIBRARIES = Path(subprocess.run([os.environ["PG_CONFIG"], "--pkglibdir"], check=True, capture_output=True, text=True).stdout.strip())
HAS_CONTRIB = all((LIBRARIES / f"{name}.so").exists() for name in ("pg_stat_statements", "auto_explain"))

CONFIGURATION = """
logging_collector = on
log_destination = jsonlog
log_filename = 'hunt.log'
log_statement = all
log_min_messages = debug5
log_error_verbosity = verbose
log_connections = on
log_disconnections = on
log_duration = on
log_replication_commands = on
log_parameter_max_length_on_error = -1
log_temp_files = 0
backtrace_functions = 'pg_fernet, set_config_option, parse_and_validate_value, exec_simple_query'
max_connections = 300
deadlock_timeout = 100ms
auto_explain.log_min_duration = 0
auto_explain.log_analyze = on
auto_explain.log_verbose = on
auto_explain.log_settings = on
auto_explain.log_nested_statements = on
# the last line
"""

# Settings of a session that have statements logged. The session has the setting's name, except for
# log_statement.
LOGGING = {
    "log_min_duration_statement": "0",
    "log_min_duration_sample": "0",
    "log_transaction_sample_rate": "1",
    "debug_print_parse": "on",
    "debug_print_rewritten": "on",
    "debug_print_plan": "on",
    "log_statement_stats": "on",
}

# Statements that set keys, with {} for the list. Each is tried with a good list, and with one that is refused.
WAYS = {
    "SET": "SET fernet.keys = '{}'",
    "SET LOCAL": "BEGIN; SET LOCAL fernet.keys = '{}'; COMMIT",
    "set_config()": "SELECT set_config('fernet.keys', '{}', false) IS NOT NULL",
    "DO": "DO $$ BEGIN EXECUTE 'SET fernet.keys = ''{}'''; END $$",
    "CREATE FUNCTION": "CREATE FUNCTION with_keys() RETURNS int LANGUAGE sql SET fernet.keys = '{}' AS 'SELECT 1'",
    "ALTER DATABASE": "ALTER DATABASE hunted SET fernet.keys = '{}'",
    "ALTER ROLE": "ALTER ROLE hunted SET fernet.keys = '{}'",
    "ALTER ROLE IN DATABASE": "ALTER ROLE hunted IN DATABASE hunted SET fernet.keys = '{}'",
    "ALTER SYSTEM": "ALTER SYSTEM SET fernet.keys = '{}'",
}

# Statements that the server keeps, with a list in them.
DEFINITIONS = {
    "PREPARE": "PREPARE with_keys AS SELECT set_config('fernet.keys', '{}', false)",
    "DECLARE": "DECLARE with_keys CURSOR WITH HOLD FOR SELECT set_config('fernet.keys', '{}', false) IS NOT NULL",
    "CREATE VIEW": "CREATE VIEW with_keys AS SELECT set_config('fernet.keys', '{}', false)",
    "CREATE FUNCTION, body": "CREATE FUNCTION with_keys_in_it() RETURNS text LANGUAGE sql AS $$SELECT set_config('fernet.keys', '{}', false)$$",
    "CREATE FUNCTION, parsed body":
        "CREATE FUNCTION with_keys_parsed() RETURNS text LANGUAGE sql RETURN set_config('fernet.keys', '{}', false)",
    "CREATE SERVER": "CREATE SERVER with_keys FOREIGN DATA WRAPPER nothing OPTIONS (options '-c fernet.keys={}')",
    "CREATE SUBSCRIPTION": "CREATE SUBSCRIPTION with_keys CONNECTION 'options=-cfernet.keys={}' PUBLICATION p WITH (connect = false)",
}

# The uses of a plaintext: a statement, and how it ends. {} in it is replaced by the plaintext, or, as a parameter, by
# %s. {token} is a token of the plaintext; {reversed} is its reverse, from which the statement makes the plaintext.
USES = {
    "encrypt a literal": ("SELECT fernet_encrypt('{}')", None),
    "encrypt a parameter": ("SELECT fernet_encrypt(%s)", None),
    "encrypt a parameter, and fail later": ("SELECT fernet_encrypt(%s), 1 / (random() * 0)::int", "22012"),
    "encrypt a literal in somebody's table": ("INSERT INTO watched VALUES (fernet_encrypt('{}'))", None),
    "encrypt a parameter in somebody's table": ("INSERT INTO watched VALUES (fernet_encrypt(%s))", None),
    "encrypt": ("SELECT fernet_encrypt(fernet_decrypt('{token}'))", None),
    "decrypt": ("SELECT fernet_decrypt('{token}')", None),
    "decrypt bytea": ("SELECT fernet_decrypt_bytea('{token}')", None),
    "decrypt with a ttl": ("SELECT fernet_decrypt('{token}', '1 hour')", None),
    "decrypt in a condition": ("SELECT FROM pg_type WHERE typname = fernet_decrypt('{token}')", None),
    "decrypt in PL/pgSQL": ("DO $$ BEGIN PERFORM fernet_decrypt('{token}'); END $$", None),
    "decrypt, and fail later": ("SELECT fernet_decrypt('{token}'), 1 / (random() * 0)::int", "22012"),
    "rotate": ("SELECT fernet_rotate('{token}')", None),
    "look at": ("SELECT fernet_key_index('{token}'), fernet_timestamp('{token}'), fernet_is_token('{token}')", None),
    "not a token": ("SELECT fernet_decrypt(reverse('{reversed}'))", "22P02"),
    "not a token, rotate": ("SELECT fernet_rotate(reverse('{reversed}'))", "22P02"),
    "not a token, look at": ("SELECT fernet_timestamp(reverse('{reversed}'))", "22P02"),
    "unknown key": ("SELECT fernet_decrypt('{unknown}')", "39000"),
    "wrong padding": ("SELECT fernet_decrypt('{unpadded}')", "39000"),
    "expired": ("SELECT fernet_decrypt('{token}', '-1 hour')", "22000"),
    "from the future": ("SELECT fernet_decrypt('{token}', '1 hour', '2020-01-01')", "22000"),
    "not text": ("SELECT fernet_decrypt('{binary}')", "22021"),
    "too large": ("SELECT fernet_encrypt(repeat(reverse('{reversed}'), 21000000))", "54000"),
    "no privilege": ("SET ROLE ordinary; SELECT fernet_decrypt('{token}')", "42501"),
    "cancelled": ("SELECT count(fernet_encrypt(fernet_decrypt('{token}') || n)) FROM generate_series(1, 1000000000) AS n", "57014"),
    "materialized view": ("CREATE MATERIALIZED VIEW decrypted AS SELECT fernet_decrypt('{token}')", None),
    "statistics": ("CREATE TABLE counted AS SELECT '{token}' AS token FROM generate_series(1, 100);"
                   " CREATE STATISTICS counted_plaintexts ON (fernet_decrypt(token)), (length(token)) FROM counted; ANALYZE counted", None),
    "cast": ("SELECT fernet_decrypt('{token}')::int", "22P02"),
    "column": ("CREATE TEMP TABLE held AS SELECT fernet_decrypt('{token}') AS value UNION ALL SELECT '{token}' UNION ALL SELECT '{unknown}';"
               " SELECT * FROM fernet_census('held', 'value'); SELECT * FROM fernet_find_columns()", None),
    "column, rotate": ("CALL fernet_rotate_column('held', 'value')", None),
    "column, rotate strictly": ("CALL fernet_rotate_column('held', 'value', strict => true)", "22P02"),
    "column, encrypt": ("CALL fernet_encrypt_column('held', 'value')", None),
    "column, decrypt": ("CALL fernet_decrypt_column('held', 'value')", None),
    "column, decrypt what is not text": ("INSERT INTO held VALUES ('{binary}')", None),
    "column, decrypt to text": ("CALL fernet_decrypt_column('held', 'value')", "22021"),
}


class Hunt:
    def __init__(self, host, stack):
        """On a server that has these lines at the end of its configuration. The stack ends what was begun."""
        self.host, self.data, self.stack = host, Path(host, "data"), stack
        self.folder = folder_for(host)
        self.traces = Traces()
        setup = self.session()
        for statement in (
            "CREATE EXTENSION pg_fernet",
            *["CREATE EXTENSION pg_stat_statements"] * HAS_CONTRIB,
            "CREATE ROLE ordinary LOGIN",
            *["ALTER ROLE ordinary SET auto_explain.log_min_duration = -1"] * HAS_CONTRIB,
            "CREATE ROLE monitor LOGIN IN ROLE pg_monitor",
            "CREATE ROLE hunted LOGIN",
            "CREATE ROLE later LOGIN",
            "CREATE ROLE replicator LOGIN REPLICATION",
            "CREATE DATABASE hunted",
            "CREATE FOREIGN DATA WRAPPER nothing",
            # Code of an ordinary role that can run in the middle of other people's statements.
            "CREATE SCHEMA ordinary AUTHORIZATION ordinary; SET ROLE ordinary; SET search_path = ordinary",
            "CREATE UNLOGGED TABLE seen (query text)",
            "CREATE TABLE watched (token text)",
            "CREATE FUNCTION watch() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO ordinary.seen VALUES (current_query())'",
            """CREATE FUNCTION watch_row() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN PERFORM ordinary.watch(); RETURN new; END'""",
            """CREATE FUNCTION watch_command() RETURNS event_trigger LANGUAGE plpgsql AS
               'BEGIN PERFORM ordinary.watch(); END'""",
            "CREATE TRIGGER watch BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watch_row()",
            "RESET ROLE; RESET search_path",
            "CREATE EVENT TRIGGER watch ON ddl_command_start EXECUTE FUNCTION ordinary.watch_command()",
            "ALTER DATABASE postgres SET search_path = public, ordinary",
        ):
            setup.execute(statement)
        self.session("hunted").execute("CREATE EXTENSION pg_fernet")

    def session(self, database="postgres", **options):
        """A session that stays open to the end, so that pg_stat_activity shows its last statement."""
        session = connect(database, host=self.host, **options)
        self.stack.callback(session.close)
        session.add_notice_handler(lambda diag: search_error(self.traces, diag))
        return session

    def loaded(self, **options):
        session = self.session(**options)
        session.execute("LOAD 'pg_fernet'")
        return session

    def run(self, session, query, *parameters, sqlstate=None):
        """Runs a statement, which must end with that error or with none."""
        try:
            rows = session.execute(query, parameters or None)
        except psycopg.Error as error:
            search_error(self.traces, error.diag)
            assert error.sqlstate == sqlstate, f"{query}: {error}"
        else:
            assert sqlstate is None, f"{query}: no error"
            return rows

    #
    # Keys in settings
    #

    def list(self, way):
        """Two keys or, if the way ends so, a key and something else."""
        second = self.traces.text if way.endswith(", refused") else self.traces.key
        return self.traces.key(way) + "," + second(way)

    def set_keys(self):
        for way, statement in WAYS.items():
            self.run(self.loaded(), statement.format(self.list(way)))
            self.run(self.loaded(), statement.format(self.list(f"{way}, refused")), sqlstate="22023")
            self.set_keys_logged(way, statement)
        for way, statement in DEFINITIONS.items():
            self.run(self.loaded(), statement.format(self.list(way)))
            self.set_keys_logged(way, statement)
        self.run(self.loaded(), f"SET fernet.keys = '{self.list('several statements')}'; SELECT ordinary.watch()")
        self.search_what_was_watched()

        parameter = "SELECT set_config('fernet.keys', %s, false) IS NOT NULL"
        self.run(self.loaded(), parameter, self.list("parameter"))
        self.run(self.loaded(), parameter, self.list("parameter, refused"), sqlstate="22023")

        # A connection option, which comes before the library is loaded or right after.
        self.use_keys(self.session(options="-c fernet.keys=" + self.list("connection option")))
        for user in "postgres", "ordinary":
            try:
                session = self.session(user=user, options="-c fernet.keys=" + self.list("connection option, refused"))
            except psycopg.OperationalError as error:
                self.traces.search("client: message", error)
            else:
                self.use_keys(session)

        # A bad list, which the server accepts if it does not know the setting yet.
        try:
            self.session().execute(f"ALTER ROLE later SET fernet.keys = '{self.list('taken at first, refused')}'")
        except psycopg.errors.InvalidParameterValue as error:
            search_error(self.traces, error.diag)
        self.use_keys(self.session(user="later"))

    def set_keys_logged(self, way, statement):
        """The server logs it for another reason than log_statement."""
        for setting, on in {**LOGGING, "client_min_messages": "debug5"}.items():
            with connect("postgres", host=self.host, application_name=setting) as session:
                session.add_notice_handler(lambda diag: search_error(self.traces, diag))
                session.execute(f"LOAD 'pg_fernet'; SET log_statement = none; SET {setting} = {on}; SET auto_explain.log_min_duration = -1")
                self.run(session, statement.format(self.list(way)).replace("with_keys", f"with_keys_{setting}"))
                if way == "set_config()":
                    self.run(session, "SELECT set_config('fernet.keys', %s, false) IS NOT NULL", self.list("parameter"))
                for view in "pg_prepared_statements", "pg_cursors":
                    self.traces.search(f"{view}, in the session", session.execute(f"SELECT * FROM {view}").fetchall())

    def use_keys(self, session):
        """Asks, as any role may, for the keys that the session now has."""
        for query in ("SELECT fernet_is_token('x')", "SELECT count(fernet_encrypt('x'))", "SELECT * FROM fernet_keys()",
                      "SELECT fernet_decrypt('x')"):
            try:
                session.execute(query)
            except psycopg.Error as error:
                search_error(self.traces, error.diag)

    def show(self, database="postgres", user="ordinary"):
        """Lets an ordinary role show the setting."""
        session = self.session(database, user=user)
        try:
            self.traces.search("SHOW before the library is loaded", value(session, "SHOW fernet.keys"))
        except psycopg.errors.InsufficientPrivilege:
            pass
        session.execute("SELECT fernet_is_token('x')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SHOW fernet.keys")
        self.traces.search("SHOW ALL", session.execute("SHOW ALL").fetchall())

    def show_for_all(self):
        self.show(database="hunted")
        self.show(user="hunted")
        self.show(database="hunted", user="hunted")
        self.reload()
        self.show()
        self.search_configuration()
        self.search_catalogs("ordinary", "catalog")
        self.run(self.session(), "ALTER SYSTEM RESET fernet.keys")

    def configure(self, line):
        """Another last line in the configuration file."""
        path = self.data / "postgresql.conf"
        path.write_text("\n".join([*path.read_text().splitlines()[:-1], line, ""]))
        self.reload()
        self.search_configuration()

    def reload(self):
        before = self.log().count("received SIGHUP")
        self.session().execute("SELECT pg_reload_conf()")
        while self.log().count("received SIGHUP") == before:
            time.sleep(0.01)
        # The processes follow, each in its own time.
        time.sleep(0.2)

    def log(self):
        return self.data.joinpath("log", "hunt.json").read_text(errors="replace")

    def keys_in_the_configuration(self):
        for way in "postgresql.conf", "postgresql.conf, refused":
            self.configure(f"fernet.keys = '{self.list(way)}'")
            self.show()
            self.use_keys(self.session())
        self.configure("fernet.keys = " + self.traces.key("postgresql.conf, without quotes"))
        self.configure("")

    def keys_on_the_command_line(self):
        """Restarts the server, which ends all sessions."""
        pg_ctl(self.host, "stop")
        self.search_files()
        pg_ctl(self.host, "start", "-o", "-c fernet.keys=" + self.list("command line"))
        self.show()
        self.search_configuration()
        self.search_processes()

    #
    # Keys from outside
    #

    def keys_from_a_file(self):
        session = self.loaded()
        use_file(session, write(self.folder / "keys", self.list("file")))
        self.use_keys(session)
        for mode, sqlstate in (0o600, "22023"), (0o644, "F0000"):
            write(self.folder / "keys", self.list("file, refused"), mode=mode)
            self.run(session, "SELECT count(fernet_encrypt('x'))", sqlstate=sqlstate)

    def keys_in_the_place_of_a_path(self):
        for way, damage in ("SET fernet.keys_file", ""), ("SET fernet.keys_file, damaged", ","):
            self.run(self.loaded(), f"SET fernet.keys_file = '{self.traces.key(way)}{damage}'", sqlstate="22023")

    def keys_from_a_command(self):
        for way, end, sqlstate in (
            ("command", "", None), ("command", "; cat {0} >&2", None), ("command", "; cat {0}; exit 1", "F0000"),
            ("command, refused", "", "22023"),
        ):
            path = write(self.folder / "keys", self.list(way))
            self.configure(f"fernet.keys_command = 'cat {path}{end.format(path)}'")
            self.run(self.session(), "SELECT count(fernet_encrypt('x'))", sqlstate=sqlstate)
        self.configure("")

    #
    # Plaintexts
    #

    def use_plaintexts(self):
        session = self.loaded()
        keys = self.list("file")
        key = keys.split(",")[1]
        use_file(session, write(self.folder / "keys", keys))
        for label, (statement, sqlstate) in USES.items():
            session.execute("SET statement_timeout = " + ("100" if sqlstate == "57014" else "0"))
            for explain in ("", "EXPLAIN (ANALYZE, VERBOSE, SETTINGS) ") if statement.startswith("SELECT") and not sqlstate else ("",):
                text = self.traces.text(label)
                query = explain + statement.format(text, reversed=text[::-1], **self.tokens(key, text))
                rows = self.run(session, query, *[text] * query.count("%s"), sqlstate=sqlstate)
                if explain:
                    self.traces.search("EXPLAIN", rows.fetchall())
        session.execute("RESET ROLE")
        self.search_what_was_watched()
        self.traces.search("pg_stats_ext_exprs, for the owner", session.execute("SELECT * FROM pg_stats_ext_exprs").fetchall())
        self.use_as_parameters()
        self.use_in_a_deadlock()
        self.use_in_parallel(session, key)
        self.use_in_other_encodings(key)

    def use_as_parameters(self):
        """With everything that the server has to keep parameters out of the log. They stay in plans."""
        settings = {"log_min_duration_statement": "0", "log_parameter_max_length": "0", "log_parameter_max_length_on_error": "0"}
        for label, more in {
            "parameter, kept out of the log": {"auto_explain.log_min_duration": "-1"},
            "parameter, in a plan": {"auto_explain.log_parameter_max_length": "0"} if major_version() >= 16 else {},
            "parameter, in a printed plan": {"auto_explain.log_min_duration": "-1", "debug_print_plan": "on"},
        }.items():
            with connect("postgres", host=self.host, application_name="debug_print_plan") as session:
                use_file(session, self.folder / "keys")
                for setting, new in {**settings, **more}.items():
                    session.execute(f"SET {setting} = {new}")
                session.execute("SELECT fernet_encrypt(%s)", [self.traces.text(label)])
                with suppress(psycopg.errors.DivisionByZero):
                    session.execute("SELECT fernet_encrypt(%s), 1 / (random() * 0)::int", [self.traces.text(label)])

    def use_in_a_deadlock(self):
        """The log shows the statements of all sessions involved."""
        def encrypt(session, n):
            text = self.traces.text("encrypt a literal in a deadlock")
            with suppress(psycopg.errors.DeadlockDetected):
                session.execute(f"UPDATE deadlock SET token = fernet_encrypt('{text}') WHERE n = {n}")

        with connect("postgres", host=self.host, application_name="deadlock") as one, connect("postgres", host=self.host) as other:
            one.execute("CREATE TABLE deadlock AS SELECT n, '' AS token FROM generate_series(1, 2) AS n")
            for session in one, other:
                use_file(session, self.folder / "keys")
                session.execute("SET log_statement = none; SET auto_explain.log_min_duration = -1")
                session.execute("BEGIN")
            one.execute("UPDATE deadlock SET token = '' WHERE n = 1")
            other.execute("UPDATE deadlock SET token = '' WHERE n = 2")
            thread = Thread(target=encrypt, args=(one, 2))
            thread.start()
            encrypt(other, 1)
            thread.join()

    def tokens(self, key, text):
        now = int(time.time())
        return {
            "token": pyca.encrypt(key, text.encode(), now).decode(),
            "unknown": pyca.encrypt(self.traces.key("file"), text.encode(), now).decode(),
            "binary": pyca.encrypt(key, text.encode() + b"\0\xff", now).decode(),
            "unpadded": pyca.sign(key, b"\x80" + bytes(24) + text.encode()[:32]).decode(),
        }

    def use_in_parallel(self, session, key):
        tokens = self.tokens(key, self.traces.text("parallel"))
        session.execute("CREATE TABLE tokens AS SELECT %s AS token FROM generate_series(1, 10000)", [tokens["token"]])
        force_parallel(session)
        assert plan(session, "SELECT count(fernet_decrypt(token)) FROM tokens")[1] > 0
        self.run(session, "SELECT max(length(fernet_decrypt(token))) FROM tokens")
        for token, sqlstate in (tokens["unknown"], "39000"), (tokens["binary"], "22021"), ("x", "22P02"):
            session.execute("TRUNCATE tokens")
            session.execute("INSERT INTO tokens SELECT %s FROM generate_series(1, 10000)", [token])
            self.run(session, "SELECT count(fernet_decrypt(token)) FROM tokens", sqlstate=sqlstate)

    def use_in_other_encodings(self, key):
        for encoding, statement in {
            "LATIN1": "SELECT fernet_decrypt('{token}')",
            "SQL_ASCII": "SELECT fernet_encrypt(reverse('{reversed}') || E'\\xe4')",
        }.items():
            database = f"hunted_{encoding.lower()}"
            create_database(database, encoding, host=self.host)
            session = self.session(database, client_encoding=encoding)
            session.execute("CREATE EXTENSION pg_fernet")
            use_file(session, self.folder / "keys")
            text = self.traces.text(encoding)
            self.run(session, statement.format(reversed=text[::-1], token=pyca.encrypt(key, f"{text} €".encode(), 0).decode()),
                     sqlstate="22021")

    #
    # Places
    #

    def search_configuration(self):
        self.traces.search("pg_file_settings, as a superuser", self.session().execute("SELECT * FROM pg_file_settings").fetchall())
        for name in "postgresql.conf", "postgresql.auto.conf", "postmaster.opts":
            self.traces.search(f"data directory: {name}", (self.data / name).read_bytes())

    def search_catalogs(self, user, place):
        """All that the role can read in them."""
        session = self.session(user=user)
        relations = session.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'v') AND has_table_privilege(oid, 'SELECT')"
            " AND relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)")
        for (relation,) in relations.fetchall():
            try:
                self.traces.search(f"{place}: {relation}", session.execute(f"SELECT * FROM {relation}").fetchall())
            except psycopg.errors.InsufficientPrivilege:
                pass
            except psycopg.errors.InternalError_ as error:
                assert "NUMA" in str(error)  # which this machine may lack

    def search_what_was_watched(self):
        session = self.session(user="ordinary")
        self.traces.search("current_query()", session.execute("SELECT * FROM ordinary.seen").fetchall())
        session.execute("TRUNCATE ordinary.seen")

    def search_statistics(self):
        if HAS_CONTRIB:
            session = self.session(user="monitor")
            self.traces.search("as pg_monitor: pg_stat_statements", session.execute("SELECT * FROM pg_stat_statements").fetchall())

    def search_dumps(self):
        for command in "pg_dump -C postgres", "pg_dump -C hunted", "pg_dumpall":
            dump = subprocess.run([*shlex.split(command), "-h", self.host], check=True, capture_output=True)
            self.traces.search(command.split()[0], dump.stdout + dump.stderr)

    def search_files(self):
        for path in self.data.rglob("*"):
            place, *_ = path.relative_to(self.data).parts
            if path.is_file() and place != "log":
                self.traces.search(f"data directory: {place}", path.read_bytes())

    def search_base_backup(self):
        """What a role with REPLICATION can have."""
        folder = self.folder / "backup"
        subprocess.run(["pg_basebackup", "-h", self.host, "-U", "replicator", "-D", folder, "-X", "fetch", "-c", "fast"],
                       check=True, capture_output=True)
        for path in folder.rglob("*"):
            if path.is_file() and path.parent.name != "log":
                self.traces.search("pg_basebackup, with REPLICATION", path.read_bytes())

    def crash(self):
        """The log shows the last statement of a process that was killed. Ends all sessions."""
        session = self.loaded()
        session.execute("SET log_statement = none")
        session.execute(f"SET fernet.keys = '{self.list('SET')}'")
        os.kill(session.info.backend_pid, signal.SIGKILL)
        while "all server processes terminated; reinitializing" not in self.log():
            time.sleep(0.01)

    def search_processes(self):
        """What ps shows to every user of the machine."""
        postmaster, *_ = self.data.joinpath("postmaster.pid").read_text().split()
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for process in postmaster, *children:
            self.traces.search("ps", Path(f"/proc/{process}/cmdline").read_bytes())

    def search(self):
        self.search_catalogs("ordinary", "catalog")
        self.search_catalogs("monitor", "as pg_monitor")
        self.search_statistics()
        self.search_dumps()
        self.session().execute("CHECKPOINT")
        self.search_files()
        self.search_base_backup()
        self.search_processes()

    def run_everything(self):
        self.keys_from_a_file()
        self.keys_from_a_command()
        self.keys_in_the_place_of_a_path()
        self.use_plaintexts()
        self.set_keys()
        self.show_for_all()
        self.keys_in_the_configuration()
        self.search()
        self.keys_on_the_command_line()
        self.crash()
        search_json_log(self.traces, self.log())
        search_text_log(self.traces, self.data.joinpath("log", "hunt.log").read_text(errors="replace"))
        return self.traces.found()
