"""Single values: compared with pyca and with the native edition."""

import base64
import json
import re
from collections import Counter

import psycopg
import pytest

import pyca
import test_mutations
from postgres import ROOT, attempts, column, is_progress, set_keys, value

VECTORS = ROOT / "pg_test" / "vectors"
MIXED = 4_000


def vectors(name):
    return json.loads((VECTORS / f"{name}.json").read_text())


def test_specification_verify(db):
    for case in vectors("verify"):
        set_keys(db, case["secret"])
        decrypt = "SELECT fernet_decrypt(%s, make_interval(secs => %s), %s)"
        assert value(db, decrypt, case["token"], case["ttl_sec"], case["now"]) == case["src"]


def test_specification_invalid(db):
    for case in vectors("invalid"):
        set_keys(db, case["secret"])
        with pytest.raises(psycopg.Error) as error:
            value(db, "SELECT fernet_decrypt(%s, make_interval(secs => %s), %s)", case["token"], case["ttl_sec"], case["now"])
        assert error.value.diag.message_hint


def test_specification_generate(db):
    """The vector fixes what is random; so tokens that were made are read back, and tokens that were given are
    made again."""
    for case in vectors("generate"):
        set_keys(db, case["secret"])
        assert value(db, "SELECT fernet_decrypt(%s)", case["token"]) == case["src"]
        assert value(db, "SELECT fernet_timestamp(%s) = %s", case["token"], case["now"])
        made = value(db, "SELECT fernet_encrypt(%s)", case["src"])
        assert len(made) == len(case["token"])
        assert pyca.decrypt([case["secret"]], made.encode()) == case["src"].encode()


SEPARATORS = [b",", b" ", b'", "', b"\n", b"=", b"==", b"=,", b"\\/", b"\\\\/", b"\\", b"/", b"+", b"%3D", b"%3d%3D,", b"\\u003d", b"\\\\u003D,",
              b"\\u003", b"\\n", b"\\\\t", b"\\r", b"\\u00e9", b"\\u00e", b"n", b"u00e9", b"x", b"-", b"gA", b"gAAA", b"gAAAAA", b"AAAA", b"\xc3\xa9", b"'",
              b"{", b"}", b"=\n=", b"\t", b".", b"/home/", b"a/b+c/", b"fernet:", b""]


def random_part(rng, keys):
    if rng.random() < 0.1:
        return b"".join(rng.choice(SEPARATORS) for _ in range(rng.randint(1, 8)))
    token = test_mutations.random_token(rng, keys) if rng.random() < 0.3 else pyca.encrypt(
        rng.choice([*keys, *keys, pyca.key_of(rng)]), rng.randbytes(rng.randint(0, 40)), 1_700_000_000)
    if rng.random() < 0.1:
        token = test_mutations.wrongly_padded(rng, rng.choice(keys))
    if rng.random() < 0.3:
        token = token.replace(b"-", b"+").replace(b"_", b"/")
    if rng.random() < 0.3:
        token = token.replace(b"/", rng.choice([b"\\/", b"\\\\/"]))
    if rng.random() < 0.5:
        token = token.replace(b"=", rng.choice([b"", b"%3D", b"\\u003d", b"\\\\u003D", b"= "]))
    if rng.random() < 0.1:
        at = rng.randrange(len(token) + 1)
        token = token[:at] + rng.choice(SEPARATORS) + token[at:]
    return token


def joined_tokens(rng, keys):
    """Tokens in the standard alphabet, and what joins them is in it, too."""
    slash = rng.choice([b"/", b"\\/", b"\\\\/"])
    tokens = [pyca.encrypt(rng.choice(keys), rng.randbytes(rng.choice([40, rng.randrange(60)])), 1_700_000_000) for _ in range(rng.randint(2, 4))]
    joint = rng.choice([b"/", b"+", b"//", b"+/"])
    return joint.join(tokens).replace(b"=", b"").replace(b"-", b"+").replace(b"_", b"/").replace(b"/", slash)


def random_value(rng, keys):
    value = rng.choice(SEPARATORS)
    if rng.random() < 0.1:
        value += joined_tokens(rng, keys) + rng.choice(SEPARATORS)
    for _ in range(rng.choice([1, 1, 2, 2, 3, 5])):
        value += random_part(rng, keys) + rng.choice(SEPARATORS) + (rng.choice(SEPARATORS) if rng.random() < 0.5 else b"")
    if rng.random() < 0.05:
        value = rng.choice([b"gAAA", b"gAAAAA", b"gAAA\\/", b"gAAA/", b"gAAA="]) * rng.randint(1, 200) + value
    return value


def random_document(rng, keys):
    """JSON in one of its forms, with such values as strings, as names, and over several of them."""
    def text():
        return random_value(rng, keys).decode("latin-1")

    split = text()
    document = rng.choice([
        text, lambda: [text(), 1.50, text()], lambda: {text(): text(), "b": [None, {text(): []}]},
        lambda: [split[:len(split) // 2], split[len(split) // 2:]], lambda: {split[:len(split) // 2]: split[len(split) // 2:]}, lambda: [json.dumps([text()])],
        lambda: ["plain", {"gAAA": 1}]])()
    written = json.dumps(document, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    if rng.random() < 0.3:
        written = written.replace("/", "\\/")
    if rng.random() < 0.3:
        written = written.replace("=", "\\u003d")
    return written.encode()


STRETCH = re.compile(rb"((?:[A-Za-z0-9_-]|[+/]|\\+/)*)(.{0,14})", re.DOTALL)


def tokens_in(keys, value):
    """What a key opens from any gAAA up to the end of any run: the key, the plaintext, the time."""
    found = []
    for stretch, _ in STRETCH.findall(value):
        ends = [at for at in range(len(stretch)) if stretch[at] in b"/+\\"] + [len(stretch)]
        for start in re.finditer(b"gAAA", stretch):
            for end in ends:
                token = stretch[start.start():end].replace(b"\\", b"")
                token += b"=" * (-len(token) % 4)
                if pyca.is_token(token) and (opener := pyca.opener(keys, token)) is not None:
                    found.append((opener, pyca.decrypt(keys, token), pyca.timestamp(keys, token)))
    return found


def comparable(keys, value):
    """A value without what is random in it: the contents of its tokens, and the rest unchanged."""
    rest = re.sub(rb"g[A-P](?:[A-Za-z0-9+/_-]|\\+/){30,}", lambda run: b"*" * len(run[0]), value)
    inside = [(pyca.opener(keys, value), pyca.decrypt(keys, value), pyca.timestamp(keys, value))]
    return rest, inside, tokens_in(keys, value)


def compare(keys, values, ours, theirs, seen):
    """Both have rotated the values, or refused them, for the same reason."""
    for value_, (our, our_code), (their, their_code) in zip(values, ours, theirs, strict=True):
        assert our_code == their_code, (keys, value_)
        seen[our_code] += 1
        if our is not None:
            our, their = bytes.fromhex(our), bytes.fromhex(their)
            assert comparable(keys, our) == comparable(keys, their), (keys, value_, our, their)
            assert (our == value_) == (their == value_), (keys, value_)
            seen["changed"] += our != value_


def test_values_as_the_native_edition(db, native, rng):
    """Several tokens in a value, of all kinds and under all keys, whole and broken, escaped and not."""
    seen = Counter()
    lists = test_mutations.key_lists(rng)
    for keys in lists:
        values = [random_value(rng, keys) for _ in range(-(-MIXED // len(lists)))]
        set_keys(db, *keys)
        set_keys(native, *keys)
        for expression in ("fernet_key_index($1)", "fernet_is_token($1)", "fernet_timestamp($1)", "encode(fernet_decrypt_bytea($1), 'hex')",
                           "fernet_decrypt($1)"):
            ours, theirs = attempts(db, expression, values), attempts(native, expression, values)
            for value_, our, their in zip(values, ours, theirs, strict=True):
                assert our == their, (expression, keys, value_)
        expression = "encode(fernet_rotate($1), 'hex')"
        compare(keys, values, attempts(db, expression, values), attempts(native, expression, values), seen)
        texts = [value_ for value_ in values if test_mutations.is_text(value_)]
        as_text = [code for _, code in attempts(db, "fernet_rotate(convert_from($1, 'UTF8'))", texts)]
        assert as_text == [code for _, code in attempts(native, "fernet_rotate(convert_from($1, 'UTF8'))", texts)]
    print(seen)
    assert min(seen[None], seen["changed"], seen["39000"]) > MIXED / 10


@pytest.mark.parametrize("form", [
    "S", "x/S", "S/S", "S+S", "S/S/S/S+S", "S/U/S", "U/S/S", "U+S/S/U/S", r'"S\/S\/S"', r'"U\/S\\/S\/U\/x"', "x/S,S/S", "/home/S/S=", '"/S", "S+S"'])
def test_tokens_that_other_bytes_join(db, native, rng, form):
    """In the standard alphabet, S, which has the bytes that join it to others; and in the URL-safe one, U. The rules for
    the random values above know no more of this than that both editions do the same."""
    new, old = pyca.key_of(rng), pyca.key_of(rng)

    def token(kind):
        # 40 bytes need no padding.
        token = pyca.encrypt(old, b"secret" + rng.randbytes(34), 1_700_000_000)
        assert not token.endswith(b"=")
        if kind == "U":
            return token
        token = token.replace(b"-", b"+").replace(b"_", b"/")
        return token.replace(b"/", b"\\/") if '"' in form else token

    value_ = b"".join(token(part) if part in ("S", "U") else part.encode() for part in form)
    count = sum(form.count(part) for part in "SU")
    for session in (db, native):
        set_keys(session, new, old)
        rotated = value(session, "SELECT fernet_rotate(%s::bytea)", value_)
        made = re.compile(rb"gAAA[A-Za-z0-9_-]{136}")
        assert made.sub(b"?", rotated).decode() == form.replace("S", "?").replace("U", "?")
        assert [pyca.opener([new, old], token) for token in made.findall(rotated)] == [0] * count
        assert value(session, "SELECT fernet_key_index(%s::bytea)", rotated) == 1


@pytest.mark.parametrize("type", ["json", "jsonb"])
def test_documents_as_the_native_edition(db, native, rng, type):
    seen = Counter()
    lists = test_mutations.key_lists(rng)
    for keys in lists:
        documents = [random_document(rng, keys) for _ in range(-(-MIXED // 2 // len(lists)))]
        set_keys(db, *keys)
        set_keys(native, *keys)
        document = f"convert_from($1, 'UTF8')::{type}"
        expression = f"fernet_key_index({document})"
        ours, theirs = attempts(db, expression, documents), attempts(native, expression, documents)
        for document_, our, their in zip(documents, ours, theirs, strict=True):
            assert our == their, (keys, document_)
            seen[f"index {our[0]}"] += 1
        expression = f"encode(convert_to(fernet_rotate({document})::text, 'UTF8'), 'hex')"
        compare(keys, documents, attempts(db, expression, documents), attempts(native, expression, documents), seen)
    print(seen)
    assert min(seen[None], seen["changed"], seen["39000"], seen["index None"], seen["index 1"]) > MIXED / 40


COLUMNS = {
    "text": "t", "varchar(20000)": "t", "bytea": "b", "json": "d", "jsonb": "d",
    "text[]": "ARRAY[t, 'plain', NULL]", "bytea[]": "ARRAY[[b, 'x'], [NULL, b]]", "json[]": "ARRAY[d, 'null']", "jsonb[]": "ARRAY[d, NULL]",
    "ext.hstore": "ext.hstore(t, coalesce(d::text, t))", "ext.hstore[]": "ARRAY[ext.hstore('a', t)]", "ext.citext": "t",
    "xml": "xmlelement(name a, xmlattributes(t AS b), t)", "token": "t", "token[]": "ARRAY[t]", "tokens": "ARRAY[t, t]", "document": "d",
}


@pytest.fixture
def tables(db, native, rng):
    """Makes two columns of random values of a type, calls procedures on each in its own edition, and returns the output
    of both."""
    keys = [pyca.key_of(rng) for _ in range(3)]

    def make(type, count=150):
        available = set(column(native, "SELECT name::text FROM pg_available_extensions"))
        extension = type.removeprefix("ext.").removesuffix("[]")
        if type.startswith("ext.") and extension not in available:
            pytest.skip(f"no {extension} here")
        if type == "xml" and not value(native, "SELECT EXISTS (SELECT FROM pg_config WHERE name = 'CONFIGURE' AND setting ~ 'with-libxml')"):
            pytest.skip("no xml here")
        texts, documents = [], []
        while len(texts) < count:
            text = random_value(rng, keys)
            if test_mutations.is_text(text) and (type != "xml" or all(byte >= 32 for byte in text)):
                texts.append(text)
                document = random_document(rng, keys)
                documents.append(b"null" if b"\\u0000" in document else document)
        native.execute(f"""
            DROP SCHEMA IF EXISTS ext CASCADE; CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC;
            {f"CREATE EXTENSION {extension} SCHEMA ext;" if type.startswith("ext.") else ""}""")
        db.execute("DROP TABLE IF EXISTS ours, theirs, made; DROP DOMAIN IF EXISTS token, tokens, document;"
                   "CREATE DOMAIN token AS text CHECK (length(VALUE) < 100000); CREATE DOMAIN tokens AS text[]; CREATE DOMAIN document AS jsonb;"
                   "CREATE DOMAIN plain AS text; CREATE TABLE made (n integer, t text, b bytea, d json)")
        with db.cursor() as cursor:
            cursor.executemany("INSERT INTO made VALUES (%s, convert_from(%s, 'UTF8'), %s, convert_from(%s, 'UTF8')::json)",
                               [(n, text, text, document) for n, (text, document) in enumerate(zip(texts, documents))])
        db.execute("INSERT INTO made VALUES (-1)")
        for table in "ours", "theirs":
            db.execute(f"CREATE TABLE {table} (n integer, value {type});"
                       f"INSERT INTO {table} SELECT n, ({COLUMNS.get(type, 't')})::{type} FROM made ORDER BY n")
        said = {}
        for session, table in (db, "ours"), (native, "theirs"):
            set_keys(session, *keys)
            said[table] = []
            session.add_notice_handler(lambda diag, said=said[table], table=table: is_progress(diag.message_primary) or said.append(
                (diag.severity, diag.message_primary.split(" in ")[0], (diag.message_detail or "").replace(table, "it"), diag.message_hint)))

        def call(procedure):
            for session, table in (db, "ours"), (native, "theirs"):
                try:
                    said[table].append(session.execute(f"CALL fernet_{procedure}_column('public.{table}', 'value')").fetchone())
                except psycopg.Error as error:
                    # A plaintext may be no text.
                    said[table].append((error.sqlstate, error.diag.message_primary.replace(table, "it"), error.diag.message_hint))
                said[table].append(session.execute(f"SELECT status, key_index, tokens FROM fernet_census('public.{table}', 'value')").fetchall())
            assert said["ours"] == said["theirs"]
            return db.execute("SELECT o.value::text, t.value::text FROM ours AS o JOIN theirs AS t USING (n) ORDER BY n").fetchall()

        return call

    make.keys = keys
    db.execute("DROP DOMAIN IF EXISTS plain")
    yield make
    db.execute("DROP TABLE IF EXISTS ours, theirs, made; DROP DOMAIN IF EXISTS token, tokens, document, plain")


@pytest.mark.parametrize("type", COLUMNS)
def test_columns_as_the_native_edition(tables, type):
    """The census, and the rotation with its output and what it leaves."""
    rows = tables(type)("rotate")
    assert len(rows) == 151
    for our, their in rows:
        if our is not None and "bytea" not in type:
            assert comparable(tables.keys, our.encode()) == comparable(tables.keys, their.encode())


@pytest.mark.parametrize("type", ["text", "varchar(20000)", "char(9000)", "bytea", "ext.citext", "plain"])
def test_encrypted_and_decrypted_columns_as_the_native_edition(db, tables, type):
    """For tokens, plaintexts and both in one value: what is encrypted and decrypted, what is left, and what is
    reported."""
    def contents(value):
        rest, *found = comparable(tables.keys, value.rstrip().encode())
        # Without the time, which for new tokens is that of the call.
        return rest, [[token[:2] for token in tokens] for tokens in found]

    call = tables(type)
    for procedure in "encrypt", "encrypt", "rotate", "decrypt":
        rows = call(procedure)
        for our, their in rows:
            if our is not None and type != "bytea":
                assert contents(our) == contents(their)
    # What was encrypted is what it was, unless a plaintext that is no text has stopped the last call.
    assert sum(our == their for our, their in rows) > 40 or type != "bytea" and value(db, "SELECT count(*) FROM ours WHERE fernet_is_token(value)") > 0


def test_errors_are_the_native_ones(db, native, rng):
    """Code, message and hint, except for the ways to set keys."""
    keys = [pyca.key_of(rng) for _ in range(2)]
    token = pyca.encrypt(keys[0], b"attack at dawn\xff", 1_000_000_000).decode()
    future = pyca.encrypt(keys[0], b"attack at dawn", 2**40).decode()
    badly_padded = test_mutations.wrongly_padded(rng, keys[1]).decode()
    unknown = pyca.encrypt(pyca.key_of(rng), b"attack at dawn", 0).decode()
    calls = [("fernet_decrypt(%s)", token), ("fernet_decrypt(%s, '1 s')", token), ("fernet_decrypt(%s, '1 s')", future),
             ("fernet_decrypt_bytea(%s, '1 s')", future)]
    for function in ("fernet_decrypt", "fernet_decrypt_bytea", "fernet_rotate", "fernet_timestamp"):
        calls += [(function + "(%s)", bad) for bad in ("attack at dawn", "", unknown, badly_padded, f"{unknown},{badly_padded}", token[:-4])]
    seen = set()
    for session in db, native:
        set_keys(session, *keys)
    for call, argument in calls:
        said = []
        for session in db, native:
            try:
                said.append(value(session, f"SELECT {call}::text", argument))
            except psycopg.Error as error:
                said.append((error.sqlstate, error.diag.message_primary, error.diag.message_hint, error.diag.message_detail))
                if session is db:
                    assert not re.search("attack|dawn|" + argument[:8], str(error)) or not argument
        assert said[0] == said[1], (call, argument)
        if isinstance(said[0], tuple):
            seen.add(said[0][:2])
    assert len(seen) == 6


def test_no_keys(db):
    for setting in None, "":
        if setting is not None:
            set_keys(db, setting)
        for call in ("fernet_encrypt('x')", "fernet_decrypt('x')", "fernet_rotate('x')", "fernet_key_index('x')", "fernet_timestamp('x')",
                     "fernet_keys()", "fernet_rotate('1'::json)", "fernet_key_index('1'::jsonb)"):
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no Fernet keys are configured"):
                db.execute(f"SELECT {call}")
    set_keys(db, "\n ")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="fernet.keys: the key list is empty"):
        db.execute("SELECT fernet_encrypt('x')")


def test_text_of_utf8(db, native, rng):
    """Valid, invalid, with a zero byte: as the server takes it, and never shown."""
    key = pyca.key_of(rng)
    plaintexts = [b"", b"back\\slash", "é€😀".encode(), b"\x00", b"a\x00b", b"\xc0\x80", b"\xc1\xbf", b"\xed\xa0\x80", b"\xed\x9f\xbf", b"\xf4\x8f\xbf\xbf",
                  b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf", b"\xe0\xa0\x80", b"\xf0\x8f\xbf\xbf", b"\xf0\x90\x80\x80", b"\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\x7f"]
    plaintexts += [bytes(rng.choice(b"\x41\x7f\x80\x8f\x90\x9f\xa0\xbf\xc2\xdf\xe0\xe1\xed\xef\xf0\xf1\xf4\xf5") for _ in range(rng.randint(1, 5)))
                   for _ in range(2000)]
    tokens = [pyca.encrypt(key, plaintext, 0) for plaintext in plaintexts]
    for session in db, native:
        set_keys(session, key)
    assert attempts(db, "fernet_decrypt($1)", tokens) == attempts(native, "fernet_decrypt($1)", tokens)


def test_plaintexts_of_all_lengths(db, rng):
    key = pyca.key_of(rng)
    set_keys(db, key)
    for len in [*range(70), 1000, 100_000]:
        plaintext = rng.randbytes(len)
        token = value(db, "SELECT fernet_encrypt(%s::bytea)", plaintext)
        assert pyca.decrypt([key], token.encode()) == plaintext
        assert value(db, "SELECT fernet_decrypt_bytea(%s)", token) == plaintext
        assert base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)).decode() == token
