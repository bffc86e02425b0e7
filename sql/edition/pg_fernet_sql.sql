-- pg_fernet in SQL: the functions of pg_fernet over pgcrypto, for servers on which nothing native can be installed. Creates
-- them in the first schema of search_path. If they exist, updates them.
--
-- The functions may be called with any search_path, even one in which an attacker has placed objects. A SET clause costs
-- more than some of the functions take, and a procedure with one cannot commit. So the bodies without one look no names up.
-- In these,
--
--   @=@ and the like     are operators of pg_catalog
--   @.                   is pg_catalog itself
--
-- and everywhere
--
--   {self}               is the schema of the functions
--   {pgcrypto}           is the schema of pgcrypto, to whose functions ours are bound when they are created
--   {type}, {encoded} ...  are the differences between text and bytea
--   {converts}           is the parallel safety of a conversion to or from UTF-8
--   {open} and the like  is code that is in several functions, since calling a function is expensive
--
-- A literal with a backslash is E'': its meaning depends on no setting.
--
-- Modules such as auto_explain log the text of a statement, its parameters, and the constants in its plan. To keep keys and
-- plaintexts out of these, functions are called in expressions of PL/pgSQL, which are not logged. Dynamic statements get
-- neither keys nor plaintexts. A function whose queries do has generic plans, and has no FOR loop over such a query, since
-- that makes parameters of variables. test_log.py checks this.
DO $install$
DECLARE
    self pg_catalog.text := pg_catalog.current_schema();
    caller_path pg_catalog.text := pg_catalog.current_setting('search_path');
    pgcrypto pg_catalog.text;
    source pg_catalog.text;
    for_type pg_catalog.text[];
    -- Signatures of what the script makes; and what exists already, made by this script or in its way.
    signatures pg_catalog.text[];
    existing pg_catalog.oid[];
    obstacle pg_catalog.record;
    outdated pg_catalog.text;
    routine pg_catalog.record;
    creators pg_catalog.text;
    version pg_catalog.text;
    elsewhere pg_catalog.text;

    --
    -- Code that is in several functions
    --

    variables constant pg_catalog.text := $source$
        keys @.bytea[];
        key @.bytea;
        encoded @.text COLLATE @."C";
        record @.bytea;
        signed integer;
        padded @.bytea;
        len integer;
        padding integer;
        key_index integer;
        refusal @.text;$source$;

    -- Decodes `encoded` into `record` if it is a token in the form that nearly all have; otherwise `record` is NULL.
    decode constant pg_catalog.text := $source$
        IF @.octet_length(encoded) @>@ 250000000 THEN
            PERFORM {self}._fernet_refuse('too large');
        END IF;
        IF encoded @~@ '^g[A-P][A-Za-z0-9+/_-]+={0,2}$' AND @.length(encoded) @%@ 4 @=@ 0 THEN
            record := @.decode(@.replace(@.replace(encoded, '-', '+'), '_', '/'), 'base64');
            IF @.octet_length(record) @<=@ 57 OR (@.octet_length(record) @-@ 57) @%@ 16 @<>@ 0 THEN
                record := NULL;
            END IF;
        END IF;$source$;

    -- Finds the key that opens `record`, and decrypts with it; or gives in `refusal` the reason why none does. The HMACs
    -- are compared by hashes with a secret in them, so that the time this takes reveals nothing.
    open constant pg_catalog.text := $source$
        refusal := 'unauthenticated';
        signed := @.octet_length(record) @-@ 32;
        FOR place IN 1 .. @.cardinality(keys) LOOP
            key := keys[place];
            IF @.sha256(key @||@ {self}._fernet_hmac(@.substring(record, 1, signed), @.substring(key, 1, 16)))
                    @=@ @.sha256(key @||@ @.substring(record, signed @+@ 1)) THEN
                padded := {self}._fernet_decrypt_blocks(
                    @.substring(record, 26, signed @-@ 25), @.substring(key, 17, 16), @.substring(record, 10, 16));
                len := @.octet_length(padded);
                padding := @.get_byte(padded, len @-@ 1);
                len := len @-@ padding;
                IF padding @>=@ 1 AND padding @<=@ 16
                        AND @.octet_length(@.rtrim(padded, @.substring(padded, len @+@ padding))) @<=@ len THEN
                    key_index := place;
                    refusal := NULL;
                    EXIT;
                END IF;
                refusal := 'badly padded';
            END IF;
        END LOOP;$source$;

    -- Opens a value that as a whole is a token.
    open_whole constant pg_catalog.text := $source$
        keys := {self}._fernet_keys();
        encoded := {encoded};
        {decode}
        IF record IS NULL THEN
            record := {self}._fernet_record(({self}._fernet_base64({characters})).characters);
            IF record IS NULL THEN
                PERFORM {self}._fernet_refuse('not a token');
            END IF;
        END IF;
        {open}$source$;

    open_or_refuse constant pg_catalog.text := $source$
        {open_whole}
        IF refusal IS NOT NULL THEN
            PERFORM {self}._fernet_refuse(refusal);
        END IF;$source$;

    return_text constant pg_catalog.text := $source$
            encoded := {self}._fernet_text(@.substring(padded, 1, len));
            IF encoded IS NULL THEN
                PERFORM {self}._fernet_refuse('not text');
            END IF;
            RETURN encoded;$source$;

    -- Looks at the row `stored`, whose value is text or an array.
    look constant pg_catalog.text := $source$CASE WHEN stored.elements IS NULL THEN {self}._fernet_look(stored.value, kind, keys, conversion, changes)
                                  ELSE {self}._fernet_look(stored.elements, kind, keys, conversion, changes) END$source$;

    -- Makes a token of `plain` under the first key, stamped with the time of the call. A token has no other way to show a
    -- clock before 1970.
    pad constant pg_catalog.text := $source$
            padding := 16 @-@ (@.octet_length(plain) @%@ 16);$source$;
    sealed constant pg_catalog.text := $source${self}._fernet_seal(
                @.int8send(GREATEST(0, @.floor(@.date_part('epoch', @.clock_timestamp()))::bigint)),
                plain @||@ @.decode(@.repeat(@.lpad(@.to_hex(padding), 2, '0'), padding), 'hex'),
                keys[1])$source$;

    --
    -- Transactions of the procedures
    --

    -- A later snapshot shows what others have committed since, whatever the default is.
    commits constant pg_catalog.text := $source$COMMIT; SET TRANSACTION ISOLATION LEVEL READ COMMITTED;$source$;

    --
    -- The functions that do not depend on the type of the token
    --

    basis constant pg_catalog.text := $source$
        --
        -- pgcrypto. The lengths of keys and IVs are checked here: pgcrypto would pad or cut them.
        --

        CREATE OR REPLACE FUNCTION {self}._fernet_hmac(data bytea, key bytea) RETURNS bytea
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            RETURN {pgcrypto}.hmac(data, key, 'sha256');

        CREATE OR REPLACE FUNCTION {self}._fernet_random(len integer) RETURNS bytea
            LANGUAGE sql VOLATILE STRICT PARALLEL SAFE
            RETURN {pgcrypto}.gen_random_bytes(len);

        CREATE OR REPLACE FUNCTION {self}._fernet_encrypt_blocks(data bytea, key bytea, iv bytea) RETURNS bytea
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            RETURN {pgcrypto}.encrypt_iv(data, key, iv, 'aes-cbc/pad:none');

        CREATE OR REPLACE FUNCTION {self}._fernet_decrypt_blocks(data bytea, key bytea, iv bytea) RETURNS bytea
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            RETURN {pgcrypto}.decrypt_iv(data, key, iv, 'aes-cbc/pad:none');

        --
        -- Errors of single values: code, message, hint
        --

        -- `at` is the place of the value in a column.
        CREATE OR REPLACE FUNCTION {self}._fernet_refuse(reason text, key_position integer DEFAULT NULL, at text DEFAULT NULL) RETURNS void
            LANGUAGE plpgsql VOLATILE PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            list_hint constant text := 'Separate keys by commas, or in a file by line breaks, the newest first. A key is '
                '32 bytes in base64, 44 characters with its padding; fernet_generate_key() makes one.';
            place constant text := coalesce(': ' || at, '');
        BEGIN
            CASE reason
            WHEN 'no keys' THEN
                RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = 'no Fernet keys are configured',
                    HINT = 'Set fernet.keys to a comma-separated list of keys, the newest first. fernet_generate_key() '
                           'makes a key.';
            WHEN 'empty list' THEN
                RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'fernet.keys: the key list is empty', HINT = list_hint;
            WHEN 'invalid key' THEN
                RAISE EXCEPTION USING ERRCODE = '22023', HINT = list_hint,
                    MESSAGE = format('key %s of fernet.keys is not a valid Fernet key', key_position);
            WHEN 'not a token' THEN
                RAISE EXCEPTION USING ERRCODE = '22P02', MESSAGE = 'value is not a Fernet token' || place,
                    HINT = 'If the value is plaintext that should be a token, encrypt it with fernet_encrypt(). '
                           'fernet_key_index() is NULL for values without a token.';
            WHEN 'in text' THEN
                RAISE EXCEPTION USING ERRCODE = '22P02', MESSAGE = 'value is a Fernet token with other text beside it' || place,
                    HINT = 'Write a plaintext, or a token and nothing else. fernet_encrypt() makes a token of whatever is given to it.';
            WHEN 'unauthenticated' THEN
                RAISE EXCEPTION USING ERRCODE = '39000', MESSAGE = CASE WHEN at IS NULL THEN 'no configured key authenticates the Fernet token'
                                   ELSE 'no key authenticates the Fernet token' || place END,
                    HINT = 'Append the key that the token was made with to the list of keys. fernet_key_index() is NULL '
                           'for the values that no key opens.';
            WHEN 'badly padded' THEN
                RAISE EXCEPTION USING ERRCODE = '39000', MESSAGE = 'padding of the Fernet token is wrong' || place,
                    HINT = 'The key authenticates the token, but does not decrypt it: whoever made the token did not follow '
                           'the Fernet specification. Replace the value.';
            WHEN 'expired' THEN
                RAISE EXCEPTION USING ERRCODE = '22000', MESSAGE = 'Fernet token has expired',
                    HINT = 'Raise ttl, or get a new token.';
            WHEN 'from the future' THEN
                RAISE EXCEPTION USING ERRCODE = '22000', MESSAGE = 'Fernet token is from the future',
                    HINT = 'Check the clock of the machine that made the token. Without a ttl, the timestamp is not looked '
                           'at.';
            WHEN 'not text' THEN
                RAISE EXCEPTION USING ERRCODE = '22021', MESSAGE = 'plaintext is not valid text in the database encoding' || place,
                    HINT = 'Use fernet_decrypt_bytea() to get the bytes as they are.';
            WHEN 'not UTF-8' THEN
                RAISE EXCEPTION USING ERRCODE = '22021', MESSAGE = 'text has no equivalent in UTF-8' || place,
                    HINT = 'To encrypt its bytes as they are, pass convert_to(value, getdatabaseencoding()).';
            WHEN 'too large' THEN
                RAISE EXCEPTION USING ERRCODE = '54000', MESSAGE = 'value is too large for pg_fernet_sql' || place,
                    HINT = 'Split the value: here, a token has at most 250 million characters.';
            END CASE;
        END $$;

        --
        -- Base64 as pyca reads it
        --

        -- Turns each byte into an ASCII character: itself, or, if it is not ASCII, a control character.
        CREATE OR REPLACE FUNCTION {self}._fernet_characters(value bytea) RETURNS text
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            escaped text COLLATE "C" := replace(encode(value, 'escape') COLLATE "C", E'\x01', E'\x02');
        BEGIN
            escaped := replace(escaped, E'\\\\', E'\x01');
            escaped := regexp_replace(escaped, E'\\\\[0-7]{3}', E'\x02', 'g');
            RETURN replace(escaped, E'\x01', E'\\');
        END $$;

        -- Finds what pyca decodes: what CPython's binascii.a2b_base64 does when it is not strict, with both alphabets.
        -- Other bytes are skipped. A `=` ends the input if it completes a group of four that has at least two characters; a
        -- `=` before that is skipped, too. Returns the characters, their place, and where reading ended; or NULL if that is
        -- inside a group.
        --
        -- The padding belongs to that place, too, if only white space precedes it. Otherwise it belongs to other text, or
        -- there is text between them that must not be lost.
        CREATE OR REPLACE FUNCTION {self}._fernet_base64(
                encoded text, OUT characters text, OUT first integer, OUT last integer, OUT read_to integer)
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
        AS $$
        DECLARE
            parts constant integer[] := ARRAY(
                SELECT ARRAY[length(m[1]), length(m[2]), ascii(m[2])]
                FROM regexp_matches(encoded COLLATE "C", '([^A-Za-z0-9+/_=-]*)([A-Za-z0-9+/_-]+|=+)', 'g') AS m);
            part integer[];
            run integer;
            at integer := 0;
            count integer := 0;
            pads integer := 0;
            ended integer;
        BEGIN
            IF parts = '{}' THEN
                RETURN;
            END IF;
            FOREACH part SLICE 1 IN ARRAY parts LOOP
                at := at + part[1];
                run := part[2];
                IF part[3] <> ascii('=') THEN
                    first := coalesce(first, at + 1);
                    last := at + run;
                    count := count + run;
                    pads := 0;
                ELSIF count % 4 >= 2 THEN
                    IF count % 4 + pads + run >= 4 THEN
                        ended := at + 4 - count % 4 - pads;
                        EXIT;
                    END IF;
                    pads := pads + run;
                END IF;
                at := at + run;
            END LOOP;
            IF ended IS NOT NULL OR count % 4 = 0 THEN
                characters := regexp_replace(left(encoded, last) COLLATE "C", '[^A-Za-z0-9+/_-]', '', 'g');
                read_to := coalesce(ended, last);
                IF substring(encoded, last + 1, ended - last) COLLATE "C" ~ E'^[= \t\n\f\r]*$' THEN
                    last := ended;
                END IF;
            END IF;
        END $$;

        -- Decodes characters without their padding, if that makes a token: version, timestamp, IV, blocks, HMAC.
        CREATE OR REPLACE FUNCTION {self}._fernet_record(characters text) RETURNS bytea
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            base64 text COLLATE "C" := replace(replace(characters COLLATE "C", '-', '+'), '_', '/');
            missing integer := -length(characters) & 3;
            len integer := length(characters) - length(characters) / 4 - sign(missing);
        BEGIN
            IF base64 ~ '^g[A-P]' AND missing < 3 AND len > 57 AND (len - 57) % 16 = 0 THEN
                RETURN decode(base64 || repeat('=', missing), 'base64');
            END IF;
            RETURN NULL;
        END $$;

        --
        -- Keys
        --

        CREATE OR REPLACE FUNCTION {self}._fernet_keys() RETURNS bytea[]
            LANGUAGE plpgsql STABLE PARALLEL SAFE
        AS $$
        DECLARE
            list @.text COLLATE @."C" := @.current_setting('fernet.keys', true);
            elements @.text[] COLLATE @."C";
            characters @.text;
            look @.record;
            keys @.bytea[] := '{}';
        BEGIN
            -- A custom setting that was set in a transaction is empty after it, instead of not set.
            IF list IS NULL OR list @=@ '' THEN
                PERFORM {self}._fernet_refuse('no keys');
            ELSIF list @!~@ E'[^ \t\n\f\r]' THEN
                PERFORM {self}._fernet_refuse('empty list');
            END IF;
            elements := @.string_to_array(list, ',');
            FOR place IN 1 .. @.cardinality(elements) LOOP
                IF elements[place] @~@ '^[A-Za-z0-9+/_-]{43}=$' THEN
                    characters := @.left(elements[place], 43);
                ELSE
                    look := {self}._fernet_base64(elements[place]);
                    characters := look.characters;
                    -- More characters after the padding would be another key, which pyca ignores.
                    IF @.length(characters) @=@ 43
                            AND @.substring(elements[place], look.read_to @+@ 1) @!~@ '[A-Za-z0-9+/_-]' THEN
                        NULL;
                    ELSE
                        PERFORM {self}._fernet_refuse('invalid key', place);
                    END IF;
                END IF;
                keys := @.array_append(
                    keys, @.decode(@.replace(@.replace(characters, '-', '+'), '_', '/') @||@ '=', 'base64'));
            END LOOP;
            RETURN keys;
        END $$;

        CREATE OR REPLACE FUNCTION {self}.fernet_keys() RETURNS TABLE (key_index integer, fingerprint text)
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE ROWS 2
        AS $$
        BEGIN
            RETURN QUERY SELECT k.place::integer, @.encode(@.substring(@.sha256(k.key), 1, 8), 'hex')
                FROM @.unnest({self}._fernet_keys()) WITH ORDINALITY AS k (key, place);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_keys() IS
            'the configured keys by place in the list and fingerprint: 16 hex digits of their SHA-256';

        CREATE OR REPLACE FUNCTION {self}.fernet_generate_key() RETURNS text
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
        AS $$
        BEGIN
            RETURN @.replace(@.replace(@.encode({self}._fernet_random(32), 'base64'), '+', '-'), '/', '_');
        END $$;
        COMMENT ON FUNCTION {self}.fernet_generate_key() IS
            'a new random Fernet key';

        CREATE OR REPLACE FUNCTION {self}.fernet_version() RETURNS text
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            RETURN 'pg_fernet_sql 0.2.0';
        COMMENT ON FUNCTION {self}.fernet_version() IS
            'edition and version of these functions';

        --
        -- Encrypt
        --

        -- Makes a token under a key. The plaintext must already be padded.
        CREATE OR REPLACE FUNCTION {self}._fernet_seal(time_bytes bytea, padded bytea, key bytea) RETURNS text
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            iv @.bytea := {self}._fernet_random(16);
            record @.bytea := E'\\x80'::@.bytea @||@ time_bytes @||@ iv
                @||@ {self}._fernet_encrypt_blocks(padded, @.substring(key, 17, 16), iv);
        BEGIN
            record := record @||@ {self}._fernet_hmac(record, @.substring(key, 1, 16));
            RETURN @.replace(@.replace(@.replace(@.encode(record, 'base64'), E'\n', ''), '+', '-'), '/', '_');
        END $$;

        CREATE OR REPLACE FUNCTION {self}.fernet_encrypt(plaintext bytea) RETURNS text
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            keys @.bytea[] := {self}._fernet_keys();
            plain @.bytea := plaintext;
            padding integer;
        BEGIN
            IF @.octet_length(plain) @>@ 187000000 THEN
                PERFORM {self}._fernet_refuse('too large');
            END IF;
            {pad}
            RETURN {sealed};
        END $$;
        COMMENT ON FUNCTION {self}.fernet_encrypt(bytea) IS
            'encrypt bytes into a Fernet token under the first key';

        CREATE OR REPLACE FUNCTION {self}.fernet_encrypt(plaintext text) RETURNS text
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL {converts}
        AS $$
        DECLARE
            keys @.bytea[] := {self}._fernet_keys();
            plain @.bytea;
            padding integer;
        BEGIN
            IF @.octet_length(plaintext) @>@ 187000000 THEN
                PERFORM {self}._fernet_refuse('too large');
            ELSIF @.getdatabaseencoding() @=@ 'UTF8' THEN
                plain := @.convert_to(plaintext, 'UTF8');
            ELSE
                plain := {self}._fernet_to_utf8(plaintext);
                IF plain IS NULL THEN
                    PERFORM {self}._fernet_refuse('not UTF-8');
                END IF;
            END IF;
            {pad}
            RETURN {sealed};
        END $$;
        COMMENT ON FUNCTION {self}.fernet_encrypt(text) IS
            'encrypt text, as UTF-8, into a Fernet token under the first key';

        -- Converts from another encoding. NULL if a character has no equivalent: the server's own error would show it.
        CREATE OR REPLACE FUNCTION {self}._fernet_to_utf8(plaintext text) RETURNS bytea
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL {converts}
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            RETURN convert_to(plaintext, 'UTF8');
        EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
            RETURN NULL;
        END $$;

        --
        -- Decrypt
        --

        -- Turns UTF-8 bytes into text. NULL if they are not UTF-8: the server's own error would show them.
        CREATE OR REPLACE FUNCTION {self}._fernet_text(plain bytea) RETURNS text
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL {converts}
        AS $$
        DECLARE
            escaped @.text COLLATE @."C" := @.encode(plain, 'escape');
        BEGIN
            -- Nearly all passwords are like this: only ASCII, and no backslash.
            IF @.strpos(escaped, E'\\') @=@ 0 THEN
                RETURN escaped;
            END IF;
            RETURN {self}._fernet_from_utf8(plain);
        END $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_from_utf8(plain bytea) RETURNS text
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL {converts}
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            -- The characters of Unicode except zero, in hexadecimal digits.
            utf8 constant text := '^(?:0[1-9a-f]|[1-7].'
                '|(?:c[2-9a-f]|d.)[89ab].'
                '|(?:e0[ab]|e[1-9a-cef][89ab]|ed[89]|f0[9ab].[89ab]|f[123][89ab].[89ab]|f48.[89ab]).[89ab].)*$';
            len constant integer := octet_length(plain);
            done integer := 0;
            size integer;
        BEGIN
            IF getdatabaseencoding() <> 'UTF8' THEN
                RETURN {self}._fernet_convert_from_utf8(plain);
            END IF;
            -- Not the usual way, since a parallel query must not begin a subtransaction. The text is matched in pieces of
            -- whole characters, since a regular expression takes many times the space.
            WHILE done < len LOOP
                size := least(1000000, len - done);
                FOR back IN 1 .. 3 LOOP
                    EXIT WHEN done + size = len OR get_byte(plain, done + size) & 192 <> 128;
                    size := size - 1;
                END LOOP;
                IF encode(substring(plain, done + 1, size), 'hex') COLLATE "C" !~ utf8 THEN
                    RETURN NULL;
                END IF;
                done := done + size;
            END LOOP;
            RETURN convert_from(plain, 'UTF8');
        END $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_convert_from_utf8(plain bytea) RETURNS text
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL {converts}
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            RETURN convert_from(plain, 'UTF8');
        EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
            RETURN NULL;
        END $$;

        -- Returns when a token was made, or infinity if that is past the range of timestamptz. Adds hours, since the server
        -- counts seconds in floating point, and days in its time zone.
        CREATE OR REPLACE FUNCTION {self}._fernet_time(record bytea) RETURNS timestamptz
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            seconds bigint := ('x' || encode(substring(record, 2, 8), 'hex'))::bit(64)::bigint;
            hours interval;
        BEGIN
            IF seconds NOT BETWEEN 0 AND 9224318015999 THEN
                RETURN 'infinity';
            END IF;
            hours := make_interval(hours => (seconds / 7200)::integer);
            RETURN timestamptz '1970-01-01 00:00:00+00' + hours + hours + make_interval(secs => seconds % 7200);
        END $$;

        -- Refuses a token that at the time `at` is older than `ttl`, or more than a minute ahead.
        CREATE OR REPLACE FUNCTION {self}._fernet_check_age(record bytea, ttl interval, at timestamptz) RETURNS void
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            made timestamptz := {self}._fernet_time(record);
        BEGIN
            IF made - interval '1 minute' > at THEN
                PERFORM {self}._fernet_refuse('from the future');
            ELSIF {self}._fernet_expires(made, ttl) < at THEN
                PERFORM {self}._fernet_refuse('expired');
            END IF;
        END $$;

        -- Past the range of timestamptz, the result is infinity, or minus infinity if the interval points there. If the
        -- interval has months or days, whose length varies, this begins in the last days of the range. The server's error
        -- is not caught: a parallel query must not begin a subtransaction before PostgreSQL 17.
        CREATE OR REPLACE FUNCTION {self}._fernet_expires(made timestamptz, ttl interval) RETURNS timestamptz
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            start constant numeric := extract(epoch FROM made);
            months numeric;
            days numeric;
            seconds numeric;
            margin integer;
        BEGIN
            IF made < timestamptz '10000-01-01' AND ttl BETWEEN interval '-1000 years' AND interval '100000 years'
                    AND abs(extract(day FROM ttl)) < 1000000 AND abs(extract(hour FROM ttl)) < 10000000 THEN
                RETURN made + ttl;
            END IF;
            IF isfinite(ttl) AND NOT isfinite(made) THEN
                RETURN made;
            END IF;
            -- The server adds months, then days, then the rest, and each sum must be in range. A month is 30.436875 days on
            -- average.
            IF isfinite(ttl) THEN
                months := start + (extract(year FROM ttl) * 12 + extract(month FROM ttl)) * 2629746;
                days := months + extract(day FROM ttl) * 86400;
                seconds := days + extract(hour FROM ttl) * 3600 + extract(minute FROM ttl) * 60 + extract(second FROM ttl);
                margin := CASE WHEN months = start AND days = start THEN 0 ELSE 10 * 86400 END;
                IF least(months, days, seconds) >= -210866803200 + margin AND greatest(months, days, seconds) < 9224318016000 - margin THEN
                    RETURN made + ttl;
                END IF;
            END IF;
            RETURN CASE WHEN ttl < interval '0' THEN timestamptz '-infinity' ELSE timestamptz 'infinity' END;
        END $$;

        --
        -- Tokens in a value
        --

        -- Finds and opens the token at the end of a run of characters, or of several joined runs, from any `gAAA` on, the
        -- shortest first. Tokens in the standard alphabet may be joined as their runs are: so if a token is found, and
        -- joined runs come before it, looks at their end, too. Returns the last token first. `behind` is the text after the
        -- run. If no key opens a token, but the whole run has the form of one, returns only the refusal.
        --
        -- A run of nothing but `gAAA` holds so many places that trying all of them would take quadratic time. So, except
        -- for the whole run, it gives up once it has tried four times the run's length: see src/fernet/runs.rs.
        CREATE OR REPLACE FUNCTION {self}._fernet_open_run(run text, behind text, keys bytea[])
            RETURNS TABLE (at integer, size integer, key_index integer, record bytea, padded bytea, refusal text)
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE ROWS 1
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
        AS $$
        DECLARE
            pads constant text := substring(behind, E'^(?:=|%3[Dd]|\\\\+u003[Dd]){0,2}');
            pad_count constant integer := length(regexp_replace(pads, E'=|%3[Dd]|\\\\+u003[Dd]', '=', 'g'));
            parts constant text[] := string_to_array(run, 'gAAA');
            -- Counting characters in text, or finding one, takes time in proportion to its length; bytes do not.
            bytes constant bytea := convert_to(run, getdatabaseencoding());
            run_length constant integer := octet_length(bytes);
            first_join constant integer := length(substring(run, E'^[^/+\\\\]*'));
            -- Where the text that is searched ends. If its last bytes join runs, those of them that are needed for the length
            -- of a token may be its last characters: how many there are, and where the token ends with none, one, or more.
            search_end integer := run_length;
            join_count integer;
            ends integer[];
            own integer;
            effort integer;
            chars text;
            count integer;
            key bytea;
            signed integer;
            len integer;
            padding integer;
        BEGIN
            at := run_length;
            FOR part IN REVERSE cardinality(parts) .. 2 LOOP
                chars := parts[part];
                IF ends IS NULL THEN
                    chars := rtrim(chars, E'/+\\');
                    ends := ARRAY[at - length(parts[part]) + length(chars)];
                    join_count := 0;
                    FOR place IN ends[1] .. search_end - 1 LOOP
                        IF get_byte(bytes, place) <> ascii(E'\\') THEN
                            join_count := join_count + 1;
                            IF join_count < 64 THEN
                                ends := array_append(ends, place + 1);
                            END IF;
                        END IF;
                    END LOOP;
                    effort := 4 * search_end;
                    count := 0;
                END IF;
                at := at - length(parts[part]) - 4;
                count := count + length(replace(chars, E'\\', '')) + 4;
                -- A token without padding has 140 characters, or 64 more, and so on.
                own := (140 - count) & 63;
                FOREACH own IN ARRAY CASE WHEN own < join_count THEN ARRAY[own, join_count] ELSE ARRAY[join_count] END LOOP
                    record := NULL;
                    size := CASE own WHEN join_count THEN search_end ELSE ends[own + 1] END - at;
                    -- Cut short, or not the length of a token.
                    CONTINUE WHEN -(count + own) & 3 > CASE at + size WHEN run_length THEN pad_count ELSE 0 END
                        OR (count + own) * 3::bigint / 4 < 73 OR ((count + own) * 3::bigint / 4 - 57) % 16 <> 0;
                    effort := greatest(0, effort - size);
                    CONTINUE WHEN effort = 0 AND at > 0;
                    record := {self}._fernet_record(replace(encode(substring(bytes, at + 1, size), 'escape'), E'\\', ''));
                    {open}
                    EXIT WHEN refusal IS NULL;
                END LOOP;
                CONTINUE WHEN key_index IS NULL;
                RETURN NEXT;
                key_index := NULL;
                search_end := at - 1;
                EXIT WHEN search_end <= first_join OR get_byte(bytes, search_end) NOT IN (ascii('/'), ascii('+'));
                WHILE search_end > first_join AND get_byte(bytes, search_end - 1) = ascii(E'\\') LOOP
                    search_end := search_end - 1;
                END LOOP;
                EXIT WHEN search_end = first_join;
                ends := NULL;
            END LOOP;
            -- The whole run came last, if it has the length of a token.
            IF search_end = run_length AND record IS NOT NULL AND left(run, 6) = 'gAAAAA' THEN
                at := NULL;
                size := NULL;
                record := NULL;
                padded := NULL;
                RETURN NEXT;
            END IF;
        END $$;

        -- Finds the tokens in a stretch: an unbroken sequence of base64 characters, in which a `/` may be escaped, as in
        -- JSON. Each run between `/` and `+` may have a token at its end; if none does, several joined runs may. If nothing
        -- is found, but the stretch as a whole has the form of a token, it is refused.
        CREATE OR REPLACE FUNCTION {self}._fernet_tokens_in_stretch(stretch text, behind text, keys bytea[])
            RETURNS TABLE (at integer, size integer, key_index integer, record bytea, padded bytea, refusal text)
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
        AS $$
        DECLARE
            joins constant text := E'[/+\\\\]';
            stretch_length constant integer := length(stretch);
            -- Without its padding.
            shortest_token constant integer := 98;
            run text;
            run_at integer := 0;
            token record;
            refused text;
            -- The end of the last token that was found.
            rest integer := 0;
            joined text;
        BEGIN
            FOREACH run IN ARRAY regexp_split_to_array(stretch, joins) LOOP
                refused := NULL;
                IF length(run) >= shortest_token AND strpos(run, 'gAAA') > 0 THEN
                    FOREACH token IN ARRAY ARRAY(SELECT t FROM {self}._fernet_open_run(
                            run, CASE WHEN run_at + length(run) = stretch_length THEN behind ELSE '' END, keys) AS t) LOOP
                        refused := token.refusal;
                        CONTINUE WHEN refused IS NOT NULL;
                        -- A token in the other alphabet may end before the byte that joins the runs.
                        IF run_at + token.at - rest > shortest_token THEN
                            joined := substring(stretch, rest + 1, run_at + token.at - rest);
                            IF right(joined, 1) IN ('/', '+') THEN
                                joined := rtrim(left(joined, -1), E'\\');
                                IF length(joined) >= shortest_token AND joined ~ joins AND strpos(joined, 'gAAA') > 0 THEN
                                    RETURN QUERY SELECT rest + t.at, t.size, t.key_index, t.record, t.padded, NULL::text
                                        FROM {self}._fernet_open_run(joined, '', keys) AS t
                                        WHERE t.refusal IS NULL ORDER BY t.at;
                                END IF;
                            END IF;
                        END IF;
                        RETURN QUERY SELECT run_at + token.at, token.size, token.key_index, token.record, token.padded, NULL::text;
                        rest := run_at + length(run);
                    END LOOP;
                END IF;
                run_at := run_at + length(run) + 1;
            END LOOP;
            joined := substring(stretch, rest + 1);
            IF length(joined) >= shortest_token AND joined ~ joins AND strpos(joined, 'gAAA') > 0 THEN
                refused := NULL;
                FOREACH token IN ARRAY ARRAY(SELECT t FROM {self}._fernet_open_run(joined, behind, keys) AS t ORDER BY t.at) LOOP
                    refused := token.refusal;
                    CONTINUE WHEN refused IS NOT NULL;
                    RETURN QUERY SELECT rest + token.at, token.size, token.key_index, token.record, token.padded, NULL::text;
                END LOOP;
            END IF;
            -- The last text that was tried is the whole stretch.
            IF rest = 0 AND refused IS NOT NULL THEN
                refusal := refused;
                RETURN NEXT;
            END IF;
        END $$;

        -- Finds and opens the tokens in a value, or in a document, which as a whole is no token. Returns for each its place
        -- and length in bytes, its key, and its plaintext with padding. Tokens that no key opens come last, with only the
        -- reason. No row means no token.
        --
        -- In order: what pyca makes of the value as a whole, if a key opens that; then what each stretch after it holds.
        -- Only if these find nothing: what pyca makes of the value, if no key opens that. As in src/fernet/scan.rs.
        CREATE OR REPLACE FUNCTION {self}._fernet_tokens(value bytea, is_document boolean, keys bytea[])
            RETURNS TABLE (at integer, size integer, key_index integer, record bytea, padded bytea, refusal text)
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
        AS $$
        DECLARE
            stretch_pattern constant text := E'[A-Za-z0-9+/_-]*gAAA[A-Za-z0-9+/_-]*(?:\\\\+/[A-Za-z0-9+/_-]*)*';
            characters text COLLATE "C" := {self}._fernet_characters(value);
            -- Without its padding.
            shortest_token constant integer := 98;
            rest text;
            gaps text[];
            stretches text[];
            gap text;
            stretch text;
            stretch_length integer;
            behind text;
            escape integer;
            token record;
            whole record;
            whole_refusal text;
            next integer := 0;
            any_open boolean := false;
            refused text[] := '{}';
            key bytea;
            signed integer;
            len integer;
            padding integer;
        BEGIN
            IF NOT is_document THEN
                whole := {self}._fernet_base64(characters);
                record := {self}._fernet_record(whole.characters);
                IF record IS NOT NULL THEN
                    {open}
                    IF refusal IS NULL THEN
                        at := whole.first - 1;
                        size := whole.last - at;
                        next := whole.last;
                        any_open := true;
                        RETURN NEXT;
                    END IF;
                    whole_refusal := refusal;
                END IF;
            END IF;

            rest := substring(characters, next + 1);
            gaps := regexp_split_to_array(rest, stretch_pattern);
            stretches := ARRAY(SELECT m[1] FROM regexp_matches(rest, stretch_pattern, 'g') AS m);
            FOR number IN 1 .. cardinality(stretches) LOOP
                gap := gaps[number];
                stretch := stretches[number];
                behind := gaps[number + 1] || coalesce(left(stretches[number + 1], 5), '');
                -- Such characters belong to an escape, such as that of a line break in JSON.
                escape := 0;
                IF right(CASE gap WHEN '' THEN substring(characters, next, 1) ELSE gap END, 1) = E'\\' THEN
                    escape := coalesce(length(substring(stretch, '^(?:[nrtbf]|u[0-9A-Fa-f]{4})')), 0);
                    stretch := substring(stretch, escape + 1);
                END IF;
                next := next + length(gap) + escape;
                stretch_length := length(stretch);
                IF stretch_length >= shortest_token THEN
                    FOREACH token IN ARRAY ARRAY(SELECT t FROM {self}._fernet_tokens_in_stretch(stretch, behind, keys) AS t) LOOP
                        IF token.refusal IS NOT NULL THEN
                            refused := array_append(refused, token.refusal);
                        ELSE
                            any_open := true;
                            RETURN QUERY SELECT next + token.at, token.size, token.key_index, token.record, token.padded, NULL::text;
                        END IF;
                    END LOOP;
                END IF;
                next := next + stretch_length;
            END LOOP;

            IF NOT any_open AND refused = '{}' AND whole_refusal IS NOT NULL THEN
                refused := ARRAY[whole_refusal];
            END IF;
            RETURN QUERY SELECT NULL::integer, NULL::integer, NULL::integer, NULL::bytea, NULL::bytea, r.reason
                FROM unnest(refused) AS r (reason) ORDER BY r.reason DESC;
        END $$;

        -- Finds the tokens in a value. Returns for each the place of the key that opens it, or 0, in which case `refusals`
        -- says why. If wanted, also returns the value with all of them under the first key, if that changes it.
        CREATE OR REPLACE FUNCTION {self}._fernet_look_inside(
                value bytea, is_document boolean, keys bytea[], rotates boolean,
                OUT openers integer[], OUT refusals text[], OUT changed bytea)
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
        AS $$
        DECLARE
            token record;
            pieces bytea[] := '{}';
            done integer := 0;
            old bytea;
            room integer;
        BEGIN
            openers := '{}';
            refusals := '{}';
            FOREACH token IN ARRAY ARRAY(SELECT t FROM {self}._fernet_tokens(value, is_document, keys) AS t) LOOP
                openers := array_append(openers, coalesce(token.key_index, 0));
                IF token.refusal IS NOT NULL THEN
                    refusals := array_append(refusals, token.refusal);
                ELSIF rotates AND token.key_index > 1 THEN
                    -- The padding that the old token does not have at its place follows it.
                    old := substring(value, token.at + 1, token.size);
                    room := length(regexp_replace({self}._fernet_characters(old), '[^A-Za-z0-9+/_=-]', '', 'g'));
                    pieces := array_append(pieces, substring(value, done + 1, token.at - done));
                    pieces := array_append(pieces, decode(left({self}._fernet_seal(
                        substring(token.record, 2, 8), token.padded, keys[1]), room), 'escape'));
                    done := token.at + token.size;
                END IF;
            END LOOP;
            IF done > 0 THEN
                pieces := array_append(pieces, substring(value, done + 1));
                changed := (SELECT string_agg(p.piece, '' ORDER BY p.n) FROM unnest(pieces) WITH ORDINALITY AS p (piece, n));
            END IF;
        END $$;

        -- The highest place of the keys that open the tokens in a value. NULL if there is no token, or if no key opens one
        -- of them.
        CREATE OR REPLACE FUNCTION {self}._fernet_highest(openers integer[]) RETURNS integer
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT CASE WHEN min(o.place) > 0 THEN max(o.place) END FROM unnest(openers) AS o (place)
        $$;
    $source$;

    --
    -- The functions that take a token, for text and for bytea
    --

    of_tokens constant pg_catalog.text := $source$
        CREATE OR REPLACE FUNCTION {self}.fernet_decrypt(token {type}) RETURNS text
            LANGUAGE plpgsql STABLE STRICT PARALLEL {converts}
        AS $$
        DECLARE
            {variables}
        BEGIN
            {open_or_refuse}
            {return_text}
        END $$;
        COMMENT ON FUNCTION {self}.fernet_decrypt({type}) IS
            'decrypt a Fernet token to text, with whichever key opens it';

        CREATE OR REPLACE FUNCTION {self}.fernet_decrypt(token {type}, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS text
            LANGUAGE plpgsql STABLE STRICT PARALLEL {converts}
        AS $$
        DECLARE
            {variables}
        BEGIN
            {open_or_refuse}
            PERFORM {self}._fernet_check_age(record, ttl, at);
            {return_text}
        END $$;
        COMMENT ON FUNCTION {self}.fernet_decrypt({type}, interval, timestamptz) IS
            'decrypt a Fernet token to text, unless it is older than ttl';

        CREATE OR REPLACE FUNCTION {self}.fernet_decrypt_bytea(token {type}) RETURNS bytea
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            {variables}
        BEGIN
            {open_or_refuse}
            RETURN @.substring(padded, 1, len);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_decrypt_bytea({type}) IS
            'decrypt a Fernet token to bytes, with whichever key opens it';

        CREATE OR REPLACE FUNCTION {self}.fernet_decrypt_bytea(token {type}, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS bytea
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            {variables}
        BEGIN
            {open_or_refuse}
            PERFORM {self}._fernet_check_age(record, ttl, at);
            RETURN @.substring(padded, 1, len);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_decrypt_bytea({type}, interval, timestamptz) IS
            'decrypt a Fernet token to bytes, unless it is older than ttl';

        CREATE OR REPLACE FUNCTION {self}.fernet_rotate(token {type}) RETURNS {type}
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            {variables}
            look @.record;
        BEGIN
            keys := {self}._fernet_keys();
            encoded := {encoded};
            {decode}
            IF record IS NOT NULL THEN
                {open}
                IF key_index @=@ 1 THEN
                    RETURN token;
                ELSIF key_index @>@ 1 THEN
                    encoded := {self}._fernet_seal(@.substring(record, 2, 8), padded, keys[1]);
                    RETURN {decoded};
                END IF;
            END IF;
            look := {self}._fernet_look_inside({bytes}, false, keys, true);
            refusal := CASE WHEN look.openers @=@ '{}' THEN 'not a token' ELSE look.refusals[@.cardinality(look.refusals)] END;
            record := look.changed;
            IF refusal IS NOT NULL THEN
                PERFORM {self}._fernet_refuse(refusal);
            END IF;
            RETURN CASE WHEN record IS NULL THEN token ELSE {value} END;
        END $$;
        COMMENT ON FUNCTION {self}.fernet_rotate({type}) IS
            're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest of the value stays, and so does a token that is already under the first key';

        CREATE OR REPLACE FUNCTION {self}.fernet_key_index(token {type}) RETURNS integer
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            {variables}
        BEGIN
            keys := {self}._fernet_keys();
            encoded := {encoded};
            {decode}
            IF record IS NOT NULL THEN
                {open}
                IF refusal IS NULL THEN
                    RETURN key_index;
                END IF;
            END IF;
            RETURN {self}._fernet_highest(({self}._fernet_look_inside({bytes}, false, keys, false)).openers);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_key_index({type}) IS
            'place in the key list, counted from 1, of the key that opens the token in a value, or the highest place for several tokens; NULL if there is no token, or one that no key opens';

        CREATE OR REPLACE FUNCTION {self}.fernet_timestamp(token {type}) RETURNS timestamptz
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            {variables}
        BEGIN
            {open_whole}
            IF refusal @=@ 'unauthenticated' THEN
                PERFORM {self}._fernet_refuse(refusal);
            END IF;
            RETURN {self}._fernet_time(record);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_timestamp({type}) IS
            'time at which a Fernet token was made; a key must authenticate it';

        CREATE OR REPLACE FUNCTION {self}.fernet_is_token(value {type}) RETURNS boolean
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            token @.{type} := value;
            encoded @.text COLLATE @."C" := {encoded};
            record @.bytea;
        BEGIN
            {decode}
            RETURN record IS NOT NULL
                OR {self}._fernet_record(({self}._fernet_base64({characters})).characters) IS NOT NULL;
        END $$;
        COMMENT ON FUNCTION {self}.fernet_is_token({type}) IS
            'does the value have the form of a Fernet token? Needs no key';
    $source$;

    --
    -- The functions that take a document, for json and for jsonb
    --

    of_documents constant pg_catalog.text := $source$
        CREATE OR REPLACE FUNCTION {self}.fernet_rotate(document {type}) RETURNS {type}
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            keys constant bytea[] := {self}._fernet_keys();
            written constant text := document;
            look record;
        BEGIN
            -- Most documents hold no token.
            IF strpos(written COLLATE "C", 'gAAA') = 0 THEN
                RETURN document;
            END IF;
            look := {self}._fernet_look(written, '{type}', keys, 'rotate', true);
            IF look.refusal IS NOT NULL THEN
                PERFORM {self}._fernet_refuse(look.refusal);
            END IF;
            RETURN coalesce(look.changed::{type}, document);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_rotate({type}) IS
            're-encrypt the Fernet tokens in a document, if it has any, under the first key, with their own timestamps; the rest of the document stays, and so does a token that is already under the first key';

        CREATE OR REPLACE FUNCTION {self}.fernet_key_index(document {type}) RETURNS integer
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            keys constant bytea[] := {self}._fernet_keys();
            written constant text := document;
        BEGIN
            IF strpos(written COLLATE "C", 'gAAA') = 0 THEN
                RETURN NULL;
            END IF;
            RETURN {self}._fernet_highest(({self}._fernet_look(written, '{type}', keys, 'rotate', false)).openers);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_key_index({type}) IS
            'place in the key list, counted from 1, of the key that opens the token in a document, or the highest place for several tokens; NULL if there is no token, or one that no key opens';
    $source$;
    -- Counts what a relation holds, all of it in one snapshot: tokens by key, tokens of no key, values without a token,
    -- nulls, rows, and what a conversion has to do. Also describes the first few values that a conversion leaves. Naming
    -- their places takes the right to read the whole table.
    --
    -- This is made twice. The function that a query calls sees what the query sees, and is stable. The one for a proof is
    -- volatile: it gets its snapshot once it has its locks, so that a table that was rewritten meanwhile does not look
    -- empty.
    count_relation constant pg_catalog.text := $source$
        CREATE OR REPLACE FUNCTION {self}.{count_name}(
                relation regclass, column_name name, keys bytea[], conversion text, names_places boolean,
                OUT under_key bigint[], OUT unknown_key bigint, OUT not_a_token bigint, OUT nulls bigint, OUT row_count bigint,
                OUT due bigint, OUT in_text bigint, OUT bad text[])
            LANGUAGE plpgsql {count_volatility} STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET row_security = off
        AS $$
        DECLARE
            target record := {self}._fernet_column(relation, column_name, NULL);
            kind constant text := target.kind;
            changes constant boolean := false;
            rows refcursor;
            stored record;
            look record;
            opener integer;
        BEGIN
            under_key := array_fill(0::bigint, ARRAY[cardinality(keys)]);
            unknown_key := 0; not_a_token := 0; nulls := 0; row_count := 0; due := 0; in_text := 0; bad := '{}';
            OPEN rows NO SCROLL FOR EXECUTE format('SELECT %s%s FROM %s AS t', target.as_text,
                CASE WHEN names_places THEN ', t.ctid AS id, t.tableoid::regclass AS member' END, relation);
            LOOP
                -- Row by row: a FOR loop keeps up to 50 in memory.
                FETCH rows INTO stored;
                EXIT WHEN NOT FOUND;
                row_count := row_count + 1;
                IF stored.value IS NULL AND stored.elements IS NULL THEN
                    nulls := nulls + 1;
                    CONTINUE;
                END IF;
                look := {look};
                FOREACH opener IN ARRAY look.openers LOOP
                    IF opener > 0 THEN
                        under_key[opener] := under_key[opener] + 1;
                    ELSE
                        unknown_key := unknown_key + 1;
                    END IF;
                END LOOP;
                not_a_token := not_a_token + (look.openers = '{}')::integer;
                due := due + look.due;
                in_text := in_text + look.in_text;
                IF names_places AND look.refusal IS NOT NULL AND cardinality(bad) < 5 THEN
                    bad := bad || format('%s of %s: %s', stored.id, stored.member, {self}._fernet_short(look.refusal));
                END IF;
            END LOOP;
            CLOSE rows;
        END $$;$source$;

    --
    -- Whole columns. Functions that read them have row_security = off: a policy that would hide rows is an error.
    --

    of_columns constant pg_catalog.text := $source$
        -- What is to be done about a value of a column. `conversion` is one of three. rotate: tokens under older keys
        -- become tokens under the first. encrypt: a value without a token becomes one. decrypt: a value that is one token
        -- and nothing else, which a key opens, becomes its plaintext.
        --
        -- Values of all types come and go as text. `kind` says how their type keeps tokens: text, bytea, jsonb (in each
        -- string), json (as in text, but as a whole it is no token; this includes hstore).
        --
        -- openers   for each token the place of the key that opens it, or 0
        -- due       how many tokens are to be rotated, or 1 if the value is to be encrypted or decrypted
        -- in_text   how many tokens cannot be converted because text is beside them
        -- refusal   why something is left unchanged; a document without a token is no fault
        -- changed   the new value, if `changes` wants one and there can be one; otherwise `refusal` says why not
        CREATE OR REPLACE FUNCTION {self}._fernet_look(
                value text, kind text, keys bytea[], conversion text, changes boolean,
                OUT openers integer[], OUT due integer, OUT in_text integer, OUT refusal text, OUT changed text)
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            encoded @.text COLLATE @."C" := value;
            is_document constant boolean := kind @=@ 'json' OR kind @=@ 'jsonb';
            is_rotation constant boolean := conversion @=@ 'rotate';
            bytes @.bytea;
            plain @.bytea;
            key @.bytea;
            record @.bytea;
            signed integer;
            padded @.bytea;
            len integer;
            padding integer;
            key_index integer;
            look @.record;
        BEGIN
            openers := '{}';
            due := 0;
            in_text := 0;
            IF kind @=@ 'bytea' THEN
                bytes := value::@.bytea;
                encoded := @.encode(bytes, 'escape');
            END IF;
            {decode}
            IF record IS NULL AND NOT is_rotation AND NOT is_document THEN
                record := {self}._fernet_whole(CASE WHEN bytes IS NULL THEN encoded ELSE {self}._fernet_characters(bytes) END);
            END IF;
            IF record IS NOT NULL THEN
                {open}
                IF refusal IS NULL THEN
                    openers := ARRAY[key_index];
                    IF is_rotation THEN
                        due := (key_index @>@ 1)::integer;
                        IF changes AND due @=@ 1 THEN
                            changed := {self}._fernet_seal(@.substring(record, 2, 8), padded, keys[1]);
                            IF kind @=@ 'bytea' THEN
                                changed := @.decode(changed, 'escape');
                            END IF;
                        END IF;
                    ELSIF conversion @=@ 'decrypt' THEN
                        due := 1;
                        IF changes THEN
                            plain := @.substring(padded, 1, len);
                            changed := CASE WHEN kind @=@ 'bytea' THEN plain::@.text ELSE {self}._fernet_text(plain) END;
                            refusal := CASE WHEN changed IS NULL THEN 'not text' END;
                        END IF;
                    END IF;
                    RETURN;
                END IF;
                refusal := NULL;
            END IF;

            IF is_document AND @.strpos(encoded, 'gAAA') @=@ 0 THEN
                NULL;
            ELSIF kind @=@ 'jsonb' THEN
                look := {self}._fernet_look_in_strings(value, keys, changes AND is_rotation);
                openers := look.openers;
                refusal := look.refusal;
                changed := look.changed;
            ELSIF @.octet_length(encoded) @>=@ 98 THEN
                -- The shortest token has this many characters, without its padding.
                IF bytes IS NULL THEN
                    bytes := @.convert_to(value, @.getdatabaseencoding());
                END IF;
                look := {self}._fernet_look_inside(bytes, is_document, keys, changes AND is_rotation);
                openers := look.openers;
                refusal := look.refusals[1];
                plain := look.changed;
                changed := CASE WHEN kind @=@ 'bytea' THEN plain::@.text ELSE @.convert_from(plain, @.getdatabaseencoding()) END;
            END IF;
            IF openers @<>@ '{}' THEN
                IF is_rotation THEN
                    due := {self}._fernet_count_above(openers, 1);
                ELSE
                    in_text := {self}._fernet_count_above(openers, 0);
                    refusal := COALESCE(refusal, CASE WHEN in_text @>@ 0 THEN 'in text' END);
                END IF;
            ELSIF is_rotation THEN
                refusal := CASE WHEN NOT is_document THEN 'not a token' END;
            ELSIF conversion @=@ 'encrypt' THEN
                due := 1;
                -- No token can take the place of a document.
                IF changes AND NOT is_document THEN
                    IF @.octet_length(encoded) @>@ 187000000 THEN
                        refusal := 'too large';
                        RETURN;
                    ELSIF kind @=@ 'bytea' THEN
                        plain := bytes;
                    ELSIF @.getdatabaseencoding() @=@ 'UTF8' THEN
                        plain := @.convert_to(value, 'UTF8');
                    ELSE
                        plain := {self}._fernet_to_utf8(value);
                        IF plain IS NULL THEN
                            refusal := 'not UTF-8';
                            RETURN;
                        END IF;
                    END IF;
                    {pad}
                    changed := {sealed};
                    IF kind @=@ 'bytea' THEN
                        changed := @.decode(changed, 'escape');
                    END IF;
                END IF;
            END IF;
        END $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_count_above(openers integer[], place integer) RETURNS integer
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT count(*)::integer FROM unnest(openers) AS o (opener) WHERE o.opener > place
        $$;

        -- Decodes a token that has only white space in it and around it, or more padding after it. Nothing else is lost
        -- when its plaintext replaces it.
        CREATE OR REPLACE FUNCTION {self}._fernet_whole(encoded text) RETURNS bytea
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            look @.record;
        BEGIN
            IF @.octet_length(encoded) @>=@ 98 AND encoded @~@ E'^[ \\t\\n\\f\\r]*g[A-Za-z0-9+/_= \\t\\n\\f\\r-]*$' THEN
                look := {self}._fernet_base64(encoded);
                IF @.substring(encoded, look.read_to @+@ 1) @~@ E'^[= \\t\\n\\f\\r]*$' THEN
                    RETURN {self}._fernet_record(look.characters);
                END IF;
            END IF;
            RETURN NULL;
        END $$;

        -- Does the same for jsonb: each string is a value, including keys of objects.
        CREATE OR REPLACE FUNCTION {self}._fernet_look_in_strings(
                document text, keys bytea[], rotates boolean, OUT openers integer[], OUT refusal text, OUT changed text)
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
        AS $$
        DECLARE
            strings constant text := E'"(?:[^"\\\\]|\\\\.)*"';
            gaps constant text[] := regexp_split_to_array(document, strings);
            string text;
            count integer := 0;
            look record;
            pieces text[] := '{}';
            is_changed boolean := false;
        BEGIN
            openers := '{}';
            FOREACH string IN ARRAY ARRAY(SELECT m[1] FROM regexp_matches(document, strings, 'g') AS m) LOOP
                count := count + 1;
                IF strpos(string, 'gAAA') > 0 THEN
                    look := {self}._fernet_look(string::jsonb #>> '{}', 'text', keys, 'rotate', rotates);
                    openers := openers || look.openers;
                    IF look.openers <> '{}' THEN
                        refusal := coalesce(refusal, look.refusal);
                    END IF;
                    IF look.changed IS NOT NULL THEN
                        string := to_json(look.changed)::text;
                        is_changed := true;
                    END IF;
                END IF;
                pieces := array_append(pieces, gaps[count] || string);
            END LOOP;
            IF is_changed THEN
                changed := array_to_string(pieces, '') || gaps[count + 1];
            END IF;
        END $$;

        -- Does the same for an array, which may also hold no token. `changed` is a literal of the same shape.
        CREATE OR REPLACE FUNCTION {self}._fernet_look(
                elements text[], kind text, keys bytea[], conversion text, changes boolean,
                OUT openers integer[], OUT due integer, OUT in_text integer, OUT refusal text, OUT changed text)
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
        AS $$
        DECLARE
            count integer := 0;
            element text;
            token record;
            is_changed boolean := false;
            pieces text[] := '{}';
            size integer;
            braces integer;
        BEGIN
            openers := '{}';
            due := 0;
            in_text := 0;
            FOREACH element IN ARRAY elements LOOP
                token := {self}._fernet_look(coalesce(element, ''), kind, keys, 'rotate', changes AND conversion = 'rotate');
                IF cardinality(token.openers) > 0 THEN
                    openers := openers || token.openers;
                    due := due + token.due;
                    refusal := coalesce(refusal, token.refusal);
                END IF;
                is_changed := is_changed OR token.changed IS NOT NULL;
                -- So many dimensions begin and end with this element.
                size := 1;
                braces := 0;
                FOR dimension IN REVERSE array_ndims(elements) .. 1 LOOP
                    size := size * array_length(elements, dimension);
                    braces := braces + (count % size = 0)::integer;
                END LOOP;
                pieces := array_append(pieces, concat(
                    CASE WHEN count > 0 THEN repeat('}', braces) || ',' END, repeat('{', braces),
                    coalesce('"' || replace(replace(coalesce(token.changed, element), E'\\', E'\\\\'), '"', E'\\"') || '"', 'NULL')));
                count := count + 1;
            END LOOP;
            IF conversion <> 'rotate' THEN
                due := (conversion = 'encrypt' AND openers = '{}')::integer;
                in_text := {self}._fernet_count_above(openers, 0);
                refusal := coalesce(refusal, CASE WHEN in_text > 0 THEN 'in text' END);
            ELSIF is_changed THEN
                changed := concat(array_dims(elements), '=', array_to_string(pieces, ''), repeat('}', array_ndims(elements)));
            END IF;
        END $$;

        -- Describes a column that can hold tokens: how it keeps them, and the name of its type. Also gives the select list
        -- for a value of `t` as text, or for the elements of an array. Says whether a value can be a plaintext as a whole,
        -- how many characters fit into a varchar or char, and which type its domain is over.
        CREATE OR REPLACE FUNCTION {self}._fernet_column(
                relation regclass, column_name name, hint text, OUT number smallint, OUT kind text, OUT as_text text, OUT type_name text,
                OUT is_generated boolean, OUT is_plain boolean, OUT max_chars integer, OUT base_type text)
            LANGUAGE plpgsql STABLE PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            type oid;
            modifier integer;
            base record;
            is_array boolean;
        BEGIN
            SELECT a.attnum, a.atttypid, a.atttypmod, format('%I.%I', n.nspname, t.typname), a.attgenerated <> ''
            INTO number, type, modifier, type_name, is_generated
            FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid JOIN pg_namespace AS n ON n.oid = t.typnamespace
            WHERE a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped;
            IF number IS NULL THEN
                RAISE EXCEPTION USING ERRCODE = '42703', MESSAGE = format('column "%s" of %s does not exist', column_name, relation),
                    HINT = coalesce(hint, 'Give the name as the catalogs have it, without quotes. fernet_find_columns() finds the '
                                          'columns that hold tokens.');
            END IF;
            SELECT f.kind, f.text_type = 'text[]' INTO kind, is_array FROM {self}._fernet_form(type) AS f;
            as_text := format(CASE WHEN is_array THEN 'NULL::text AS value, t.%I::text[] AS elements'
                                   ELSE 't.%I::text AS value, NULL::text[] AS elements' END, column_name);
            base := {self}._fernet_base_type(type);
            type := base.oid;
            modifier := CASE WHEN modifier < 0 THEN base.modifier ELSE modifier END;
            base_type := format_type(type, modifier);
            IF kind IS NULL THEN
                RAISE EXCEPTION USING ERRCODE = '42804',
                    MESSAGE = format('column "%s" of %s is of type %s, which cannot hold tokens', column_name, relation,
                                     (SELECT format_type(a.atttypid, NULL) FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attnum = number)),
                    HINT = coalesce(hint, 'Tokens are kept in columns of type text, varchar, char, citext, bytea, json, jsonb, xml or '
                                          'hstore, and in arrays of and domains over these.');
            END IF;
            is_plain := kind IN ('text', 'bytea') AND NOT is_array AND type <> 'xml'::regtype;
            max_chars := CASE WHEN type IN ('varchar'::regtype, 'bpchar'::regtype) AND modifier > 4 THEN modifier - 4 END;
        END $$;

        -- Returns how a type keeps tokens, and whether its values are read as text or as text[]; or NULL.
        CREATE OR REPLACE FUNCTION {self}._fernet_form(type oid, OUT kind text, OUT text_type text)
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            type := ({self}._fernet_base_type(type)).oid;
            kind := {self}._fernet_kind(type);
            text_type := 'text';
            IF kind IS NULL THEN
                SELECT {self}._fernet_kind(({self}._fernet_base_type(t.typelem)).oid), 'text[]' INTO kind, text_type
                FROM pg_type AS t WHERE t.oid = type AND t.typsubscript = 'array_subscript_handler'::regproc;
            END IF;
        END $$;

        -- The type that a domain is over, and its modifier.
        CREATE OR REPLACE FUNCTION {self}._fernet_base_type(type oid, OUT oid oid, OUT modifier integer)
            LANGUAGE sql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            WITH RECURSIVE bases (oid, typtype, typbasetype, modifier) AS (
                SELECT t.oid, t.typtype, t.typbasetype, -1 FROM pg_type AS t WHERE t.oid = type
                UNION ALL
                SELECT t.oid, t.typtype, t.typbasetype, CASE WHEN b.modifier < 0 THEN d.typtypmod ELSE b.modifier END
                FROM bases AS b JOIN pg_type AS d ON d.oid = b.oid JOIN pg_type AS t ON t.oid = b.typbasetype WHERE b.typtype = 'd')
            SELECT b.oid, b.modifier FROM bases AS b WHERE b.typtype <> 'd'
        $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_kind(type oid) RETURNS text
            LANGUAGE sql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT CASE WHEN type IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'xml'::regtype) THEN 'text'
                        WHEN type = 'bytea'::regtype THEN 'bytea'
                        WHEN type = 'json'::regtype THEN 'json'
                        WHEN type = 'jsonb'::regtype THEN 'jsonb'
                        ELSE (SELECT CASE e.extname WHEN 'citext' THEN 'text' ELSE 'json' END
                              FROM pg_depend AS d
                              JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                              JOIN pg_type AS t ON t.oid = d.objid
                              WHERE d.classid = 'pg_type'::regclass AND d.objid = type AND t.typsubscript <> 'array_subscript_handler'::regproc
                                AND CASE e.extname WHEN 'hstore' THEN t.typname = 'hstore' AND t.typlen = -1
                                                   WHEN 'citext' THEN EXISTS (SELECT FROM pg_cast WHERE castsource = type AND casttarget = 'text'::regtype
                                                                              AND castmethod = 'b') END)
                   END
        $$;

        {count_relation}

        -- A refusal in a few words.
        CREATE OR REPLACE FUNCTION {self}._fernet_short(refusal text) RETURNS text
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT CASE refusal WHEN 'not a token' THEN 'value is not a Fernet token'
                                WHEN 'badly padded' THEN 'padding of the Fernet token is wrong'
                                WHEN 'in text' THEN 'there is other text beside the token'
                                ELSE 'no key authenticates the Fernet token' END
        $$;

        CREATE OR REPLACE FUNCTION {self}.fernet_census(relation regclass, column_name name)
            RETURNS TABLE (status text, key_index integer, fingerprint text, tokens bigint)
            LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED COST 1000000 ROWS 5
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET row_security = off
        AS $$
        DECLARE
            keys bytea[] := {self}._fernet_keys();
            count record;
        BEGIN
            PERFORM {self}._fernet_check_relation(relation);
            IF (SELECT relkind NOT IN ('r', 'p', 'v', 'm', 'f') FROM pg_class WHERE oid = relation) THEN
                RAISE EXCEPTION USING ERRCODE = '42809', MESSAGE = format('%s is not a table or a view', relation),
                    HINT = 'Give the name of a table.';
            END IF;
            count := {self}._fernet_count_as_seen(relation, column_name, keys, 'rotate', false);
            RETURN QUERY
                SELECT CASE k.place WHEN 1 THEN 'current' ELSE 'old key' END, k.place::integer,
                       encode(substring(sha256(k.key), 1, 8), 'hex'), count.under_key[k.place]
                FROM unnest(keys) WITH ORDINALITY AS k (key, place);
            RETURN QUERY VALUES ('unknown key', NULL::integer, NULL::text, count.unknown_key),
                ('not a token', NULL, NULL, count.not_a_token), ('null', NULL, NULL, count.nulls);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_census(regclass, name) IS
            'what a column holds: the number of tokens under each key, of tokens under an unknown key, of values without a token and of NULLs';

        CREATE OR REPLACE FUNCTION {self}._fernet_check_relation(relation regclass) RETURNS void
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_class WHERE oid = relation) THEN
                RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = format('relation with OID %s does not exist', relation::oid),
                    HINT = 'It may have been dropped. Give the name of a table.';
            END IF;
        END $$;
        --
        -- CALL fernet_rotate_column, fernet_encrypt_column, fernet_decrypt_column
        --
        -- A pass reads table by table, in the order of the rows, and converts in memory. When a batch is full, the pass
        -- locks those of its rows that nobody else has locked. It writes to those of them that have not changed since they
        -- were read, by their place (ctid) and writer (xmin). So it waits for nobody and overwrites nothing. After a pass
        -- it waits, without a lock or a snapshot, for the transactions that have written to the relation. Then it counts in
        -- one snapshot what all of the relation holds. If nothing is left to do, that is the proof; otherwise another pass
        -- follows.
        --

        -- A relation and all that inherit from it, including partitions, but without temporary tables of other sessions.
        CREATE OR REPLACE FUNCTION {self}._fernet_family(relation regclass) RETURNS SETOF regclass
            LANGUAGE sql STABLE STRICT PARALLEL SAFE ROWS 10
            SET search_path = pg_catalog, pg_temp
        AS $$
            WITH RECURSIVE family (member) AS (
                SELECT relation::oid
                UNION
                SELECT i.inhrelid
                FROM family AS f
                JOIN pg_inherits AS i ON i.inhparent = f.member
                JOIN pg_class AS c ON c.oid = i.inhrelid
                WHERE NOT pg_is_other_temp_schema(c.relnamespace))
            SELECT member::regclass FROM family ORDER BY member
        $$;

        -- Refuses what cannot be converted. Returns the constraint that makes the first value to be converted an error.
        CREATE OR REPLACE FUNCTION {self}._fernet_check_table(conversion text, relation regclass, column_name name) RETURNS text
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            member record;
            target record;
            obstacle text;
        BEGIN
            PERFORM {self}._fernet_check_relation(relation);
            FOR member IN
                SELECT c.oid::regclass AS name, c.relkind, a.amname
                FROM {self}._fernet_family(relation) AS f
                JOIN pg_class AS c ON c.oid = f
                LEFT JOIN pg_am AS a ON a.oid = c.relam
                ORDER BY c.oid
            LOOP
                IF member.relkind NOT IN ('r', 'p') THEN
                    RAISE EXCEPTION USING ERRCODE = '42809', MESSAGE = format('%s is not a table', member.name),
                        HINT = CASE member.relkind
                            WHEN 'v' THEN 'Call it for the tables that the view reads.'
                            WHEN 'm' THEN 'Call it for the tables that the materialized view reads, and refresh that.'
                            WHEN 'f' THEN 'Call it on the server that holds the table.'
                            ELSE 'Give the name of a table.' END;
                END IF;
                target := {self}._fernet_column(member.name, column_name, NULL);
                IF target.is_generated THEN
                    RAISE EXCEPTION USING ERRCODE = '428C9',
                        MESSAGE = format('column "%s" of %s is a generated column', column_name, member.name),
                        HINT = 'Give the name of the column that it is computed from.';
                ELSIF EXISTS (
                        -- The columns of a partition key, and those in its expressions, depend on the table.
                        SELECT FROM pg_partition_ancestors(member.name) AS p (ancestor)
                        JOIN pg_attribute AS a ON a.attrelid = p.ancestor AND a.attname = column_name
                        JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = a.attrelid AND d.objsubid = a.attnum
                         AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = 0) THEN
                    RAISE EXCEPTION USING ERRCODE = '0A000',
                        MESSAGE = format('column "%s" is in the partition key of %s', column_name, member.name),
                        HINT = 'Each new value may belong to another partition: use UPDATE on the partitioned table, with '
                               'fernet_rotate(), fernet_encrypt() or fernet_decrypt().';
                ELSIF row_security_active(member.name) THEN
                    RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = format('row-level security may hide rows of %s', member.name),
                        HINT = 'Call it as the owner of the table or as a role with BYPASSRLS.';
                ELSIF member.relkind = 'r' AND member.amname <> 'heap' THEN
                    RAISE EXCEPTION USING ERRCODE = '0A000',
                        MESSAGE = format('access method of %s does not find rows by their block', member.name),
                        HINT = 'Use UPDATE with fernet_rotate(), fernet_encrypt() or fernet_decrypt().';
                ELSIF conversion <> 'rotate' THEN
                    obstacle := coalesce(obstacle, {self}._fernet_check_fit(conversion, member.name, column_name, target));
                END IF;
            END LOOP;
            RETURN obstacle;
        END $$;

        -- Returns the objects that depend on the values of a column, those in the way first. See src/columns/fit.rs. The
        -- row filters of publications, which PostgreSQL 14 lacks, are NULL there.
        CREATE OR REPLACE FUNCTION {self}._fernet_dependents(relation regclass, number integer, encrypts boolean)
            RETURNS TABLE (name text, is_in_the_way boolean)
            LANGUAGE sql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            WITH RECURSIVE domain (oid) AS (
                SELECT atttypid FROM pg_attribute WHERE attrelid = relation AND attnum = number
                UNION ALL
                SELECT t.typbasetype FROM domain AS d JOIN pg_type AS t USING (oid) WHERE t.typtype = 'd'
            ), line (oid, column_number) AS (
                SELECT relation::oid, number
                UNION
                SELECT up.attrelid, up.attnum::integer
                FROM line AS l
                JOIN pg_attribute AS a ON (a.attrelid, a.attnum) = (l.oid, l.column_number)
                JOIN pg_inherits AS i ON i.inhrelid = l.oid
                JOIN pg_attribute AS up ON (up.attrelid, up.attname) = (i.inhparent, a.attname)
            ), enforced AS (
                SELECT c.*
                FROM (SELECT * FROM pg_constraint WHERE conrelid = relation
                      UNION ALL
                      SELECT c.* FROM domain AS d JOIN pg_constraint AS c ON c.contypid = d.oid) AS c
                WHERE coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true)
            ), index AS (
                SELECT CASE WHEN c.oid IS NULL THEN format('index %s', i.indexrelid::regclass)
                            ELSE format('constraint %I of %s', c.conname, c.conrelid::regclass) END AS name,
                       indisunique OR indisexclusion AS is_constraint, i.*
                FROM pg_index AS i
                LEFT JOIN enforced AS c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x')
                WHERE i.indrelid = relation
            ), expression (name, tree, variable) AS (
                SELECT format('constraint %I of %s', conname,
                              CASE conrelid WHEN 0 THEN 'domain ' || contypid::regtype ELSE conrelid::regclass::text END),
                       conbin::text, CASE conrelid WHEN 0 THEN 'COERCETODOMAINVALUE' ELSE format(':varattno (0|%s) ', number) END
                FROM enforced
                WHERE contype = 'c' AND (convalidated OR NOT encrypts)
                UNION ALL
                SELECT format('generated column %I of %s', a.attname, a.attrelid::regclass), d.adbin::text, format(':varattno %s ', number)
                FROM pg_attribute AS a JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
                WHERE a.attrelid = relation AND a.attgenerated <> ''
                UNION ALL
                SELECT name, concat(indexprs, indpred), format(':varattno (0|%s) ', number)
                FROM index
                UNION ALL
                SELECT format('statistics %s.%I', s.stxnamespace::regnamespace, s.stxname), s.stxexprs::text, format(':varattno (0|%s) ', l.column_number)
                FROM line AS l JOIN pg_statistic_ext AS s ON s.stxrelid = l.oid
                UNION ALL
                SELECT format('the row filter of publication %I', p.pubname), to_jsonb(r) ->> 'prqual', format(':varattno (0|%s) ', l.column_number)
                FROM line AS l JOIN pg_publication_rel AS r ON r.prrelid = l.oid JOIN pg_publication AS p ON p.oid = r.prpubid
            )
            SELECT name, true
            FROM expression
            WHERE regexp_replace(tree, '[{]NULLTEST :arg [{][^{}]*[}][^{}]*[}]', '', 'g') ~ variable
            UNION ALL
            -- A policy of any table may have subqueries, in which the numbers are those of other columns. A policy that has
            -- whole rows depends on the table as a whole.
            SELECT format('policy %I of %s', p.polname, p.polrelid::regclass), true
            FROM line AS l
            JOIN pg_depend AS d ON (d.refclassid, d.refobjid) = ('pg_class'::regclass, l.oid)
            JOIN pg_policy AS p ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
            WHERE d.refobjsubid = l.column_number OR d.refobjsubid = 0 AND concat(p.polqual, p.polwithcheck) ~ ':varattno 0 '
            UNION ALL
            -- A column that a foreign key refers to has a unique index.
            SELECT format('constraint %I of %s', conname, conrelid::regclass), true
            FROM enforced
            WHERE contype = 'f' AND number = ANY (conkey)
            UNION ALL
            SELECT name, is_constraint
            FROM index
            WHERE CASE WHEN is_constraint THEN EXISTS (SELECT FROM generate_series(0, indnkeyatts - 1) AS n WHERE indkey[n] = number)
                       ELSE encrypts AND indkey[0] = number AND NOT (SELECT relispartition FROM pg_class WHERE oid = indexrelid) END
            ORDER BY 2 DESC, 1
        $$;

        -- Names a constraint that may refuse new values of a column, if there is one.
        CREATE OR REPLACE FUNCTION {self}._fernet_obstacle(encrypts boolean, relation regclass, column_name name, number integer) RETURNS text
            LANGUAGE sql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT format('column "%s" of %s is in %s', column_name, relation, d.name)
            FROM {self}._fernet_dependents(relation, number, encrypts) AS d
            WHERE d.is_in_the_way
            LIMIT 1
        $$;

        -- Refuses to convert a column because of a constraint.
        CREATE OR REPLACE FUNCTION {self}._fernet_refuse_obstacle(obstacle text) RETURNS void
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            RAISE EXCEPTION USING ERRCODE = '2BP01', MESSAGE = obstacle,
                HINT = 'A condition that holds for a plaintext may not hold for its token. Drop it first; afterwards, check whether '
                       'it can be created again.';
        END $$;

        -- Refuses a column that cannot take the new values of an encryption or a decryption. Returns a constraint that may
        -- refuse new values, if there is one: a table with a constraint that only tokens satisfy can still have the proof.
        -- See src/columns/fit.rs.
        CREATE OR REPLACE FUNCTION {self}._fernet_check_fit(conversion text, relation regclass, column_name name, target record) RETURNS text
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            encrypts constant boolean := conversion = 'encrypt';
            dependent record;
            obstacle text;
        BEGIN
            -- Relations made with the server: its catalogs, and the tables of information_schema.
            IF relation::oid < 16384 THEN
                RAISE EXCEPTION USING ERRCODE = '42501',
                    MESSAGE = (SELECT format('%s.%I is a system catalog', relnamespace::regnamespace, relname) FROM pg_class WHERE oid = relation),
                    HINT = 'Give the name of a table of your own.';
            ELSIF NOT target.is_plain THEN
                PERFORM {self}._fernet_refuse_column('no plaintext', format('column "%s" of %s', column_name, relation), target.base_type);
            ELSIF encrypts AND target.max_chars < 100 THEN
                PERFORM {self}._fernet_refuse_column('too short', format('column "%s" of %s', column_name, relation));
            END IF;
            obstacle := {self}._fernet_obstacle(encrypts, relation, column_name, target.number);
            IF obstacle IS NULL THEN
                FOR dependent IN SELECT d.name FROM {self}._fernet_dependents(relation, target.number, encrypts) AS d LOOP
                    RAISE WARNING USING MESSAGE = format('%s finds no plaintext once it is encrypted', dependent.name),
                        HINT = 'If the index is used to look up values, drop it, and keep a keyed hash of each value in another column.';
                END LOOP;
            END IF;
            RETURN obstacle;
        END $$;

        -- Refuses a column, or a token for it, at a place.
        CREATE OR REPLACE FUNCTION {self}._fernet_refuse_column(
                reason text, place text, type text DEFAULT NULL, len integer DEFAULT NULL, hint text DEFAULT NULL) RETURNS void
            LANGUAGE plpgsql VOLATILE PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            make_it_text constant text := 'Make the column text: a token has up to 100 characters more than four thirds of the bytes '
                'of its plaintext.';
        BEGIN
            CASE reason
            WHEN 'no plaintext' THEN
                RAISE EXCEPTION USING ERRCODE = '42804',
                    MESSAGE = format('%s is of type %s, which cannot be encrypted or decrypted as a whole', place, type),
                    HINT = coalesce(hint, 'A token takes the place of values of type text, varchar, char, citext and bytea. Keep other '
                                          'secrets in a column of such a type.');
            WHEN 'too short' THEN
                RAISE EXCEPTION USING ERRCODE = '22001', MESSAGE = format('%s is too short for a token', place), HINT = make_it_text;
            WHEN 'too long' THEN
                RAISE EXCEPTION USING ERRCODE = '22001', MESSAGE = format('value too long for type %s', type),
                    DETAIL = format('A token for %s has %s characters.', place, len), HINT = make_it_text;
            END CASE;
        END $$;

        -- Reads a batch of a table, from a place up to a block: rows with something to convert, and their new values. Locks
        -- those that nobody else has locked. Returns the place to go on from, or NULL after the last one; and how many rows
        -- it has read. Also returns the statement that writes the batch. The caller runs it, since triggers and constraints
        -- must run with the path that they are used to.
        CREATE OR REPLACE FUNCTION {self}._fernet_read_batch(
                conversion text, relation regclass, column_name name, keys bytea[], batch_size integer, strict boolean,
                starts tid, end_block bigint, OUT next tid, OUT block bigint, OUT row_count bigint, OUT due_rows bigint, OUT locked bigint, OUT has_code boolean,
                OUT ids tid[], OUT writers xid[], OUT new_values text[], OUT dues bigint[], OUT statement text, OUT obstacle text)
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
            SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET row_security = off
            SET synchronize_seqscans = off SET enable_seqscan = off SET enable_tidscan = on
        AS $$
        DECLARE
            -- There are up to a dozen copies of a batch in memory.
            max_bytes constant bigint := 8 * 1024 * 1024;
            changes constant boolean := true;
            target record;
            kind text;
            lock text;
            rows refcursor;
            stored record;
            look record;
            bytes bigint := 0;
            places bigint[];
        BEGIN
            row_count := 0; due_rows := 0; locked := 0; has_code := false; block := end_block;
            ids := '{}'; writers := '{}'; new_values := '{}'; dues := '{}';
            BEGIN
                -- In the order in which a session that changes a partitioned table locks, and at once in the strongest mode
                -- that is needed.
                FOR look IN
                    SELECT c.oid::regclass AS member, CASE WHEN c.oid = relation THEN 'ROW EXCLUSIVE' ELSE 'ACCESS SHARE' END AS mode
                    FROM (SELECT p.member, p.n FROM pg_partition_ancestors(relation) WITH ORDINALITY AS p (member, n)
                          UNION SELECT relation, 1) AS a
                    JOIN pg_class AS c ON c.oid = a.member
                    WHERE has_table_privilege(c.oid, CASE WHEN c.oid = relation THEN 'UPDATE' ELSE 'SELECT' END) ORDER BY a.n DESC
                LOOP
                    EXECUTE format('LOCK TABLE ONLY %s IN %s MODE', look.member, look.mode);
                END LOOP;
                target := {self}._fernet_column(relation, column_name, NULL);
            EXCEPTION WHEN undefined_table OR undefined_column OR syntax_error THEN
                -- Somebody has dropped the partition meanwhile, so a number replaces its name.
                RETURN;
            END;
            -- The lock that the update takes.
            lock := CASE WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = relation AND indisunique AND target.number = ANY (indkey))
                         THEN 'UPDATE' ELSE 'NO KEY UPDATE' END;

            kind := target.kind;
            -- Row by row: a FOR loop keeps up to 50 in memory.
            OPEN rows NO SCROLL FOR EXECUTE format(
                'SELECT t.ctid AS id, t.xmin AS writer, %s FROM ONLY %s AS t WHERE t.ctid >= $1 AND t.ctid < $2', target.as_text, relation)
                USING starts, format('(%s,0)', end_block)::tid;
            LOOP
                FETCH rows INTO stored;
                EXIT WHEN NOT FOUND;
                row_count := row_count + 1;
                CONTINUE WHEN stored.value IS NULL AND stored.elements IS NULL;
                look := {look};
                IF look.refusal IN ('not text', 'not UTF-8', 'too large') OR strict AND look.refusal IS NOT NULL THEN
                    PERFORM {self}._fernet_refuse(look.refusal, at => format('%s of %s', stored.id, relation));
                END IF;
                CONTINUE WHEN look.changed IS NULL;
                IF conversion = 'encrypt' AND length(look.changed) > target.max_chars THEN
                    PERFORM {self}._fernet_refuse_column(
                        'too long', format('%s of %s', stored.id, relation), target.base_type, length(look.changed));
                END IF;
                ids := array_append(ids, stored.id);
                writers := array_append(writers, stored.writer);
                new_values := array_append(new_values, look.changed);
                dues := array_append(dues, look.due::bigint);
                bytes := bytes + octet_length(look.changed);
                IF cardinality(ids) >= batch_size OR bytes >= max_bytes THEN
                    next := stored.id;
                    EXIT;
                END IF;
            END LOOP;
            CLOSE rows;
            block := coalesce((next::text::point)[0], block);
            -- The place after it, or NULL.
            next := ('(' || block || ',' || (next::text::point)[1]::integer + 1 || ')')::tid;
            due_rows := cardinality(ids);
            IF due_rows > 0 THEN
                BEGIN
                    EXECUTE format(
                        'SELECT coalesce(array_agg(b.n), ''{}'')'
                        ' FROM (SELECT t.ctid AS id, t.xmin AS writer FROM ONLY %s AS t WHERE t.ctid = ANY ($1) FOR %s SKIP LOCKED) AS h'
                        ' JOIN ROWS FROM (unnest($1), unnest($2)) WITH ORDINALITY AS b (id, writer, n) ON b.id = h.id AND b.writer = h.writer',
                        relation, lock) INTO places USING ids, writers;
                EXCEPTION WHEN serialization_failure THEN
                    -- One of the rows has just moved to another partition.
                    places := '{}';
                END;
                IF cardinality(places) < due_rows THEN
                    SELECT coalesce(array_agg(b.id), '{}'), coalesce(array_agg(b.writer), '{}'), coalesce(array_agg(b.value), '{}'),
                           coalesce(array_agg(b.due), '{}')
                    INTO ids, writers, new_values, dues
                    FROM unnest(ids, writers, new_values, dues) WITH ORDINALITY AS b (id, writer, value, due, n)
                    JOIN unnest(places) AS p (n) ON p.n = b.n;
                END IF;
            END IF;
            locked := due_rows - cardinality(ids);
            IF due_rows > 0 AND conversion <> 'rotate' THEN
                -- The constraint may have been made since the call began.
                obstacle := {self}._fernet_obstacle(conversion = 'encrypt', relation, column_name, target.number);
            END IF;
            -- In these cases the table may not hold what is written.
            has_code := (SELECT c.relhasrules FROM pg_class AS c WHERE c.oid = relation) OR EXISTS (
                SELECT FROM pg_trigger WHERE tgrelid = relation AND NOT tgisinternal AND tgtype & 16 <> 0);
            statement := format(
                'UPDATE ONLY %1$s AS t SET %2$I = b.value::%3$s FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2),'
                ' pg_catalog.unnest(pg_catalog.current_setting(''pg_fernet_sql.new_values'')::pg_catalog.text[])) AS b (id, writer, value)'
                ' WHERE t.ctid OPERATOR(pg_catalog.=) b.id AND t.xmin OPERATOR(pg_catalog.=) b.writer',
                -- With its schema, since the path may differ then.
                (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation),
                column_name, target.type_name);
        END $$;

        -- Counts what is still due in those rows of a batch that still have their old values: a trigger or a rule keeps
        -- them.
        CREATE OR REPLACE FUNCTION {self}._fernet_kept(relation regclass, ids tid[], writers xid[], dues bigint[]) RETURNS bigint
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
            SET search_path = pg_catalog, pg_temp SET row_security = off
        AS $$
        DECLARE
            kept bigint;
        BEGIN
            EXECUTE format('SELECT coalesce(sum(b.due), 0) FROM ONLY %s AS t JOIN unnest($1, $2, $3) AS b (id, writer, due)'
                           ' ON t.ctid = b.id AND t.xmin = b.writer', relation) INTO kept USING ids, writers, dues;
            RETURN kept;
        END $$;

        -- The transactions that have written to a relation and, with `or_row_locks`, those that may have locked rows of it.
        CREATE OR REPLACE FUNCTION {self}._fernet_writers(relation regclass, or_row_locks boolean)
            RETURNS TABLE (transaction text, description text)
            LANGUAGE sql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT DISTINCT ON (l.virtualtransaction) l.virtualtransaction,
                format('%s, which has written to %s or locked it',
                       coalesce('process ' || l.pid, 'a prepared transaction'), l.relation::regclass)
            FROM pg_locks AS l JOIN {self}._fernet_family($1) AS f ON l.relation = f
            WHERE l.locktype = 'relation' AND l.granted
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND (l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock',
                              CASE WHEN or_row_locks THEN 'RowShareLock' END)
                   -- A vacuum also takes this lock, but has no transaction number.
                   OR l.mode = 'ShareUpdateExclusiveLock' AND l.virtualtransaction IN (
                       SELECT virtualtransaction FROM pg_locks WHERE locktype = 'transactionid' AND granted))
              AND l.pid IS DISTINCT FROM pg_backend_pid()
            ORDER BY l.virtualtransaction, l.relation
        $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_is_running(transaction text) RETURNS boolean
            LANGUAGE sql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT EXISTS (SELECT FROM pg_locks WHERE virtualtransaction = transaction AND granted AND locktype IN ('virtualxid', 'transactionid'))
        $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_counted(number bigint, thing text) RETURNS text
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT number || ' ' || thing || CASE number WHEN 1 THEN '' ELSE 's' END
        $$;

        -- Describes a time with its two largest units.
        CREATE OR REPLACE FUNCTION {self}._fernet_describe_time(seconds double precision) RETURNS text
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT CASE WHEN seconds < 10 THEN round(seconds::numeric, 1) || ' s'
                        WHEN seconds < 60 THEN s || ' s'
                        WHEN seconds < 3600 THEN s / 60 || ' min ' || s % 60 || ' s'
                        ELSE s / 3600 || ' h ' || s / 60 % 60 || ' min' END
            FROM (SELECT floor(seconds)::bigint) AS x (s)
        $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_describe_progress(
                row_count bigint, blocks bigint, blocks_in_all bigint, seconds double precision) RETURNS text
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT CASE WHEN done = 0 THEN format('%s rows, %s rows/s', row_count, rate)
                        ELSE format('%s of about %s rows (%s %%), %s rows/s, %s left', row_count, round(row_count / done)::bigint, floor(done * 100)::integer, rate,
                                    {self}._fernet_describe_time(seconds / done - seconds)) END
            FROM (SELECT least(1, blocks / greatest(blocks_in_all, 1)::double precision), round(row_count / greatest(seconds, 0.001))::bigint) AS x (done, rate)
        $$;

        -- Reports the outcome of a call.
        CREATE OR REPLACE FUNCTION {self}._fernet_tell(
                conversion text, done bigint, seconds double precision, tally record, unfinished text) RETURNS void
            LANGUAGE plpgsql VOLATILE PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            is_rotation constant boolean := conversion = 'rotate';
            other constant bigint := CASE WHEN is_rotation THEN tally.not_a_token ELSE tally.in_text END;
            values_left constant text := {self}._fernet_counted(tally.due, CASE WHEN is_rotation THEN 'token' ELSE 'value' END);
        BEGIN
            RAISE NOTICE '%', format('%s %s in %s in %s, %s rows/s', CASE conversion WHEN 'rotate' THEN 'rotated' ELSE conversion || 'ed' END,
                {self}._fernet_counted(done, CASE WHEN is_rotation THEN 'token' ELSE 'value' END),
                {self}._fernet_counted(tally.row_count, 'row'), {self}._fernet_describe_time(seconds),
                round(tally.row_count / greatest(seconds, 0.001))::bigint);
            IF cardinality(tally.bad) > 0 THEN
                RAISE WARNING USING
                    MESSAGE = 'left as they are: ' || concat_ws(', ',
                        CASE WHEN tally.unknown_key > 0 THEN {self}._fernet_counted(tally.unknown_key, 'token') || ' that no key opens' END,
                        CASE WHEN other = 0 THEN NULL WHEN is_rotation THEN {self}._fernet_counted(other, 'value') || ' without a token'
                             ELSE {self}._fernet_counted(other, 'token') || ' among other text' END),
                    DETAIL = array_to_string(tally.bad, '; ')
                        || CASE WHEN cardinality(tally.bad) = 5 AND tally.unknown_key + other > 5 THEN '; and others.' ELSE '.' END,
                    HINT = concat_ws(' ',
                        CASE WHEN tally.unknown_key > 0 THEN 'Append the missing key to the list of keys.' END,
                        CASE WHEN other = 0 THEN NULL WHEN is_rotation
                             THEN 'A value without a token may be plaintext, or something that is not meant to be encrypted, such as the '
                                  'hash of a password.'
                             ELSE 'Text beside a token is neither encrypted nor decrypted: only the application knows what it is.' END);
            END IF;
            IF unfinished IS NOT NULL THEN
                RAISE WARNING USING MESSAGE = unfinished,
                    DETAIL = format('%s, not counting what could not be seen.', CASE conversion
                        WHEN 'rotate' THEN values_left || ' can be read only with an older key'
                        WHEN 'encrypt' THEN 'Still in plaintext: ' || values_left
                        ELSE 'Still encrypted: ' || values_left END),
                    HINT = 'Call this again when the other transaction has ended, or with a longer lock_timeout.';
            ELSIF tally.due > 0 THEN
                RAISE WARNING USING
                    MESSAGE = CASE conversion
                        WHEN 'rotate' THEN values_left || ' can still be read only with an older key'
                        WHEN 'encrypt' THEN 'still in plaintext: ' || values_left
                        ELSE 'still encrypted: ' || values_left END,
                    DETAIL = 'Other sessions wrote to or locked these rows each time, or a trigger or a rule keeps the old values.',
                    HINT = CASE conversion
                        WHEN 'rotate' THEN
                            'Give the new key to everything that writes to the table, check its triggers and rules, and call this again. '
                            'fernet_census() counts the tokens under each key.'
                        WHEN 'encrypt' THEN
                            'Make everything that writes to the table encrypt, check its triggers and rules, and call this again. '
                            'fernet_census() counts the values without a token.'
                        ELSE 'Stop everything that encrypts on the way into the table, triggers included, and call this again. '
                             'fernet_census() counts the tokens under each key.' END;
            END IF;
        END $$;

        -- Refuses bad arguments, and a call that cannot commit.
        CREATE OR REPLACE FUNCTION {self}._fernet_check_call(
                conversion text, relation regclass, column_name name, batch_size integer, strict boolean, workers integer) RETURNS void
            LANGUAGE plpgsql VOLATILE PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            missing constant text := CASE WHEN strict IS NULL THEN 'strict' WHEN relation IS NULL THEN 'relation'
                                          WHEN column_name IS NULL THEN 'column_name' WHEN batch_size IS NULL THEN 'batch_size'
                                          WHEN workers IS NULL THEN 'workers' END;
        BEGIN
            IF missing IS NOT NULL THEN
                RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = format('%s must not be null', missing),
                    HINT = 'Leave the argument out where it has a default.';
            ELSIF batch_size < 1 THEN
                RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'batch_size must be at least 1',
                    HINT = 'Leave the argument out to get its default.';
            ELSIF workers < 0 THEN
                RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'workers must be at least 0',
                    HINT = 'Leave the argument out to get its default.';
            ELSIF current_setting('transaction_read_only')::boolean THEN
                RAISE EXCEPTION USING ERRCODE = '25006',
                    MESSAGE = format('cannot execute fernet_%s_column() in a read-only transaction', conversion);
            ELSIF workers > 0 THEN
                RAISE NOTICE 'no background worker started, since the SQL edition has none';
            END IF;
        END $$;

        -- Converts a column. If `obstacle` names a constraint, refuses the first value that is to be converted. `tally` is
        -- what the last look has counted, and `done` is how much of that this call has converted.
        CREATE OR REPLACE PROCEDURE {self}._fernet_convert(
                conversion text, relation regclass, column_name name, batch_size integer, strict boolean, keys bytea[], obstacle text,
                INOUT done bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL, INOUT old bigint DEFAULT NULL,
                INOUT unknown_key bigint DEFAULT NULL, INOUT not_a_token bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL,
                INOUT in_text bigint DEFAULT NULL)
            LANGUAGE plpgsql
        AS $$
        DECLARE
            limits @.text := @.current_setting('lock_timeout');
            nulls_in_arrays @.text := @.current_setting('array_nulls');
            kind_of_xml @.text := @.current_setting('xmloption');
            scans_by_place @.text := @.current_setting('enable_tidscan');
            started @.timestamptz := @.clock_timestamp();
            first_look_ended @.timestamptz;
            told @.timestamptz;
            pass_started @.timestamptz;
            members @.regclass[];
            sizes bigint[];
            blocks bigint;
            blocks_in_all bigint;
            place @.tid;
            end_block bigint;
            batch @.record;
            row_count bigint;
            locked bigint;
            has_code boolean := false;
            new_values @.text;
            last_due bigint;
            writers @.text[];
            descriptions @.text[];
            waiting_since @.timestamptz;
            wait_limit interval := CASE WHEN limits @<>@ '0' THEN limits::interval END;
            unfinished @.text;
            tally @.record;
        BEGIN
            done := 0;
            -- In a transaction block the server raises an error here. SQL cannot tell one earlier: if a client sends
            -- parameters, a statement begins later than its own transaction.
            {commit}
            FOR look IN 1 .. 100 LOOP
                SELECT @.array_agg(f.member), @.array_agg(f.size), @.sum(f.size)::bigint INTO members, sizes, blocks_in_all
                FROM {self}._fernet_sizes(relation) AS f;
                {commit}
                IF members IS NULL THEN
                    PERFORM {self}._fernet_check_relation(relation);
                END IF;
                pass_started := @.clock_timestamp();
                told := pass_started;
                row_count := 0; locked := 0; blocks := 0;
                FOR member IN 1 .. COALESCE(@.cardinality(members), 0) LOOP
                    place := '(0,0)';
                    end_block := LEAST(1000, sizes[member]);
                    WHILE place IS NOT NULL AND {self}._fernet_is_there(members[member], column_name) LOOP
                        batch := {self}._fernet_read_batch(
                            conversion, members[member], column_name, keys, CASE WHEN obstacle IS NULL THEN batch_size ELSE 1 END,
                            strict, place, end_block);
                        obstacle := COALESCE(obstacle, batch.obstacle);
                        IF batch.due_rows @>@ 0 THEN
                            PERFORM {self}._fernet_refuse_obstacle(obstacle);
                        END IF;
                        IF @.cardinality(batch.ids) @>@ 0 THEN
                            -- The rows are locked, but a trigger or a foreign key may need other locks. The meaning of a
                            -- new value must not depend on a setting. Triggers that fire at the commit get the settings
                            -- that they are used to.
                            BEGIN
                                PERFORM @.set_config('lock_timeout', '500ms', true), @.set_config('array_nulls', 'on', true),
                                        @.set_config('xmloption', 'content', true), @.set_config('enable_tidscan', 'on', true);
                                -- Passed in a setting and not as a parameter, since these values may be plaintexts.
                                new_values := @.set_config('pg_fernet_sql.new_values', batch.new_values::@.text, true);
                                EXECUTE batch.statement USING batch.ids, batch.writers;
                                new_values := @.set_config('pg_fernet_sql.new_values', '', true);
                                PERFORM @.set_config('lock_timeout', limits, true), @.set_config('array_nulls', nulls_in_arrays, true),
                                        @.set_config('xmloption', kind_of_xml, true), @.set_config('enable_tidscan', scans_by_place, true);
                                done := done @+@ (SELECT @.sum(b.due)::bigint FROM @.unnest(batch.dues) AS b (due));
                                IF batch.has_code THEN
                                    has_code := true;
                                    done := done @-@ {self}._fernet_kept(members[member], batch.ids, batch.writers, batch.dues);
                                END IF;
                            EXCEPTION WHEN lock_not_available THEN
                                locked := locked @+@ @.cardinality(batch.ids);
                            END;
                        END IF;
                        {commit}
                        row_count := row_count @+@ batch.row_count;
                        locked := locked @+@ batch.locked;
                        place := batch.next;
                        IF place IS NULL AND end_block @<@ sizes[member] THEN
                            place := @.concat('(', end_block, ',0)')::@.tid;
                            end_block := LEAST(end_block @+@ 1000, sizes[member]);
                        END IF;
                        IF @.clock_timestamp() @-@ told @>=@ interval '1 second' THEN
                            told := @.clock_timestamp();
                            RAISE NOTICE '%: %',
                                CASE WHEN look @>@ 1 THEN 'checking what was written meanwhile'
                                     WHEN conversion @=@ 'rotate' THEN 'rotating' ELSE @.concat(conversion, 'ing') END,
                                {self}._fernet_describe_progress(
                                    row_count, blocks @+@ batch.block, blocks_in_all,
                                    @.date_part('epoch', told @-@ pass_started));
                        END IF;
                    END LOOP;
                    {commit}
                    blocks := blocks @+@ sizes[member];
                END LOOP;

                -- What others were writing meanwhile cannot be seen until they have ended.
                SELECT @.array_agg(w.transaction), @.array_agg(w.description) INTO writers, descriptions
                FROM {self}._fernet_writers(relation, locked @>@ 0) AS w;
                {commit}
                waiting_since := @.clock_timestamp();
                told := waiting_since;
                FOR writer_number IN 1 .. COALESCE(@.cardinality(writers), 0) LOOP
                    WHILE {self}._fernet_is_running(writers[writer_number]) LOOP
                        IF @.clock_timestamp() @-@ waiting_since @>=@ wait_limit THEN
                            unfinished := @.concat('gave up waiting for ', descriptions[writer_number]);
                            EXIT;
                        END IF;
                        IF @.clock_timestamp() @-@ told @>=@ interval '1 second' THEN
                            told := NULL;
                            RAISE NOTICE 'waiting for %', descriptions[writer_number];
                        END IF;
                        {commit}
                        PERFORM @.pg_sleep(0.01);
                        {commit}
                    END LOOP;
                    EXIT WHEN unfinished IS NOT NULL;
                    told := @.clock_timestamp();
                END LOOP;
                {commit}

                PERFORM {self}._fernet_check_relation(relation);
                tally := {self}._fernet_count(relation, column_name, keys, conversion, true);
                IF done @>@ 0 AND conversion @<>@ 'rotate' THEN
                    -- While the last batch was written, something may have been added that its lock does not keep out.
                    PERFORM {self}._fernet_refuse_obstacle({self}._fernet_obstacle_in_family(conversion @=@ 'encrypt', relation, column_name));
                END IF;
                {commit}
                first_look_ended := COALESCE(first_look_ended, @.clock_timestamp());
                EXIT WHEN tally.due @=@ 0 OR unfinished IS NOT NULL
                    -- No progress: a trigger or a rule keeps the old values.
                    OR has_code AND locked @=@ 0 AND tally.due @=@ last_due
                    OR look @>=@ 10 AND @.clock_timestamp() @-@ first_look_ended @>=@ interval '10 seconds';
                last_due := tally.due;
                IF locked @>@ 0 THEN
                    -- A row may be held up by a lock on another table, whose writers were not waited for.
                    PERFORM @.pg_sleep(0.1);
                    {commit}
                END IF;
            END LOOP;

            -- Without what others have deleted since, or what a trigger has undone when the transaction ended.
            done := LEAST(done, CASE WHEN conversion @=@ 'decrypt' THEN tally.row_count @-@ tally.nulls @-@ tally.due ELSE tally.under_key[1] END);
            current := tally.under_key[1] @-@ done;
            old := COALESCE((SELECT @.sum(k.count) FROM @.unnest(tally.under_key[2:]) AS k (count)), 0);
            unknown_key := tally.unknown_key;
            not_a_token := tally.not_a_token;
            nulls := tally.nulls;
            in_text := tally.in_text;
            PERFORM {self}._fernet_tell(conversion, done, @.date_part('epoch', @.clock_timestamp() @-@ started), tally, unfinished);
            -- The calling procedure then goes on in a transaction of the usual kind.
            COMMIT;
        END $$;

        CREATE OR REPLACE PROCEDURE {self}.fernet_rotate_column(
                relation regclass, column_name name, batch_size integer DEFAULT 10000, strict boolean DEFAULT false,
                workers integer DEFAULT 0,
                INOUT rotated bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL,
                INOUT unknown_key bigint DEFAULT NULL, INOUT not_a_token bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL)
            LANGUAGE plpgsql
        AS $$
        DECLARE
            -- The same keys for the whole call, even if the setting changes meanwhile.
            keys @.bytea[];
            old bigint;
            in_text bigint;
        BEGIN
            PERFORM {self}._fernet_check_call('rotate', relation, column_name, batch_size, strict, workers);
            keys := {self}._fernet_keys();
            PERFORM {self}._fernet_check_table('rotate', relation, column_name);
            IF @.cardinality(keys) @=@ 1 THEN
                RAISE WARNING USING MESSAGE = 'there is a single key, so nothing can be under an old one',
                    HINT = 'Put the new key before the old one in the list of keys.';
            END IF;
            CALL {self}._fernet_convert('rotate', relation, column_name, batch_size, strict, keys, NULL,
                                        rotated, current, old, unknown_key, not_a_token, nulls, in_text);
        END $$;
        COMMENT ON PROCEDURE {self}.fernet_rotate_column(regclass, name, integer, boolean, integer, bigint, bigint, bigint, bigint, bigint) IS
            're-encrypt the tokens of a column under the first key, in batches with a COMMIT after each';

        CREATE OR REPLACE PROCEDURE {self}.fernet_encrypt_column(
                relation regclass, column_name name, batch_size integer DEFAULT 10000, workers integer DEFAULT 0,
                INOUT encrypted bigint DEFAULT NULL, INOUT current bigint DEFAULT NULL, INOUT old_key bigint DEFAULT NULL,
                INOUT unknown_key bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL)
            LANGUAGE plpgsql
        AS $$
        DECLARE
            keys @.bytea[];
            obstacle @.text;
            not_a_token bigint;
            in_text bigint;
        BEGIN
            PERFORM {self}._fernet_check_call('encrypt', relation, column_name, batch_size, false, workers);
            keys := {self}._fernet_keys();
            obstacle := {self}._fernet_check_table('encrypt', relation, column_name);
            CALL {self}._fernet_convert('encrypt', relation, column_name, batch_size, false, keys, obstacle,
                                        encrypted, current, old_key, unknown_key, not_a_token, nulls, in_text);
        END $$;
        COMMENT ON PROCEDURE {self}.fernet_encrypt_column(regclass, name, integer, integer, bigint, bigint, bigint, bigint, bigint) IS
            'encrypt those values of a column that hold no token, in batches with a COMMIT after each';

        CREATE OR REPLACE PROCEDURE {self}.fernet_decrypt_column(
                relation regclass, column_name name, batch_size integer DEFAULT 10000, workers integer DEFAULT 0,
                INOUT decrypted bigint DEFAULT NULL, INOUT in_text bigint DEFAULT NULL, INOUT unknown_key bigint DEFAULT NULL,
                INOUT not_a_token bigint DEFAULT NULL, INOUT nulls bigint DEFAULT NULL)
            LANGUAGE plpgsql
        AS $$
        DECLARE
            keys @.bytea[];
            obstacle @.text;
            current bigint;
            old bigint;
        BEGIN
            PERFORM {self}._fernet_check_call('decrypt', relation, column_name, batch_size, false, workers);
            keys := {self}._fernet_keys();
            obstacle := {self}._fernet_check_table('decrypt', relation, column_name);
            CALL {self}._fernet_convert('decrypt', relation, column_name, batch_size, false, keys, obstacle,
                                        decrypted, current, old, unknown_key, not_a_token, nulls, in_text);
            -- A plaintext may look like a token that no key opens.
            not_a_token := GREATEST(not_a_token @-@ decrypted, 0);
        END $$;
        COMMENT ON PROCEDURE {self}.fernet_decrypt_column(regclass, name, integer, integer, bigint, bigint, bigint, bigint, bigint) IS
            'decrypt the values of a column that are tokens, in batches with a COMMIT after each';

        -- The tables of a family that have rows, with their blocks.
        CREATE OR REPLACE FUNCTION {self}._fernet_sizes(relation regclass) RETURNS TABLE (member regclass, size bigint)
            LANGUAGE sql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT f, coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::bigint
            FROM {self}._fernet_family($1) AS f JOIN pg_class AS c ON c.oid = f
            WHERE c.relkind = 'r'
            ORDER BY f::oid
        $$;

        -- Does the same as _fernet_obstacle, for a relation and all that inherit from it.
        CREATE OR REPLACE FUNCTION {self}._fernet_obstacle_in_family(encrypts boolean, relation regclass, column_name name) RETURNS text
            LANGUAGE sql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT min({self}._fernet_obstacle(encrypts, a.attrelid, column_name, a.attnum))
            FROM {self}._fernet_sizes(relation) AS f JOIN pg_attribute AS a ON a.attrelid = f.member AND a.attname = column_name
        $$;

        -- A partition may have been dropped meanwhile.
        CREATE OR REPLACE FUNCTION {self}._fernet_is_there(relation regclass, column_name name) RETURNS boolean
            LANGUAGE sql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = relation AND attname = column_name AND NOT attisdropped)
        $$;

        --
        -- fernet_encrypt_trigger
        --
        -- It runs as the role that writes, with the keys of that session. For a row that a trigger returns, the server
        -- checks neither length nor domain. jsonb_populate_record does, and functions that a domain calls get the path that
        -- they are used to.
        --

        CREATE OR REPLACE FUNCTION {self}.fernet_encrypt_trigger() RETURNS trigger
            LANGUAGE plpgsql
        AS $$
        DECLARE
            keys @.bytea[];
            target @.record;
            written @.text;
            stored @.text;
            look @.record;
        BEGIN
            IF TG_WHEN @<>@ 'BEFORE' OR TG_LEVEL @<>@ 'ROW' OR TG_OP @<>@ ALL (ARRAY['INSERT', 'UPDATE']) OR TG_NARGS @=@ 0 THEN
                PERFORM {self}._fernet_refuse_trigger(TG_NARGS @=@ 0 AND TG_WHEN @=@ 'BEFORE' AND TG_LEVEL @=@ 'ROW', TG_NAME, TG_RELID);
            END IF;
            FOR number IN 0 .. TG_NARGS @-@ 1 LOOP
                target := {self}._fernet_trigger_column(TG_RELID, TG_ARGV[number]::@.name);
                EXECUTE @.format('SELECT ($1).%I::pg_catalog.text', TG_ARGV[number]::@.name) INTO written USING NEW;
                CONTINUE WHEN written IS NULL;
                IF keys IS NULL THEN
                    keys := {self}._fernet_keys();
                END IF;
                look := {self}._fernet_look(written, target.kind, keys, 'encrypt', true);
                IF look.changed IS NOT NULL THEN
                    IF @.length(look.changed) @>@ target.max_chars THEN
                        PERFORM {self}._fernet_refuse_column(
                            'too long', {self}._fernet_place(TG_RELID, TG_ARGV[number]::@.name), target.base_type, @.length(look.changed));
                    END IF;
                    NEW := @.jsonb_populate_record(NEW, @.jsonb_build_object(TG_ARGV[number]::@.name, look.changed));
                ELSIF look.due @=@ 1 THEN
                    PERFORM {self}._fernet_refuse(look.refusal, at => {self}._fernet_place(TG_RELID, TG_ARGV[number]::@.name));
                ELSIF look.refusal IS NOT NULL THEN
                    -- A value that no key opens, or a token beside other text, may stay in the row, so that the row's other
                    -- columns can change.
                    IF TG_OP @=@ 'UPDATE' THEN
                        EXECUTE @.format('SELECT ($1).%I::pg_catalog.text', TG_ARGV[number]::@.name) INTO stored USING OLD;
                    END IF;
                    IF stored IS NULL OR stored COLLATE @."C" @<>@ written THEN
                        PERFORM {self}._fernet_refuse(look.refusal, at => {self}._fernet_place(TG_RELID, TG_ARGV[number]::@.name));
                    END IF;
                END IF;
            END LOOP;
            RETURN NEW;
        END $$;
        COMMENT ON FUNCTION {self}.fernet_encrypt_trigger() IS
            'for BEFORE INSERT OR UPDATE FOR EACH ROW: encrypt the columns named by the arguments; a value that a key opens is not changed';

        -- Describes a column of one of the two types that nearly all columns have; for others, _fernet_column does.
        CREATE OR REPLACE FUNCTION {self}._fernet_trigger_column(
                relation oid, column_name name, OUT kind text, OUT max_chars integer, OUT base_type text)
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            target record;
            make_it_right constant text := 'Name columns of the table, of type text, varchar, char, citext or bytea: CREATE TRIGGER ... EXECUTE '
                'FUNCTION fernet_encrypt_trigger(''column'', ''another'').';
        BEGIN
            SELECT CASE a.atttypid WHEN 'bytea'::regtype THEN 'bytea' ELSE 'text' END INTO kind
            FROM pg_attribute AS a
            WHERE a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND a.attgenerated = ''
              AND a.atttypid IN ('text'::regtype, 'bytea'::regtype);
            IF FOUND THEN
                RETURN;
            END IF;
            target := {self}._fernet_column(relation, column_name, make_it_right);
            IF target.is_generated THEN
                RAISE EXCEPTION USING ERRCODE = '428C9',
                    MESSAGE = format('%s is a generated column', {self}._fernet_place(relation, column_name)), HINT = make_it_right;
            ELSIF NOT target.is_plain THEN
                PERFORM {self}._fernet_refuse_column(
                    'no plaintext', {self}._fernet_place(relation, column_name), target.base_type, hint => make_it_right);
            END IF;
            kind := target.kind;
            max_chars := target.max_chars;
            base_type := target.base_type;
        END $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_place(relation oid, column_name name) RETURNS text
            LANGUAGE sql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT format('column "%s" of %s', column_name, relation::regclass)
        $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_refuse_trigger(names_nothing boolean, trigger_name name, relation oid) RETURNS void
            LANGUAGE plpgsql VOLATILE PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            RAISE EXCEPTION USING ERRCODE = CASE WHEN names_nothing THEN '22023' ELSE '39P01' END,
                MESSAGE = format('trigger "%s" of %s %s', trigger_name, relation::regclass,
                                 CASE WHEN names_nothing THEN 'names no column' ELSE 'is not BEFORE INSERT OR UPDATE FOR EACH ROW' END),
                HINT = 'Use CREATE TRIGGER ... BEFORE INSERT OR UPDATE ON table FOR EACH ROW EXECUTE FUNCTION '
                       'fernet_encrypt_trigger(''column'', ''another'').';
        END $$;

        --
        -- fernet_find_columns
        --

        -- The columns that may hold tokens and that the caller may read, by table. Each row gives the relation to list, its
        -- name, the percentage of its blocks that is likely to hold so many rows of the relation, and the obstacle to
        -- reading it. src/columns/find.rs explains this.
        CREATE OR REPLACE FUNCTION {self}._fernet_candidates(sample_rows integer)
            RETURNS TABLE (relation regclass, member regclass, is_partitioned boolean, percent double precision, obstacle text, columns name[], types oid[])
            LANGUAGE sql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp SET jit = off
        AS $$
            WITH RECURSIVE types (oid) AS (
                (SELECT unnest('{text,varchar,bpchar,bytea,xml,json,jsonb}'::regtype[])::oid
                UNION ALL
                SELECT d.objid FROM pg_extension AS e
                JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                WHERE e.extname IN ('citext', 'hstore') AND d.classid = 'pg_type'::regclass AND d.deptype = 'e')
                UNION
                SELECT d.oid FROM types AS t
                JOIN pg_type AS d ON t.oid = CASE WHEN d.typtype = 'd' THEN d.typbasetype
                                                  WHEN d.typsubscript = 'array_subscript_handler'::regproc THEN d.typelem END),
            tables AS (
                SELECT c.oid, n.nspname, c.relname, c.relkind, coalesce(pg_partition_root(c.oid), c.oid) AS root,
                       has_schema_privilege(n.oid, 'USAGE') AS is_named,
                       greatest(c.reltuples, 0)::float8 AS rows, c.relpages::float8 AS blocks,
                       CASE WHEN c.relkind = 'f' THEN 'foreign'
                            WHEN c.relpersistence = 'u' AND pg_is_in_recovery() THEN 'unlogged' END AS obstacle
                FROM pg_class AS c
                JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE (c.relkind IN ('r', 'p', 'm')
                       OR c.relkind = 'f' AND EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid))
                  AND c.relispopulated
                  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
                  AND NOT pg_is_other_temp_schema(n.oid)),
            columns AS (
                SELECT t.*, a.attname, a.attnum, a.atttypid,
                       t.is_named AND has_column_privilege(t.oid, a.attnum, 'SELECT') AS is_readable
                FROM tables AS t
                JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
                JOIN types ON types.oid = a.atttypid),
            trees AS (
                SELECT *,
                       bool_and(obstacle IS NULL) OVER tree AND bool_or(is_readable AND oid = root) OVER tree AS is_whole,
                       bool_and(is_readable) FILTER (WHERE relkind <> 'p') OVER tree AS is_readable_by_part,
                       sum(rows) FILTER (WHERE relkind <> 'p') OVER tree AS tree_rows,
                       sum(blocks) FILTER (WHERE relkind <> 'p') OVER tree AS tree_blocks
                FROM columns
                WINDOW tree AS (PARTITION BY root, attname)),
            ancestors (oid, attname, ancestor) AS (
                SELECT oid, attname, oid FROM columns WHERE NOT is_readable AND relkind <> 'p'
                UNION
                SELECT a.oid, a.attname, i.inhparent
                FROM ancestors AS a JOIN pg_inherits AS i ON i.inhrelid = a.ancestor),
            heirs (oid, attname) AS (
                SELECT DISTINCT a.oid, a.attname
                FROM ancestors AS a JOIN columns AS c ON c.oid = a.ancestor AND c.attname = a.attname
                WHERE c.is_readable),
            candidates AS (
                SELECT s.oid AS relation, s.nspname AS relation_schema, s.relname AS relation_name, t.*,
                       least(100, 100 * greatest(sample_rows / greatest(CASE WHEN t.is_whole THEN t.tree_rows ELSE t.rows END, 1),
                                                 16 / greatest(CASE WHEN t.is_whole THEN t.tree_blocks ELSE t.blocks END, 1))) AS percent,
                       coalesce(t.obstacle, CASE WHEN NOT t.is_readable THEN 'not readable' END) AS in_the_way
                FROM trees AS t
                JOIN tables AS s ON s.oid = CASE WHEN t.is_whole THEN t.root ELSE t.oid END
                LEFT JOIN heirs AS h ON h.oid = t.oid AND h.attname = t.attname
                WHERE CASE WHEN t.is_whole AND NOT t.is_readable_by_part THEN t.oid = t.root
                           ELSE t.relkind <> 'p' AND (t.is_readable OR h.oid IS NOT NULL) END)
            SELECT c.relation, c.oid, c.relkind = 'p', max(c.percent), c.in_the_way,
                   array_agg(c.attname ORDER BY c.attnum), array_agg(c.atttypid ORDER BY c.attnum)
            FROM candidates AS c
            GROUP BY c.relation_schema, c.relation_name, c.relation, c.nspname, c.relname, c.oid, c.relkind, c.in_the_way
            ORDER BY c.relation_schema, c.relation_name, c.nspname, c.relname, c.in_the_way
        $$;

        CREATE OR REPLACE FUNCTION {self}.fernet_find_columns(sample_rows integer DEFAULT 1000)
            RETURNS TABLE (relation regclass, column_name name, sampled bigint, tokens bigint)
            LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE COST 1000000 ROWS 10
            SET search_path = pg_catalog, pg_temp SET row_security = off SET array_nulls = on
        AS $$
        DECLARE
            keys bytea[] := '{}';
            candidate record;
            reason text;
            hint text;
            rows_left bigint;
            seed integer;
            last_relation regclass;
            select_list text;
            names name[];
            kinds text[];
            are_arrays boolean[];
            rows refcursor;
            stored text[];
            look record;
            sampled_values bigint[];
            token_counts bigint[];
            seen bigint;
            found_relations regclass[] := '{}';
            found_columns name[] := '{}';
            found_sampled bigint[] := '{}';
            found_tokens bigint[] := '{}';
        BEGIN
            IF sample_rows < 1 THEN
                RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sample_rows must be at least 1',
                    HINT = 'Leave the argument out to get its default.';
            END IF;
            -- Without keys, counts what has the form of a token.
            IF coalesce(current_setting('fernet.keys', true), '') <> '' THEN
                keys := {self}._fernet_keys();
            END IF;
            FOR candidate IN SELECT * FROM {self}._fernet_candidates(sample_rows) LOOP
                IF candidate.relation IS DISTINCT FROM last_relation THEN
                    last_relation := candidate.relation;
                    rows_left := sample_rows;
                    seed := 0;
                END IF;
                -- Undoing what this reads releases its locks: there may be more tables than locks.
                BEGIN
                    seen := 0;
                    IF candidate.obstacle IS NULL AND row_security_active(candidate.member) THEN
                        candidate.obstacle := 'hidden rows';
                    END IF;
                    IF candidate.obstacle IS NOT NULL THEN
                        SELECT w.reason, w.hint INTO reason, hint FROM (VALUES
                            ('foreign', 'it is a foreign table', 'Call fernet_find_columns() on the server that holds it.'),
                            ('unlogged', 'unlogged tables cannot be read on a standby', 'Call fernet_find_columns() on the primary server.'),
                            ('not readable', 'it can be read only through its parent', 'Call fernet_find_columns() as the owner of the table.'),
                            ('hidden rows', 'row-level security may hide rows of it',
                             'Call fernet_find_columns() as the owner of the table or as a role with BYPASSRLS.')) AS w (obstacle, reason, hint)
                        WHERE w.obstacle = candidate.obstacle;
                        RAISE WARNING USING MESSAGE = format('left out %s: %s', candidate.member, reason), HINT = hint;
                    ELSIF rows_left > 0 THEN
                        -- An array comes as its literal.
                        SELECT string_agg(format(CASE f.text_type WHEN 'text' THEN 't.%I::text' ELSE 't.%I::text[]::text' END, c.name), ', ' ORDER BY c.n),
                               array_agg(c.name ORDER BY c.n), array_agg(f.kind ORDER BY c.n), array_agg(f.text_type = 'text[]' ORDER BY c.n),
                               array_agg(0 ORDER BY c.n)
                        INTO select_list, names, kinds, are_arrays, token_counts
                        FROM unnest(candidate.columns, candidate.types) WITH ORDINALITY AS c (name, type, n)
                        CROSS JOIN LATERAL {self}._fernet_form(c.type) AS f
                        WHERE f.kind IS NOT NULL;
                        sampled_values := token_counts;
                        FOR attempt IN 1 .. 2 LOOP
                            EXIT WHEN select_list IS NULL;
                            OPEN rows NO SCROLL FOR EXECUTE format(
                                'SELECT ARRAY[%s] FROM %s %s AS t TABLESAMPLE SYSTEM (%s) REPEATABLE (%s) LIMIT %s',
                                select_list, CASE WHEN candidate.is_partitioned THEN '' ELSE 'ONLY' END,
                                candidate.member, candidate.percent, seed, rows_left);
                            LOOP
                                FETCH rows INTO stored;
                                EXIT WHEN NOT FOUND;
                                seen := seen + 1;
                                FOR place IN 1 .. cardinality(stored) LOOP
                                    CONTINUE WHEN stored[place] IS NULL;
                                    look := CASE WHEN are_arrays[place]
                                                 THEN {self}._fernet_look(stored[place]::text[], kinds[place], keys, 'rotate', false)
                                                 ELSE {self}._fernet_look(stored[place], kinds[place], keys, 'rotate', false) END;
                                    sampled_values[place] := sampled_values[place] + 1;
                                    token_counts[place] := token_counts[place] + cardinality(look.openers);
                                END LOOP;
                            END LOOP;
                            CLOSE rows;
                            -- The sample takes the same block numbers in each partition; in small partitions, it may be
                            -- empty.
                            EXIT WHEN seen > 0 OR NOT candidate.is_partitioned;
                            candidate.percent := 100;
                        END LOOP;
                    END IF;
                    RAISE SQLSTATE 'FRNET';
                EXCEPTION
                    WHEN SQLSTATE 'FRNET' THEN
                        NULL;
                    WHEN undefined_table OR undefined_column THEN
                        -- The table has been dropped by now.
                        seen := 0;
                    WHEN OTHERS THEN
                        seen := 0;
                        RAISE WARNING USING MESSAGE = format('could not read %s: %s', candidate.member, sqlerrm),
                            HINT = 'Other tables are not affected. Call fernet_find_columns() again when this one can be read.';
                END;
                seed := seed + 1;
                rows_left := rows_left - seen;
                IF seen > 0 THEN
                    found_relations := found_relations || array_fill(candidate.relation, ARRAY[cardinality(names)]);
                    found_columns := found_columns || names;
                    found_sampled := found_sampled || sampled_values;
                    found_tokens := found_tokens || token_counts;
                END IF;
            END LOOP;
            RETURN QUERY
                SELECT f.relation, f.name, sum(f.sampled)::bigint, sum(f.tokens)::bigint
                FROM unnest(found_relations, found_columns, found_sampled, found_tokens) WITH ORDINALITY AS f (relation, name, sampled, tokens, n)
                GROUP BY f.relation, f.name HAVING sum(f.tokens) > 0
                ORDER BY min(f.n);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_find_columns(integer) IS
            'the columns that hold Fernet tokens, as far as the caller may read them: how many values were sampled, and how many tokens are in them';
    $source$;
BEGIN
    -- After this, nothing is looked up in the caller's path.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

    IF self IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '3F000', MESSAGE = 'no schema has been selected to create pg_fernet_sql in',
            HINT = 'Set search_path to a schema of its own: CREATE SCHEMA fernet; SET search_path = fernet.';
    END IF;
    -- The name is inserted into literals, formats and bodies between $$.
    IF self ~ E'[''%{\\\\]|[$][$]' THEN
        RAISE EXCEPTION USING ERRCODE = '42602', MESSAGE = format('pg_fernet_sql cannot be created in schema %I', self),
            HINT = E'Choose a schema without '', %, {, \\ or $$ in its name: CREATE SCHEMA fernet; SET search_path = fernet.';
    END IF;
    IF EXISTS (SELECT FROM pg_proc WHERE pronamespace = quote_ident(self)::regnamespace AND proname = 'fernet_encrypt'
               AND prolang = (SELECT oid FROM pg_language WHERE lanname = 'c')) THEN
        RAISE EXCEPTION USING ERRCODE = '42723',
            MESSAGE = format('the functions of the extension pg_fernet are in schema %I', self),
            HINT = 'They are faster and keep the keys from the session. To have both, put this edition into a schema of its own: '
                   'CREATE SCHEMA fernet_sql; SET search_path = fernet_sql.';
    END IF;
    SELECT n.nspname INTO pgcrypto
    FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'pgcrypto';
    IF pgcrypto IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = 'pg_fernet_sql needs the extension pgcrypto',
            HINT = 'CREATE EXTENSION pgcrypto; on Azure, allow it first in azure.extensions.';
    END IF;

    source := basis;
    -- Forms of `token`: as text, as its characters, as bytes. Then a value made from a token `encoded`, and from bytes
    -- `record`.
    FOREACH for_type SLICE 1 IN ARRAY ARRAY[
        ['text', 'token', 'encoded', '@.convert_to(token, @.getdatabaseencoding())',
         'encoded', '@.convert_from(record, @.getdatabaseencoding())'],
        ['bytea', '@.encode(token, ''escape'')', '{self}._fernet_characters(token)', 'token',
         '@.decode(encoded, ''escape'')', 'record']]
    LOOP
        source := source || replace(replace(replace(replace(replace(replace(replace(replace(replace(
            of_tokens, '{return_text}', return_text), '{open_or_refuse}', open_or_refuse), '{open_whole}', open_whole),
            '{type}', for_type[1]), '{encoded}', for_type[2]), '{characters}', for_type[3]),
            '{bytes}', for_type[4]), '{decoded}', for_type[5]), '{value}', for_type[6]);
    END LOOP;
    source := source || replace(of_documents, '{type}', 'json') || replace(of_documents, '{type}', 'jsonb')
        || replace(of_columns, '{count_relation}',
                   replace(replace(count_relation, '{count_name}', '_fernet_count'), '{count_volatility}', 'VOLATILE')
                   || replace(replace(count_relation, '{count_name}', '_fernet_count_as_seen'), '{count_volatility}', 'STABLE'));
    source := replace(replace(replace(replace(replace(replace(replace(source, '{variables}', variables), '{look}', look), '{decode}', decode), '{open}', open), '{pad}', pad), '{sealed}', sealed), '{commit}', commits);
    -- By this list, an update and uninstall.sql know which functions are ours. No default in it has a comma.
    source := source || $source$
        CREATE OR REPLACE FUNCTION {self}._fernet_made() RETURNS text[]
            LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT ''{signatures}''::pg_catalog.text[]';
    $source$;
    SELECT array_agg(format('%s(%s)', m[1],
        (SELECT string_agg(regexp_replace(a, E'^\\s*(INOUT )?\\w+ | DEFAULT .*$', '', 'g'), ', ') FROM regexp_split_to_table(m[2], ',') AS a
         WHERE a !~ E'^\\s*(OUT |$)')))
    INTO signatures
    FROM regexp_matches(source, E'CREATE OR REPLACE \\w+? \\{self\\}[.](\\w+?)[(](.*?)[)]\\s+(?:RETURNS|LANGUAGE) ', 'g') AS m;

    -- With other encodings, an error is caught, which begins a subtransaction. A parallel query, including its leader, must
    -- not do that before PostgreSQL 17.
    source := replace(source, '{converts}', CASE WHEN getdatabaseencoding() = 'UTF8' OR current_setting('server_version_num')::integer >= 170000
                                                 THEN 'SAFE' ELSE 'UNSAFE' END);
    source := replace(source, '{signatures}', signatures::text);
    source := replace(regexp_replace(source, '@([-+*/<>=~!%|]+)@', E'OPERATOR(pg_catalog.\\1)', 'g'), '@.', 'pg_catalog.');
    -- These come last, since names may have anything in them.
    source := replace(replace(source, '{self}', quote_ident(self)), '{pgcrypto}', quote_ident(pgcrypto));

    -- A function of another role is not replaced, nor left in a place where it would be called instead of ours.
    SELECT coalesce(array_agg(p.oid), '{}') INTO existing
    FROM pg_proc AS made
    CROSS JOIN unnest(substring(made.prosrc, '''(.*)''')::text[]) AS m (signature)
    JOIN pg_proc AS p ON p.oid = to_regprocedure(concat(quote_ident(self), '.', m.signature)) AND p.proowner = made.proowner
    WHERE made.oid = to_regprocedure(concat(quote_ident(self), '._fernet_made()')) AND pg_get_userbyid(made.proowner) = current_user;
    SELECT p.oid::regprocedure AS signature, pg_get_userbyid(p.proowner) AS owner INTO obstacle
    FROM unnest(signatures) AS m (signature)
    JOIN pg_proc AS p ON p.oid = to_regprocedure(concat(quote_ident(self), '.', m.signature))
    WHERE p.oid <> ALL (existing)
    ORDER BY p.proname LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '42723', MESSAGE = format('function %s of role %I is in the way of pg_fernet_sql', obstacle.signature, obstacle.owner),
            HINT = 'To update pg_fernet_sql, run this as the role that has installed it. Otherwise, rename or drop the function, or choose another '
                   'schema: CREATE SCHEMA fernet_sql; SET search_path = fernet_sql.';
    END IF;

    -- Existing functions are replaced, so that sessions that are calling them can go on. Only the list is always dropped:
    -- that is an error if an extension owns the functions and this is not its script.
    IF existing <> '{}' THEN
        EXECUTE format('DROP FUNCTION %I._fernet_made()', self);
    END IF;
    BEGIN
        EXECUTE source;
    EXCEPTION WHEN invalid_function_definition THEN
        -- A function with the same arguments, but with other names or another result.
        SELECT string_agg(oid::regprocedure::text, ', ') INTO outdated FROM pg_proc WHERE oid = ANY (existing) AND proname ~ '^_';
        IF outdated IS NULL THEN
            RAISE;
        END IF;
        EXECUTE concat('DROP ROUTINE ', outdated);
        EXECUTE source;
    END;
    SELECT string_agg(oid::regprocedure::text, ', ') INTO outdated
    FROM pg_proc
    WHERE oid = ANY (existing) AND oid <> ALL (
        SELECT to_regprocedure(concat(quote_ident(self), '.', m.signature)) FROM unnest(signatures) AS m (signature));
    IF outdated IS NOT NULL THEN
        EXECUTE concat('DROP ROUTINE ', outdated);
    END IF;

    -- Functions that read the keys are for roles to which somebody grants them, one by one; privileges from ALTER DEFAULT
    -- PRIVILEGES are revoked. Functions whose names begin with _ get their keys from the caller. An update leaves the
    -- privileges unchanged.
    FOR routine IN
        SELECT p.oid::regprocedure AS signature,
               p.proname ~ '^_' OR p.proname IN ('fernet_generate_key', 'fernet_is_token', 'fernet_version') AS is_for_all,
               string_agg(DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, ', ') AS grantees
        FROM pg_proc AS p
        LEFT JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) ON grantee <> p.proowner
        WHERE p.oid IN (SELECT to_regprocedure(concat(quote_ident(self), '.', m.signature)) FROM unnest(signatures) AS m (signature))
          AND p.oid <> ALL (existing)
        GROUP BY p.oid
    LOOP
        IF routine.grantees IS NOT NULL THEN
            EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', routine.signature, routine.grantees);
        END IF;
        IF routine.is_for_all THEN
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO PUBLIC', routine.signature);
        END IF;
    END LOOP;

    -- A role that may create a function beside ours may create one that fits a call better than ours.
    SELECT string_agg(DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC') COLLATE "C", ', ') INTO creators
    FROM pg_namespace AS n
    JOIN pg_database AS d ON d.datname = current_database()
    CROSS JOIN LATERAL (
        SELECT n.nspowner
        UNION SELECT grantee FROM aclexplode(n.nspacl) WHERE privilege_type = 'CREATE') AS creator (oid)
    LEFT JOIN pg_roles AS r
        ON r.oid = CASE creator.oid WHEN 'pg_database_owner'::regrole THEN d.datdba ELSE creator.oid END
    WHERE n.oid = quote_ident(self)::regnamespace AND r.rolsuper IS NOT TRUE AND r.rolname IS DISTINCT FROM current_user;
    IF creators IS NOT NULL THEN
        RAISE WARNING 'others may create functions in the schema of pg_fernet_sql'
            USING DETAIL = format('These roles and their members may: %s.', creators),
                  HINT = 'Install it in a schema of its own: CREATE SCHEMA fernet; SET search_path = fernet. Then grant USAGE on '
                         'the schema to the roles that use the functions.';
    END IF;

    -- If the user forgot to set search_path, the functions are in public, perhaps beside a copy that was to be updated.
    EXECUTE format('SELECT %I.fernet_version()', self) INTO version;
    SELECT string_agg(pronamespace::regnamespace::text, ', ') INTO elsewhere
    FROM pg_proc WHERE proname = 'fernet_version' AND pronamespace <> quote_ident(self)::regnamespace;
    RAISE NOTICE '%', concat(version, ' is in schema ', quote_ident(self), '; there is another in schema ' || elsewhere);

    PERFORM set_config('search_path', caller_path, true);
END $install$;
