"""What errors must not say."""

import psycopg
import pytest

import pyca
from postgres import connect, server_log, set_keys, value

# A call with $1 (a token or a list of keys) that fails, by its SQLSTATE.
FAILURES = {
    "55000": "fernet_decrypt($1)",
    # The list is refused when it is set, or with the next call.
    "22023": "fernet_encrypt(set_config('fernet.keys', $1, false))",
    "22P02": "fernet_rotate($1)",
    "39000": "fernet_decrypt_bytea($1)",
    "22000": "fernet_decrypt($1, '1 s')",
    "22021": "fernet_decrypt($1)",
}
PLAINTEXT = b"attack at dawn\xff"


@pytest.fixture
def secrets(rng):
    """Keys, and the values that fail under them, by SQLSTATE."""
    keys = [pyca.key_of(rng) for _ in range(2)]
    lost = pyca.key_of(rng)
    token = pyca.encrypt(keys[0], PLAINTEXT, 0)
    bad_padding = pyca.sign(keys[1], pyca.decode(token)[:-32])
    return keys, {
        "55000": [token.decode()],
        "22023": [keys[0][1:], ",".join([*keys, lost[1:]]), f"{keys[0]},,{lost}", f"{keys[0]},{PLAINTEXT.decode('latin-1')}"],
        "22P02": [PLAINTEXT.decode("latin-1"), token.decode()[:-4]],
        "39000": [pyca.encrypt(lost, PLAINTEXT, 0).decode(), bad_padding.decode()],
        "22000": [token.decode(), pyca.encrypt(keys[1], PLAINTEXT, 2**63).decode()],
        "22021": [token.decode()],
    }


def test_no_secret_is_said(database, secrets):
    """Neither in anything that reaches the client at the lowest level, nor in the log."""
    keys, values = secrets
    said = []

    def collect(diag):
        said.extend(str(getattr(diag, field)) for field in dir(psycopg.errors.Diagnostic) if field[0] != "_" and not callable(getattr(diag, field)))

    with connect(database) as session, server_log() as logged:
        session.add_notice_handler(collect)
        for setting in ("log_min_messages = debug5", "client_min_messages = debug5", "log_error_verbosity = verbose",
                        "log_min_error_statement = panic"):
            session.execute("SET " + setting)

        # Set before the library is loaded: the list is checked, and refused, when a key is needed.
        session.execute("SELECT set_config('fernet.keys', %s, false)", [values["22023"][1]])
        assert value(session, "SELECT fernet_is_token('x')") is False
        with pytest.raises(psycopg.Error) as error:
            session.execute("SELECT fernet_encrypt('x')")
        collect(error.value.diag)
        session.execute("RESET fernet.keys")
        assert any("key 3 of fernet.keys is not a valid Fernet key" in text for text in said)

        for code, failing in values.items():
            if code != "55000":
                set_keys(session, *keys)
            for parameter in failing:
                for call in (FAILURES[code], "pg_temp.wrapped($1)"):
                    session.execute("CREATE OR REPLACE FUNCTION pg_temp.wrapped(text) RETURNS text LANGUAGE plpgsql"
                                    f" AS $f$ BEGIN RETURN {FAILURES[code]}; END $f$")
                    with pytest.raises(psycopg.Error) as error:
                        value(session, "SELECT " + call.replace("$1", "%s::text"), parameter)
                    assert error.value.sqlstate == code
                    collect(error.value.diag)
            session.execute("RESET fernet.keys")
        set_keys(session, *keys)
        assert value(session, "SELECT fernet_decrypt_bytea(%s::text)", values["22021"][0]) == PLAINTEXT

    logged = "".join(logged)
    assert logged.count("22P02") >= 4  # it is the right log, and it is verbose
    for text in [*said, logged]:
        for key in {key.strip(",") for listed in [*values["22023"], *keys] for key in listed.split(",")} - {""}:
            # No part of it either.
            pieces = [key[at:at + 10] for at in range(0, len(key) - 9)] or [key]
            assert not [piece for piece in pieces if piece in text]
            data = pyca.decode(key.encode())
            assert data is None or data[:8].hex() not in text.lower()
        assert "attack" not in text
        assert PLAINTEXT[:8].hex() not in text.lower()
