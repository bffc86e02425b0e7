-- Time to live: refused if timestamp + ttl < at, or timestamp > at + 60 s.

SET timezone = 'UTC';
SET datestyle = 'ISO';
LOAD 'pg_fernet';
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';

-- The result of each form of fernet_decrypt: the output shows if the four do not agree.
CREATE FUNCTION outcome(token text, ttl interval, at timestamptz) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    form text;
    outcomes text[];
BEGIN
    FOREACH form IN ARRAY ARRAY['fernet_decrypt($1, $2, $3)', 'fernet_decrypt($1::bytea, $2, $3)',
                                'convert_from(fernet_decrypt_bytea($1, $2, $3), ''UTF8'')',
                                'convert_from(fernet_decrypt_bytea($1::bytea, $2, $3), ''UTF8'')'] LOOP
        DECLARE
            outcome text;
        BEGIN
            EXECUTE 'SELECT ' || form INTO outcome USING token, ttl, at;
            outcomes := outcomes || outcome;
        EXCEPTION WHEN data_exception THEN
            outcomes := outcomes || sqlerrm;
        END;
    END LOOP;
    RETURN (SELECT string_agg(DISTINCT o, ' / ') FROM unnest(outcomes) AS o);
END $$;

-- Made at 2001-09-09 01:46:40.
\set token 'gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g=='
SELECT fernet_timestamp(:'token');

-- Both boundaries pass, and a microsecond beyond either does not.
SELECT ttl, at, outcome(:'token', ttl::interval, at::timestamptz)
FROM (VALUES
    (1, '60 s', '2001-09-09 01:47:40Z'),
    (2, '60 s', '2001-09-09 01:47:40.000001Z'),
    (3, '59.999999 s', '2001-09-09 01:47:40Z'),
    (4, '60 s', '2001-09-09 01:45:40Z'),
    (5, '60 s', '2001-09-09 01:45:39.999999Z'),
    (6, '0', '2001-09-09 01:46:40Z'),
    (7, '0', '2001-09-09 01:46:40.000001Z'),
    (8, '1 day', '2001-09-10 01:46:40Z'),
    (9, '1 month', '2001-10-09 01:46:40Z'),
    (10, '1 month', '2001-10-09 01:46:40.000001Z'),
    -- A negative ttl is no different: the token may be a little ahead.
    (11, '-30 s', '2001-09-09 01:46:10Z'),
    (12, '-30 s', '2001-09-09 01:46:10.000001Z'),
    (13, '-60 s', '2001-09-09 01:45:40Z'),
    (14, '-61 s', '2001-09-09 01:45:40Z'),
    (15, '-61 s', '2001-09-09 01:45:39Z')
) AS cases (n, ttl, at) ORDER BY n;

-- An infinite time, a ttl past the range of timestamptz.
SELECT ttl, at, outcome(:'token', ttl::interval, at::timestamptz)
FROM (VALUES
    (1, '60 s', 'infinity'),
    (2, '60 s', '-infinity'),
    (3, '1000000 years', '2026-01-01Z'),
    (4, '1000000 years', 'infinity'),
    (5, '178000000 years', '2026-01-01Z'),
    (6, '178000000 years', '294276-12-31 23:59:59Z'),
    (7, '2147483647 days', '2026-01-01Z'),
    (8, '2562047788 hours', '2026-01-01Z'),
    (9, '-1000000 years', '2001-09-09 01:46:40Z'),
    (10, '-178000000 years', '2001-09-09 01:46:40Z'),
    (11, '-2147483648 days', '2001-09-09 01:46:40Z'),
    (12, '-1000000 years', '4714-11-24 00:00:00Z BC')
) AS cases (n, ttl, at) ORDER BY n;

-- Timestamps at the ends of 64 bits, and at the end of timestamptz. What is past it is infinity.
CREATE TABLE extremes (made numeric, token text);
INSERT INTO extremes VALUES
    (0, 'gAAAAAAAAAAAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njacGLnopGqq-xJQjNPn6saRlt2gV8qJWT4rnxjGdHsvw=='),
    (2147483648, 'gAAAAACAAAAAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74niIhKN46TLIxM228ZtfwOGF2kpbPyk1ROmxPA9N0XqP8A=='),
    (4294967296, 'gAAAAAEAAAAAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74nhZTY2SXSggaAW6fQG_blxsM9k-LpkszdQIqE_35vupTA=='),
    (9224318015999, 'gAAACGO0Mtn_AAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74nhxjsBUcGlzeVvB7DpfS8e6PRMqplWe1aBmhRnJosbRMg=='),
    (9224318016000, 'gAAACGO0MtoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74ng3YQnqNS6_2RvNPhnlOtxDzwFxd23XvujPdNzlXwfrig=='),
    (9223372036854775807, 'gH__________AAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njw9l6MOIJShLI0WgljdVw8OXbhOGzP4yQ99rbpW_niWQ=='),
    (9223372036854775808, 'gIAAAAAAAAAAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74ngktfKNcY9TN9TlE2RCVStgH3i-kv8gbdNANyYALhpUPg=='),
    (18446744073709551615, 'gP__________AAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njoNsMzBNcgO4iUB0ZMytsxYgBgzRWl0Iv7RNZF_8MzKA==');
SELECT made, fernet_timestamp(token), fernet_decrypt(token) FROM extremes ORDER BY made;

SELECT made, outcome(token, '60 s', '2026-01-01Z') AS "2026",
       outcome(token, '1000000 years', '2026-01-01Z') AS "long ttl",
       outcome(token, '60 s', '294276-12-31 23:59:59.999999Z') AS "last moment",
       outcome(token, '60 s', 'infinity') AS infinity,
       outcome(token, '60 s', '-infinity') AS "-infinity"
FROM extremes ORDER BY made;
SELECT outcome(token, '60 s', '294276-12-31 23:58:59Z') AS "60 s before", outcome(token, '60 s', '294276-12-31 23:58:58.999999Z') AS earlier
FROM extremes WHERE made = 9224318015999;
-- The whole interval decides which end of the range the sum is past, not a part of it.
SELECT ttl, outcome(token, ttl::interval, '294276-12-31 23:59:59Z')
FROM extremes, (VALUES ('12 mons -1 day'), ('-1 mon 40 days'), ('1 day -23 hours'), ('-12 mons 1 day')) AS ttls (ttl)
WHERE made = 9224318015999;

-- Rotation keeps all 64 bits. Python reads them back as they were; here, as far as timestamptz goes.
SET fernet.keys = 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=,MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
SELECT made, ('x' || encode(substr(decode(translate(fernet_rotate(token), '-_', '+/'), 'base64'), 2, 8), 'hex'))::bit(64) =
             ('x' || encode(substr(decode(translate(token, '-_', '+/'), 'base64'), 2, 8), 'hex'))::bit(64) AS kept
FROM extremes ORDER BY made;

-- Without a ttl the time is not looked at.
SELECT fernet_decrypt(token) FROM extremes WHERE made = 18446744073709551615;
-- With one, "at" is statement_timestamp().
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
SELECT fernet_decrypt(:'token', '10000 years');
SELECT fernet_decrypt(:'token', '1 minute');

DROP TABLE extremes;
DROP FUNCTION outcome;
