-- PUBLIC may make keys and look at the form of a value; the rest is granted function by function.

LOAD 'pg_fernet';
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
CREATE ROLE regress_fernet ROLE CURRENT_USER;

CREATE TABLE calls (signature regprocedure, call text);
INSERT INTO calls SELECT signature::regprocedure, replace(call, 'TOKEN', $$'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g=='$$)
FROM (VALUES
    ('fernet_encrypt(text)', 'fernet_encrypt(''hello''::text)'),
    ('fernet_encrypt(bytea)', 'fernet_encrypt(''hello''::bytea)'),
    ('fernet_decrypt(text)', 'fernet_decrypt(TOKEN::text)'),
    ('fernet_decrypt(bytea)', 'fernet_decrypt(TOKEN::bytea)'),
    ('fernet_decrypt(text, interval, timestamptz)', 'fernet_decrypt(TOKEN::text, ''100 years'')'),
    ('fernet_decrypt(bytea, interval, timestamptz)', 'fernet_decrypt(TOKEN::bytea, ''100 years'')'),
    ('fernet_decrypt_bytea(text)', 'fernet_decrypt_bytea(TOKEN::text)'),
    ('fernet_decrypt_bytea(bytea)', 'fernet_decrypt_bytea(TOKEN::bytea)'),
    ('fernet_decrypt_bytea(text, interval, timestamptz)', 'fernet_decrypt_bytea(TOKEN::text, ''100 years'')'),
    ('fernet_decrypt_bytea(bytea, interval, timestamptz)', 'fernet_decrypt_bytea(TOKEN::bytea, ''100 years'')'),
    ('fernet_rotate(text)', 'fernet_rotate(TOKEN::text)'),
    ('fernet_rotate(bytea)', 'fernet_rotate(TOKEN::bytea)'),
    ('fernet_rotate(json)', 'fernet_rotate(to_json(TOKEN::text))'),
    ('fernet_rotate(jsonb)', 'fernet_rotate(to_jsonb(TOKEN::text))'),
    ('fernet_key_index(json)', 'fernet_key_index(to_json(TOKEN::text))'),
    ('fernet_key_index(jsonb)', 'fernet_key_index(to_jsonb(TOKEN::text))'),
    ('fernet_key_index(text)', 'fernet_key_index(TOKEN::text)'),
    ('fernet_key_index(bytea)', 'fernet_key_index(TOKEN::bytea)'),
    ('fernet_timestamp(text)', 'fernet_timestamp(TOKEN::text)'),
    ('fernet_timestamp(bytea)', 'fernet_timestamp(TOKEN::bytea)'),
    ('fernet_keys()', 'fernet_keys()'),
    ('fernet_census(regclass, name)', 'fernet_census(''calls'', ''call'')'),
    ('fernet_find_columns(integer)', 'fernet_find_columns()'),
    ('fernet_is_token(text)', 'fernet_is_token(TOKEN::text)'),
    ('fernet_is_token(bytea)', 'fernet_is_token(TOKEN::bytea)'),
    ('fernet_generate_key()', 'fernet_generate_key()')
) AS v (signature, call);
GRANT SELECT ON calls TO regress_fernet;

-- Every function of the extension is in the table; what the procedure and the trigger need is tested with them.
SELECT objid::regprocedure AS missing FROM pg_depend JOIN pg_proc AS p ON p.oid = objid
WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet') AND classid = 'pg_proc'::regclass
  AND prokind <> 'p' AND prorettype <> 'trigger'::regtype
EXCEPT SELECT signature FROM calls;

-- What the role can run, by trying.
CREATE FUNCTION runs() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    c calls;
    succeeded text[];
BEGIN
    SET LOCAL ROLE regress_fernet;
    FOR c IN SELECT * FROM calls LOOP
        BEGIN
            EXECUTE 'SELECT ' || c.call;
            succeeded := succeeded || c.signature::text;
        EXCEPTION WHEN insufficient_privilege THEN
        END;
    END LOOP;
    RESET ROLE;
    RETURN (SELECT array_agg(s ORDER BY s COLLATE "C") FROM unnest(succeeded) AS s);
END $$;

-- Without a grant.
SELECT unnest(runs()) AS for_all;

-- Each of the others, granted by itself, runs and lets nothing else run.
CREATE FUNCTION granted_alone(signature regprocedure) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    before text[] := runs();
    gained text[];
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO regress_fernet', signature);
    gained := ARRAY(SELECT unnest(runs()) EXCEPT SELECT unnest(before));
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM regress_fernet', signature);
    RETURN gained;
END $$;
SELECT signature, granted_alone(signature) = ARRAY[signature::text] AS alone
FROM calls WHERE NOT signature::text = ANY (runs())
ORDER BY signature::text COLLATE "C";

-- A role that rotates, and cannot decrypt.
CREATE TABLE secrets (id int, token text);
INSERT INTO secrets VALUES (1, 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g==');
GRANT SELECT, UPDATE ON secrets TO regress_fernet;
GRANT EXECUTE ON FUNCTION fernet_rotate(text) TO regress_fernet;
SET fernet.keys = 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=,MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
SET ROLE regress_fernet;
UPDATE secrets SET token = fernet_rotate(token);
SELECT fernet_decrypt(token) FROM secrets;
SELECT fernet_decrypt_bytea(token::bytea) FROM secrets;
SELECT fernet_encrypt('hello');
SELECT * FROM fernet_keys();
RESET ROLE;
SELECT fernet_key_index(token), fernet_decrypt(token) FROM secrets;

-- An ordinary role may neither see the keys nor set them.
SET ROLE regress_fernet;
\set VERBOSITY sqlstate
SHOW fernet.keys;
SELECT current_setting('fernet.keys');
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
SELECT set_config('fernet.keys', 'bad', false);
RESET fernet.keys;
SET fernet.keys TO DEFAULT;
ALTER ROLE CURRENT_USER SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
\set VERBOSITY default
RESET ROLE;

-- With the privilege it may set them, and is still not shown them.
GRANT SET ON PARAMETER fernet.keys TO regress_fernet;
SET ROLE regress_fernet;
SET fernet.keys = 'bad';
SET fernet.keys = 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=';
\set VERBOSITY sqlstate
SHOW fernet.keys;
ALTER SYSTEM SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
\set VERBOSITY default
RESET ROLE;
SHOW fernet.keys;
REVOKE SET ON PARAMETER fernet.keys FROM regress_fernet;
SET ROLE regress_fernet;
\set VERBOSITY sqlstate
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
\set VERBOSITY default
RESET ROLE;

-- pg_read_all_settings shows them, as for every secret setting.
GRANT pg_read_all_settings TO regress_fernet;
SET ROLE regress_fernet;
SHOW fernet.keys;
RESET ROLE;

-- Whatever ALTER DEFAULT PRIVILEGES says, of one schema or of all, the privileges are the same.
CREATE SCHEMA crypt;
CREATE FUNCTION granted() RETURNS TABLE (function text, to_public boolean, to_role boolean) LANGUAGE sql AS $$
    SELECT p.oid::regprocedure::text AS function, has_function_privilege('public', p.oid, 'EXECUTE'),
           has_function_privilege('regress_fernet', p.oid, 'EXECUTE')
    FROM pg_proc AS p WHERE proname ~ '^fernet' AND (proacl IS NULL OR array_length(proacl, 1) > 1)
    ORDER BY p.oid::regprocedure::text COLLATE "C" $$;
CREATE PROCEDURE test_default_privileges(VARIADIC defaults text[]) LANGUAGE plpgsql AS $$
DECLARE
    privileges text;
BEGIN
    FOREACH privileges IN ARRAY defaults LOOP
        EXECUTE 'ALTER DEFAULT PRIVILEGES ' || privileges;
    END LOOP;
    DROP EXTENSION pg_fernet;
    CREATE EXTENSION pg_fernet SCHEMA crypt;
END $$;
REVOKE ALL ON FUNCTION fernet_rotate(text) FROM regress_fernet;
BEGIN;
CALL test_default_privileges('GRANT EXECUTE ON FUNCTIONS TO regress_fernet');
SELECT * FROM granted();
ROLLBACK;
BEGIN;
CALL test_default_privileges('IN SCHEMA crypt GRANT EXECUTE ON FUNCTIONS TO PUBLIC', 'IN SCHEMA crypt GRANT EXECUTE ON FUNCTIONS TO regress_fernet',
                             'GRANT EXECUTE ON FUNCTIONS TO regress_fernet WITH GRANT OPTION');
SELECT * FROM granted();
ROLLBACK;
BEGIN;
CALL test_default_privileges('REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC');
SELECT * FROM granted();
ROLLBACK;
BEGIN;
CALL test_default_privileges('REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC', 'IN SCHEMA crypt GRANT EXECUTE ON FUNCTIONS TO regress_fernet');
SELECT * FROM granted();
ROLLBACK;
DROP PROCEDURE test_default_privileges;
DROP FUNCTION granted;
DROP SCHEMA crypt;

-- Not trusted: only a superuser can create the extension.
SELECT current_database() AS db \gset
GRANT CREATE ON DATABASE :"db" TO regress_fernet;
BEGIN;
DROP EXTENSION pg_fernet CASCADE;
SET ROLE regress_fernet;
CREATE EXTENSION pg_fernet;
ROLLBACK;
SELECT superuser, trusted FROM pg_available_extension_versions WHERE name = 'pg_fernet' AND installed;

REVOKE CREATE ON DATABASE :"db" FROM regress_fernet;
DROP TABLE secrets, calls CASCADE;
DROP FUNCTION runs, granted_alone;
DROP OWNED BY regress_fernet;
DROP ROLE regress_fernet;
