"""Every combination of a token's timestamp, ttl and `at`, up to the ends of their types."""

from collections import Counter

import pytest

import pyca
from hostile import TIMESTAMPS
from postgres import set_keys, value

# The ends of the ranges of an interval's three parts, and values around zero.
TTLS = ["0", "1 us", "-1 us", "1 day", "-1 day", "1 month -30 days", "178956970 years 7 months", "-178956970 years -8 months",
        "2147483647 days", "-2147483648 days", "2562047788:00:54.775807", "-2562047788:00:54.775807",
        "178956970 years 7 months 2147483647 days 2562047788:00:54.775807",
        "-178956970 years -8 months -2147483648 days -2562047788:00:54.775807",
        "178956970 years 7 months -2147483648 days", "infinity", "-infinity"]
ATS = ["-infinity", "4714-11-24 00:00:00Z BC", "0001-01-01 00:00:00Z BC", "1969-12-31 23:59:59Z", "1970-01-01Z", "1970-01-01 00:01:01Z",
       "2000-01-01Z", "2038-01-19 03:14:08Z", "2106-02-07 06:28:16Z", "294276-12-31 23:59:59.999999Z", "infinity"]


@pytest.mark.parametrize("timezone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_every_combination(healthy, db, rng, timezone):
    key = pyca.key_of(rng)
    set_keys(db, key)
    db.execute("SELECT set_config('timezone', %s, false)", [timezone])
    db.execute("CREATE TEMP TABLE made AS SELECT * FROM unnest(%s::text[], %s::numeric[]) AS t (token, made)",
               [[pyca.encrypt(key, b"hello", timestamp).decode() for timestamp in TIMESTAMPS], TIMESTAMPS])
    # Intervals are finite before PostgreSQL 17.
    ttls = TTLS if db.info.server_version >= 170_000 else TTLS[:-2]
    db.execute("""
        CREATE FUNCTION pg_temp.attempt(call text, token text, ttl interval, at timestamptz, OUT result text, OUT code text)
        LANGUAGE plpgsql AS $$
        BEGIN
            EXECUTE 'SELECT ' || call INTO result USING token, ttl, at;
        EXCEPTION WHEN OTHERS THEN
            code := sqlstate;
        END $$""")
    outcomes = {}
    for call in ("fernet_decrypt($1, $2, $3)", "fernet_decrypt($1::bytea, $2, $3)",
                 "convert_from(fernet_decrypt_bytea($1, $2, $3), 'UTF8')", "convert_from(fernet_decrypt_bytea($1::bytea, $2, $3), 'UTF8')"):
        outcomes[call] = db.execute(
            "SELECT made, ttl, at, result, code FROM made, unnest(%s::text[]) AS ttl, unnest(%s::text[]) AS at,"
            " pg_temp.attempt(%s, token, ttl::interval, at::timestamptz)", [ttls, ATS, call]).fetchall()
    first, *others = outcomes.values()
    assert len(first) == len(TIMESTAMPS) * len(ttls) * len(ATS)
    assert others == [first] * 3

    seen = Counter()
    for made, ttl, at, result, code in first:
        assert (result, code) in {("hello", None), (None, "22000")}, (made, ttl, at)
        seen[code] += 1
        # Nothing is made before the beginning of time, and after its end everything has been.
        if at == "-infinity":
            assert code == "22000", (made, ttl)
        if made >= 9_224_318_016_000 and at == "infinity" and ttl[0] != "-" and "-" not in ttl:
            assert code is None, (made, ttl)
    print(f"{4 * len(first)} calls: {dict(seen)}")
    assert min(seen.values()) > 100


def test_timestamps(healthy, db, rng):
    key = pyca.key_of(rng)
    set_keys(db, key)
    for timestamp in TIMESTAMPS:
        token = pyca.encrypt(key, b"", timestamp).decode()
        if timestamp < 9_224_318_016_000:
            assert value(db, "SELECT extract(epoch FROM fernet_timestamp(%s::text))", token) == timestamp
        else:
            assert value(db, "SELECT fernet_timestamp(%s::text)::text", token) == "infinity"
