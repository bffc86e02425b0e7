"""fernet.keys_file: who may own the file, what it may hold, and when a change of it counts."""

import base64
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from key_files import folder_for, key, needs_root, server_user, write
from pieces import by_execute, by_fetch
from postgres import force_parallel, plan, value
from pyca import fingerprint, opener
from settings import fingerprints, refusal, use_file

MIB = 1 << 20


def prints(*keys):
    return [fingerprint(key) for key in keys]


#
# Which setting counts
#

def test_the_first_setting_that_is_set_wins(db, sessions, configuration, folder):
    listed, filed, commanded = key(), key(), key()
    in_a_file, for_the_command = write(folder / "file", filed), write(folder / "command", commanded)

    configuration.set("fernet.keys_command", f"cat {for_the_command}")
    assert fingerprints(db) == prints(commanded)
    use_file(db, in_a_file)
    assert fingerprints(db) == prints(filed)
    db.execute(f"SET fernet.keys = '{listed}'")
    assert fingerprints(db) == prints(listed)

    # No list has come from more than one of them, and a setting that does not count need not be good.
    in_a_file.unlink()
    assert fingerprints(db) == prints(listed)
    db.execute("RESET fernet.keys")
    assert "No such file" in refusal(db, "F0000")
    db.execute("SET fernet.keys_file = ''")
    assert fingerprints(db) == prints(commanded)


def test_for_a_transaction_a_role_a_database(db, sessions, database, folder):
    ours, theirs, everybodys = (write(folder / name, key()) for name in ("ours", "theirs", "everybodys"))
    content = {path: prints(path.read_text().strip()) for path in (ours, theirs, everybodys)}

    use_file(db, ours)
    with db.transaction(force_rollback=True):
        db.execute(f"SET LOCAL fernet.keys_file = '{theirs}'")
        assert fingerprints(db) == content[theirs]
    assert fingerprints(db) == content[ours]

    db.execute("CREATE ROLE fernet_other SUPERUSER LOGIN")
    try:
        db.execute(f"ALTER DATABASE {database} SET fernet.keys_file = '{everybodys}'")
        assert fingerprints(sessions()) == content[everybodys]
        db.execute(f"ALTER ROLE fernet_other SET fernet.keys_file = '{theirs}'")
        assert fingerprints(sessions(user="fernet_other")) == content[theirs]
        assert fingerprints(sessions()) == content[everybodys]
    finally:
        db.execute(f"ALTER DATABASE {database} RESET fernet.keys_file")
        db.execute("DROP ROLE fernet_other")


#
# What it holds
#

@pytest.mark.parametrize("text", [
    "{0}\n{1}\n{2}\n",
    "{0}\n{1}\n{2}",
    "{0},{1},{2}\n",
    "{0}, {1}\n{2}",
    "{0}\r\n{1}\r\n{2}\r\n",
    "\n\n{0}\n  \n\t{1}  \n\n{2}\n\n",
    "# the new one\n{0} # made today\n#{0}\n{1}, # the old ones,\n{2}\n# {1}",
    "{0},\n{1},\n{2},\n",
    ",,{0},,{1},{2},,",
    # As for pyca, what surrounds a key and is not base64 is ignored.
    "'{0}'\n\"{1}\" (!)\n\0\ufeff{2}",
])
def test_format(db, folder, keys, text):
    path = write(folder / "keys")
    path.write_bytes(text.format(*keys).encode())
    use_file(db, path)
    assert fingerprints(db) == prints(*keys)


@pytest.mark.parametrize("text, message", [
    ("", "fernet.keys_file: the key list is empty"),
    ("\n \n# {0}\n,\n", "fernet.keys_file: the key list is empty"),
    ("bad", "key 1 of fernet.keys_file is not a valid Fernet key"),
    ("{0}\n# comment\n\n{1}\nbad\n{2}\nworse", "key 3 of fernet.keys_file is not a valid Fernet key"),
    ("{0}\n\0", "key 2 of fernet.keys_file is not a valid Fernet key"),
])
def test_bad_format(db, folder, keys, text, message):
    path = write(folder / "keys")
    path.write_bytes(text.format(*keys).encode())
    use_file(db, path)
    assert refusal(db, "22023") == message


def test_size(db, folder, keys):
    path = write(folder / "keys", keys[0])
    use_file(db, path)
    with path.open("a") as file:
        file.write("#" * (MIB - file.tell()))
    assert path.stat().st_size == MIB
    assert fingerprints(db) == prints(keys[0])
    with path.open("a") as file:
        file.write("#")
    assert refusal(db, "F0000") == f'could not read Fernet keys from file "{path}": more than 1 MiB'
    # A file that would fill the server's memory is not read to its end.
    os.truncate(path, 1 << 40)
    assert refusal(db, "F0000") == f'could not read Fernet keys from file "{path}": more than 1 MiB'


#
# Who may own it
#

@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700], ids=oct)
def test_a_private_file_of_the_servers_user(db, key_file, keys, mode):
    key_file.chmod(mode)
    use_file(db, key_file)
    assert fingerprints(db) == prints(*keys)


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o666, 0o777, 0o440, 0o404], ids=oct)
def test_a_file_of_the_servers_user_that_others_may_use(db, key_file, mode):
    key_file.chmod(mode)
    use_file(db, key_file)
    assert refusal(db, "F0000") == (f'could not read Fernet keys from file "{key_file}":'
                                    " it must have permissions u=rw (0600) or less")


@needs_root
@pytest.mark.parametrize("mode", [0o640, 0o440, 0o740], ids=oct)
def test_a_file_of_roots_for_the_servers_group(db, folder, keys, mode):
    path = write(folder / "keys", *keys, mode=mode, owner=(0, server_user()[1]))
    use_file(db, path)
    assert fingerprints(db) == prints(*keys)


@needs_root
@pytest.mark.parametrize("mode", [0o660, 0o650, 0o644, 0o642, 0o641, 0o444, 0o664], ids=oct)
def test_a_file_of_roots_that_others_may_use(db, folder, keys, mode):
    path = write(folder / "keys", *keys, mode=mode, owner=(0, server_user()[1]))
    use_file(db, path)
    assert refusal(db, "F0000") == (f'could not read Fernet keys from file "{path}":'
                                    " a file owned by root must have permissions u=rw,g=r (0640) or less")


@needs_root
@pytest.mark.parametrize("mode", [0o640, 0o440], ids=oct)
def test_a_file_of_anybody_else(db, folder, keys, mode):
    user, group = server_user()
    path = write(folder / "keys", *keys, mode=mode, owner=(user + 1, group))
    use_file(db, path)
    assert refusal(db, "F0000") == (f'could not read Fernet keys from file "{path}":'
                                    " it must be owned by the database user or root")


def test_not_a_regular_file(db, folder):
    def reason(path):
        use_file(db, path)
        return refusal(db, "F0000").removeprefix(f'could not read Fernet keys from file "{path}": ')

    assert reason(folder) == "it is not a regular file"
    for device in ("/dev/null", "/dev/zero"):
        assert reason(device) == "it is not a regular file"
    assert "No such file" in reason(folder / "missing")
    assert "Not a directory" in reason("/dev/null/keys")
    folder.joinpath("loop").symlink_to("loop")
    assert "symbolic links" in reason(folder / "loop")


def test_a_fifo_is_refused_at_once(db, folder):
    """Opening one for reading waits for a writer, and no cancel would end that."""
    fifo = folder / "fifo"
    os.mkfifo(fifo, 0o600)
    os.chown(fifo, *server_user())
    use_file(db, fifo)
    rescue = threading.Timer(3, lambda: os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)))
    rescue.start()
    started = time.monotonic()
    try:
        assert "it is not a regular file" in refusal(db, "F0000")
        assert time.monotonic() - started < 1
    finally:
        rescue.cancel()


@pytest.mark.parametrize("damage", [
    "{0}", "{0},{1}", "{0},", "{0},half", "x{0}", "'{0}'", "fernet.keys", "./fernet.keys", " /fernet.keys",
])
def test_what_is_no_absolute_path_is_refused_and_not_shown(db, keys, damage):
    """The value may be keys, with or without a mistake in them."""
    db.execute("LOAD 'pg_fernet'")
    with pytest.raises(psycopg.Error) as refused:
        use_file(db, damage.format(*keys))
    assert refused.value.sqlstate == "22023"
    assert refused.value.diag.message_primary == "fernet.keys_file must be the absolute path of a file"
    assert not any(key in str(refused.value) for key in keys)


def test_so_it_is_where_it_was_set_before_the_library_was_loaded(sessions, keys):
    session = sessions()
    use_file(session, f"{keys[0]},")
    assert refusal(session, "22023") == "fernet.keys_file must be the absolute path of a file"


def test_a_key_that_begins_like_a_path_is_refused(db):
    db.execute("LOAD 'pg_fernet'")
    with pytest.raises(psycopg.Error, match="must be the absolute path of a file"):
        use_file(db, base64.b64encode(b"\xff" + os.urandom(31)).decode())


#
# Changes
#

def replace_by_rename(path, key):
    write(path, key)


def edit_in_place(path, key):
    with path.open("r+") as file:
        file.write(key)


def edit_in_place_and_hide_it(path, key):
    """As an editor or a copy does that keeps the times."""
    before = path.stat()
    edit_in_place(path, key)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_and_make_anew(path, key):
    path.unlink()
    path.touch(0o600)
    os.chown(path, *server_user())
    path.write_text(key)


CHANGES = [replace_by_rename, edit_in_place, edit_in_place_and_hide_it, remove_and_make_anew]


@pytest.fixture(params=["a clock that ticks", "a clock that does not miss a change"])
def any_folder(request, folder):
    """A folder on each kind of file system: on one, files changed within some milliseconds have the same times."""
    if request.param == "a clock that does not miss a change":
        yield folder
        return
    mount = subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip("cannot mount a file system: " + mount.stderr.strip())
    os.chown(folder, *server_user())
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_counts_from_the_next_statement(db, any_folder, change):
    """No pause between changes, and no change of size: the times by themselves would not tell."""
    path = write(any_folder / "keys", key())
    use_file(db, path)
    for _ in range(200):
        new = key()
        change(path, new)
        assert fingerprints(db) == prints(new)


@pytest.fixture(scope="module")
def old_key_files():
    """Key files that no clock takes for changed just now: a statement does not read such a file again."""
    paths = [write(folder_for(os.environ["PGHOST"]) / "keys", key()) for _ in range(len(CHANGES) + len(BREAKAGES))]
    time.sleep(2.2)
    return paths


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_file_that_has_long_been_the_same(db, old_key_files, change):
    path = old_key_files.pop()
    use_file(db, path)
    assert fingerprints(db) == fingerprints(db) == prints(path.read_text().strip())
    for _ in range(10):
        new = key()
        change(path, new)
        assert fingerprints(db) == prints(new)


def test_a_change_counts_in_every_session(sessions, folder):
    path = write(folder / "keys", key())
    several = [sessions() for _ in range(5)]
    for session in several:
        use_file(session, path)
    for _ in range(20):
        new = key()
        write(path, new)
        assert [fingerprints(session) for session in several] == [prints(new)] * 5


def test_symbolic_links(db, folder, keys):
    """The rule is for the file, not for the link; a change of either counts."""
    one, two = write(folder / "one", keys[0]), write(folder / "two", keys[1])
    link = folder / "link"
    link.symlink_to(one)
    use_file(db, link)
    assert fingerprints(db) == prints(keys[0])

    def point_to(target):
        folder.joinpath("new").symlink_to(target)
        folder.joinpath("new").rename(link)

    for _ in range(50):
        point_to(two)
        assert fingerprints(db) == prints(keys[1])
        point_to(one)
        assert fingerprints(db) == prints(keys[0])
    write(one, keys[2])
    assert fingerprints(db) == prints(keys[2])
    one.chmod(0o644)
    assert "0600" in refusal(db, "F0000")


BREAKAGES = [
    (lambda path: path.unlink(), "F0000", "No such file"),
    (lambda path: path.chmod(0), "F0000", "Permission denied"),
    (lambda path: path.chmod(0o644), "F0000", "it must have permissions"),
    (lambda path: path.parent.chmod(0), "F0000", "Permission denied"),
    (lambda path: path.write_text("bad"), "22023", "key 1 of fernet.keys_file"),
    (lambda path: path.write_text(""), "22023", "the key list is empty"),
    (lambda path: (path.unlink(), path.mkdir()), "F0000", "not a regular file"),
]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage[2])
@pytest.mark.parametrize("age", ["new", "old"])
def test_the_last_good_keys_are_not_used(db, key_file, old_key_files, age, breakage):
    break_it, sqlstate, reason = breakage
    path = key_file if age == "new" else old_key_files.pop()
    use_file(db, path)
    first, *_ = path.read_text().splitlines()
    token = value(db, "SELECT fernet_encrypt('hello')")
    break_it(path)
    for query in (f"SELECT fernet_decrypt('{token}')", "SELECT fernet_encrypt('x')", f"SELECT fernet_key_index('{token}')",
                  "SELECT fernet_keys()", f"SELECT fernet_rotate('{token}')", f"SELECT fernet_timestamp('{token}')"):
        assert reason in refusal(db, sqlstate, query)
    # A good file ends it.
    path.parent.chmod(0o755)
    if path.is_dir():
        path.rmdir()
    new = key()
    write(path, new, first)
    assert value(db, f"SELECT fernet_decrypt('{token}')") == "hello"
    assert fingerprints(db) == prints(new, first)


#
# Statements
#

def half_way(sessions, query, *, path, new):
    """Runs a query of three rows; after the first, replaces the file. Returns the rows, and the session."""
    gate, runner = sessions(), sessions()
    use_file(runner, path)
    gate.execute("SELECT pg_advisory_lock(2)")
    with ThreadPoolExecutor() as pool:
        rows = pool.submit(lambda: runner.execute(query).fetchall())
        while not rows.done() and not value(gate, "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"):
            time.sleep(0.01)
        write(path, new)
        gate.execute("SELECT pg_advisory_unlock(2)")
        return rows.result(), runner


def test_a_statement_has_one_list_from_its_first_row_to_its_last(sessions, folder, keys):
    path = write(folder / "keys", keys[0])
    query = "SELECT fernet_encrypt('before'), pg_advisory_lock_shared(n), fernet_encrypt('after') FROM generate_series(1, 3) AS n"
    rows, session = half_way(sessions, query, path=path, new=keys[1])
    tokens = [token.encode() for before, _, after in rows for token in (before, after)]
    assert [opener(keys, token) for token in tokens] == [0] * 6
    assert fingerprints(session) == prints(keys[1])


@pytest.mark.parametrize("in_pieces", [by_fetch, by_execute])
def test_each_piece_of_a_result_is_a_statement(database, folder, keys, in_pieces):
    path = write(folder / "keys", keys[0])
    query = "SELECT fernet_encrypt('x') FROM generate_series(1, 4)"
    with in_pieces(database, f"fernet.keys_file={path}", query) as fetch:
        tokens = [fetch(), fetch()]
        write(path, keys[1])
        tokens.append(fetch())
        assert [opener(keys, token.encode()) for token in tokens] == [0, 0, 1]
        write(path, "bad")
        with pytest.raises(psycopg.Error, match="key 1 of fernet.keys_file"):
            fetch()


def test_a_statement_that_began_before_the_file_broke_ends_well(sessions, folder, keys):
    path = write(folder / "keys", keys[0])
    query = "SELECT fernet_encrypt('x'), pg_advisory_lock_shared(n) FROM generate_series(1, 3) AS n"
    rows, session = half_way(sessions, query, path=path, new="bad")
    assert len(rows) == 3
    refusal(session, "22023")


def test_parallel_workers(db, folder, keys):
    path = write(folder / "keys", keys[0])
    use_file(db, path)
    db.execute("CREATE TABLE file_tokens AS SELECT fernet_encrypt(n::text) AS token FROM generate_series(1, 10000) AS n")
    try:
        force_parallel(db)
        query = "SELECT count(*) FROM file_tokens WHERE fernet_key_index(token) = {}"
        assert plan(db, query.format(1))[1] > 0
        assert value(db, query.format(1)) == 10000
        write(path, keys[1], keys[0])
        assert value(db, query.format(2)) == 10000
        write(path, keys[1])
        assert value(db, "SELECT count(*) FROM file_tokens WHERE fernet_key_index(token) IS NULL") == 10000
        write(path, "bad")
        with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
            db.execute(query.format(1))
        assert error.value.diag.context == "parallel worker"
    finally:
        db.execute("DROP TABLE file_tokens")
