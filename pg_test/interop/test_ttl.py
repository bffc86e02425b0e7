"""The ttl forms against decrypt_at_time, around both boundaries."""

from collections import Counter
from datetime import timedelta

import psycopg
import pytest

import pyca
from postgres import set_keys, value

LAST_SECOND = 9_224_318_015_999  # of timestamptz


def test_ttl(db, rng):
    key = pyca.key_of(rng)
    set_keys(db, key)
    db.execute("SET timezone = 'Europe/Berlin'")
    db.execute("""
        CREATE FUNCTION pg_temp.decrypt(token text, ttl bigint, at bigint, OUT result text, OUT code text) LANGUAGE plpgsql AS $$
        BEGIN
            -- The days apart: as seconds, or in floating point, the last ones would not be exact.
            result := fernet_decrypt(token, ttl * interval '1 second',
                (timestamp '1970-01-01' + at / 86400 * interval '1 day' + at % 86400 * interval '1 second') AT TIME ZONE 'UTC');
        EXCEPTION WHEN OTHERS THEN
            code := sqlstate;
        END $$""")

    cases = []
    for _ in range(3000):
        made = rng.choice([1_700_000_000, rng.getrandbits(rng.randint(1, 43)), rng.getrandbits(64), LAST_SECOND - 30])
        made_or_last = min(made, LAST_SECOND)
        ttl = rng.choice([0, 1, 60, -1, -59, -60, -61, 86_400, 10_000_000_000, rng.getrandbits(30)])
        at = rng.choice([made_or_last + ttl, made_or_last - 60, made_or_last]) + rng.randint(-1, 1)
        if -200_000_000_000 < at <= LAST_SECOND:
            cases.append((pyca.encrypt(key, b"hello", made).decode(), ttl, at))

    tokens, ttls, ats = zip(*cases)
    rows = db.execute("SELECT result, code FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) WITH ORDINALITY AS t (token, ttl, at, n),"
                      " LATERAL pg_temp.decrypt(token, ttl, at) ORDER BY n", [list(tokens), list(ttls), list(ats)])
    seen = Counter()
    for (token, ttl, at), row in zip(cases, rows, strict=True):
        accepted = pyca.decrypt_at_time([key], token, ttl, at) is not None
        assert row == (("hello", None) if accepted else (None, "22000")), (pyca.timestamp([key], token), ttl, at)
        seen[accepted] += 1
    assert min(seen[True], seen[False]) > 500


def test_infinite_ttl(db, rng):
    if db.info.server_version < 170_000:
        pytest.skip("intervals are finite before PostgreSQL 17")
    key = pyca.key_of(rng)
    set_keys(db, key)
    now, last = (pyca.encrypt(key, b"hello", made).decode() for made in (1_000_000_000, 2**64 - 1))
    outcomes = {
        (now, "infinity", "2026-01-01"): "hello",
        (now, "infinity", "infinity"): "hello",
        (now, "infinity", "-infinity"): "Fernet token is from the future",
        (now, "-infinity", "2026-01-01"): "Fernet token has expired",
        (last, "infinity", "infinity"): "hello",
        (last, "-infinity", "infinity"): "Fernet token has expired",
    }
    for (token, ttl, at), expected in outcomes.items():
        try:
            outcome = value(db, "SELECT fernet_decrypt(%s, %s::interval, %s::timestamptz)", token, ttl, at)
        except psycopg.errors.DataException as error:
            outcome = error.diag.message_primary
        assert outcome == expected, (ttl, at)


@pytest.mark.parametrize("form", ["fernet_decrypt(%s::text, %s)", "fernet_decrypt(%s::bytea, %s)",
                                  "fernet_decrypt_bytea(%s::text, %s)", "fernet_decrypt_bytea(%s::bytea, %s)"])
def test_the_time_is_the_statements(db, rng, form):
    """A long transaction does not extend a token's life."""
    key = pyca.key_of(rng)
    set_keys(db, key)
    with db.transaction():
        began = value(db, "SELECT now()")
        token = pyca.encrypt(key, b"hello", int(began.timestamp()) - 10).decode()
        ttl = timedelta(seconds=10.5, microseconds=began.microsecond)  # until half a second after
        assert value(db, "SELECT " + form, token, ttl) in ("hello", b"hello")
        db.execute("SELECT pg_sleep(0.6)")
        with pytest.raises(psycopg.errors.DataException, match="expired"), db.transaction():
            db.execute("SELECT " + form, [token, ttl])
        # A token that is made meanwhile, up to a minute ahead.
        token = pyca.encrypt(key, b"hello", int(began.timestamp()) + 60).decode()
        assert value(db, "SELECT " + form, token, ttl) in ("hello", b"hello")
