-- fernet_rotate: old tokens move to the first key, with their timestamps; others do not change.

SET timezone = 'UTC';
SET datestyle = 'ISO';
\set new 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE='
\set old 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI='
\set older 'MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM='
\set new_old :new,:old
\set new_old_older :new,:old,:older
\set old_new :old,:new
\set old_old_new :old,:old,:new
\set new_old_new_old :new,:old,:new,:old
LOAD 'pg_fernet';
SET fernet.keys = :'new_old_older';

-- Made by Python in 2001, all with the same IV; "hello" in each.
CREATE TABLE secrets (name text PRIMARY KEY, token text, bytes bytea GENERATED ALWAYS AS (token::bytea) STORED);
INSERT INTO secrets VALUES
    ('new',   'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g=='),
    ('old',   'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD5WyLJgw_9P2iEy0NokqJ-CmHJ1R9U9eQJix9FbEyasbydUOp8SIUKjh8vE4I5Vbew=='),
    ('older', 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD38dYpdtjviUCNSTHw1jjEG4ixReflQki3CSKQ7bicZPUSLAUyqsoyHN_xbLoH9aHA=='),
    ('none',  NULL);

-- An old token gets a new IV each time; a new token stays.
SELECT name, fernet_key_index(token) AS before, fernet_key_index(rotated) AS after, fernet_decrypt(rotated),
       fernet_timestamp(rotated), rotated = token AS same, rotated = fernet_rotate(token) AS same_iv
FROM (SELECT *, fernet_rotate(token) AS rotated FROM secrets) AS s ORDER BY name;

-- Tokens in bytea come back as bytea.
SELECT name, pg_typeof(rotated), fernet_key_index(rotated), fernet_decrypt(rotated), fernet_timestamp(rotated), rotated = bytes AS same
FROM (SELECT *, fernet_rotate(bytes) AS rotated FROM secrets) AS s ORDER BY name;

-- The one UPDATE, and the same again: the second run changes nothing.
UPDATE secrets SET token = fernet_rotate(token);
CREATE TEMP TABLE first_run AS SELECT name, token FROM secrets;
UPDATE secrets SET token = fernet_rotate(token);
SELECT count(*) AS tokens, count(*) FILTER (WHERE secrets.token = first_run.token) AS same,
       count(*) FILTER (WHERE fernet_key_index(secrets.token) = 1) AS under_first_key
FROM secrets JOIN first_run USING (name);
DROP TABLE first_run;

-- The old keys can be removed.
SET fernet.keys = :'new';
SELECT name, fernet_decrypt(token), fernet_timestamp(token) FROM secrets ORDER BY name;

-- Back again: only the order of the list decides.
SET fernet.keys = :'old_new';
UPDATE secrets SET token = fernet_rotate(token);
SET fernet.keys = :'old';
SELECT name, fernet_decrypt(token), fernet_timestamp(token) FROM secrets ORDER BY name;

-- One bad value fails the statement and changes nothing.
CREATE TABLE mixed (id int PRIMARY KEY, token text);
INSERT INTO mixed SELECT n, fernet_encrypt('hello') FROM generate_series(1, 3) AS n;
INSERT INTO mixed VALUES (4, 'plaintext');
SET fernet.keys = :'new_old';
UPDATE mixed SET token = fernet_rotate(token);
SELECT id, fernet_key_index(token) FROM mixed ORDER BY id;
UPDATE mixed SET token = fernet_rotate(token) WHERE fernet_key_index(token) > 1;
SELECT id, fernet_key_index(token) FROM mixed ORDER BY id;
DROP TABLE mixed;

-- Forms that pyca reads: white space, quotes, the other alphabet, what follows the padding. The new
-- token is canonical, and what is around it stays.
\set token 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD5WyLJgw_9P2iEy0NokqJ-CmHJ1R9U9eQJix9FbEyasbydUOp8SIUKjh8vE4I5Vbew=='
SELECT what, fernet_key_index(token), length(token), length(rotated), fernet_decrypt(rotated), regexp_replace(rotated, '[-_A-Za-z0-9]{98}==', '<token>') AS around
FROM (VALUES
    ('canonical', :'token'),
    ('other alphabet', translate(:'token', '-_', '+/')),
    ('white space', E' \t' || regexp_replace(:'token', '(.{20})', E'\\1\r\n', 'g') || E'\n'),
    ('quotes', '"' || :'token' || '"'),
    ('after the padding', :'token' || 'Zm9v'),
    ('one = more', :'token' || '='),
    ('= inside', left(:'token', 2) || '=' || substr(:'token', 3))
) AS forms (what, token), fernet_rotate(token) AS rotated;
-- If it is already under the first key, such a form comes back unchanged, too.
SET fernet.keys = :'old_new';
SELECT fernet_rotate(E'\n' || :'token') = E'\n' || :'token' AS same;

-- A key that is in the list twice: the first place counts, wherever the second is.
SET fernet.keys = :'old_old_new';
SELECT fernet_key_index(:'token'), fernet_rotate(:'token') = :'token' AS same;
SET fernet.keys = :'new_old_new_old';
SELECT fernet_key_index(:'token'), fernet_key_index(rotated), fernet_rotate(rotated) = rotated AS same
FROM fernet_rotate(:'token') AS rotated;

-- Keys that share their signing half: both authenticate the token, one decrypts it.
\set half 'MjIyMjIyMjIyMjIyMjIyMjQ0NDQ0NDQ0NDQ0NDQ0NDQ='
\set half_old :half,:old
SET fernet.keys = :'half_old';
SELECT fernet_decrypt(:'token'), fernet_rotate(:'token') = :'token' AS same, fernet_decrypt(fernet_rotate(:'token'));

-- "Unchanged" is the very same value: nothing is written for one that is out of line.
CREATE TABLE large (token text);
SET fernet.keys = :'old';
INSERT INTO large SELECT fernet_encrypt(string_agg(md5(n::text), '')) FROM generate_series(1, 1000) AS n;
SELECT reltoastrelid AS toast, pg_relation_size(reltoastrelid) AS size FROM pg_class WHERE oid = 'large'::regclass \gset
SET fernet.keys = :'new_old';
UPDATE large SET token = fernet_rotate(token);
SELECT pg_relation_size(:toast) > :size AS written, pg_relation_size(:toast) AS size \gset
\echo :written
UPDATE large SET token = fernet_rotate(token);
SELECT pg_relation_size(:toast) > :size AS written \gset
\echo :written
SELECT fernet_key_index(token), fernet_decrypt(token) = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) AS n) AS equal FROM large;
DROP TABLE large, secrets;
