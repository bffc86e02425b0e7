"""Random and mutated tokens and keys: accepted and refused exactly as pyca does it. There are two differences:
rotation also finds tokens in what pyca refuses, and a key with more after its padding is refused."""

import base64
import re
from collections import Counter

import pyca
from edition import SQL
from postgres import attempts, set_keys, value

TOKENS = 10_000
KEYS = 5_000

BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def at_random(rng, token):
    # More often near the end, where the padding is.
    return rng.choice([rng.randint(0, len(token)), max(0, len(token) - rng.randint(0, 6))])


def insert(rng, token, what):
    at = at_random(rng, token)
    return token[:at] + what + token[at:]


def flip_bit(rng, token):
    if not token:
        return token
    changed = bytearray(token)
    changed[rng.randrange(len(token))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_decoded_bit(rng, token):
    data = pyca.decode(token)
    return base64.urlsafe_b64encode(flip_bit(rng, data)) if data else token


def truncate(rng, token):
    return token[:at_random(rng, token)]


def drop(rng, token):
    at = at_random(rng, token)
    return token[:at] + token[at + rng.randint(1, 5):]


def insert_foreign(rng, token):
    for _ in range(rng.randint(1, 5)):
        token = insert(rng, token, rng.choice([rng.randbytes(1), b"\0", b"\xff", b"%", b"'", b'"', b"\xc3\xa9", b",", b"."]))
    return token


def insert_space(rng, token):
    for _ in range(rng.randint(1, 5)):
        token = insert(rng, token, rng.choice([b" ", b"\n", b"\r\n", b"\t", b"\v", b"\xc2\xa0"]))
    return token


def insert_padding(rng, token):
    for _ in range(rng.randint(1, 3)):
        token = insert(rng, token, b"=" * rng.randint(1, 3))
    return token


def insert_characters(rng, token):
    return insert(rng, token, bytes(rng.choices(BASE64 + b"-_+/", k=rng.randint(1, 4))))


def change_alphabet(rng, token):
    """All of it, or some."""
    return bytes(rng.choice([byte, {45: 43, 95: 47, 43: 45, 47: 95}.get(byte, byte)]) for byte in token)


def strip_padding(rng, token):
    return token.rstrip(b"=") + b"=" * rng.randint(0, 3)


def change_last_character(rng, token):
    """Often only the unused bits."""
    bare = token.rstrip(b"=")
    return bare[:-1] + bytes(rng.choices(BASE64, k=1)) + token[len(bare):] if bare else token


def quote(rng, token):
    return rng.choice([b'"%s"', b"b'%s'", b"'%s'", b"\\x%s", b"%s\0"]) % token


def embed(rng, token):
    return rng.choice([b'{"x": "%s"}', b'["%s", 1]', b"fernet:%s", b"v1%s", b"x=%s # note"]) % token


def repeat(rng, token):
    return token + rng.choice([token, token[:rng.randint(0, len(token))], b"=" + token])


MUTATIONS = [flip_bit, flip_decoded_bit, truncate, drop, insert_foreign, insert_space, insert_padding, insert_characters,
             change_alphabet, strip_padding, change_last_character, quote, embed, repeat]


def any_timestamp(rng):
    return rng.choice([rng.getrandbits(64), rng.getrandbits(rng.randint(1, 64)), 2**64 - 1, 2**63, 0, 1_700_000_000])


def genuine(rng, key):
    return pyca.encrypt(key, rng.randbytes(rng.randint(0, 70)), any_timestamp(rng))


def wrongly_padded(rng, key):
    """The HMAC is right; the last block decrypts to noise, which is padding once in 256 times."""
    header = pyca.VERSION + any_timestamp(rng).to_bytes(8, "big")
    return pyca.sign(key, header + rng.randbytes(16 * rng.randint(2, 5)))


def wrong_length(rng, key):
    return pyca.sign(key, (pyca.VERSION + rng.randbytes(200))[:rng.randint(0, 120)])


def wrong_version(rng, key):
    data = pyca.decode(genuine(rng, key))
    return pyca.sign(key, rng.choice([b"\x81", b"\0", rng.randbytes(1)]) + data[1:-32])


def noise(rng, _):
    return rng.choice([
        b"", b"=", b"====", b"\x80", b"plaintext",
        rng.randbytes(rng.randint(0, 150)),
        bytes(rng.choices(BASE64 + b"-_=", k=rng.randint(0, 150))),
        base64.urlsafe_b64encode(pyca.VERSION + rng.randbytes(rng.randint(0, 100))),
    ])


def random_token(rng, keys):
    key = rng.choice([*keys, pyca.key_of(rng)])
    make = rng.choices([genuine, wrongly_padded, wrong_length, wrong_version, noise], [8, 1, 1, 1, 1])[0]
    token = make(rng, key)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        token = rng.choice(MUTATIONS)(rng, token)
    return random_token(rng, keys) if pyca.is_disputed(token) else token


def key_lists(rng):
    """Distinct keys; some that share their signing half; some twice."""
    a, b, c = (pyca.key_of(rng) for _ in range(3))
    twin = pyca.key_with_signing_half_of(b, rng)
    return [[a], [a, b], [a, b, c], [a, twin, b], [b, twin], [a, b, a, c, b], [twin, a, twin, b, c]]


def test_tokens(db, rng):
    seen = Counter()
    lists = key_lists(rng)
    for keys in lists:
        tokens = [random_token(rng, keys) for _ in range(-(-TOKENS // len(lists)))]
        set_keys(db, *keys)
        seen += compare(db, keys, tokens)
    print(seen)
    assert seen.total() >= TOKENS
    # Every kind of outcome did occur.
    assert min(seen["decrypted"], seen["22P02"], seen["39000"]) > 1000
    assert seen["padding wrong"] > 100
    assert seen["found inside"] > 100


def compare(db, keys, tokens):
    seen = Counter()
    rows = zip(
        tokens,
        attempts(db, "encode(fernet_decrypt_bytea($1), 'hex')", tokens),
        attempts(db, "encode(fernet_rotate($1), 'hex')", tokens),
        attempts(db, "extract(epoch FROM fernet_timestamp($1))", tokens),
        attempts(db, "fernet_key_index($1)", tokens),
        attempts(db, "fernet_is_token($1)", tokens),
        strict=True,
    )
    for token, decrypted, rotated, timestamp, key_index, is_token in rows:
        what = f"{token!r} under {keys}"
        plaintext = pyca.decrypt(keys, token)
        has_form = pyca.is_token(token)
        authenticator = pyca.authenticator(keys, token) if has_form else None
        refusal = (None, "39000" if has_form else "22P02")

        assert is_token == (("true" if has_form else "false"), None), what
        if plaintext is None:
            assert decrypted == refusal, what
            seen[decrypted[1]] += 1
        else:
            assert decrypted == (plaintext.hex(), None), what
            seen["decrypted"] += 1
        seen["found inside"] += check_rotated(keys, token, plaintext, rotated, key_index, what)

        if authenticator is None:
            assert timestamp == refusal, what
        else:
            made = pyca.timestamp(keys, token)
            # The last second that a timestamptz can represent.
            assert timestamp == ((f"{made}.000000" if made <= 9_224_318_015_999 else "Infinity"), None), what
            seen["padding wrong"] += plaintext is None
    compare_text_with_bytea(db, tokens)
    return seen


def check_rotated(keys, token, plaintext, rotated, key_index, what):
    """What pyca reads is rotated, and so is what a key opens inside it. Tells whether there is only the
    latter."""
    result, code = rotated
    place, error = key_index
    assert error is None, what
    # fernet_key_index is NULL exactly if fernet_rotate fails.
    assert (place is None) == (code is not None), what
    forms = pyca.forms_inside(token)
    if code is not None:
        # It is not a token, or there is a token that no key opens beside one that a key opens.
        assert code == ("39000" if pyca.is_token(token) or forms else "22P02"), what
        assert plaintext is None or any(pyca.opener(keys, form) is None for form in forms), what
        return False
    result = bytes.fromhex(result)
    openers = [pyca.opener(keys, inside) for inside in pyca.tokens_inside(token)]
    openers = [opener for opener in (pyca.opener(keys, token), *openers) if opener is not None]
    assert int(place) == max(openers) + 1, what
    # It is above 1 exactly if something changes; and then nothing is left under an old key.
    assert (int(place) == 1) == (result == token), what
    assert all(pyca.opener(keys, inside) in (None, 0) for inside in pyca.tokens_inside(result)), what
    if plaintext is not None:
        assert pyca.decrypt(keys[:1], result) == plaintext, what
        assert pyca.timestamp(keys[:1], result) == pyca.timestamp(keys, token), what
    return plaintext is None


def compare_text_with_bytea(db, tokens):
    """A value that a text column can hold is treated like the same value in a bytea column."""
    tokens = [token for token in tokens if is_text(token)]
    for expression in ("encode(fernet_decrypt_bytea({}), 'hex')", "fernet_key_index({})", "fernet_timestamp({})", "fernet_is_token({})"):
        as_text = attempts(db, expression.format("convert_from($1, 'UTF8')"), tokens)
        assert as_text == attempts(db, expression.format("$1"), tokens)


def is_text(token):
    try:
        return "\0" not in token.decode()
    except UnicodeDecodeError:
        return False


def random_key(rng):
    """A key, mutated. A comma ends an element of the list, and a setting holds no zero byte."""
    size = rng.choices([32, 31, 33, 0, rng.randint(0, 64)], [10, 1, 1, 1, 1])[0]
    key = base64.urlsafe_b64encode(rng.randbytes(size))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        key = rng.choice(MUTATIONS)(rng, key)
    return random_key(rng) if pyca.is_disputed(key) else key.decode(errors="replace").replace(",", "").replace("\0", "")


def accepts(key):
    try:
        pyca.Fernet(key.encode())
    except ValueError:
        return False
    # pyca ignores what follows the padding, even if that is another key.
    return len(re.findall(r"[\w+/-]", key, re.ASCII)) == 43


def test_keys(db, rng):
    db.execute("""
        CREATE FUNCTION pg_temp.try_keys(keys text, OUT fingerprints text, OUT code text) LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM set_config('fernet.keys', keys, false);
            fingerprints := (SELECT string_agg(fingerprint, ' ' ORDER BY key_index) FROM fernet_keys());
        EXCEPTION WHEN OTHERS THEN
            code := sqlstate;
        END $$""")
    db.execute("SELECT fernet_generate_key()")  # loads the library
    good = pyca.key_of(rng)
    # The SQL edition takes an empty list as none.
    keys = [key for key in (random_key(rng) for _ in range(KEYS)) if key or not SQL]
    seen = Counter()
    for template in ("{}", good + ",{}"):
        rows = db.execute("SELECT fingerprints, code FROM unnest(%s::text[]) WITH ORDINALITY AS t (key, n),"
                          " LATERAL pg_temp.try_keys(replace(%s, '{}', key)) ORDER BY n", [keys, template])
        for key, row in zip(keys, rows, strict=True):
            if accepts(key):
                expected = " ".join(pyca.fingerprint(k) for k in template.format(key).split(","))
                assert row == (expected, None), repr(key)
            else:
                assert row == (None, "22023"), repr(key)
            seen[accepts(key)] += 1
    print(seen)
    assert min(seen[True], seen[False]) > 1000


def test_a_mutated_key_is_the_key(db, rng):
    """A key with quotes and white space around it, as copied from a file, works like the bare one."""
    key = pyca.key_of(rng)
    token = pyca.encrypt(key, b"hello", 0).decode()
    for written in (f' "{key}"\n', "\t".join(key), key.replace("-", "+").replace("_", "/"), f"'{key}'"):
        set_keys(db, written)
        assert value(db, "SELECT fernet_decrypt(%s)", token) == "hello"
