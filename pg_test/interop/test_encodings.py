"""Text is UTF-8 in a token, whatever the database's encoding."""

import psycopg
import pytest
from cryptography.fernet import Fernet

from edition import SQL, context, install
import pyca
from postgres import connect, create_database, drop_database, server_log, set_keys, value

FITS = {
    "UTF8": ["", "plain", "naïve café", "žluťoučký kůň", "日本語", "🐘", "x" * 10_000 + "é" * 10_000],
    "LATIN1": ["", "plain", "naïve café", "\u00a0\u00ff\u0080", "é" * 20_000],
    "EUC_JP": ["", "plain", "日本語テキスト", "語" * 20_000],
    "SQL_ASCII": ["", "plain", "naïve café", "žluťoučký kůň", "🐘", "é" * 20_000],
}
DOES_NOT_FIT = {
    "LATIN1": ["žluťoučký", "5 €", "日本語", "🐘", "plain, then Ž"],
    "EUC_JP": ["naïve 🐘", "\u0080"],
}


@pytest.fixture(scope="module", params=FITS)
def encoding(request):
    encoding = request.param
    create_database(f"pg_fernet_{encoding}", encoding)
    with connect(f"pg_fernet_{encoding}") as session:
        install(session)
    yield encoding
    drop_database(f"pg_fernet_{encoding}")


@pytest.fixture
def session(encoding):
    with connect(f"pg_fernet_{encoding}") as session:
        # The driver converts from and to UTF-8. A server with SQL_ASCII does not, and psycopg then gives
        # bytes.
        if encoding != "SQL_ASCII":
            session.execute("SET client_encoding = 'UTF8'")
        yield session


@pytest.fixture
def key(session, rng):
    key = pyca.key_of(rng)
    set_keys(session, key)
    return key


def decrypted(session, token):
    text = value(session, "SELECT fernet_decrypt(%s::bytea)", token)
    return text.decode() if isinstance(text, bytes) else text


def test_python_to_sql(session, encoding, key):
    for text in FITS[encoding]:
        assert decrypted(session, Fernet(key).encrypt(text.encode())) == text


def test_sql_to_python(session, encoding, key):
    for text in FITS[encoding]:
        token = value(session, "SELECT fernet_encrypt(%s::text)::bytea", text)
        assert Fernet(key).decrypt(token) == text.encode()


def test_the_database_holds_its_own_encoding(session, encoding, key):
    """Not the UTF-8 bytes, which nobody else could read."""
    python_name = {"UTF8": "utf-8", "LATIN1": "latin-1", "EUC_JP": "euc_jp", "SQL_ASCII": "utf-8"}[encoding]
    for text in FITS[encoding]:
        token = Fernet(key).encrypt(text.encode())
        stored = value(session, "SELECT convert_to(fernet_decrypt(%s::bytea), getdatabaseencoding())", token)
        assert stored == text.encode(python_name)


def test_bytes_are_left_alone(session, key):
    plaintext = bytes(range(256))
    token = Fernet(key).encrypt(plaintext)
    assert value(session, "SELECT fernet_decrypt_bytea(%s::bytea)", token) == plaintext
    token = value(session, "SELECT fernet_encrypt(%s::bytea)::bytea", plaintext)
    assert Fernet(key).decrypt(token) == plaintext


def test_what_does_not_fit_is_refused(session, encoding, key):
    plaintexts = [text.encode() for text in DOES_NOT_FIT.get(encoding, [])]
    # A zero byte, and bytes that are not UTF-8: only a start, only an end, an overlong form, a surrogate.
    plaintexts += [b"secret\0", b"\0", b"secret caf\xe9", b"secret \xc5", b"\xbe secret", b"secret \xc0\xaf", b"secret \xed\xa0\x80"]
    session.execute("SET log_min_error_statement = panic")
    with server_log() as logged:
        for plaintext in plaintexts:
            token = Fernet(key).encrypt(plaintext)
            for call in ("fernet_decrypt(%s::bytea)", "fernet_decrypt(convert_from(%s, 'SQL_ASCII'), '1 hour')"):
                with pytest.raises(psycopg.errors.CharacterNotInRepertoire) as refusal:
                    session.execute("SELECT " + call, [token])
                diag = refusal.value.diag
                # The server's own message would show the character.
                assert diag.message_primary == "plaintext is not valid text in the database encoding"
                assert diag.message_hint == "Use fernet_decrypt_bytea() to get the bytes as they are."
                assert (diag.message_detail, context(diag)) == (None, None)
            assert value(session, "SELECT fernet_decrypt_bytea(%s::bytea)", token) == plaintext
    refusals = [line for line in logged if "ERROR:" in line]
    assert len(refusals) == 2 * len(plaintexts)
    assert all(line.endswith("plaintext is not valid text in the database encoding\n") for line in refusals)
    assert not [line for line in logged if "secret" in line or "0x" in line]


@pytest.mark.parametrize("encoding", ["SQL_ASCII"], indirect=True)
def test_text_that_is_not_utf8_is_refused(session, key):
    """A database in SQL_ASCII may hold any bytes as text; only UTF-8 has a meaning to Python."""
    with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
        session.execute("SELECT fernet_encrypt(convert_from('\\x636166e9', 'SQL_ASCII'))")


def test_columns_there_and_back(session, encoding, key):
    session.execute("CREATE TABLE texts (id integer, value text)")
    try:
        for id, text in enumerate(FITS[encoding]):
            session.execute("INSERT INTO texts VALUES (%s, %s)", [id, text])
        stored = "SELECT id, value::bytea FROM (SELECT id, convert_to(value, getdatabaseencoding()) AS value FROM texts) AS t ORDER BY id"
        before = session.execute(stored).fetchall()
        session.execute("CALL fernet_encrypt_column('texts', 'value')")
        tokens = session.execute("SELECT value::bytea FROM texts ORDER BY id").fetchall()
        assert [Fernet(key).decrypt(token).decode() for (token,) in tokens] == FITS[encoding]
        session.execute("CALL fernet_decrypt_column('texts', 'value')")
        assert session.execute(stored).fetchall() == before

        # If a value does not fit, its row is named, and nothing of it is shown.
        for plaintext in [text.encode() for text in DOES_NOT_FIT.get(encoding, [])] + [b"secret\0", b"secret \xed\xa0\x80"]:
            session.execute("TRUNCATE texts")
            session.execute("INSERT INTO texts VALUES (1, convert_from(%s, 'SQL_ASCII'))", [Fernet(key).encrypt(plaintext)])
            with pytest.raises(psycopg.errors.CharacterNotInRepertoire) as refusal:
                session.execute("CALL fernet_decrypt_column('texts', 'value')")
            diag = refusal.value.diag
            assert diag.message_primary == "plaintext is not valid text in the database encoding: (0,1) of public.texts"
            assert (diag.message_detail, context(diag)) == (None, None)
    finally:
        session.execute("DROP TABLE texts")


@pytest.mark.parametrize("encoding", ["SQL_ASCII"], indirect=True)
def test_a_column_of_text_that_is_not_utf8(session, key):
    session.execute("CREATE TABLE texts AS SELECT convert_from('\\x636166e9', 'SQL_ASCII') AS value")
    try:
        with pytest.raises(psycopg.errors.CharacterNotInRepertoire, match=r"text has no equivalent in UTF-8: \(0,1\) of public.texts"):
            session.execute("CALL fernet_encrypt_column('texts', 'value')")
    finally:
        session.execute("DROP TABLE texts")


def test_paths_in_messages(session, encoding):
    name = {"UTF8": "žluťoučký 🐘", "LATIN1": "schlüssel", "EUC_JP": "日本語", "SQL_ASCII": "A key"}[encoding]
    stored = name.encode({"LATIN1": "latin-1", "EUC_JP": "euc_jp"}.get(encoding, "utf-8"))
    shown = name if encoding == "UTF8" else "".join(chr(byte) if byte < 128 else "?" for byte in stored)
    session.execute("SELECT set_config('fernet.keys_file', %s, false)", [f"/nonexistent/{name}"])
    with pytest.raises(psycopg.errors.ConfigFileError) as refused:
        session.execute("SELECT fernet_encrypt('x')")
    assert refused.value.diag.message_primary == (
        f'could not read Fernet keys from file "/nonexistent/{shown}": No such file or directory')


def test_names_in_messages(session, encoding, key):
    """The server's messages are in the encoding of the database, pgrx's are not."""
    # psycopg sends no other text to a server with SQL_ASCII.
    name = {"UTF8": "žluťoučký 🐘", "LATIN1": "schlüssel", "EUC_JP": "日本語", "SQL_ASCII": "A key"}[encoding]
    stored = name.encode({"LATIN1": "latin-1", "EUC_JP": "euc_jp"}.get(encoding, "utf-8"))
    shown = name if SQL or encoding == "UTF8" else "".join(chr(byte) if byte < 128 else "?" for byte in stored)
    told = []
    session.add_notice_handler(lambda notice: told.append(notice.message_detail))
    with session.transaction(force_rollback=True):
        session.execute(f'CREATE TABLE "{name}" (value text)')
        with pytest.raises(psycopg.Error) as refused, session.transaction():
            session.execute(f"SELECT * FROM fernet_census('\"{name}\"', 'missing')")
        assert refused.value.diag.message_primary == f'column "missing" of public."{shown}" does not exist'
    session.execute(f"CREATE TABLE \"{name}\" AS SELECT 'plaintext' AS value")
    try:
        session.execute(f"CALL fernet_rotate_column('\"{name}\"', 'value')")
        assert told[-1] == f'(0,1) of public."{shown}": value is not a Fernet token.'
    finally:
        session.execute(f'DROP TABLE "{name}"')


def test_an_encoding_that_the_server_cannot_convert(rng):
    try:
        create_database("pg_fernet_mule", "MULE_INTERNAL")
    except psycopg.Error as error:
        pytest.skip(str(error))
    try:
        with connect("pg_fernet_mule", client_encoding="SQL_ASCII") as session:
            install(session)
            set_keys(session, pyca.key_of(rng))
            token = value(session, "SELECT fernet_encrypt(convert_to('plain', 'MULE_INTERNAL'))")
            assert value(session, "SELECT fernet_decrypt_bytea(%s)", token) == b"plain"
            with pytest.raises(psycopg.errors.UndefinedFunction if SQL else psycopg.errors.CharacterNotInRepertoire):
                session.execute("SELECT fernet_encrypt('plain'::text)")
            if not SQL:
                with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
                    session.execute("SELECT fernet_decrypt(%s)", [token])
    finally:
        drop_database("pg_fernet_mule")
