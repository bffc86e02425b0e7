"""Databases in other encodings than UTF-8: the tests of the native edition."""

import psycopg
import pytest
from cryptography.fernet import Fernet

# ruff: noqa: F401
from conftest import EDITION, owned_database, run_psql
from postgres import connect, server_log, value
from test_encodings import (DOES_NOT_FIT, FITS, key, test_bytes_are_left_alone, test_python_to_sql, test_sql_to_python, test_text_that_is_not_utf8_is_refused,
                            test_the_database_holds_its_own_encoding)


@pytest.fixture(scope="module", params=FITS)
def encoding(request, owner):
    with owned_database(f"pg_fernet_sql_{request.param}", owner, request.param) as name:
        with connect(name, user=owner) as session:
            session.execute("CREATE EXTENSION pgcrypto")
        run_psql(name, owner, EDITION / "pg_fernet_sql.sql", "public")
        yield request.param


@pytest.fixture
def session(encoding, owner):
    with connect(f"pg_fernet_sql_{encoding}", user=owner) as session:
        # The driver converts from and to UTF-8. A server of SQL_ASCII does not, and psycopg gives bytes.
        if encoding != "SQL_ASCII":
            session.execute("SET client_encoding = 'UTF8'")
        yield session


def test_what_does_not_fit_is_refused_and_not_shown(session, encoding, key):
    plaintexts = [text.encode() for text in DOES_NOT_FIT.get(encoding, [])]
    plaintexts += [b"secret\0", b"\0", b"secret caf\xe9", b"secret \xc5", b"\xbe secret", b"secret \xc0\xaf", b"secret \xed\xa0\x80"]
    with server_log() as logged:
        for plaintext in plaintexts:
            token = Fernet(key).encrypt(plaintext)
            with pytest.raises(psycopg.errors.CharacterNotInRepertoire, match="plaintext is not valid text in the database encoding") as refusal:
                session.execute("SELECT fernet_decrypt(%s::bytea)", [token])
            assert refusal.value.diag.message_detail is None
            assert value(session, "SELECT fernet_decrypt_bytea(%s::bytea)", token) == plaintext
    assert len([line for line in logged if "ERROR:" in line]) == len(plaintexts)
    assert not [line for line in logged if "secret" in line or " 0x" in line]
