-- The SQL surface of pg_fernet. Text and bytea have one layout in memory, so one C function serves
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

CREATE FUNCTION fernet_decrypt(token text, ttl interval, at timestamptz DEFAULT now()) RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_ttl_wrapper';
COMMENT ON FUNCTION fernet_decrypt(text, interval, timestamptz) IS
    'decrypt a Fernet token to text, unless it is older than ttl';

CREATE FUNCTION fernet_decrypt(token bytea, ttl interval, at timestamptz DEFAULT now()) RETURNS text
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

CREATE FUNCTION fernet_decrypt_bytea(token text, ttl interval, at timestamptz DEFAULT now()) RETURNS bytea
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_decrypt_bytea_ttl_wrapper';
COMMENT ON FUNCTION fernet_decrypt_bytea(text, interval, timestamptz) IS
    'decrypt a Fernet token to bytes, unless it is older than ttl';

CREATE FUNCTION fernet_decrypt_bytea(token bytea, ttl interval, at timestamptz DEFAULT now()) RETURNS bytea
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
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';

CREATE FUNCTION fernet_rotate(token bytea) RETURNS bytea
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_rotate_wrapper';
COMMENT ON FUNCTION fernet_rotate(bytea) IS
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';

--
-- Inspect
--

CREATE FUNCTION fernet_key_index(token text) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_wrapper';
COMMENT ON FUNCTION fernet_key_index(text) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a value, the highest if there are several; NULL where there is none, or one that no key opens';

CREATE FUNCTION fernet_key_index(token bytea) RETURNS integer
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'fernet_key_index_wrapper';
COMMENT ON FUNCTION fernet_key_index(bytea) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a value, the highest if there are several; NULL where there is none, or one that no key opens';

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
-- Whole columns. row_security = off: a policy that would hide rows is an error. The procedure, which
-- commits and so can have no settings of its own, looks for policies itself. fernet_find_columns
-- begins subtransactions, which servers before 17 refuse in a parallel query; to compile its query of
-- the catalogs would take longer than to run it.
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
    INOUT rotated bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL,
    INOUT unknown_key bigint DEFAULT NULL, INOUT not_a_token bigint DEFAULT NULL,
    INOUT nulls bigint DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_rotate_column_wrapper';
COMMENT ON PROCEDURE fernet_rotate_column IS
    're-encrypt the tokens of a column under the first key, in batches with a COMMIT after each';

CREATE PROCEDURE fernet_rotate_shard(
    relation regclass, column_name name, batch_size integer, strict boolean, fingerprints text,
    INOUT result text DEFAULT NULL)
    LANGUAGE c
    AS 'MODULE_PATHNAME', 'fernet_rotate_shard_wrapper';
COMMENT ON PROCEDURE fernet_rotate_shard IS
    'what fernet_rotate_column calls for each shard of a table that Citus distributes';

--
-- Privileges: what reads or uses the keys is granted function by function, so that a role can
-- rotate without being able to decrypt. fernet_generate_key and fernet_is_token use none.
--

REVOKE ALL ON FUNCTION
    fernet_encrypt(text), fernet_encrypt(bytea),
    fernet_decrypt(text), fernet_decrypt(bytea),
    fernet_decrypt(text, interval, timestamptz), fernet_decrypt(bytea, interval, timestamptz),
    fernet_decrypt_bytea(text), fernet_decrypt_bytea(bytea),
    fernet_decrypt_bytea(text, interval, timestamptz), fernet_decrypt_bytea(bytea, interval, timestamptz),
    fernet_rotate(text), fernet_rotate(bytea),
    fernet_key_index(text), fernet_key_index(bytea),
    fernet_timestamp(text), fernet_timestamp(bytea),
    fernet_keys(),
    fernet_census(regclass, name), fernet_find_columns(integer)
FROM PUBLIC;
REVOKE ALL ON PROCEDURE fernet_rotate_column, fernet_rotate_shard FROM PUBLIC;
