"""Backends and workers that are forked from a server with the library in it share no random bytes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from edition import SQL, install
import pyca
from postgres import column, connect, force_parallel, plan, server, set_keys

BACKENDS, TOKENS = 4, 15_000


@pytest.fixture(scope="module")
def preloaded():
    with server(*[] if SQL else ["shared_preload_libraries = 'pg_fernet'"]) as host:
        with connect("postgres", host=host) as session:
            install(session)
        yield host


def test_no_iv_is_used_twice(preloaded, rng):
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    token = pyca.encrypt(old, b"hello", 0)

    def encrypt_and_rotate(_):
        # Each starts with a new process, and so with the state that the fork left.
        with connect("postgres", host=preloaded) as session:
            set_keys(session, new, old)
            return column(session, "SELECT CASE WHEN n %% 2 = 0 THEN fernet_encrypt('') ELSE fernet_rotate(convert_from(%s, 'UTF8')) END"
                                   " FROM generate_series(1, %s) AS n", token, TOKENS)

    def in_workers():
        with connect("postgres", host=preloaded) as session:
            set_keys(session, new, old)
            session.execute(f"CREATE TABLE numbers AS SELECT n FROM generate_series(1, {2 * TOKENS}) AS n")
            session.execute("SELECT fernet_encrypt('')")
            force_parallel(session)
            query = "SELECT fernet_encrypt(n::text) FROM numbers"
            _, workers = plan(session, query)
            assert workers > 1
            return column(session, query)

    with ThreadPoolExecutor() as threads:
        results = list(threads.map(encrypt_and_rotate, range(BACKENDS)))
    results.append(in_workers())
    ivs = [pyca.initialisation_vector(token) for tokens in results for token in tokens]
    assert len(ivs) == (BACKENDS + 2) * TOKENS
    assert len(set(ivs)) == len(ivs)
    # Nor parts of one: no bytes are used twice at another offset.
    assert len({iv[:8] for iv in ivs} | {iv[8:] for iv in ivs}) == 2 * len(ivs)


def test_no_key_is_generated_twice(preloaded):
    def generate(_):
        with connect("postgres", host=preloaded) as session:
            return column(session, "SELECT fernet_generate_key() FROM generate_series(1, 1000)")

    with ThreadPoolExecutor() as threads:
        keys = [key for keys in threads.map(generate, range(BACKENDS)) for key in keys]
    assert len(set(keys)) == BACKENDS * 1000
    assert all(len(pyca.decode(key)) == 32 for key in keys)
