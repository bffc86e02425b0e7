"""Open WebUI: three keys from one secret, and tokens in text, in JSON strings and in JSON."""

import json
import os
import secrets

import pytest
from cryptography.fernet import Fernet

from application import Application, tokens
from key_files import folder_for, write
from postgres import connect, value
from pyca import fingerprint
from settings import use_file

OPEN_WEBUI = Application("open-webui", "Open WebUI")
# The key files of its section, and what its derive.py wants to hear for them.
FILES = {"open-webui.keys": [], "open-webui-mfa.keys": ["mfa"], "open-webui-apps.keys": ["apps"]}


def any_secret():
    return secrets.token_urlsafe(12)


def fernet_key():
    return Fernet.generate_key().decode()


@pytest.fixture
def run(database, tmp_path):
    """Runs Open WebUI under a secret; what it reads of each place."""
    settings = {
        "ENABLE_VALVE_ENCRYPTION": "true",
        # Its launcher finds its files in their usual place, but what it writes when it is imported goes
        # elsewhere.
        "FROM_INIT_PY": "true",
        "DATA_DIR": str(tmp_path),
        "STATIC_DIR": str(tmp_path / "static"),
        # The default needs chromadb.
        "VECTOR_DB": "pgvector",
    }

    def run(action, secret):
        return json.loads(OPEN_WEBUI.run("app.py", action, WEBUI_SECRET_KEY=secret, **settings).splitlines()[-1])

    return run


def derive(secret, *use):
    return OPEN_WEBUI.run("-c", OPEN_WEBUI.block("python"), *use, WEBUI_SECRET_KEY=secret)


@pytest.mark.parametrize("make_old, make_new", [(any_secret, fernet_key), (fernet_key, any_secret)])
def test_rotation(database, run, make_old, make_new):
    old, new = make_old(), make_new()
    written = run("write", old)
    under_another = run("read", new)
    assert all(under_another[place] != read for place, read in written.items())

    folder = folder_for(os.environ["PGHOST"])
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        for name, use in FILES.items():
            write(folder / name, derive(new, *use), derive(old, *use))
        session.execute(OPEN_WEBUI.block("sql").replace("/etc/postgresql", str(folder)))

        # All new keys in one file: a token under none of them would be unknown.
        new_keys = [derive(new, *use) for use in FILES.values()]
        write(folder / "new.keys", *new_keys)
        use_file(session, folder / "new.keys")
        assert {key for _, key in tokens(session)} == {fingerprint(key) for key in new_keys}
    assert run("read", new) == written


def test_sessions_are_deleted_under_another_secret(database, run):
    """Why the page says not to start it in between."""
    run("write", any_secret())
    assert run("sessions", any_secret()) == [0, 0, 0]
    with connect(database) as session:
        assert value(session, "SELECT count(*) FROM oauth_session") == 0


def test_the_published_secret():
    assert f"`{fingerprint(derive('t0p-s3cr3t'))}`" in OPEN_WEBUI.text()
