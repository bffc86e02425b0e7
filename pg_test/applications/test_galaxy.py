"""Galaxy's vault in the database, with its own classes."""

import json

import pytest

from application import PAGE, Application
from key_files import key
from pages import ROOT
from postgres import connect, set_keys
from pyca import fingerprint

GALAXY = Application("galaxy", "Galaxy")
# Those that Galaxy's documentation shows.
PUBLISHED = ["5RrT94ji178vQwha7TAmEix7DojtsLlxVz8Ef17KWgg=", "iNdXd7tRjLnSqRHxuhqQ98GTLU8HUbd5_Xx38iF8nZ0=",
             "IK83XIhE4_7W7xCFEtD9op0BAs11pJqYN236Spppp7g="]


@pytest.fixture
def configuration(tmp_path):
    """Writes Galaxy's vault_conf.yml with these keys."""
    def write(*keys):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.yml"
        path.write_text("type: database\npath_prefix: /galaxy\nencryption_keys:  # 32 bytes, as in\n" +
                        "".join(f"  - {key}\n" for key in keys))
        return str(path)
    return write


def census(session):
    return session.execute("SELECT status, fingerprint, tokens FROM fernet_census('vault', 'value')"
                           " WHERE tokens > 0 AND status <> 'null'").fetchall()


def test_rotation(database, configuration):
    old, new = key(), key()
    written = GALAXY.run("app.py", "write", configuration(old))
    tokens = len(json.loads(written))
    with pytest.raises(AssertionError, match="InvalidToken"):
        GALAXY.run("app.py", "read", configuration(new))

    keys = GALAXY.derive(VAULT_CONFIG_FILE=configuration(new, old))
    assert keys == [new, old]
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        set_keys(session, *keys)
        assert census(session) == [("old key", fingerprint(old), tokens)]
        session.execute(GALAXY.block("sql"))
        assert census(session) == [("current", fingerprint(new), tokens)]
    assert GALAXY.run("app.py", "read", configuration(new)) == written


def test_published_keys_are_known_by_their_fingerprints(database, configuration):
    GALAXY.run("app.py", "write", configuration(PUBLISHED[-1]))
    with connect(database) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        set_keys(session, key(), *PUBLISHED)
        ((status, found, _),) = census(session)
    assert (status, found) == ("old key", fingerprint(PUBLISHED[-1]))
    page = (ROOT / PAGE).read_text()
    assert all(fingerprint(key) in page for key in PUBLISHED)
