"""docs/applications.md, for applications that are not on PyPI: we write what they write according to their source,
rotate as the page says, and read as they do, with only the new keys."""

import base64
import json
import os
import secrets
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from pages import ROOT, code_block
from postgres import column, connect, create_database, drop_database, set_keys, value

PAGE = "docs/applications.md"
TEXT = (ROOT / PAGE).read_text()
DATABASE = "pg_fernet_formats"
# Of different lengths, not all of them ASCII.
SECRETS = ["x", "hunter2", "pässwörd ✓", "s" * 16, "long " * 500]


@pytest.fixture
def session():
    create_database(DATABASE)
    with connect(DATABASE) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        yield session
    drop_database(DATABASE)


def derived(heading, **settings):
    """The keys that derive.py of that section prints."""
    environment = {"PATH": os.environ["PATH"]} | settings
    done = subprocess.run([sys.executable, "-c", code_block(PAGE, heading, "python")], env=environment, check=True,
                          capture_output=True, text=True)
    return done.stdout.split()


def statements(heading):
    return code_block(PAGE, heading, "sql")


def encrypted(key, plaintext):
    return Fernet(key).encrypt(plaintext.encode()).decode()


def decrypted(keys, token):
    return MultiFernet([Fernet(key) for key in keys]).decrypt(token).decode()


def put(session, table, **row):
    names = ", ".join(row)
    session.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values()))


def census(session, relation, column_name):
    """How many tokens are under no key or an older one."""
    return value(session, "SELECT sum(tokens) FROM fernet_census(%s, %s) WHERE status IN ('old key', 'unknown key')",
                 relation, column_name)


def test_frappe(session):
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    session.execute("""
        CREATE TABLE "__Auth" (doctype varchar(140), name varchar(255), fieldname varchar(140), password text NOT NULL,
            encrypted int NOT NULL DEFAULT 0, PRIMARY KEY (doctype, name, fieldname));
        CREATE TABLE "tabDefaultValue" (name varchar(255) PRIMARY KEY, parent varchar(255), defkey varchar(255), defvalue text)""")
    hashes = ["$pbkdf2-sha256$29000$gAAAAABh$gAAAAA", "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"]
    for number, hashed in enumerate(hashes):
        put(session, '"__Auth"', doctype="User", name=f"user {number}", fieldname="password", password=hashed)
    for number, secret in enumerate(SECRETS):
        put(session, '"__Auth"', doctype="Email Account", name=f"account {number}", fieldname="password",
            password=encrypted(old, secret), encrypted=1)
        put(session, '"tabDefaultValue"', name=f"2fa {number}", parent="__2fa", defkey=f"user{number}_otpsecret",
            defvalue=encrypted(old, secret))
    put(session, '"tabDefaultValue"', name="other", parent="__default", defkey="currency", defvalue="EUR")

    def read(key):
        """As get_decrypted_password and get_otpsecret_for_ do."""
        return [[decrypted([key], token) for token in column(session, query)] for query in (
            'SELECT password FROM "__Auth" WHERE encrypted = 1 ORDER BY name',
            """SELECT defvalue FROM "tabDefaultValue" WHERE defkey LIKE '%otpsecret' ORDER BY name""")]

    assert read(old) == [SECRETS, SECRETS]
    with pytest.raises(InvalidToken):
        read(new)
    set_keys(session, new, old)
    assert census(session, '"__Auth"', "password") == census(session, '"tabDefaultValue"', "defvalue") == len(SECRETS)
    session.execute(statements("Frappe"))
    assert census(session, '"__Auth"', "password") == census(session, '"tabDefaultValue"', "defvalue") == 0
    assert read(new) == [SECRETS, SECRETS]
    assert column(session, 'SELECT password FROM "__Auth" WHERE encrypted = 0 ORDER BY name') == hashes
    assert value(session, """SELECT tokens FROM fernet_census('"__Auth"', 'password') WHERE status = 'not a token'""") == len(hashes)
    assert value(session, """SELECT defvalue FROM "tabDefaultValue" WHERE parent = '__default'""") == "EUR"


PUBLISHED = "jJ/9sz0g0OHxsfxOoSfdFdmk3ysNmPRnH3TUAbz3IHA="


def test_openmetadata(session):
    old, new = PUBLISHED, Fernet.generate_key().decode()
    assert f"`{old}`" in TEXT
    tables = ["dbservice_entity", "user_entity", "openmetadata_settings", "entity_extension"]
    for table in tables:
        session.execute(f"""CREATE TABLE {table} (json jsonb NOT NULL, id text GENERATED ALWAYS AS (json ->> 'id') STORED)""")
    # One row among many without any token.
    session.execute("""INSERT INTO entity_extension SELECT jsonb_build_object('id', n) FROM generate_series(1, 5000) AS n""")

    def document(secret):
        token = "fernet:" + encrypted(old, secret)
        return {"id": secret[:5], "connection": {"config": {"username": "fernet:", "authType": {"password": token},
                                                            "hosts": [token, "db.example.com"], "port": 5432}}}

    for table in tables:
        for secret in SECRETS:
            put(session, table, json=json.dumps(document(secret)))

    def read(keys, table):
        """As Fernet.decryptIfApplies does, of each secret."""
        found = []
        for config in column(session, f"SELECT json -> 'connection' -> 'config' FROM {table} WHERE json ? 'connection' ORDER BY ctid"):
            assert config["username"] == "fernet:" and config["hosts"][1] == "db.example.com" and config["port"] == 5432
            tokens = [config["authType"]["password"], config["hosts"][0]]
            found.append({decrypted(keys, token.removeprefix("fernet:")) for token in tokens})
        return sorted(secret for (secret,) in found)

    for table in tables:
        assert read([old], table) == sorted(SECRETS)
        with pytest.raises(InvalidToken):
            read([new], table)
    set_keys(session, new, old)
    fingerprint = value(session, "SELECT fingerprint FROM fernet_keys() WHERE key_index = 2")
    assert value(session, "SELECT tokens FROM fernet_census('user_entity', 'json') WHERE fingerprint = %s",
                 fingerprint) == 2 * len(SECRETS)
    left = code_block(PAGE, "All columns at once", "sql", containing="fernet_census")
    assert sorted(session.execute(left).fetchall()) == sorted(
        [(table, "json", "old key", fingerprint, 2 * len(SECRETS)) for table in tables])
    session.execute(statements("All columns at once"))
    assert session.execute(left).fetchall() == []
    for table in tables:
        assert census(session, table, "json") == 0
        assert read([new], table) == sorted(SECRETS)
    assert value(session, "SELECT count(*) FROM entity_extension") == 5000 + len(SECRETS)


def posthog_keys(key, secret="django's secret", fallbacks=""):
    return derived("PostHog", ENCRYPTION_SALT_KEYS=key, SECRET_KEY=secret, SECRET_KEY_FALLBACKS=fallbacks, SALT_KEY="salt, second")


def test_posthog(session):
    old, new = (secrets.token_hex(16) for _ in range(2))
    old_keys = posthog_keys(old, "django's secret", "one before")
    # Its own, and those of two secrets with two salts.
    assert len(old_keys) == 5
    assert old_keys[0] == base64.urlsafe_b64encode(old.encode()).decode()
    legacy = old_keys[-1]
    session.execute("""
        CREATE TABLE posthog_integration (id serial, config jsonb, sensitive_config jsonb);
        CREATE TABLE posthog_hogfunction (id serial, encrypted_inputs text);
        CREATE TABLE posthog_datawarehousecredential (id serial, access_key varchar(500), access_secret text)""")
    documents = [{"token": secret, "nested": {"list": [secret, "1"], "empty": None}} for secret in SECRETS] + [{}]

    def leaves(document, change):
        """A token for each leaf, as EncryptedJSONField has it."""
        if isinstance(document, dict):
            return {key: leaves(item, change) for key, item in document.items()}
        if isinstance(document, list):
            return [leaves(item, change) for item in document]
        return document if document is None else change(document)

    for number, document in enumerate(documents):
        key = [old_keys[0], legacy][number % 2]
        put(session, "posthog_integration", config="{}", sensitive_config=json.dumps(leaves(document, lambda leaf: encrypted(key, leaf))))
        put(session, "posthog_hogfunction", encrypted_inputs=encrypted(key, json.dumps(document)))
    for secret in SECRETS[:4]:
        put(session, "posthog_datawarehousecredential", access_key=encrypted(legacy, secret), access_secret=encrypted(old_keys[0], secret))

    def read(keys):
        return [
            [leaves(document, lambda leaf: decrypted(keys, leaf))
             for document in column(session, "SELECT sensitive_config FROM posthog_integration ORDER BY id")],
            [json.loads(decrypted(keys, token)) for token in column(session, "SELECT encrypted_inputs FROM posthog_hogfunction ORDER BY id")],
            [decrypted(keys, token) for token in column(session, "SELECT access_key FROM posthog_datawarehousecredential ORDER BY id")],
            [decrypted(keys, token) for token in column(session, "SELECT access_secret FROM posthog_datawarehousecredential ORDER BY id")]]

    everything = [documents, documents, SECRETS[:4], SECRETS[:4]]
    assert read(old_keys) == everything
    new_alone = posthog_keys(new, "another secret")[:1]
    with pytest.raises(InvalidToken):
        read(new_alone)
    set_keys(session, *posthog_keys(f"{new},{old}", "django's secret", "one before"))
    session.execute(statements("All columns at once"))
    for relation, name in [("posthog_integration", "sensitive_config"), ("posthog_hogfunction", "encrypted_inputs"),
                           ("posthog_datawarehousecredential", "access_key"), ("posthog_datawarehousecredential", "access_secret")]:
        assert census(session, relation, name) == 0
    assert read(new_alone) == everything


def test_the_published_keys_of_posthog():
    """Without any setting, the page's command prints what PostHog then uses."""
    keys = derived("PostHog", SECRET_KEY="secret")
    assert keys[0] == base64.urlsafe_b64encode(b"00beef0000beef0000beef0000beef00").decode()
    assert len(keys) == 2


@pytest.fixture
def sentry_keys(tmp_path):
    """A folder of keys by their names."""
    for name in ["old", "new"]:
        (tmp_path / name).write_bytes(Fernet.generate_key() + b"\n")
    (tmp_path / ".hidden").write_text("not a key")
    return tmp_path


def test_sentry(session, sentry_keys):
    def written(name, plaintext):
        token = encrypted((sentry_keys / name).read_text(), plaintext)
        return f"enc:fernet:{name}:{base64.b64encode(token.encode()).decode()}"

    def read(stored):
        """As EncryptedField does: returns the value itself if that fails."""
        try:
            marker, method, name, data = stored.split(":", 3)
            return decrypted([(sentry_keys / name).read_text()], base64.b64decode(data, validate=True))
        except (OSError, InvalidToken):
            return stored

    def wrapped(stored):
        return json.dumps({"sentry_encrypted_field_value": stored})

    session.execute("""
        CREATE TABLE sentry_integration (id serial, metadata jsonb);
        CREATE TABLE sentry_text (id serial, value text)""")
    for secret in SECRETS:
        put(session, "sentry_integration", metadata=wrapped(written("old", json.dumps({"access_token": secret}))))
        put(session, "sentry_text", value=written("old", secret))
    put(session, "sentry_integration", metadata=wrapped(written("new", json.dumps({"access_token": "already"}))))
    others = ['{"domain_name": "a:b:c:d"}', wrapped("enc:plaintext:e30=")]
    for other in others:
        put(session, "sentry_integration", metadata=other)

    def integrations():
        stored = column(session, "SELECT metadata ->> 'sentry_encrypted_field_value' FROM sentry_integration"
                                 " WHERE metadata ->> 'sentry_encrypted_field_value' LIKE 'enc:fernet:%%' ORDER BY id")
        return [json.loads(read(value))["access_token"] for value in stored]

    everything = [*SECRETS, "already"]
    assert integrations() == everything
    assert value(session, "SELECT count(*) FROM fernet_find_columns()") == 0
    keys = derived("Sentry", DATABASE_ENCRYPTION_FERNET_KEYS_LOCATION=str(sentry_keys), DATABASE_ENCRYPTION_FERNET_PRIMARY_KEY_ID="new")
    assert keys == [(sentry_keys / name).read_text().strip() for name in ["new", "old"]]
    in_text = "UPDATE sentry_text SET value = pg_temp.rotated(value) WHERE value LIKE 'enc:fernet:old:%'"
    assert f"`{in_text.removeprefix('UPDATE sentry_text ')}`" in TEXT

    # With the keys in the wrong order, nothing changes: a value never gets the name of another key.
    set_keys(session, *reversed(keys))
    session.execute(statements("Sentry"))
    assert integrations() == everything
    session.execute("DROP FUNCTION pg_temp.rotated")

    set_keys(session, *keys)
    session.execute(statements("Sentry"))
    session.execute(in_text)
    (sentry_keys / "old").unlink()
    assert integrations() == everything
    assert [read(stored) for stored in column(session, "SELECT value FROM sentry_text ORDER BY id")] == SECRETS
    assert column(session, "SELECT metadata FROM sentry_integration ORDER BY id DESC LIMIT 2") == [json.loads(other) for other in others[::-1]]
