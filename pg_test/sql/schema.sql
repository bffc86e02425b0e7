-- The extension lives in any schema, moves to another, and leaves nothing behind.

\set VERBOSITY terse
LOAD 'pg_fernet';
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
DROP EXTENSION pg_fernet;
SELECT count(*) FROM pg_proc WHERE proname LIKE 'fernet%';

CREATE SCHEMA crypt;
CREATE EXTENSION pg_fernet SCHEMA crypt;
SELECT fernet_decrypt(fernet_encrypt('hello'));
SELECT crypt.fernet_decrypt(crypt.fernet_encrypt('hello')), crypt.fernet_decrypt(crypt.fernet_encrypt('hello'), '1 hour'),
       crypt.fernet_key_index(crypt.fernet_rotate(crypt.fernet_encrypt('hello'))), (SELECT count(*) FROM crypt.fernet_keys());
-- No function looks for another one: the search path is of no matter.
SET search_path = '';
SELECT crypt.fernet_decrypt(crypt.fernet_encrypt('hello'), '1 hour');
RESET search_path;

-- PUBLIC has what it has elsewhere.
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'crypt'::regnamespace AND has_function_privilege('public', oid, 'EXECUTE')
ORDER BY oid::regprocedure::text COLLATE "C";

-- Moved, with what uses it.
CREATE TABLE guarded (token text CHECK (crypt.fernet_is_token(token)));
CREATE SCHEMA "Other Schema";
ALTER EXTENSION pg_fernet SET SCHEMA "Other Schema";
SELECT crypt.fernet_encrypt('hello');
INSERT INTO guarded SELECT "Other Schema".fernet_encrypt('hello');
INSERT INTO guarded VALUES ('hello');
SELECT "Other Schema".fernet_decrypt(token) FROM guarded;

-- What uses it holds it.
DROP EXTENSION pg_fernet;
DROP TABLE guarded;
DROP EXTENSION pg_fernet;
SELECT count(*) FROM pg_proc WHERE proname LIKE 'fernet%';
DROP SCHEMA crypt, "Other Schema";

-- A dropped extension forgets no setting of the session.
CREATE EXTENSION pg_fernet;
SELECT fernet_decrypt(fernet_encrypt('hello'));
