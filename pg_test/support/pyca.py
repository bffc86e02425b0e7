"""Python's cryptography as the oracle, and tokens that it would not make."""

import base64
import binascii
import re
from hashlib import sha256
from hmac import digest as hmac

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

VERSION = b"\x80"
# Base64 characters and their padding.
RUN = re.compile(rb"([A-Za-z0-9+/_-]+)(=*)")


def key_of(rng):
    return base64.urlsafe_b64encode(rng.randbytes(32)).decode()


def key_with_signing_half_of(key, rng):
    half = base64.urlsafe_b64decode(key)[:16]
    return base64.urlsafe_b64encode(half + rng.randbytes(16)).decode()


def fingerprint(key):
    return sha256(base64.urlsafe_b64decode(key.encode())).hexdigest()[:16]


def encrypt(key, plaintext, timestamp):
    """A token with any timestamp of 64 bits."""
    return Fernet(key).encrypt_at_time(plaintext, timestamp)


def sign(key, signed):
    """A token with a right HMAC, whatever else is wrong with it."""
    signing_half = base64.urlsafe_b64decode(key)[:16]
    return base64.urlsafe_b64encode(signed + hmac(signing_half, signed, "sha256"))


def decode(token):
    """The bytes of a token, or None if it is not base64."""
    try:
        return base64.urlsafe_b64decode(token)
    except binascii.Error:
        return None


def is_disputed(value):
    """Whether versions of CPython differ on it. All of them ended a value at its padding, as pg_fernet does,
    until gh-145264 (March 2026); later ones skip the padding and read on."""
    return decode(b"AA==AAA=") is None and re.search(rb"[\w+/-]", value.partition(b"=")[2])


def canonical(token):
    """The token as Python writes it."""
    return base64.urlsafe_b64encode(decode(token))


def initialisation_vector(token):
    return decode(token[:36])[9:25]


def is_token(token):
    """Whether a value has the form of a token: version, timestamp, IV, blocks, HMAC."""
    data = decode(token)
    return data is not None and data[:1] == VERSION and len(data) >= 73 and (len(data) - 57) % 16 == 0


def decrypt(keys, token):
    """The plaintext, or None if pyca refuses the token."""
    try:
        return multi(keys).decrypt(token)
    except InvalidToken:
        return None


def decrypt_at_time(keys, token, ttl, at):
    try:
        return multi(keys).decrypt_at_time(token, ttl, at)
    except InvalidToken:
        return None


def timestamp(keys, token):
    try:
        return multi(keys).extract_timestamp(token)
    except InvalidToken:
        return None


def opener(keys, token):
    """The index of the key that decrypts the token, or None."""
    return next((i for i, key in enumerate(keys) if decrypt([key], token) is not None), None)


def authenticator(keys, token):
    """The index of the key that made the token's HMAC, or None."""
    return next((i for i, key in enumerate(keys) if timestamp([key], token) is not None), None)


def tokens_inside(value):
    """The possible tokens in a value: from each gAAA to the end of the base64 characters, with its padding, or to a /
    or + among them, which may belong to other text."""
    found = []
    for characters, equals in RUN.findall(value):
        for start in (match.start() for match in re.finditer(b"gAAA", characters)):
            ends = [match.start() for match in re.finditer(rb"[/+]", characters) if match.start() > start]
            found += [padded(characters[start:end], b"") for end in ends] + [padded(characters[start:], equals)]
    return [token for token in found if token]


def forms_inside(value):
    """Those that begin with gAAAAA and have no base64 character before them."""
    found = [padded(characters, equals) for characters, equals in RUN.findall(value) if characters.startswith(b"gAAAAA")]
    return [token for token in found if token]


def padded(characters, equals):
    """The characters with as many of the = as they need, if that has the form of a token."""
    token = characters + equals[:-len(characters) % 4]
    return token if len(token) % 4 == 0 and is_token(token) else None


def multi(keys):
    return MultiFernet([Fernet(key) for key in keys])
