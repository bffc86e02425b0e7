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
-- No function looks another one up, so the search path does not matter.
SET search_path = '';
SELECT crypt.fernet_decrypt(crypt.fernet_encrypt('hello'), '1 hour');
RESET search_path;

-- PUBLIC has the same privileges as in another schema.
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

-- Objects that use it prevent DROP EXTENSION.
DROP EXTENSION pg_fernet;
DROP TABLE guarded;
DROP EXTENSION pg_fernet;
SELECT count(*) FROM pg_proc WHERE proname LIKE 'fernet%';
DROP SCHEMA "Other Schema";

-- Other functions with the same names in its schema are not in the way.
CREATE FUNCTION crypt.fernet_keys(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION crypt.fernet_find_columns() RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE crypt.fernet_census() LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE crypt.fernet_rotate_column(integer) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION crypt.fernet_rotate_shard(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE EXTENSION pg_fernet SCHEMA crypt;
SELECT count(*) FROM pg_proc WHERE pronamespace = 'crypt'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL;
DROP EXTENSION pg_fernet;

-- A warning, if other roles may create something there that fits a call better: in the schema itself,
\set VERBOSITY default
CREATE ROLE regress_fernet_1;
CREATE ROLE "regress fernet 2";
CREATE ROLE regress_fernet_super SUPERUSER;
GRANT USAGE ON SCHEMA crypt TO PUBLIC;
GRANT CREATE ON SCHEMA crypt TO regress_fernet_super;
CREATE EXTENSION pg_fernet SCHEMA crypt;
DROP EXTENSION pg_fernet;
GRANT CREATE ON SCHEMA crypt TO regress_fernet_1, "regress fernet 2";
CREATE EXTENSION pg_fernet SCHEMA crypt;
DROP EXTENSION pg_fernet;
REVOKE CREATE ON SCHEMA crypt FROM regress_fernet_1, "regress fernet 2";
GRANT CREATE ON SCHEMA crypt TO PUBLIC;
CREATE EXTENSION pg_fernet SCHEMA crypt;
DROP EXTENSION pg_fernet;
REVOKE CREATE ON SCHEMA crypt FROM PUBLIC;
-- as its owner,
ALTER SCHEMA crypt OWNER TO regress_fernet_1;
REVOKE CREATE ON SCHEMA crypt FROM regress_fernet_1;
CREATE EXTENSION pg_fernet SCHEMA crypt;
DROP EXTENSION pg_fernet;
-- or as the owner of the database.
ALTER SCHEMA crypt OWNER TO pg_database_owner;
CREATE EXTENSION pg_fernet SCHEMA crypt;
DROP EXTENSION pg_fernet;
SELECT current_database() AS db, current_user AS me \gset
ALTER DATABASE :"db" OWNER TO "regress fernet 2";
CREATE EXTENSION pg_fernet SCHEMA crypt;
DROP EXTENSION pg_fernet;
ALTER DATABASE :"db" OWNER TO :"me";
\set VERBOSITY terse
DROP SCHEMA crypt CASCADE;
DROP ROLE regress_fernet_1, "regress fernet 2", regress_fernet_super;

-- A dropped extension forgets no setting of the session.
CREATE EXTENSION pg_fernet;
SELECT fernet_decrypt(fernet_encrypt('hello'));
