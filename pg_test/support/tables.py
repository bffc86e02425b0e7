"""Tables of tokens, calls of fernet_rotate_column and its kin, and checks of their results."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from edition import SQL
from postgres import value

NEW, OLD, LOST = (Fernet.generate_key().decode() for _ in range(3))


@contextmanager
def under(db, key):
    """A transaction that has one key."""
    with db.transaction():
        db.execute("SELECT set_config('fernet.keys', %s, true)", [key])
        yield


def fill(db, rows, key=OLD, table="secrets"):
    """Makes a table of tokens under one key: the secret of row 1 is "secret 1"."""
    with under(db, key):
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} (id integer PRIMARY KEY, value text)")
        db.execute(f"INSERT INTO {table} SELECT i, fernet_encrypt('secret ' || i)"
                   f" FROM generate_series(1, {rows}) AS i")
    db.execute(f"VACUUM ANALYZE {table}")


def filled(rows):
    """The plaintexts in a table that `fill` makes."""
    return {id: f"secret {id}" for id in range(1, rows + 1)}


def encrypt_writes(db, table, column="value"):
    """Makes the trigger encrypt what is written to a column."""
    db.execute(f"CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('{column}')")


@dataclass(frozen=True)
class Conversion:
    """A procedure on whole columns, with the census's statuses for its values before and after."""

    name: str
    before: str
    after: str
    done: str  # its name for those that it has converted
    others: list[str]  # its other counts
    already: str  # the one of these that counts values converted before

    def call(self, db, table="secrets", **arguments):
        """Calls the procedure and returns its counts."""
        named = "".join(f", {name} => {argument}" for name, argument in arguments.items())
        cursor = db.execute(f"CALL fernet_{self.name}_column('{table}', 'value'{named})")
        return dict(zip([column.name for column in cursor.description], cursor.fetchone()))

    def counts(self, done, already=0):
        """What it returns if there is nothing else."""
        return {self.done: done, **dict.fromkeys(self.others, 0), self.already: already}

    def value(self, plaintext):
        """The form of such a plaintext before the call."""
        return {"rotate": Fernet(OLD).encrypt, "encrypt": bytes, "decrypt": Fernet(NEW).encrypt}[self.name](plaintext.encode()).decode()

    def new_value(self, plaintext):
        """Its form after the call, as another session writes it."""
        return plaintext if self.name == "decrypt" else Fernet(NEW).encrypt(plaintext.encode()).decode()

    def is_new(self, value):
        try:
            Fernet(NEW).decrypt(value)
            return self.name != "decrypt"
        except InvalidToken:
            return self.name == "decrypt"

    def sql(self, plaintext):
        """The same as a SQL expression."""
        return plaintext if self.name == "encrypt" else f"fernet_encrypt({plaintext})"

    def fill(self, db, rows, insert=None):
        """Makes a table as `fill` does, or turns an existing one into what the procedure is to convert."""
        with under(db, OLD if self.name == "rotate" else NEW):
            if not insert:
                db.execute("CREATE TABLE secrets (id integer PRIMARY KEY, value text)")
                insert = "INSERT INTO secrets SELECT i, {value}"
            value = self.sql("'secret ' || i")
            db.execute(f"{insert.format(value=value)} FROM generate_series(1, {rows}) AS i")
        db.execute("VACUUM ANALYZE secrets")


ROTATE = Conversion("rotate", "old key", "current", "rotated", ["current", "unknown_key", "not_a_token", "nulls"], "current")
ENCRYPT = Conversion("encrypt", "not a token", "current", "encrypted", ["current", "old_key", "unknown_key", "nulls"], "current")
DECRYPT = Conversion("decrypt", "current", "not a token", "decrypted", ["in_text", "unknown_key", "not_a_token", "nulls"], "not_a_token")
CONVERSIONS = [ROTATE, ENCRYPT, DECRYPT]

rotate = ROTATE.call


def census(db, table="secrets"):
    """Returns the statuses that occur, with their counts."""
    rows = db.execute("SELECT status, tokens FROM fernet_census(%s::regclass, 'value') WHERE tokens > 0", [table])
    return dict(rows.fetchall())


def plaintexts(db, keys=(NEW, OLD), table="secrets"):
    """Decrypts a table with pyca: what row 1 holds, and under which key."""
    ciphers = {key: Fernet(key) for key in keys}

    def decrypt(token):
        for key, cipher in ciphers.items():
            try:
                return cipher.decrypt(token).decode(), key
            except Exception:
                pass
        raise ValueError("no key opens the token")

    return {id: decrypt(token) for id, token in db.execute(f"SELECT id, value FROM {table}")}


def contents(db):
    """The plaintexts of a table, in which there may be tokens and plaintexts."""
    cipher = MultiFernet([Fernet(NEW), Fernet(OLD)])

    def plaintext(value):
        try:
            return cipher.decrypt(value).decode()
        except InvalidToken:
            return value

    return {id: plaintext(value) for id, value in db.execute("SELECT id, value FROM secrets")}


def full_scans(db, table="secrets"):
    """Returns how often sessions that are idle now have read the whole table."""
    db.execute("SELECT pg_stat_force_next_flush()")
    return value(db, "SELECT seq_scan FROM pg_stat_all_tables WHERE relid = %s::regclass", table)


@contextmanager
def in_background(function, *arguments, **named):
    """Runs a function in a thread; at the end, raises the error that the function raised.

    If a test fails meanwhile, it may hold what the function waits for. The thread is then left running.
    """
    result = {}

    def run():
        try:
            result["value"] = function(*arguments, **named)
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield Background(thread, result)
    thread.join(120)
    assert not thread.is_alive(), "it does not end"


class Background:
    def __init__(self, thread, result):
        self.thread, self.result_ = thread, result

    def is_alive(self):
        return self.thread.is_alive()

    def result(self):
        self.thread.join(120)
        assert not self.thread.is_alive(), "it does not end"
        if "error" in self.result_:
            raise self.result_["error"]
        return self.result_["value"]


@contextmanager
def call_held_at(db, condition, is_held, conversion, caller, **arguments):
    """Rotates, encrypts or decrypts in the background, and holds the call at the rows that meet a condition until
    `go_on` is called. Begins when `is_held` says so, or the call has ended.

    The batch polls: a wait for a lock would end after a moment, and the row would be left out.
    """
    def go_on():
        db.execute("SELECT pg_advisory_unlock_all()")

    db.execute("SELECT pg_advisory_lock(1)")
    db.execute("CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
               " WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.005); END LOOP;"
               " RETURN NEW; END $$")
    db.execute(f"CREATE TRIGGER hold BEFORE UPDATE ON secrets FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION hold()")
    try:
        with in_background(conversion.call, caller, **arguments) as call:
            try:
                wait_until(lambda: is_held() or not call.is_alive())
                yield call, go_on
            finally:
                go_on()
    finally:
        db.execute("DROP FUNCTION hold CASCADE")


def rotation_held_at(db, caller, id, conversion=ROTATE, **arguments):
    """Does so in the batch of a row."""
    held = "SELECT wait_event IS NOT DISTINCT FROM 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
    return call_held_at(db, f"OLD.id = {id}", lambda: value(db, held, caller.info.backend_pid), conversion, caller, **arguments)


@contextmanager
def in_line(db, session, statement):
    """A statement in the background that waits for a lock, and will get it before any later session."""
    with in_background(session.execute, statement):
        wait_until(lambda: waits_for_lock(db, session.info.backend_pid))
        yield


def waits_for_lock(db, pid):
    """The SQL edition checks again and again whether others have ended, and sleeps in between."""
    waits = "coalesce(wait_event_type = 'Lock', false)" + (" OR coalesce(wait_event = 'PgSleep', false)" if SQL else "")
    return value(db, f"SELECT {waits} FROM pg_stat_activity WHERE pid = %s", pid)


def wait_until(condition, seconds=60):
    """Waits for a condition to hold, and returns what it then is."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)
    return result
