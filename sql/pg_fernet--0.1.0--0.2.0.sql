-- From 0.1.0 to 0.2.0.

ALTER FUNCTION fernet_find_columns(integer) PARALLEL UNSAFE SET jit = off;

COMMENT ON FUNCTION fernet_rotate(text) IS
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';
COMMENT ON FUNCTION fernet_rotate(bytea) IS
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';
COMMENT ON FUNCTION fernet_key_index(text) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a value, the highest if there are several; NULL where there is none, or one that no key opens';
COMMENT ON FUNCTION fernet_key_index(bytea) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a value, the highest if there are several; NULL where there is none, or one that no key opens';
COMMENT ON FUNCTION fernet_census(regclass, name) IS
    'what a column holds: the number of tokens under each key, of tokens under an unknown key, of values without a token and of NULLs';
COMMENT ON FUNCTION fernet_find_columns(integer) IS
    'the columns that hold Fernet tokens, as far as the caller may read them: how many values were sampled, and how many tokens are in them';

-- Tokens in JSON. If the session still has the library of 0.1.0, the first function that is missing there ends
-- the update, and the server gives no hint.
DO $$
BEGIN
    CREATE FUNCTION fernet_rotate(document json) RETURNS json
        LANGUAGE c VOLATILE STRICT PARALLEL SAFE
        AS 'MODULE_PATHNAME', 'fernet_rotate_json_wrapper';
EXCEPTION WHEN undefined_function THEN
    RAISE EXCEPTION 'pg_fernet was replaced after the session had loaded it'
        USING ERRCODE = 'object_not_in_prerequisite_state',
              DETAIL = SQLERRM,
              HINT = 'Begin a new session, or restart the server if it preloads the library.';
END $$;
COMMENT ON FUNCTION fernet_rotate(json) IS
    're-encrypt the Fernet tokens in a document, of which there may be none, under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';

CREATE FUNCTION fernet_rotate(document jsonb) RETURNS jsonb
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_rotate_jsonb_wrapper';
COMMENT ON FUNCTION fernet_rotate(jsonb) IS
    're-encrypt the Fernet tokens in a document, of which there may be none, under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';

CREATE FUNCTION fernet_key_index(document json) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_json_wrapper';
COMMENT ON FUNCTION fernet_key_index(json) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a document, the highest if there are several; NULL where there is none, or one that no key opens';

CREATE FUNCTION fernet_key_index(document jsonb) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_jsonb_wrapper';
COMMENT ON FUNCTION fernet_key_index(jsonb) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a document, the highest if there are several; NULL where there is none, or one that no key opens';

-- Keep a column encrypted.
CREATE FUNCTION fernet_encrypt_trigger() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_encrypt_trigger_wrapper';
COMMENT ON FUNCTION fernet_encrypt_trigger() IS
    'for BEFORE INSERT OR UPDATE FOR EACH ROW: encrypt the columns named by the arguments; a value that a key opens passes as it is';
-- A new parameter: workers. No statement adds one, and DROP would take along what was granted on the
-- procedure, so it gets the parameters of another one.
CREATE PROCEDURE fernet_rotate_column_new(
    relation regclass, column_name name, batch_size integer DEFAULT 10000, strict boolean DEFAULT false,
    workers integer DEFAULT 0,
    INOUT rotated bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL,
    INOUT unknown_key bigint DEFAULT NULL, INOUT not_a_token bigint DEFAULT NULL,
    INOUT nulls bigint DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_rotate_column_with_workers_wrapper';
UPDATE pg_proc AS p
SET pronargs = n.pronargs, pronargdefaults = n.pronargdefaults, proargtypes = n.proargtypes,
    proallargtypes = n.proallargtypes, proargmodes = n.proargmodes, proargnames = n.proargnames,
    proargdefaults = n.proargdefaults, prosrc = n.prosrc
FROM pg_proc AS n
WHERE p.oid = 'fernet_rotate_column(regclass, name, integer, boolean, bigint, bigint, bigint, bigint, bigint)'::regprocedure::oid
  AND n.oid = 'fernet_rotate_column_new(regclass, name, integer, boolean, integer, bigint, bigint, bigint, bigint, bigint)'::regprocedure::oid;
DROP PROCEDURE fernet_rotate_column_new(
    regclass, name, integer, boolean, integer, bigint, bigint, bigint, bigint, bigint);

-- From a column of plaintexts to one of tokens, and back.
CREATE PROCEDURE fernet_encrypt_column(
    relation regclass, column_name name, batch_size integer DEFAULT 10000, workers integer DEFAULT 0,
    INOUT encrypted bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL, INOUT old_key bigint DEFAULT NULL,
    INOUT unknown_key bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_encrypt_column_wrapper';
COMMENT ON PROCEDURE fernet_encrypt_column(
    regclass, name, integer, integer, bigint, bigint, bigint, bigint, bigint) IS
    'encrypt the values of a column in which there is no token, in batches with a COMMIT after each';

CREATE PROCEDURE fernet_decrypt_column(
    relation regclass, column_name name, batch_size integer DEFAULT 10000, workers integer DEFAULT 0,
    INOUT decrypted bigint DEFAULT NULL, INOUT in_text bigint DEFAULT NULL, INOUT unknown_key bigint DEFAULT NULL,
    INOUT not_a_token bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_decrypt_column_wrapper';
COMMENT ON PROCEDURE fernet_decrypt_column(
    regclass, name, integer, integer, bigint, bigint, bigint, bigint, bigint) IS
    'decrypt the values of a column that are tokens, in batches with a COMMIT after each';

CREATE PROCEDURE fernet_encrypt_shard(
    relation regclass, column_name name, batch_size integer, fingerprints text,
    INOUT result text DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_encrypt_shard_wrapper';
COMMENT ON PROCEDURE fernet_encrypt_shard(regclass, name, integer, text, text) IS
    'what fernet_encrypt_column calls for each shard of a table that Citus distributes';

CREATE PROCEDURE fernet_decrypt_shard(
    relation regclass, column_name name, batch_size integer, fingerprints text,
    INOUT result text DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_decrypt_shard_wrapper';
COMMENT ON PROCEDURE fernet_decrypt_shard(regclass, name, integer, text, text) IS
    'what fernet_decrypt_column calls for each shard of a table that Citus distributes';

-- A time to live counts until the statement, not until the transaction.
CREATE OR REPLACE FUNCTION fernet_decrypt(token text, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_ttl_wrapper';
CREATE OR REPLACE FUNCTION fernet_decrypt(token bytea, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_ttl_wrapper';
CREATE OR REPLACE FUNCTION fernet_decrypt_bytea(token text, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_bytea_ttl_wrapper';
CREATE OR REPLACE FUNCTION fernet_decrypt_bytea(token bytea, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_bytea_ttl_wrapper';

-- Creation revoked from PUBLIC only: what ALTER DEFAULT PRIVILEGES granted to others besides has
-- stayed, and is among the initial privileges. From a function that has no others, it is
-- revoked. Where something was granted or revoked since, it is not: PostgreSQL takes all that a
-- function has after a REVOKE of this script for initial, and pg_dump would leave out the rest.
DO $$
DECLARE
    routine record;
    remaining text[];
    creators text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

    -- What is new is for those to whom somebody will grant it.
    FOR routine IN
        SELECT p.oid::regprocedure AS signature,
               string_agg(DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, ', ') AS grantees
        FROM pg_extension AS e
        JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
        JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner)))
        WHERE e.extname = 'pg_fernet' AND grantee <> p.proowner
          AND (p.proargtypes[0] IN ('json'::regtype, 'jsonb'::regtype)
               OR p.proname ~ '^fernet_(en|de)crypt_(column|shard|trigger)$')
        GROUP BY p.oid
    LOOP
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', routine.signature, routine.grantees);
    END LOOP;

    FOR routine IN
        SELECT p.oid::regprocedure AS signature,
               bool_and(i.initprivs @> p.proacl AND p.proacl @> i.initprivs) AS is_untouched,
               string_agg(DISTINCT grantee::regrole::text, ', ') AS grantees
        FROM pg_extension AS e
        JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
        JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        JOIN pg_init_privs AS i ON i.classoid = d.classid AND i.objoid = d.objid
        CROSS JOIN LATERAL aclexplode(i.initprivs)
        WHERE e.extname = 'pg_fernet' AND grantee NOT IN (0, p.proowner)
          AND grantee IN (SELECT a.grantee FROM aclexplode(p.proacl) AS a)
        GROUP BY p.oid
        ORDER BY p.oid::regprocedure::text COLLATE "C"
    LOOP
        IF routine.is_untouched THEN
            EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', routine.signature, routine.grantees);
        ELSE
            remaining := remaining || format('%s to %s', routine.signature, routine.grantees);
        END IF;
    END LOOP;
    IF remaining IS NOT NULL THEN
        RAISE WARNING 'functions of pg_fernet are still granted because of ALTER DEFAULT PRIVILEGES'
            USING DETAIL = format('Still granted are %s.', array_to_string(remaining, '; ')),
                  HINT = 'If that is not meant: REVOKE ALL ON FUNCTION ... FROM ....';
    END IF;

    -- Whoever may create a function beside ours may create one that fits a call better than ours.
    SELECT string_agg(DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC') COLLATE "C", ', ')
    INTO creators
    FROM pg_extension AS e
    JOIN pg_namespace AS n ON n.oid = e.extnamespace
    JOIN pg_database AS d ON d.datname = current_database()
    CROSS JOIN LATERAL (
        SELECT n.nspowner
        UNION SELECT grantee FROM aclexplode(n.nspacl) WHERE privilege_type = 'CREATE') AS creator (oid)
    LEFT JOIN pg_roles AS r
        ON r.oid = CASE creator.oid WHEN 'pg_database_owner'::regrole THEN d.datdba ELSE creator.oid END
    WHERE e.extname = 'pg_fernet' AND r.rolsuper IS NOT TRUE;
    IF creators IS NOT NULL THEN
        RAISE WARNING 'others may create functions in the schema of pg_fernet'
            USING DETAIL = format('These roles and their members may: %s.', creators),
                  HINT = 'Move it to a schema of its own: CREATE SCHEMA fernet; ALTER EXTENSION pg_fernet SET SCHEMA fernet. '
                         'Then grant USAGE on the schema to the roles that use the functions; '
                         'calls without the schema no longer find them unless it is in search_path.';
    END IF;
END $$;
