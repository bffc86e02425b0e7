"""Tokens in JSON, and in the other types whose values hold text: each is rotated where it is, and nothing else changes."""

import base64
import json
import re

import pytest
from psycopg import errors
from psycopg.types.json import Json, Jsonb

import pyca
from postgres import column, set_keys, value

TIMESTAMP = 1_700_000_000
TOKEN = re.compile(r"gAAAAA(?:[A-Za-z0-9_+/-]|\\+/)+")


class Document:
    """A random document with tokens in it; `text` is one of the ways to write it."""

    def __init__(self, rng, keys):
        self.rng, self.keys, self.openers = rng, keys, []
        document = self.branch(3)
        text = json.dumps(document, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]),
                          separators=rng.choice([None, (",", ":"), (" ,", " : ")]))
        if rng.random() < 0.3:
            text = text.replace("/", "\\/")
        if rng.random() < 0.3:
            text = text.replace("=", "\\u003d")
        if text[0] == "{":
            # Neither the order, nor a number, nor a repeated key may be lost.
            text = text[:-1] + (", " if document else "") + '"twice":1.50,"twice" : 1e2 }'
        self.text = text

    def branch(self, depth):
        kind = self.rng.randrange(3 if depth else 1)
        if kind == 0:
            return self.leaf()
        members = [self.branch(depth - 1) for _ in range(self.rng.randrange(5))]
        return members if kind == 1 else {f"kéy{number}": member for number, member in enumerate(members)}

    def leaf(self):
        return self.rng.choice([
            lambda: None, lambda: True, lambda: 12.50, lambda: "plain", lambda: "gAAAAAB", lambda: 'line\nand "quote" \\ / é',
            lambda: self.token(), lambda: self.token(), lambda: "fernet:" + self.token(), lambda: f"{self.token()},{self.token()}",
            lambda: json.dumps({"inner": self.token()}), lambda: self.token().replace("=", "%3D"),
        ])()

    def token(self):
        self.openers.append(self.rng.randrange(len(self.keys)))
        token = pyca.encrypt(self.keys[self.openers[-1]], self.rng.randbytes(self.rng.randrange(40)), TIMESTAMP).decode()
        return token.replace("-", "+").replace("_", "/") if self.rng.random() < 0.3 else token


def plain(text):
    """The text without the length and the slashes of its tokens."""
    return TOKEN.sub("token", text)


def plaintexts(keys, text):
    characters = [found.replace("\\", "") for found in TOKEN.findall(text)]
    tokens = [found + "=" * (-len(found) % 4) for found in characters if len(found) > 90]
    opened = [(pyca.opener(keys, token), pyca.decrypt(keys, token), pyca.timestamp(keys, token)) for token in tokens]
    return opened


def test_json(db, rng):
    keys = [pyca.key_of(rng) for _ in range(3)]
    set_keys(db, *keys)
    changed = 0
    for _ in range(400):
        document = Document(rng, keys)
        text = document.text
        rotated = value(db, "SELECT fernet_rotate(%s::json)::text", text)
        before, after = plaintexts(keys, text), plaintexts(keys, rotated)
        assert [key for key, *_ in before] == document.openers
        assert plain(rotated) == plain(text)
        assert after == [(0, plaintext, TIMESTAMP) for _, plaintext, _ in before]
        assert (rotated == text) == all(key == 0 for key in document.openers)
        changed += rotated != text

        index = max(document.openers) + 1 if document.openers else None
        assert value(db, "SELECT fernet_key_index(%s::json)", text) == index
        assert value(db, "SELECT fernet_key_index(%s::jsonb)", text) == index

        # jsonb gives the same, as far as it keeps what json does.
        binary, as_it_was = db.execute("SELECT fernet_rotate(j)::text, j::text FROM (SELECT %s::jsonb AS j) AS x", [text]).fetchone()
        assert plain(binary) == plain(as_it_was)
        assert plaintexts(keys, binary) == [(0, *rest) for _, *rest in plaintexts(keys, as_it_was)]
        assert value(db, "SELECT fernet_rotate(%s::jsonb)::text", binary) == binary
    assert changed > 100


def broken(token):
    return token[:76] + "\n" + token[76:]


# What docs/applications.md says is not found, and what it excepts. A plaintext of 8 bytes makes a token with padding, of 40
# one without.
IN_TEXT = {
    "a letter directly after it": (40, "{}x", False),
    "a letter after its padding": (8, "{}x", True),
    "a prefix with base64 before it": (8, "v1-{}", True),
    "padding left out": (8, lambda token: token.rstrip("="), False),
    "padding left out, where it is escaped": (8, lambda token: token.replace("=", "%3D"), True),
    "no padding needed": (40, "{}", True),
    "encoded again": (8, lambda token: base64.b64encode(token.encode()).decode(), False),
    "a line break": (8, broken, True),
    "a line break, with more before it": (8, lambda token: "password: " + broken(token), False),
}


@pytest.mark.parametrize("length, written, is_found", IN_TEXT.values(), ids=IN_TEXT)
def test_what_is_found_in_a_text(db, rng, length, written, is_found):
    key = pyca.key_of(rng)
    set_keys(db, key)
    token = pyca.encrypt(key, rng.randbytes(length), TIMESTAMP).decode()
    assert token.endswith("=") == (length == 8)
    text = written.format(token) if isinstance(written, str) else written(token)
    assert value(db, "SELECT fernet_key_index(%s::text)", text) == (1 if is_found else None)
    # A string of jsonb is a value of its own.
    assert value(db, "SELECT fernet_key_index(jsonb_build_array(%s::text))", text) == (1 if is_found else None)


@pytest.mark.parametrize("prefix, status", [("", "unknown key"), ("fernet:", "unknown key"), ("v1-", "not a token"), ("enc_", "not a token")])
def test_what_no_key_opens_is_a_token_only_by_itself(db, rng, prefix, status):
    set_keys(db, pyca.key_of(rng))
    db.execute("CREATE TEMP TABLE prefixed AS SELECT %s::text AS value", [prefix + pyca.encrypt(pyca.key_of(rng), b"x", TIMESTAMP).decode()])
    assert column(db, "SELECT status FROM fernet_census('prefixed', 'value') WHERE tokens > 0") == [status]
    assert column(db, "SELECT tokens FROM fernet_find_columns() WHERE relation = 'prefixed'::regclass") == [1] * (status == "unknown key")


@pytest.mark.parametrize("written", [lambda token: json.dumps(broken(token)), lambda token: json.dumps(token).replace("-", "\\u002b")],
                         ids=["a line break", "a plus"])
def test_what_json_escapes_and_jsonb_has_not(db, rng, written):
    key = pyca.key_of(rng)
    set_keys(db, key)
    token = next(token for token in (pyca.encrypt(key, b"x", TIMESTAMP + n).decode() for n in range(1000)) if "-" in token)
    assert value(db, "SELECT fernet_key_index(%s::json)", written(token)) is None
    assert value(db, "SELECT fernet_key_index(%s::jsonb)", written(token)) == 1


@pytest.mark.parametrize("padding, is_found", [("=", True), ("&#61;", False), ("&#x3D;", False)])
def test_what_xml_escapes(db, rng, padding, is_found):
    key = pyca.key_of(rng)
    set_keys(db, key)
    token = pyca.encrypt(key, b"x", TIMESTAMP).decode()
    assert token.endswith("=")
    try:
        db.execute("CREATE TEMP TABLE documents AS SELECT %s::xml AS value", [f"<a>{token.replace('=', padding)}</a>"])
    except errors.FeatureNotSupported:
        pytest.skip("no xml here")
    assert column(db, "SELECT status FROM fernet_census('documents', 'value') WHERE tokens > 0") == ["current" if is_found else "not a token"]


@pytest.mark.parametrize("type", ["json", "jsonb"])
def test_no_token_and_unknown_keys(db, rng, type):
    known, unknown = pyca.key_of(rng), pyca.key_of(rng)
    set_keys(db, pyca.key_of(rng), known)
    for text in '{"a": [1, "gAAAAAB"]}', "null", '"gAAA"', "{}", '"g\\u0041AA"', "1e400", '""':
        assert value(db, f"SELECT fernet_rotate(%s::{type})::text = %s::{type}::text", text, text)
        assert value(db, f"SELECT fernet_key_index(%s::{type})", text) is None
    old, foreign = (pyca.encrypt(key, b"secret", TIMESTAMP).decode() for key in (known, unknown))
    for text in json.dumps([old, foreign]), json.dumps({"a": foreign, "b": old}), json.dumps(foreign):
        assert value(db, f"SELECT fernet_key_index(%s::{type})", text) is None
        with pytest.raises(Exception, match="no configured key authenticates the Fernet token") as raised:
            value(db, f"SELECT fernet_rotate(%s::{type})", text)
        assert raised.value.sqlstate == "39000"
    # Text inside a longer run that only looks like a token is none.
    assert value(db, f"SELECT fernet_rotate(%s::{type})::text = %s::{type}::text", *[json.dumps("x" + foreign)] * 2)


@pytest.mark.parametrize("type", ["json", "jsonb"])
def test_large_documents(db, rng, type):
    """Out of line, compressed or not."""
    keys = [pyca.key_of(rng) for _ in range(2)]
    set_keys(db, *keys)
    token = pyca.encrypt(keys[1], b"secret", TIMESTAMP).decode()
    for storage in "extended", "external":
        db.execute(f"CREATE TEMP TABLE large (document {type}); ALTER TABLE large ALTER document SET STORAGE {storage}")
        for filling in "gAAA " * 400_000, rng.randbytes(1_000_000).hex():
            document = {"filling": filling, "tokens": [token, token], "end": "gAAA"}
            adapted = (Json if type == "json" else Jsonb)(document)
            db.execute("INSERT INTO large VALUES (%s)", [adapted])
        db.execute("UPDATE large SET document = fernet_rotate(document) WHERE fernet_key_index(document) = 2")
        assert column(db, "SELECT fernet_key_index(document) FROM large") == [1, 1]
        for (rotated,) in db.execute("SELECT document FROM large").fetchall():
            assert [pyca.decrypt(keys[:1], token) for token in rotated["tokens"]] == [b"secret"] * 2
            assert rotated["end"] == "gAAA" and len(rotated["filling"]) == 2_000_000
        db.execute("DROP TABLE large")


def test_deep_documents(db, rng):
    """A value that the server could store but can no longer print is an error, and not a crash."""
    keys = [pyca.key_of(rng) for _ in range(2)]
    set_keys(db, *keys)
    token = pyca.encrypt(keys[1], b"secret", TIMESTAMP).decode()
    deep = "[" * 6000 + json.dumps(token) + "]" * 6000
    rotated = value(db, "SELECT fernet_rotate(%s::jsonb)::text", deep)
    assert rotated.strip("[]") != deep.strip("[]") and len(rotated) == len(deep)
    db.execute("CREATE TEMP TABLE deep AS SELECT %s::jsonb AS document", [deep])
    with pytest.raises(Exception, match="stack depth limit exceeded"):
        db.execute("SET max_stack_depth = '100kB'; SELECT fernet_rotate(document) FROM deep")
    db.execute("RESET max_stack_depth")
    assert value(db, "SELECT fernet_key_index(document) FROM deep") == 2
