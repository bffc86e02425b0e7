-- The SQL interface of pg_fernet. Text and bytea have the same layout in memory, so one C function serves
-- both wherever only the bytes of a token matter.

--
-- Encrypt
--

CREATE FUNCTION fernet_encrypt(plaintext text) RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_encrypt_text_wrapper';
COMMENT ON FUNCTION fernet_encrypt(text) IS
    'encrypt text, as UTF-8, into a Fernet token under the first key';

CREATE FUNCTION fernet_encrypt(plaintext bytea) RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_encrypt_wrapper';
COMMENT ON FUNCTION fernet_encrypt(bytea) IS
    'encrypt bytes into a Fernet token under the first key';

--
-- Decrypt
--

CREATE FUNCTION fernet_decrypt(token text) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_wrapper';
COMMENT ON FUNCTION fernet_decrypt(text) IS
    'decrypt a Fernet token to text, with whichever key opens it';

CREATE FUNCTION fernet_decrypt(token bytea) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_wrapper';
COMMENT ON FUNCTION fernet_decrypt(bytea) IS
    'decrypt a Fernet token to text, with whichever key opens it';

CREATE FUNCTION fernet_decrypt(token text, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_ttl_wrapper';
COMMENT ON FUNCTION fernet_decrypt(text, interval, timestamptz) IS
    'decrypt a Fernet token to text, unless it is older than ttl';

CREATE FUNCTION fernet_decrypt(token bytea, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_ttl_wrapper';
COMMENT ON FUNCTION fernet_decrypt(bytea, interval, timestamptz) IS
    'decrypt a Fernet token to text, unless it is older than ttl';

CREATE FUNCTION fernet_decrypt_bytea(token text) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_bytea_wrapper';
COMMENT ON FUNCTION fernet_decrypt_bytea(text) IS
    'decrypt a Fernet token to bytes, with whichever key opens it';

CREATE FUNCTION fernet_decrypt_bytea(token bytea) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_bytea_wrapper';
COMMENT ON FUNCTION fernet_decrypt_bytea(bytea) IS
    'decrypt a Fernet token to bytes, with whichever key opens it';

CREATE FUNCTION fernet_decrypt_bytea(token text, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_bytea_ttl_wrapper';
COMMENT ON FUNCTION fernet_decrypt_bytea(text, interval, timestamptz) IS
    'decrypt a Fernet token to bytes, unless it is older than ttl';

CREATE FUNCTION fernet_decrypt_bytea(token bytea, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_bytea_ttl_wrapper';
COMMENT ON FUNCTION fernet_decrypt_bytea(bytea, interval, timestamptz) IS
    'decrypt a Fernet token to bytes, unless it is older than ttl';

--
-- Rotate
--

CREATE FUNCTION fernet_rotate(token text) RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_rotate_wrapper';
COMMENT ON FUNCTION fernet_rotate(text) IS
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest of the value stays, and so does a token that is already under the first key';

CREATE FUNCTION fernet_rotate(token bytea) RETURNS bytea
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_rotate_wrapper';
COMMENT ON FUNCTION fernet_rotate(bytea) IS
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest of the value stays, and so does a token that is already under the first key';

CREATE FUNCTION fernet_rotate(document json) RETURNS json
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_rotate_json_wrapper';
COMMENT ON FUNCTION fernet_rotate(json) IS
    're-encrypt the Fernet tokens in a document, if it has any, under the first key, with their own timestamps; the rest of the document stays, and so does a token that is already under the first key';

CREATE FUNCTION fernet_rotate(document jsonb) RETURNS jsonb
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_rotate_jsonb_wrapper';
COMMENT ON FUNCTION fernet_rotate(jsonb) IS
    're-encrypt the Fernet tokens in a document, if it has any, under the first key, with their own timestamps; the rest of the document stays, and so does a token that is already under the first key';

--
-- Inspect
--

CREATE FUNCTION fernet_key_index(token text) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_wrapper';
COMMENT ON FUNCTION fernet_key_index(text) IS
    'place in the key list, counted from 1, of the key that opens the token in a value, or the highest place for several tokens; NULL if there is no token, or one that no key opens';

CREATE FUNCTION fernet_key_index(token bytea) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_wrapper';
COMMENT ON FUNCTION fernet_key_index(bytea) IS
    'place in the key list, counted from 1, of the key that opens the token in a value, or the highest place for several tokens; NULL if there is no token, or one that no key opens';

CREATE FUNCTION fernet_key_index(document json) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_json_wrapper';
COMMENT ON FUNCTION fernet_key_index(json) IS
    'place in the key list, counted from 1, of the key that opens the token in a document, or the highest place for several tokens; NULL if there is no token, or one that no key opens';

CREATE FUNCTION fernet_key_index(document jsonb) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_jsonb_wrapper';
COMMENT ON FUNCTION fernet_key_index(jsonb) IS
    'place in the key list, counted from 1, of the key that opens the token in a document, or the highest place for several tokens; NULL if there is no token, or one that no key opens';

CREATE FUNCTION fernet_is_token(value text) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_is_token_wrapper';
COMMENT ON FUNCTION fernet_is_token(text) IS
    'does the value have the form of a Fernet token? Needs no key';

CREATE FUNCTION fernet_is_token(value bytea) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_is_token_wrapper';
COMMENT ON FUNCTION fernet_is_token(bytea) IS
    'does the value have the form of a Fernet token? Needs no key';

CREATE FUNCTION fernet_timestamp(token text) RETURNS timestamptz
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_timestamp_wrapper';
COMMENT ON FUNCTION fernet_timestamp(text) IS
    'time at which a Fernet token was made; a key must authenticate it';

CREATE FUNCTION fernet_timestamp(token bytea) RETURNS timestamptz
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_timestamp_wrapper';
COMMENT ON FUNCTION fernet_timestamp(bytea) IS
    'time at which a Fernet token was made; a key must authenticate it';

--
-- Keys
--

CREATE FUNCTION fernet_generate_key() RETURNS text
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_generate_key_wrapper';
COMMENT ON FUNCTION fernet_generate_key() IS
    'a new random Fernet key';

CREATE FUNCTION fernet_keys() RETURNS TABLE (key_index integer, fingerprint text)
    LANGUAGE c STABLE STRICT PARALLEL SAFE ROWS 2
    AS 'MODULE_PATHNAME', 'fernet_keys_wrapper';
COMMENT ON FUNCTION fernet_keys() IS
    'the configured keys by place in the list and fingerprint: 16 hex digits of their SHA-256';

--
-- Whole columns. row_security = off: a policy that would hide rows is an error. A procedure that commits
-- cannot have settings of its own, so the procedures look for policies themselves. fernet_find_columns
-- begins subtransactions, which servers before 17 refuse in a parallel query. Compiling its query of the
-- catalogs would take longer than running it.
--

CREATE FUNCTION fernet_census(relation regclass, column_name name)
    RETURNS TABLE (status text, key_index integer, fingerprint text, tokens bigint)
    LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 1000000 ROWS 5
    SET row_security = off
    AS 'MODULE_PATHNAME', 'fernet_census_wrapper';
COMMENT ON FUNCTION fernet_census(regclass, name) IS
    'what a column holds: the number of tokens under each key, of tokens under an unknown key, of values without a token and of NULLs';

CREATE FUNCTION fernet_find_columns(sample_rows integer DEFAULT 1000)
    RETURNS TABLE (relation regclass, column_name name, sampled bigint, tokens bigint)
    LANGUAGE c STABLE STRICT PARALLEL UNSAFE COST 1000000 ROWS 10
    SET row_security = off SET search_path = pg_catalog, pg_temp SET jit = off
    AS 'MODULE_PATHNAME', 'fernet_find_columns_wrapper';
COMMENT ON FUNCTION fernet_find_columns(integer) IS
    'the columns that hold Fernet tokens, as far as the caller may read them: how many values were sampled, and how many tokens are in them';

CREATE PROCEDURE fernet_rotate_column(
    relation regclass, column_name name, batch_size integer DEFAULT 10000, strict boolean DEFAULT false,
    workers integer DEFAULT 0,
    INOUT rotated bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL,
    INOUT unknown_key bigint DEFAULT NULL, INOUT not_a_token bigint DEFAULT NULL,
    INOUT nulls bigint DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_rotate_column_with_workers_wrapper';
COMMENT ON PROCEDURE fernet_rotate_column(
    regclass, name, integer, boolean, integer, bigint, bigint, bigint, bigint, bigint) IS
    're-encrypt the tokens of a column under the first key, in batches with a COMMIT after each';

-- Like fernet_rotate_column, these two return first what they did, and then what they found and left. No
-- column counts what they should have converted and could not; a WARNING does. Both leave a token that has
-- text beside it: fernet_encrypt_column counts it as current or old_key, fernet_decrypt_column as in_text.
CREATE PROCEDURE fernet_encrypt_column(
    relation regclass, column_name name, batch_size integer DEFAULT 10000, workers integer DEFAULT 0,
    INOUT encrypted bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL, INOUT old_key bigint DEFAULT NULL,
    INOUT unknown_key bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_encrypt_column_wrapper';
COMMENT ON PROCEDURE fernet_encrypt_column(
    regclass, name, integer, integer, bigint, bigint, bigint, bigint, bigint) IS
    'encrypt those values of a column that hold no token, in batches with a COMMIT after each';

CREATE PROCEDURE fernet_decrypt_column(
    relation regclass, column_name name, batch_size integer DEFAULT 10000, workers integer DEFAULT 0,
    INOUT decrypted bigint DEFAULT NULL, INOUT in_text bigint DEFAULT NULL, INOUT unknown_key bigint DEFAULT NULL,
    INOUT not_a_token bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_decrypt_column_wrapper';
COMMENT ON PROCEDURE fernet_decrypt_column(
    regclass, name, integer, integer, bigint, bigint, bigint, bigint, bigint) IS
    'decrypt the values of a column that are tokens, in batches with a COMMIT after each';

CREATE PROCEDURE fernet_rotate_shard(
    relation regclass, column_name name, batch_size integer, strict boolean, fingerprints text,
    INOUT result text DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_rotate_shard_wrapper';
COMMENT ON PROCEDURE fernet_rotate_shard(regclass, name, integer, boolean, text, text) IS
    'what fernet_rotate_column calls for each shard of a table that Citus distributes';

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

--
-- Keep encrypted. A role that creates a trigger must be allowed to execute the function; a role that
-- writes to the table need not be.
--

CREATE FUNCTION fernet_encrypt_trigger() RETURNS trigger
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_encrypt_trigger_wrapper';
COMMENT ON FUNCTION fernet_encrypt_trigger() IS
    'for BEFORE INSERT OR UPDATE FOR EACH ROW: encrypt the columns named by the arguments; a value that a key opens is not changed';

--
-- Privileges: functions that read or use the keys are granted one by one, so that a role can rotate
-- without being able to decrypt. fernet_generate_key and fernet_is_token use no keys. Privileges from
-- ALTER DEFAULT PRIVILEGES are revoked.
--

DO $$
DECLARE
    routine record;
    creators text;
BEGIN
    -- Until here, the schema of the extension was in the path.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

    FOR routine IN
        SELECT p.oid::regprocedure AS signature, p.proacl,
               p.proname IN ('fernet_generate_key', 'fernet_is_token') AS is_for_all,
               string_agg(DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, ', ') AS grantees
        FROM pg_extension AS e
        JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
        JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        LEFT JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) ON grantee <> p.proowner
        WHERE e.extname = 'pg_fernet'
        GROUP BY p.oid
    LOOP
        CONTINUE WHEN routine.is_for_all AND routine.proacl IS NULL;
        IF routine.grantees IS NOT NULL THEN
            EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', routine.signature, routine.grantees);
        END IF;
        IF routine.is_for_all THEN
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO PUBLIC', routine.signature);
        END IF;
    END LOOP;

    -- A role that may create a function beside ours may create one that fits a call better than ours.
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
