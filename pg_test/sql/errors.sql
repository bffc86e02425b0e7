-- Every error: its SQLSTATE, message and hint; none of them repeats the value.

\set new 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE='
\set old 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI='
\set new_old :new,:old
\set token 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g=='
LOAD 'pg_fernet';

-- No keys are configured.
SELECT fernet_encrypt('hello');
\echo :SQLSTATE
SELECT fernet_encrypt('hello'::bytea);
\echo :SQLSTATE
SELECT fernet_decrypt(:'token');
\echo :SQLSTATE
SELECT fernet_decrypt(:'token', '1 s');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'token');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'token', '1 s');
\echo :SQLSTATE
SELECT fernet_rotate(:'token');
\echo :SQLSTATE
SELECT fernet_key_index(:'token');
\echo :SQLSTATE
SELECT fernet_timestamp(:'token');
\echo :SQLSTATE
SELECT * FROM fernet_keys();
\echo :SQLSTATE

-- A key in the list is not valid; a list is empty.
SET fernet.keys = :'new', 'not a key';
\echo :SQLSTATE
SET fernet.keys = '';
\echo :SQLSTATE

-- The key file cannot be read; it is not a file that can be private.
SET fernet.keys_file = '/nonexistent/keys';
SELECT fernet_decrypt(:'token');
\echo :SQLSTATE
SET fernet.keys_file = '/';
SELECT fernet_decrypt(:'token');
\echo :SQLSTATE
RESET fernet.keys_file;

-- Not a token.
SET fernet.keys = :'new';
SELECT fernet_decrypt('plaintext');
\echo :SQLSTATE
SELECT fernet_decrypt('plaintext'::bytea);
\echo :SQLSTATE
SELECT fernet_decrypt('plaintext', '1 s');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea('plaintext');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea('plaintext', '1 s');
\echo :SQLSTATE
SELECT fernet_rotate('plaintext');
\echo :SQLSTATE
SELECT fernet_rotate('plaintext'::bytea);
\echo :SQLSTATE
SELECT fernet_timestamp('plaintext');
\echo :SQLSTATE

-- No key authenticates the token.
SET fernet.keys = :'old';
SELECT fernet_decrypt(:'token');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'token');
\echo :SQLSTATE
SELECT fernet_rotate(:'token');
\echo :SQLSTATE
SELECT fernet_timestamp(:'token');
\echo :SQLSTATE
-- Nothing is said about the time of a token that is not authentic.
SELECT fernet_decrypt(:'token', '1 s');
\echo :SQLSTATE

-- The key authenticates the token, but its padding is wrong.
SET fernet.keys = :'new_old';
\set bad_padding 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0ODwAAAAAAAAAAAAAAAAAAAABXzX8OKQfDdnXmyrQyGFZdWClBDcLSmAQJG_8uck8fYQ=='
SELECT fernet_decrypt(:'bad_padding');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'bad_padding');
\echo :SQLSTATE
SELECT fernet_rotate(:'bad_padding');
\echo :SQLSTATE

-- Expired; too far in the future.
SELECT fernet_decrypt(:'token', '1 s');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'token', '1 s');
\echo :SQLSTATE
SELECT fernet_decrypt(:'token', '1 s', '2000-01-01');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'token', '1 s', '2000-01-01');
\echo :SQLSTATE

-- The plaintext is LATIN1, not UTF-8; it holds a zero byte.
\set latin1 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD3t279Sa34-J3949b91OZTuKMusC0qxyCZFWal-BCuJNn4kpPEy8DJ0gD8T4rO-0jw=='
SELECT fernet_decrypt(:'latin1');
\echo :SQLSTATE
SELECT fernet_decrypt(:'latin1', '1 s', '2001-09-09 01:46:40Z');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'latin1');
\set zero_byte 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD3WQ_sGSvKxq4EXRJ5sV4qmSsxSjId9cYeIcUmNukVFiqgtyS5Z7xHE2lx3tUzrW6Q=='
SELECT fernet_decrypt(:'zero_byte');
\echo :SQLSTATE
SELECT fernet_decrypt_bytea(:'zero_byte');

-- A session goes on after errors, within the transaction, too.
BEGIN;
SAVEPOINT before;
SELECT fernet_decrypt('plaintext');
ROLLBACK TO before;
SELECT fernet_decrypt(:'token');
COMMIT;

-- An exception block cannot read the value that failed.
DO $$
DECLARE
    message text; detail text; hint text; context text;
BEGIN
    PERFORM fernet_decrypt('plaintext');
EXCEPTION WHEN invalid_text_representation THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RAISE INFO 'message: %', message;
    RAISE INFO 'detail: %', detail;
    RAISE INFO 'hint: %', hint;
END $$;
