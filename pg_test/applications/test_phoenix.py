"""Arize Phoenix: its own server stores and returns secrets, with and without a secret key."""

import json
import secrets

from application import Application
from postgres import column, connect, set_keys
from pyca import fingerprint

phoenix = Application("phoenix", "Arize Phoenix")


def random_secret():
    return {"PHOENIX_SECRET": f"{secrets.token_hex(20)}a1"}


def handed_out(*stored, **secret):
    """All secrets and providers, after those named were stored."""
    return json.loads(phoenix.run("app.py", *stored, **secret))


def census(session, table, name):
    """Tokens by status and key, if there are any."""
    return session.execute("SELECT status, fingerprint, tokens FROM fernet_census(%s, %s) WHERE tokens > 0",
                           [table, name]).fetchall()


def test_rotation(database):
    old, new, none = random_secret(), random_secret(), {"PHOENIX_SECRET": ""}
    # Phoenix ran without a secret first.
    written = handed_out("secrets")
    written += handed_out("providers", **old)[len(written):]
    assert len(written) == 6 and "parseError" not in str(written)
    assert all(set(found) == {"parseError"} for found in handed_out(**new))

    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        keys = new_key, old_key, everybodys_key = [key for secret in (new, old, none) for key in phoenix.derive(**secret)]
        set_keys(session, *keys)
        assert census(session, "secrets", "value") == [("old key", fingerprint(everybodys_key), 4)]
        assert census(session, "generative_model_custom_providers", "config") == [("old key", fingerprint(old_key), 2)]
        session.execute(phoenix.block("sql"))
        set_keys(session, new_key)
        assert census(session, "secrets", "value") == [("current", fingerprint(new_key), 4)]
        assert census(session, "generative_model_custom_providers", "config") == [("current", fingerprint(new_key), 2)]
        # There is no other column of tokens.
        assert len(column(session, "SELECT relation FROM fernet_find_columns()")) == 2

    assert handed_out(**new) == written
