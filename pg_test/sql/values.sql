-- Tokens in a value: each is rotated where it is, and every other byte stays.

\set new 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE='
\set old 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI='
\set lost 'MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM='
\set new_old :new,:old
LOAD 'pg_fernet';

-- A value with each token replaced by its key and its plaintext.
CREATE FUNCTION pg_temp.shown(value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    token text;
BEGIN
    FOR token IN SELECT m[1] FROM regexp_matches(value, 'gAAAAA[-_+/A-Za-z0-9]{20,}', 'g') AS m LOOP
        value := replace(value, token, coalesce(
            '<' || fernet_key_index(token || '==') || ' ' || fernet_decrypt(token || '==') || '>', '<unknown>'));
    END LOOP;
    RETURN value;
EXCEPTION WHEN external_routine_invocation_exception THEN
    RETURN replace(value, token, '<unknown>');
END $$;

SET fernet.keys = :'old';
SELECT fernet_encrypt('a') AS a, fernet_encrypt('b') AS b, fernet_encrypt(repeat('c', 20)) AS unpadded \gset
SET fernet.keys = :'new';
SELECT fernet_encrypt('new') AS current \gset
SET fernet.keys = :'lost';
SELECT fernet_encrypt('lost') AS unknown \gset
SET fernet.keys = :'new_old';

CREATE TABLE samples (n int GENERATED ALWAYS AS IDENTITY, value text);
INSERT INTO samples (value) VALUES
    (:'a' || ',' || :'b'),
    (:'a' || E'\n' || :'b'),
    ('["' || :'a' || '","' || :'b' || '"]'),
    ('{"x":"' || :'a' || '"}'),
    ('"' || :'a' || '"'),
    (:'a' || ' # note'),
    (E'  ' || :'a' || E'\n'),
    ('fernet:' || :'a'),
    ('v1' || :'a'),
    -- JSON in JSON: what ends in n, before the token, is a line break.
    ('"{\"x\":\"\n' || replace(:'a', '=', '\u003d') || '\"}"'),
    ('token=' || replace(:'a', '=', '%3D') || '&next=' || :'unpadded'),
    (:'unpadded' || ',' || :'unpadded' || '.'),
    (:'current' || ',' || :'a'),
    (:'current' || ',' || :'current'),
    ('é ' || translate(:'a', '-_', '+/') || ' é');
SELECT pg_temp.shown(value) AS before, fernet_key_index(value) AS key, pg_temp.shown(rotated) AS after,
       fernet_key_index(rotated) AS key, length(value) = length(rotated) AS same_length
FROM samples, fernet_rotate(value) AS rotated ORDER BY n;
-- The same in bytea.
SELECT count(*) AS "values", bool_and(pg_temp.shown(convert_from(rotated, 'UTF8')) = pg_temp.shown(fernet_rotate(value))) AS same,
       bool_and(fernet_key_index(convert_to(value, 'UTF8')) = fernet_key_index(value)) AS same_key
FROM samples, fernet_rotate(convert_to(value, 'UTF8')) AS rotated;
-- A second run changes nothing.
CREATE TABLE rotated AS SELECT n, fernet_rotate(value) AS value FROM samples;
SELECT count(*) AS "values", bool_and(fernet_rotate(value) = value) AS same, max(fernet_key_index(value)) AS key FROM rotated;
-- The condition picks exactly what changes.
SELECT count(*) FILTER (WHERE fernet_key_index(value) > 1) AS picked, count(*) FILTER (WHERE fernet_rotate(value) <> value) AS changed,
       bool_and((fernet_key_index(value) > 1) = (fernet_rotate(value) <> value)) AS same FROM samples;

-- The line breaks in a token are removed; the text around it stays.
SELECT replace(pg_temp.shown(fernet_rotate(value)), E'\n', '|') AS after, fernet_key_index(value) AS key
FROM (VALUES (regexp_replace(:'a', '(.{30})', E'\\1\n', 'g')),
             (E'\n' || regexp_replace(:'a', '(.{30})', E'\\1\n', 'g') || E'\n# note\n'),
             (regexp_replace(:'a', '(.{30})', E'\\1\n', 'g') || ',' || :'b')) AS s (value);

-- The census counts tokens, not values.
INSERT INTO samples (value) VALUES (:'unknown'), (:'a' || ',' || :'unknown'), ('plaintext'), (NULL);
SELECT status, key_index, tokens FROM fernet_census('samples', 'value');

-- A token that no key opens, beside one that a key opens: nothing changes.
\set VERBOSITY terse
SELECT fernet_rotate(:'a' || ',' || :'unknown');
\echo :SQLSTATE
SELECT fernet_rotate('["' || :'unknown' || '"]');
\echo :SQLSTATE
SELECT fernet_key_index(:'a' || ',' || :'unknown') AS old_and_unknown, fernet_key_index('["' || :'unknown' || '"]') AS unknown;
UPDATE samples SET value = fernet_rotate(value);
SELECT count(*) FILTER (WHERE fernet_key_index(value) > 1) AS old FROM samples;
UPDATE samples SET value = fernet_rotate(value) WHERE fernet_key_index(value) > 1;
SELECT status, key_index, tokens FROM fernet_census('samples', 'value');

-- Not tokens: an image, a token that is cut short, and one that has lost its padding.
CREATE TABLE others (what text, value text);
INSERT INTO others VALUES
    ('image', 'data:image/png;base64,iVBORw0KGgo' || repeat('gAAAAAx/', 100) || '=='),
    ('cut short', '"' || left(:'a', 90) || '"'),
    ('no padding', '"' || rtrim(:'a', '=') || '"'),
    ('half a padding', '"' || rtrim(:'a', '=') || '="'),
    ('unknown, behind a letter', 'x' || :'unknown'),
    ('empty', '');
SELECT what, fernet_key_index(value) FROM others;
SELECT fernet_rotate(value) FROM others WHERE what = 'image';
\echo :SQLSTATE
SELECT fernet_rotate(value) FROM others WHERE what = 'unknown, behind a letter';
SELECT status, tokens FROM fernet_census('others', 'value') WHERE tokens > 0;

-- The HMAC is right, the padding is not: an Elixir library wrote this one. No key opens it.
\set new_elixir :new,fJXYWeIEcXMO3tLDheFVezM5QWBVFvkymG80n0Rluqs=
SET fernet.keys = :'new_elixir';
\set elixir 'gAAAAABbMo2BBMM_-oujQN75vi92E0_HDf-TWTLLZYX6S3sqDyJh4QL9Qqi4oPP47mEcc5OBQ2qUmqJfJVmt1UBuRBK096V8Rp5M-f-sjS79HKJedlg9Ay4='
SELECT fernet_key_index(:'elixir'), fernet_timestamp(:'elixir') IS NOT NULL AS authentic;
SELECT fernet_rotate(:'elixir');
SELECT fernet_rotate('"' || :'elixir' || '"');
\echo :SQLSTATE

-- A megabyte of the start of a token, without a token and with one after it.
SET fernet.keys = :'new_old';
SET statement_timeout = '10s';
SELECT fernet_key_index(hostile) AS none, fernet_key_index(hostile || :'a') AS one, fernet_decrypt(right(fernet_rotate(hostile || :'a'), 100))
FROM repeat('gAAA', 262144) AS hostile;
RESET statement_timeout;
DROP TABLE samples, rotated, others;

-- Text between a token and padding that is not its own stays; white space in a wrapped token is removed.
SELECT pg_temp.shown(value) AS before, pg_temp.shown(fernet_rotate(value)) AS after
FROM (VALUES ('["' || rtrim(:'a', '=') || '", "==", "' || :'b' || '"]'),
             (rtrim(:'a', '=') || ' — «…» ==, and more'),
             (rtrim(:'a', '=') || E'\n= =\n')) AS v (value);
