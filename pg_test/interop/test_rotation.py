"""What fernet_rotate writes is what MultiFernet reads, with the timestamp that it had."""

import pytest
from cryptography.fernet import Fernet

import pyca
from postgres import column, set_keys

TIMESTAMPS = [0, 1, 1_000_000_000, 2**31 - 1, 2**31, 2**32, 9_224_318_015_999, 9_224_318_016_000, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("type", ["text", "bytea"])
def test_rotation(db, rng, type):
    keys = [pyca.key_of(rng) for _ in range(3)]
    set_keys(db, *keys)
    made = []
    for timestamp in TIMESTAMPS + [rng.getrandbits(rng.randint(1, 64)) for _ in range(200)]:
        for key in keys:
            plaintext = rng.randbytes(rng.choice([0, 1, 15, 16, 17, 1000]))
            made.append((key, plaintext, timestamp, pyca.encrypt(key, plaintext, timestamp)))

    def rotated(tokens):
        if type == "text":
            tokens = [token.decode() for token in tokens]
        result = column(db, f"SELECT fernet_rotate(token) FROM unnest(%s::{type}[]) WITH ORDINALITY AS t (token, n) ORDER BY n", tokens)
        return [token.encode() if type == "text" else token for token in result]

    first = rotated([token for *_, token in made])
    for (key, plaintext, timestamp, old), new in zip(made, first, strict=True):
        assert pyca.multi(keys).decrypt(new) == plaintext
        assert Fernet(keys[0]).decrypt(new) == plaintext
        assert Fernet(keys[0]).extract_timestamp(new) == timestamp
        assert (new == old) == (key == keys[0])
        assert len(new) == len(old)
    assert rotated(first) == first

    ivs = {pyca.initialisation_vector(token) for token in first}
    assert len(ivs) == len(first)
    assert not ivs & {pyca.initialisation_vector(token) for key, *_, token in made if key != keys[0]}


def test_python_rotates_what_sql_made(db, rng):
    new, old = pyca.key_of(rng), pyca.key_of(rng)
    set_keys(db, old)
    token = column(db, "SELECT fernet_encrypt('hello')")[0]
    rotated = pyca.multi([new, old]).rotate(token).decode()
    set_keys(db, new)
    assert column(db, "SELECT fernet_decrypt(%s)", rotated) == ["hello"]
