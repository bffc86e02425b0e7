-- What can be learnt about a token: key_index, is_token, timestamp.

SET timezone = 'UTC';
SET datestyle = 'ISO';
\set new 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE='
\set old 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI='
\set new_old :new,:old
\set old_new :old,:new
LOAD 'pg_fernet';

CREATE TABLE samples (n int, what text, value text);
INSERT INTO samples VALUES
    (1, 'first key', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g=='),
    (2, 'second key', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD5WyLJgw_9P2iEy0NokqJ-CmHJ1R9U9eQJix9FbEyasbydUOp8SIUKjh8vE4I5Vbew=='),
    (3, 'unknown key', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD-bCvhizDVSgLrElRUppSgvLD6gDYq_OcuYEEU7mn4Zzg-s4E5c1KcM53QdqDPBz7w=='),
    (4, 'first key, bad padding', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0ODwAAAAAAAAAAAAAAAAAAAABXzX8OKQfDdnXmyrQyGFZdWClBDcLSmAQJG_8uck8fYQ=='),
    -- The HMAC of the next three is right. A key that is tried would open them.
    (5, 'no ciphertext', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD_46PCfh1csapwwfOicy4KAzy2lZQaE6XUi1hiTCXNON'),
    (6, 'part of a block', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0ODwAAAAAAAAAAAAAAAAAAAAAAuey1aKpWvEgxjE_sNIHZYDWyCQvrlq3QkvxEEoPXgoc='),
    (7, 'version 81', 'gQAAAAA7msoAAAECAwQFBgcICQoLDA0ODwAAAAAAAAAAAAAAAAAAAAAtvjEaZxDYgOu_wLurf6Um2amEupbwEj2_tVujVtTC5A=='),
    (8, 'second key, white space', E' gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD5WyLJgw_9P2iEy0NokqJ-\nCmHJ1R9U9eQJix9FbEyasbydUOp8SIUKjh8vE4I5Vbew=='),
    (9, 'no padding', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g'),
    (10, 'plaintext', 'postgresql://user:password@host/db'),
    (11, 'empty', ''),
    (12, 'null', NULL);

-- The form needs no key.
SELECT n, what, fernet_is_token(value) AS text, fernet_is_token(value::bytea) AS bytea FROM samples ORDER BY n;
SELECT fernet_is_token('\x00ff'::bytea), fernet_is_token('plaintext');

-- Never an error: NULL if no key opens the value.
SET fernet.keys = :'new_old';
SELECT n, what, fernet_key_index(value) AS text, fernet_key_index(value::bytea) AS bytea FROM samples ORDER BY n;
SELECT fernet_key_index('\x00ff'::bytea);

-- What is left to rotate.
SELECT n, what FROM samples WHERE fernet_key_index(value) > 1 ORDER BY n;

-- In the other order.
SET fernet.keys = :'old_new';
SELECT n, what, fernet_key_index(value) FROM samples WHERE fernet_key_index(value) IS NOT NULL ORDER BY n;

-- The timestamp needs the key: without an authentic token, it means nothing.
SELECT n, what, fernet_timestamp(value) AS text, fernet_timestamp(value::bytea) AS bytea FROM samples WHERE n IN (1, 2, 8, 12) ORDER BY n;
SELECT fernet_timestamp(value) FROM samples WHERE n = 3;
SELECT fernet_timestamp(value::bytea) FROM samples WHERE n = 3;
SELECT fernet_timestamp(value) FROM samples WHERE n = 10;

-- A new token is stamped with the clock, not with the start of the transaction.
BEGIN;
SELECT pg_sleep(1.1);
SELECT fernet_timestamp(token) > now() AS after_start, fernet_timestamp(token) <= clock_timestamp() AS not_ahead
FROM fernet_encrypt('hello') AS token;
COMMIT;

-- The form is IMMUTABLE, so it can guard a column and carry an index.
CREATE TABLE guarded (token text CHECK (fernet_is_token(token)));
CREATE INDEX ON guarded (fernet_is_token(token));
INSERT INTO guarded SELECT value FROM samples WHERE n IN (1, 2, 3, 12);
\set VERBOSITY terse
INSERT INTO guarded VALUES ('plaintext');
\set VERBOSITY default
SELECT count(*) FROM guarded;
DROP TABLE guarded, samples;
