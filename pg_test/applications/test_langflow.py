"""Langflow: eleven columns, some of them JSON, and secrets that are shorter than a key or have been one."""

import json
import secrets

import pytest
from cryptography.fernet import Fernet

from application import Application, tokens
from postgres import connect, set_keys
from pyca import fingerprint

LANGFLOW = Application("langflow", "Langflow")
# From the documentation of Langflow, as an example of what its command generates.
PUBLISHED = "dBuuuB_FHLvU8T9eUNlxQF9ppqRxwWpXXQ42kM2_fbg"


def short():
    return secrets.token_urlsafe(12)


def as_its_documentation_says():
    return secrets.token_urlsafe(32)


def fernet_key():
    return Fernet.generate_key().decode()


@pytest.fixture
def run(database, tmp_path):
    """Runs Langflow under a secret; what it reads of each place."""
    def run(action, secret):
        printed = LANGFLOW.run("app.py", action, LANGFLOW_SECRET_KEY=secret, LANGFLOW_CONFIG_DIR=str(tmp_path))
        return json.loads(printed.splitlines()[-1])

    return run


def derive(secret):
    return LANGFLOW.derive(LANGFLOW_SECRET_KEY=secret)


@pytest.mark.parametrize("make_old, make_new", [(short, as_its_documentation_says), (fernet_key, short)])
def test_rotation(database, run, make_old, make_new):
    old, new = make_old(), make_new()
    written = run("write", old)
    assert written["its own check"] == "ok"
    under_another = run("read", new)
    assert all(under_another[place] != read for place, read in written.items())

    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        set_keys(session, *derive(new), *derive(old))
        # Every key of the old secret is in use.
        assert set(tokens(session)) == {("old key", fingerprint(key)) for key in derive(old)}
        session.execute(LANGFLOW.block("sql"))
        set_keys(session, derive(new)[0])
        assert set(tokens(session)) == {("current", fingerprint(derive(new)[0]))}
    assert run("read", new) == written


def test_the_published_secret():
    (key,) = derive(PUBLISHED)
    assert f"`{PUBLISHED}`" in LANGFLOW.text() and f"`{fingerprint(key)}`" in LANGFLOW.text()
