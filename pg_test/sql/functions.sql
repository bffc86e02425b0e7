-- Encrypt and decrypt: the vectors of the specification, every overload, NULLs.

SET fernet.keys = 'cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=';

-- verify.json
SELECT fernet_decrypt('gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==',
                      '60 s', '1985-10-26 01:20:01-07');

-- invalid.json, each at its own ttl and time. Two of them fail only because of the time.
CREATE FUNCTION outcome(token text, ttl interval, at timestamptz) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN fernet_decrypt(token, ttl, at);
EXCEPTION WHEN OTHERS THEN
    RETURN sqlstate || ' ' || sqlerrm;
END $$;
SELECT description, outcome(token, '60 s', at::timestamptz)
FROM (VALUES
    (1, 'incorrect mac', '1985-10-26 01:20:01-07', 'gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykQUFBQUFBQUFBQQ=='),
    (2, 'too short', '1985-10-26 01:20:01-07', 'gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPA=='),
    (3, 'invalid base64', '1985-10-26 01:20:01-07', '%%%%%%%%%%%%%AECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q=='),
    (4, 'payload size not multiple of block size', '1985-10-26 01:20:01-07', 'gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPOm73QeoCk9uGib28Xe5vz6oxq5nmxbx_v7mrfyudzUm'),
    (5, 'payload padding error', '1985-10-26 01:20:01-07', 'gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0ODz4LEpdELGQAad7aNEHbf-JkLPIpuiYRLQ3RtXatOYREu2FWke6CnJNYIbkuKNqOhw=='),
    (6, 'far-future TS', '1985-10-26 01:20:01-07', 'gAAAAAAdwStRAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAnja1xKYyhd-Y6mSkTOyTGJmw2Xc2a6kBd-iX9b_qXQcw=='),
    (7, 'expired TTL', '1985-10-26 01:21:31-07', 'gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q=='),
    (8, 'incorrect IV', '1985-10-26 01:20:01-07', 'gAAAAAAdwJ6xBQECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAkLhFLHpGtDBRLRTZeUfWgHSv49TF2AUEZ1TIvcZjK1zQ==')
) AS invalid (number, description, at, token)
ORDER BY number;
DROP FUNCTION outcome;

-- An untyped literal is text.
SELECT pg_typeof(fernet_encrypt('hello')), pg_typeof(fernet_rotate(fernet_encrypt('hello')));
SELECT pg_typeof(fernet_decrypt(fernet_encrypt('hello'))), pg_typeof(fernet_decrypt_bytea(fernet_encrypt('hello')));
\set token '''gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=='''
SELECT fernet_decrypt(:token), fernet_decrypt_bytea(:token), fernet_is_token(:token), fernet_key_index(:token);

-- A token in a bytea column is the same characters.
SELECT fernet_decrypt(:token::bytea), fernet_decrypt_bytea(:token::bytea);
SELECT fernet_decrypt(:token::bytea, '60 s', '1985-10-26 01:20:01-07'),
       fernet_decrypt_bytea(:token, '60 s', '1985-10-26 01:20:01-07'),
       fernet_decrypt_bytea(:token::bytea, '60 s', '1985-10-26 01:20:01-07');

-- Without "at" the time is the statement's.
SELECT fernet_decrypt(token, '1 hour'), fernet_decrypt(token::bytea, '1 hour'),
       fernet_decrypt_bytea(token, '1 hour'), fernet_decrypt_bytea(token::bytea, '1 hour')
FROM fernet_encrypt('fresh') AS token;

-- There and back: nothing, one block less one, one block, text beyond ASCII, any byte.
SELECT length(fernet_encrypt(plaintext)), fernet_decrypt(fernet_encrypt(plaintext)) = plaintext AS equal
FROM unnest(ARRAY['', repeat('x', 15), repeat('x', 16), U&'\017Elu\0165ou\010Dk\00FD \+01F418']) AS plaintext;
SELECT length(fernet_encrypt(plaintext)), fernet_decrypt_bytea(fernet_encrypt(plaintext)) = plaintext AS equal
FROM unnest(ARRAY['', '\x00', '\xff00fe', decode(repeat('00', 48), 'hex')]::bytea[]) AS plaintext;

-- Text is encrypted as UTF-8.
SELECT fernet_decrypt_bytea(fernet_encrypt(U&'\017E'));

-- What is written is canonical base64url, and never the same twice.
SELECT bool_and(token ~ '^gAAAAA[-_A-Za-z0-9]+={0,2}$') AS canonical, count(DISTINCT token)
FROM generate_series(1, 500) AS n, LATERAL (SELECT fernet_encrypt(repeat('x', n)) AS token) AS made;

-- Values that are compressed or out of line.
CREATE TABLE toasted (token text, token_bytes bytea);
INSERT INTO toasted SELECT token, token::bytea FROM fernet_encrypt(repeat('long ', 100000)) AS token;
SELECT md5(fernet_decrypt(token)) = md5(repeat('long ', 100000)) AS text,
       md5(fernet_decrypt(token_bytes)) = md5(repeat('long ', 100000)) AS bytea
FROM toasted;
DROP TABLE toasted;
SELECT fernet_decrypt(fernet_encrypt(plaintext)) = plaintext AS equal
FROM (SELECT string_agg(md5(n::text), '') AS plaintext FROM generate_series(1, 1000) AS n) AS long;

-- NULL in, NULL out; without keys, too.
RESET fernet.keys;
SELECT fernet_encrypt(NULL::text) IS NULL AS encrypt,
       fernet_encrypt(NULL::bytea) IS NULL AS encrypt_bytes,
       fernet_decrypt(NULL::text) IS NULL AND fernet_decrypt(NULL::bytea) IS NULL AS decrypt,
       fernet_decrypt_bytea(NULL::text) IS NULL AND fernet_decrypt_bytea(NULL::bytea) IS NULL AS decrypt_bytea,
       fernet_rotate(NULL::text) IS NULL AND fernet_rotate(NULL::bytea) IS NULL AS rotate,
       fernet_key_index(NULL::text) IS NULL AND fernet_key_index(NULL::bytea) IS NULL AS key_index,
       fernet_is_token(NULL::text) IS NULL AND fernet_is_token(NULL::bytea) IS NULL AS is_token,
       fernet_timestamp(NULL::text) IS NULL AND fernet_timestamp(NULL::bytea) IS NULL AS "timestamp";
SELECT fernet_decrypt(NULL::text, '1 s') IS NULL AS token,
       fernet_decrypt(:token, NULL) IS NULL AS ttl,
       fernet_decrypt(:token, '1 s', NULL) IS NULL AS at;

-- The setting accepts a generated key; no two are the same.
SELECT set_config('fernet.keys', string_agg(fernet_generate_key(), ','), false) ~ '^([-_A-Za-z0-9]{43}=,?){100}$' AS canonical
FROM generate_series(1, 100);
SELECT count(*), count(DISTINCT fingerprint) FROM fernet_keys();

-- The fingerprint is the start of the SHA-256 of the key's bytes, however the key is written.
SET fernet.keys = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=, cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4e4=';
SELECT * FROM fernet_keys();
SELECT left(encode(sha256(decode(key, 'base64')), 'hex'), 16)
FROM (VALUES ('AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='), ('cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4e4=')) AS keys (key);
