"""No body looks anything up through the caller's path: bodies without their own path qualify all names.

test_install.py sets traps there, and so tests what it runs. This test reads every line.
"""

import re

import pytest

SCHEMA = "public"
UNPINNED = """
    SELECT oid::regprocedure::text, prosrc FROM pg_proc
    WHERE pronamespace = %s::regnamespace AND proname ~ '^_?fernet_' AND prosqlbody IS NULL
      AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, '{}'))"""

TOKEN = re.compile(
    r"""\s+|--[^\n]*
      | (?P<string>[eE]?'(?:[^'\\]|''|\\.)*')
      | (?P<qualified>OPERATOR\(pg_catalog\.[^)]+\))
      | (?P<name>(?:[A-Za-z_]\w*|"[^"]*")(?:\.(?:[A-Za-z_]\w*|"[^"]*"))*)
      | (?P<number>\d+)
      | (?P<operator>::|:=|=>|\.\.|[-+*/<>=~!@\#%^&|?]+)
      | (?P<other>.)""",
    re.VERBOSE)
# In the grammar these are not names.
TYPES = {"boolean", "integer", "bigint", "interval"}
CALLS = {"coalesce", "greatest", "least", "row", "array", "all", "any", "values", "if", "elsif", "while", "when", "and", "or", "not",
         "return", "select", "then", "else"}
BEFORE_LITERALS = {"return", "when", "then", "else", "and", "or", "execute", "exception", "notice", "warning", "e", "interval", "select",
                   "sqlstate", "default"}
OPTIONS = {"errcode", "message", "detail", "hint"}


def types(name):
    if name not in TYPES and not name.startswith("pg_catalog."):
        yield name


def lookups(body):
    """The names that a body looks up through the path, in a form of SQL and PL/pgSQL that is enough for ours."""
    tokens = [(match.lastgroup, match[0] if match.lastgroup == "string" else match[0].lower())
              for match in TOKEN.finditer(body) if match.lastgroup]
    tokens += [("", "")] * 3
    is_declaration = False
    for place in range(len(tokens) - 3):
        (_, before_last), (_, last) = tokens[place - 2], tokens[place - 1]
        (kind, token), (next_kind, next_token) = tokens[place], tokens[place + 1]
        is_qualified = token.startswith(("pg_catalog.", SCHEMA + "."))
        if token == "declare":
            is_declaration = True
        elif token == "begin":
            is_declaration = False
        elif last == "::" or is_declaration and last == "constant":
            yield from types(token)
        elif is_declaration and last in ("declare", ";"):
            yield from types(next_token) if next_token != "constant" else ()
        elif kind == "operator" and token not in ("::", ":=", "=>", "..") and not (token == "=" and last in OPTIONS):
            yield token
        elif kind == "name" and token in ("nullif", "between", "like", "ilike", "similar", "overlaps", "natural"):
            yield token
        elif token == "case" and next_token != "when" and last != "end":
            yield token
        elif token == "in" and tokens[place - 2][1] != "for" or token == "is" and "distinct" in (next_token, tokens[place + 2][1]):
            yield token
        elif token in ("from", "join", "collate") and next_kind == "name" and not next_token.startswith(("pg_catalog.", SCHEMA + ".")):
            yield next_token
        elif token == "using" and next_token == "(":
            yield token
        elif kind == "name" and not is_qualified and next_token == "(" and token not in CALLS and last != "as":
            yield token
        elif kind == "name" and not is_qualified and next_kind == "string" and token not in BEFORE_LITERALS:
            yield token
        elif kind == "string" and (last == "execute" or before_last == "pg_catalog.format"):
            # A statement, with names put in.
            yield from lookups(re.sub(r"%(\d\$)?[IsL]", "x", token.strip("eE")[1:-1]))


def test_bodies_look_nothing_up(db):
    bodies = db.execute(UNPINNED, [SCHEMA]).fetchall()
    assert len(bodies) > 20
    assert {name: found for name, body in bodies if (found := list(lookups(body)))} == {}


def test_no_qualification_can_be_left_out(db):
    for name, body in db.execute(UNPINNED, [SCHEMA]).fetchall():
        for place in re.finditer(r"OPERATOR\(pg_catalog\.([^)]+)\)|pg_catalog\.", body):
            without = body[:place.start()] + (place[1] or "") + body[place.end():]
            assert list(lookups(without)), (name, body[place.start() - 50:place.end() + 50])


@pytest.mark.parametrize("looked_up, body", [
    ("record", "DECLARE found record; BEGIN END"),
    ("text", "DECLARE a integer; b constant text := 'x'; BEGIN END"),
    ("case", "BEGIN a := CASE b WHEN 'c' THEN 1 END; END"),
    ("=", "BEGIN IF a = b THEN RETURN; END IF; END"),
    ("||", "BEGIN a := b || 'c'; END"),
    ("in", "BEGIN IF a IN ('b') THEN RETURN; END IF; END"),
    ("is", "BEGIN a := b IS DISTINCT FROM c; END"),
    ("is", "BEGIN a := b IS NOT DISTINCT FROM pg_catalog.c; END"),
    ("nullif", "BEGIN a := NULLIF(b, c); END"),
    ("between", "BEGIN a := b BETWEEN 1 AND 2; END"),
    ("like", "BEGIN a := b LIKE 'c'; END"),
    ("text", "BEGIN a := b::text; END"),
    ("timestamptz", "BEGIN a := timestamptz '2000-01-01'; END"),
    ("length", "BEGIN a := length(b); END"),
    ("unnest", "BEGIN FOR a IN unnest(b) LOOP RETURN; END LOOP; END"),
    ("other.length", "BEGIN a := other.length(b); END"),
    ("pg_class", "BEGIN PERFORM 1 FROM pg_class; END"),
    ("using", "BEGIN PERFORM 1 FROM pg_catalog.a JOIN pg_catalog.b USING (c); END"),
    ("\"c\"", "DECLARE a pg_catalog.text COLLATE \"C\"; BEGIN END"),
    ("length", "BEGIN EXECUTE 'SELECT length($1)' INTO a USING b; END"),
    ("text", "BEGIN EXECUTE pg_catalog.format('SELECT ($1).%I::text', a) INTO b USING c; END"),
])
def test_what_is_looked_up_is_found(looked_up, body):
    assert looked_up in lookups(body)
