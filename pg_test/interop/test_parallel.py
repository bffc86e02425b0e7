"""Parallel workers see the leader's keys, and their errors are the usual ones."""

import random

import psycopg
import pytest

import pyca
from edition import context
from postgres import force_parallel, plan, set_keys, value

ROWS = 20_000


@pytest.fixture(scope="module")
def keys():
    rng = random.Random(1)
    return [pyca.key_of(rng) for _ in range(3)]


@pytest.fixture
def session(sessions, keys):
    """A table of tokens under the last key, which is at first the session's only one."""
    session = sessions()
    set_keys(session, keys[2])
    session.execute("CREATE TABLE parallel_tokens AS SELECT fernet_encrypt(n::text) AS token, fernet_encrypt(n::text)::bytea AS bytes"
                    f" FROM generate_series(1, {ROWS}) AS n")
    session.execute("ANALYZE parallel_tokens")
    force_parallel(session)
    yield session
    session.rollback()
    session.execute("DROP TABLE parallel_tokens")


def in_workers(session, query):
    """The one value of a query that parallel workers evaluate."""
    query += " FROM parallel_tokens"
    _, workers = plan(session, query)
    assert workers > 0, query
    return value(session, query)


@pytest.mark.parametrize("argument", ["token", "bytes"])
def test_every_function_runs_in_workers(session, keys, argument):
    set_keys(session, *keys)
    total = ROWS * (ROWS + 1) // 2
    for call, expected in {
        f"sum(fernet_decrypt({argument})::int)": total,
        f"sum(fernet_decrypt({argument}, '1 hour')::int)": total,
        f"sum(convert_from(fernet_decrypt_bytea({argument}), 'UTF8')::int)": total,
        f"sum(convert_from(fernet_decrypt_bytea({argument}, '1 hour'), 'UTF8')::int)": total,
        f"sum(fernet_key_index({argument}))": 3 * ROWS,
        f"sum(fernet_key_index(fernet_rotate({argument})))": ROWS,
        f"sum(fernet_decrypt(fernet_rotate({argument}))::int)": total,
        f"count(*) FILTER (WHERE fernet_is_token({argument}))": ROWS,
        f"count(*) FILTER (WHERE fernet_timestamp({argument}) <= clock_timestamp())": ROWS,
        f"sum(fernet_key_index(fernet_encrypt({argument})))": ROWS,
        f"count(DISTINCT fernet_generate_key() || {argument}::text)": ROWS,
    }.items():
        assert in_workers(session, "SELECT " + call) == expected, call


def test_workers_see_what_the_leader_set(session, keys):
    query = "SELECT sum(fernet_key_index(token))"
    assert in_workers(session, query) == ROWS
    set_keys(session, keys[0], keys[2])
    assert in_workers(session, query) == 2 * ROWS
    with session.transaction(force_rollback=True):
        session.execute(f"SET LOCAL fernet.keys = '{','.join(keys)}'")
        assert in_workers(session, query) == 3 * ROWS
    assert in_workers(session, query) == 2 * ROWS
    set_keys(session, keys[0])
    assert in_workers(session, query) is None


def test_workers_of_an_ordinary_role_see_the_keys(session, sessions, role, database, keys):
    """It may use them, and can see or set them no more than elsewhere."""
    session.execute(f"GRANT SELECT ON parallel_tokens TO {role}")
    session.execute(f"ALTER ROLE {role} IN DATABASE {database} SET fernet.keys = '{keys[0]}', '{keys[2]}'")
    user = sessions(user=role)
    force_parallel(user)
    assert in_workers(user, "SELECT sum(fernet_key_index(token))") == 2 * ROWS

    session.execute(f"GRANT SET ON PARAMETER fernet.keys TO {role}")
    user.execute(f"SET fernet.keys = '{keys[2]}'")
    assert in_workers(user, "SELECT sum(fernet_key_index(token))") == ROWS


def test_keys_of_a_security_definer_function(session, sessions, role, keys):
    """Keys that a function brings along are valid for its workers, and for nobody after it."""
    session.execute(f"CREATE FUNCTION total() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET fernet.keys = '{keys[2]}'"
                    " AS 'SELECT sum(fernet_decrypt(token)::int) FROM parallel_tokens'")
    user = sessions(user=role)
    force_parallel(user)
    assert value(user, "SELECT total()") == ROWS * (ROWS + 1) // 2
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        user.execute("SELECT fernet_encrypt('x')")
    session.execute("DROP FUNCTION total")


def test_errors_in_workers(session, keys):
    query = "SELECT sum(length(fernet_decrypt(token))) FROM parallel_tokens"
    session.execute("RESET fernet.keys")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
        session.execute(query)
    assert context(error.value.diag) == "parallel worker"
    set_keys(session, keys[0])
    with pytest.raises(psycopg.errors.ExternalRoutineInvocationException) as error:
        session.execute(query)
    assert context(error.value.diag) == "parallel worker"
    assert error.value.diag.message_hint.startswith("Append the key")
