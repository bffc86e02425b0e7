"""Values that no application should have written, but that are in its table."""

import base64

import pyca
from soak import count

MEGABYTE = 1 << 20
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# The ends of what 64 bits hold, signed and unsigned; of timestamptz; of 32 bits.
TIMESTAMPS = [0, 1, 946_684_800, 2**31 - 1, 2**31, 2**32, 9_224_318_015_999, 9_224_318_016_000,
              2**62, 2**63 - 1, 2**63, 2**64 - 1]


def values(rng, keys, lost):
    """Values as bytes. Some are tokens under one of the keys, or under the lost one."""
    for _ in range(count(1, 4)):
        for length in range(301):
            yield from of_length(rng, keys[-1], length)
    yield from tokens(rng, keys, lost)
    yield from not_ascii()
    yield from megabytes(rng, keys[-1])


def of_length(rng, key, length):
    yield rng.randbytes(length)
    yield bytes(rng.choices(ALPHABET, k=length))
    yield b"=" * length
    yield (b"gAAAAA" * 51)[:length]
    # A token that is cut short, and one with more after it.
    yield pyca.encrypt(key, rng.randbytes(200), 1_700_000_000)[:length]
    token = pyca.encrypt(key, b"hello", 1_700_000_000)
    for more in b"=", b" ", b"A", rng.randbytes(1):
        yield token + more * (length - len(token))
    # Almost the form of a token; some with a right HMAC.
    yield base64.urlsafe_b64encode(pyca.VERSION + rng.randbytes(length))
    yield pyca.sign(key, pyca.VERSION + rng.randbytes(length))
    yield pyca.sign(key, rng.randbytes(length))


def tokens(rng, keys, lost):
    for key in [*keys, lost]:
        for timestamp in TIMESTAMPS:
            yield pyca.encrypt(key, b"hello", timestamp)
        # Plaintexts that are not text: a zero byte, half a character, one past the end of Unicode, a
        # surrogate.
        for plaintext in b"\0", b"a\0b", b"\xc3", b"\xf4\x90\x80\x80", b"\xed\xa0\x80", b"\xff" * 100:
            yield pyca.encrypt(key, plaintext, 1_700_000_000)
        # And plaintexts that are text only in some encodings.
        for plaintext in "é", "Ж", "鍵", "\U0001f511", "\u0301" * 100, "\ufeff", "\uffff":
            yield pyca.encrypt(key, plaintext.encode(), 1_700_000_000)


def not_ascii():
    for text in "é", "ключ", "鍵" * 100, "\U0001f511" * 50, "\u0301" * 100, "\ufeffgAAAAA", "ｇＡＡＡＡＡ", "gAAAAA\u202e", "\x7f":
        yield text.encode()
        yield text.encode("utf-16-le")
        yield text.encode("latin-1", errors="replace")


def megabytes(rng, key):
    size = count(2, 32) * MEGABYTE
    token = pyca.encrypt(key, b"hello", 1_700_000_000)
    for repeated in b"=", b"gAAAAA", b"gAAAAABl", b"A", b"A=", b" ", b"\0", b"\xff", "é".encode():
        yield repeated * (size // len(repeated))
    yield b"gAAAAA" + b"=" * size
    yield token + b"=" * size
    # These are tokens: foreign bytes are skipped. They compress well.
    yield b" " * size + token
    yield token + b"\n" * size
    yield (b" " * 10_000).join(bytes([byte]) for byte in token)
    yield rng.randbytes(size)
    yield base64.urlsafe_b64encode(pyca.VERSION + rng.randbytes(size))
    for length in size, size + 7, size + 15:
        yield pyca.encrypt(key, rng.randbytes(length), 1_700_000_000)
    yield pyca.encrypt(key, b"a" * size, 1_700_000_000)
    yield pyca.sign(key, pyca.VERSION + rng.randbytes(24 + size))  # the padding is wrong, except for 1 in 256
    yield pyca.sign(key, pyca.VERSION + rng.randbytes(size))
