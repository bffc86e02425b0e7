-- pg_fernet in SQL: the functions of pg_fernet over pgcrypto, for servers where nothing native can be
-- installed. Creates them in the first schema of search_path; run again, updates them.
--
-- The functions may be called with any search_path, also one in which somebody else has laid traps. A
-- SET clause costs more than some of them take, and a procedure with one cannot commit: so the bodies
-- without one look nothing up. In these,
--
--   @=@ and the like     are operators of pg_catalog
--   @.                   is pg_catalog itself
--
-- and everywhere
--
--   {self}               is the schema of the functions
--   {pgcrypto}           is that of pgcrypto, whose functions ours are bound to when they are created
--   {type}, {encoded} …  are what differs between text and bytea
--   {open} and the like  is code that stands in several functions, since calling one is expensive
--
-- A literal with a backslash is E'': its meaning depends on no setting.
DO $install$
DECLARE
    self text := pg_catalog.current_schema();
    caller_path text := pg_catalog.current_setting('search_path');
    pgcrypto text;
    source text;
    for_type text[];
    existing oid[];
    routine record;
    creators text;

    --
    -- Code that stands in several functions
    --

    variables constant text := $source$
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

    -- Decodes `encoded` into `record` if it is a token as nearly all are written; else that is NULL.
    decode constant text := $source$
        IF @.octet_length(encoded) @>@ 250000000 THEN
            PERFORM {self}._fernet_refuse('too large');
        END IF;
        IF encoded @~@ '^g[A-P][A-Za-z0-9+/_-]+={0,2}$' AND @.length(encoded) @%@ 4 @=@ 0 THEN
            record := @.decode(@.replace(@.replace(encoded, '-', '+'), '_', '/'), 'base64');
            IF @.octet_length(record) @<=@ 57 OR (@.octet_length(record) @-@ 57) @%@ 16 @<>@ 0 THEN
                record := NULL;
            END IF;
        END IF;$source$;

    -- Finds the key that opens `record`, and decrypts with it; or says in `refusal` why none does. The
    -- HMACs are compared by hashes with a secret in them, so that the time it takes tells nothing.
    open constant text := $source$
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

    -- Opens a token that the value is as a whole.
    open_whole constant text := $source$
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

    open_or_refuse constant text := $source$
        {open_whole}
        IF refusal IS NOT NULL THEN
            PERFORM {self}._fernet_refuse(refusal);
        END IF;$source$;

    -- Makes a token of `plain` under the first key, stamped with the time of the call. A clock before
    -- 1970 has no other form in a token.
    seal constant text := $source$
        padding := 16 @-@ @.octet_length(plain) @%@ 16;
        RETURN {self}._fernet_seal(
            @.int8send(GREATEST(0, @.floor(@.date_part('epoch', @.clock_timestamp()))::bigint)),
            plain @||@ @.decode(@.repeat(@.lpad(@.to_hex(padding), 2, '0'), padding), 'hex'),
            keys[1]);$source$;

    --
    -- The functions that do not depend on the type of the token
    --

    basis constant text := $source$
        --
        -- pgcrypto. Lengths of keys and IVs are our business: it would fill or cut them.
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

        CREATE OR REPLACE FUNCTION {self}._fernet_refuse(reason text, key_position integer DEFAULT NULL) RETURNS void
            LANGUAGE plpgsql VOLATILE PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            list_hint constant text := 'Separate keys by commas, or in a file by line breaks, the newest first. A key is '
                '32 bytes in base64, 44 characters with its padding; fernet_generate_key() makes one.';
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
                RAISE EXCEPTION USING ERRCODE = '22P02', MESSAGE = 'value is not a Fernet token',
                    HINT = 'If the value is plaintext that should be a token, encrypt it with fernet_encrypt(). '
                           'fernet_key_index() is NULL for values without a token.';
            WHEN 'unauthenticated' THEN
                RAISE EXCEPTION USING ERRCODE = '39000', MESSAGE = 'no configured key authenticates the Fernet token',
                    HINT = 'Append the key that the token was made with to the list of keys. fernet_key_index() is NULL '
                           'for the values that no key opens.';
            WHEN 'badly padded' THEN
                RAISE EXCEPTION USING ERRCODE = '39000', MESSAGE = 'padding of the Fernet token is wrong',
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
                RAISE EXCEPTION USING ERRCODE = '22021', MESSAGE = 'plaintext is not valid text in the database encoding',
                    HINT = 'Use fernet_decrypt_bytea() to get the bytes as they are.';
            WHEN 'not UTF-8' THEN
                RAISE EXCEPTION USING ERRCODE = '22021', MESSAGE = 'text has no equivalent in UTF-8',
                    HINT = 'To encrypt its bytes as they are, pass convert_to(value, getdatabaseencoding()).';
            WHEN 'too large' THEN
                RAISE EXCEPTION USING ERRCODE = '54000', MESSAGE = 'value is too large for pg_fernet_sql',
                    HINT = 'Split the value: here, a token has at most 250 million characters.';
            END CASE;
        END $$;

        --
        -- Base64, as pyca reads it
        --

        -- Shows each byte as a character of ASCII: itself, or if it is none, a control character.
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

        -- Finds what pyca decodes, which is what CPython's binascii.a2b_base64 does when it is not strict, with
        -- both alphabets. Foreign bytes are skipped. A `=` ends the input once it completes a group of four that
        -- has at least two characters; before that it is skipped, too. Returns the characters, their place, and
        -- where reading ended. NULL, if that is inside of a group.
        --
        -- The padding is in that place, too, if nothing but white space is before it. Else it is somebody else's,
        -- or a text is between that must not be lost.
        CREATE OR REPLACE FUNCTION {self}._fernet_base64(
                encoded text, OUT characters text, OUT first integer, OUT last integer, OUT read_to integer)
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            part text[];
            run integer;
            at integer := 0;
            count integer := 0;
            pads integer := 0;
            ended integer;
        BEGIN
            FOR part IN
                SELECT m FROM regexp_matches(encoded COLLATE "C", '([^A-Za-z0-9+/_=-]*)([A-Za-z0-9+/_-]+|=+)', 'g') AS m
            LOOP
                at := at + length(part[1]);
                run := length(part[2]);
                IF ascii(part[2]) <> ascii('=') THEN
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

        -- Decodes characters, without their padding, if that makes a token: version, timestamp, IV, blocks, HMAC.
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
            read_to integer;
            keys @.bytea[] := '{}';
        BEGIN
            -- A setting of no extension that was set in a transaction is an empty one behind it.
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
                    SELECT b.characters, b.read_to INTO characters, read_to
                    FROM {self}._fernet_base64(elements[place]) AS b;
                    -- More of them behind the padding would be another key, which pyca forgets.
                    IF @.length(characters) @=@ 43
                            AND @.substring(elements[place], read_to @+@ 1) @!~@ '[A-Za-z0-9+/_-]' THEN
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

        -- Makes a token under a key. The plaintext has its padding already.
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
            {seal}
        END $$;
        COMMENT ON FUNCTION {self}.fernet_encrypt(bytea) IS
            'encrypt bytes into a Fernet token under the first key';

        CREATE OR REPLACE FUNCTION {self}.fernet_encrypt(plaintext text) RETURNS text
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
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
            END IF;
            {seal}
        END $$;
        COMMENT ON FUNCTION {self}.fernet_encrypt(text) IS
            'encrypt text, as UTF-8, into a Fernet token under the first key';

        -- Converts from another encoding. The server's own error would show what has no equivalent.
        CREATE OR REPLACE FUNCTION {self}._fernet_to_utf8(plaintext text) RETURNS bytea
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            RETURN convert_to(plaintext, 'UTF8');
        EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
            PERFORM {self}._fernet_refuse('not UTF-8');
        END $$;

        --
        -- Decrypt
        --

        -- Makes text of bytes that are UTF-8. That is looked at first, since the server's own error would show them.
        CREATE OR REPLACE FUNCTION {self}._fernet_text(plain bytea) RETURNS text
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            escaped @.text COLLATE @."C" := @.encode(plain, 'escape');
        BEGIN
            -- As nearly all passwords are: only ASCII, no backslash.
            IF @.strpos(escaped, E'\\') @=@ 0 THEN
                RETURN escaped;
            END IF;
            RETURN {self}._fernet_from_utf8(plain);
        END $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_from_utf8(plain bytea) RETURNS text
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            -- The characters of Unicode without the zero, in hexadecimal digits.
            utf8 constant text := '^(?:0[1-9a-f]|[1-7].'
                '|(?:c[2-9a-f]|d.)[89ab].'
                '|(?:e0[ab]|e[1-9a-cef][89ab]|ed[89]|f0[9ab].[89ab]|f[123][89ab].[89ab]|f48.[89ab]).[89ab].)*$';
        BEGIN
            -- Not the usual way, since parallel workers may begin no subtransaction; but a regular expression takes
            -- many times the space.
            IF getdatabaseencoding() <> 'UTF8' OR octet_length(plain) > 10000000 THEN
                RETURN {self}._fernet_convert_from_utf8(plain);
            ELSIF encode(plain, 'hex') COLLATE "C" ~ utf8 THEN
                RETURN convert_from(plain, 'UTF8');
            END IF;
            PERFORM {self}._fernet_refuse('not text');
        END $$;

        CREATE OR REPLACE FUNCTION {self}._fernet_convert_from_utf8(plain bytea) RETURNS text
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            RETURN convert_from(plain, 'UTF8');
        EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
            PERFORM {self}._fernet_refuse('not text');
        END $$;

        -- Returns when a token was made, or infinity where that is past the range of timestamptz. Added in hours, since
        -- the server counts seconds in floating point, and days in its time zone.
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

        -- Refuses a token that is older than `ttl`, or more than a minute ahead, at the time `at`.
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

        CREATE OR REPLACE FUNCTION {self}._fernet_expires(made timestamptz, ttl interval) RETURNS timestamptz
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        BEGIN
            IF made < timestamptz '10000-01-01' AND ttl BETWEEN interval '-1000 years' AND interval '100000 years' THEN
                RETURN made + ttl;
            END IF;
            BEGIN
                RETURN made + ttl;
            EXCEPTION WHEN datetime_field_overflow THEN
                -- Past the range of timestamptz, at the end that the interval points to.
                RETURN CASE WHEN ttl < interval '0' THEN timestamptz '-infinity' ELSE timestamptz 'infinity' END;
            END;
        END $$;

        --
        -- Tokens in a value
        --

        -- Finds the token at the end of a run of characters (between them `\`, if slashes are escaped), from any `gAAA`
        -- on, the shortest first, and opens it. `behind` is what follows the run. What no key opens, but is the whole run
        -- and has the form of a token, is refused; and where neither is, all is NULL.
        --
        -- A run of nothing but `gAAA` holds so many that to try all would be quadratic. So, but for the whole run, they
        -- are given up once they have taken four times its length: see src/fernet/runs.rs.
        CREATE OR REPLACE FUNCTION {self}._fernet_open_run(
                run text, behind text, keys bytea[],
                OUT at integer, OUT key_index integer, OUT record bytea, OUT padded bytea, OUT refusal text)
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            pads constant text := substring(behind, E'^(?:=|%3[Dd]|\\\\+u003[Dd]){0,2}');
            pad_count constant integer := length(regexp_replace(pads, E'=|%3[Dd]|\\\\+u003[Dd]', '=', 'g'));
            parts constant text[] := string_to_array(run, 'gAAA');
            effort integer := 4 * length(run);
            count integer := 0;
            key bytea;
            signed integer;
            len integer;
            padding integer;
        BEGIN
            at := length(run);
            FOR part IN REVERSE cardinality(parts) .. 2 LOOP
                at := at - length(parts[part]) - 4;
                count := count + length(replace(parts[part], E'\\', '')) + 4;
                -- Cut short, or of no token's length.
                CONTINUE WHEN -count & 3 > pad_count OR count * 3::bigint / 4 < 73 OR (count * 3::bigint / 4 - 57) % 16 <> 0;
                effort := greatest(0, effort - (length(run) - at));
                CONTINUE WHEN effort = 0 AND at > 0;
                record := {self}._fernet_record(replace(substring(run, at + 1), E'\\', ''));
                {open}
                IF refusal IS NULL THEN
                    RETURN;
                END IF;
            END LOOP;
            -- The whole run came last, if it has the length of a token.
            IF record IS NULL OR octet_length(record) <> count * 3::bigint / 4 OR left(run, 6) <> 'gAAAAA' THEN
                refusal := NULL;
            END IF;
            record := NULL;
            at := NULL;
        END $$;

        -- Finds the tokens in a value, and opens them: the place and length of each in bytes, the key, what it decrypts to
        -- with its padding. Those that no key opens come last, with the reason alone, and no row at all is: no token.
        --
        -- In order, each only where what is before has not settled the matter: what pyca makes of the value as a
        -- whole, if a key opens that; behind it, each run of characters; where none in a stretch of runs with an escaped
        -- `/` between them is a token, as in JSON, the stretch. As in src/fernet/scan.rs.
        CREATE OR REPLACE FUNCTION {self}._fernet_tokens(value bytea, keys bytea[])
            RETURNS TABLE (at integer, size integer, key_index integer, record bytea, padded bytea, refusal text)
            LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            stretches constant text := E'[A-Za-z0-9+/_-]*gAAA[A-Za-z0-9+/_-]*(?:\\\\+/[A-Za-z0-9+/_-]*)*';
            characters text COLLATE "C" := {self}._fernet_characters(value);
            gap text;
            stretch text;
            behind text;
            run text;
            token record;
            whole record;
            whole_refusal text;
            next integer := 0;
            run_at integer;
            in_stretch text[];
            is_open boolean;
            any_open boolean := false;
            refused text[] := '{}';
            key bytea;
            signed integer;
            len integer;
            padding integer;
        BEGIN
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

            FOR gap, stretch, behind IN
                SELECT t.gap, t.stretch[1], lead(t.gap) OVER in_order || coalesce(left((lead(t.stretch) OVER in_order)[1], 5), '')
                FROM ROWS FROM (regexp_split_to_table(substring(characters, next + 1), stretches),
                                regexp_matches(substring(characters, next + 1), stretches, 'g')) WITH ORDINALITY AS t (gap, stretch, n)
                WINDOW in_order AS (ORDER BY t.n)
                ORDER BY t.n
            LOOP
                EXIT WHEN stretch IS NULL;
                next := next + length(gap);
                run_at := next;
                is_open := false;
                in_stretch := '{}';
                FOREACH run IN ARRAY string_to_array(stretch, E'\\') LOOP
                    IF strpos(run, 'gAAA') > 0 THEN
                        token := {self}._fernet_open_run(
                            run, CASE WHEN run_at + length(run) = next + length(stretch) THEN behind ELSE '' END, keys);
                        IF token.key_index IS NOT NULL THEN
                            is_open := true;
                            at := run_at + token.at;
                            size := length(run) - token.at;
                            key_index := token.key_index;
                            record := token.record;
                            padded := token.padded;
                            refusal := NULL;
                            RETURN NEXT;
                        ELSIF token.refusal IS NOT NULL THEN
                            in_stretch := in_stretch || token.refusal;
                        END IF;
                    END IF;
                    run_at := run_at + length(run) + 1;
                END LOOP;
                IF NOT is_open AND strpos(stretch, E'\\') > 0 THEN
                    token := {self}._fernet_open_run(stretch, behind, keys);
                    IF token.key_index IS NOT NULL THEN
                        is_open := true;
                        at := next + token.at;
                        size := length(stretch) - token.at;
                        key_index := token.key_index;
                        record := token.record;
                        padded := token.padded;
                        refusal := NULL;
                        in_stretch := '{}';
                        RETURN NEXT;
                    ELSIF token.refusal IS NOT NULL THEN
                        in_stretch := ARRAY[token.refusal];
                    END IF;
                END IF;
                any_open := any_open OR is_open;
                refused := refused || in_stretch;
                next := next + length(stretch);
            END LOOP;

            IF NOT any_open AND refused = '{}' AND whole_refusal IS NOT NULL THEN
                refused := ARRAY[whole_refusal];
            END IF;
            RETURN QUERY SELECT NULL::integer, NULL::integer, NULL::integer, NULL::bytea, NULL::bytea, r.reason
                FROM unnest(refused) AS r (reason) ORDER BY r.reason DESC;
        END $$;

        -- Rotates the tokens in a value. NULL, if there is nothing to rotate.
        CREATE OR REPLACE FUNCTION {self}._fernet_rotate(value bytea, keys bytea[], is_document boolean) RETURNS bytea
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            token record;
            refusal text := CASE WHEN NOT is_document THEN 'not a token' END;
            pieces bytea[] := '{}';
            done integer := 0;
            old bytea;
            room integer;
        BEGIN
            FOR token IN SELECT * FROM {self}._fernet_tokens(value, keys) LOOP
                refusal := token.refusal;
                IF token.key_index > 1 THEN
                    -- Padding that the old one does not have in its place is behind it.
                    old := substring(value, token.at + 1, token.size);
                    room := length(regexp_replace({self}._fernet_characters(old), '[^A-Za-z0-9+/_=-]', '', 'g'));
                    pieces := array_append(pieces, substring(value, done + 1, token.at - done));
                    pieces := array_append(pieces, decode(left({self}._fernet_seal(
                        substring(token.record, 2, 8), token.padded, keys[1]), room), 'escape'));
                    done := token.at + token.size;
                END IF;
            END LOOP;
            IF refusal IS NOT NULL THEN
                PERFORM {self}._fernet_refuse(refusal);
            ELSIF done > 0 THEN
                pieces := array_append(pieces, substring(value, done + 1));
                RETURN (SELECT string_agg(p.piece, '' ORDER BY p.n) FROM unnest(pieces) WITH ORDINALITY AS p (piece, n));
            END IF;
            RETURN NULL;
        END $$;

        -- The highest place of the keys that open the tokens in a value. NULL, if there is none, or one that none opens.
        CREATE OR REPLACE FUNCTION {self}._fernet_highest_key(value bytea, keys bytea[]) RETURNS integer
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT CASE WHEN bool_and(t.refusal IS NULL) THEN max(t.key_index) END
            FROM {self}._fernet_tokens(value, keys) AS t
        $$;
    $source$;

    --
    -- The functions that take a token, for text and for bytea
    --

    of_tokens constant text := $source$
        CREATE OR REPLACE FUNCTION {self}.fernet_decrypt(token {type}) RETURNS text
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            {variables}
        BEGIN
            {open_or_refuse}
            RETURN {self}._fernet_text(@.substring(padded, 1, len));
        END $$;
        COMMENT ON FUNCTION {self}.fernet_decrypt({type}) IS
            'decrypt a Fernet token to text, with whichever key opens it';

        CREATE OR REPLACE FUNCTION {self}.fernet_decrypt(token {type}, ttl interval, at timestamptz DEFAULT pg_catalog.statement_timestamp()) RETURNS text
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
        AS $$
        DECLARE
            {variables}
        BEGIN
            {open_or_refuse}
            PERFORM {self}._fernet_check_age(record, ttl, at);
            RETURN {self}._fernet_text(@.substring(padded, 1, len));
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
            record := {self}._fernet_rotate({bytes}, keys, false);
            RETURN CASE WHEN record IS NULL THEN token ELSE {value} END;
        END $$;
        COMMENT ON FUNCTION {self}.fernet_rotate({type}) IS
            're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';

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
            RETURN {self}._fernet_highest_key({bytes}, keys);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_key_index({type}) IS
            'place in the key list, counted from 1, of the key that opens the tokens in a value, the highest if there are several; NULL where there is none, or one that no key opens';

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

    of_documents constant text := $source$
        CREATE OR REPLACE FUNCTION {self}.fernet_rotate(document {type}) RETURNS {type}
            LANGUAGE plpgsql VOLATILE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            keys bytea[] := {self}._fernet_keys();
            rotated bytea;
        BEGIN
            -- As a whole it is no token, so it need not be looked at.
            IF strpos(document::text COLLATE "C", 'gAAA') > 0 THEN
                rotated := {self}._fernet_rotate(convert_to(document::text, getdatabaseencoding()), keys, true);
            END IF;
            RETURN coalesce(convert_from(rotated, getdatabaseencoding())::{type}, document);
        END $$;
        COMMENT ON FUNCTION {self}.fernet_rotate({type}) IS
            're-encrypt the Fernet tokens in a document, of which there may be none, under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';

        CREATE OR REPLACE FUNCTION {self}.fernet_key_index(document {type}) RETURNS integer
            LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE
            SET search_path = pg_catalog, pg_temp
        AS $$
        DECLARE
            keys bytea[] := {self}._fernet_keys();
        BEGIN
            IF strpos(document::text COLLATE "C", 'gAAA') > 0 THEN
                RETURN {self}._fernet_highest_key(convert_to(document::text, getdatabaseencoding()), keys);
            END IF;
            RETURN NULL;
        END $$;
        COMMENT ON FUNCTION {self}.fernet_key_index({type}) IS
            'place in the key list, counted from 1, of the key that opens the tokens in a document, the highest if there are several; NULL where there is none, or one that no key opens';
    $source$;
BEGIN
    -- Nothing is looked up in the caller's path from here on.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

    IF self IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '3F000', MESSAGE = 'no schema has been selected to create pg_fernet_sql in',
            HINT = 'Set search_path to a schema of its own: CREATE SCHEMA fernet; SET search_path = fernet.';
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

    SELECT coalesce(array_agg(oid), '{}') INTO existing
    FROM pg_proc WHERE pronamespace = quote_ident(self)::regnamespace AND proname ~ '^_?fernet_';

    source := basis;
    -- What `token` is: as text, as its characters, as bytes; and a value from a token `encoded`, and from bytes `record`.
    FOREACH for_type SLICE 1 IN ARRAY ARRAY[
        ['text', 'token', 'encoded', '@.convert_to(token, @.getdatabaseencoding())',
         'encoded', '@.convert_from(record, @.getdatabaseencoding())'],
        ['bytea', '@.encode(token, ''escape'')', '{self}._fernet_characters(token)', 'token',
         '@.decode(encoded, ''escape'')', 'record']]
    LOOP
        source := source || replace(replace(replace(replace(replace(replace(replace(replace(
            of_tokens, '{open_or_refuse}', open_or_refuse), '{open_whole}', open_whole),
            '{type}', for_type[1]), '{encoded}', for_type[2]), '{characters}', for_type[3]),
            '{bytes}', for_type[4]), '{decoded}', for_type[5]), '{value}', for_type[6]);
    END LOOP;
    source := source || replace(of_documents, '{type}', 'json') || replace(of_documents, '{type}', 'jsonb');
    source := replace(replace(replace(replace(source, '{variables}', variables), '{decode}', decode), '{open}', open), '{seal}', seal);
    source := replace(replace(source, '{self}', quote_ident(self)), '{pgcrypto}', quote_ident(pgcrypto));
    source := replace(regexp_replace(source, '@([-+*/<>=~!%|]+)@', 'OPERATOR(pg_catalog.\1)', 'g'), '@.', 'pg_catalog.');
    EXECUTE source;

    -- What reads the keys is for those to whom somebody grants it, function by function; whatever ALTER DEFAULT
    -- PRIVILEGES has made of that is undone. What begins with _ gets its keys from the caller. An update leaves the
    -- privileges as they are.
    FOR routine IN
        SELECT p.oid::regprocedure AS signature,
               p.proname ~ '^_' OR p.proname IN ('fernet_generate_key', 'fernet_is_token', 'fernet_version') AS is_for_all,
               string_agg(DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, ', ') AS grantees
        FROM pg_proc AS p
        LEFT JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) ON grantee <> p.proowner
        WHERE p.pronamespace = quote_ident(self)::regnamespace AND p.proname ~ '^_?fernet_' AND p.oid <> ALL (existing)
        GROUP BY p.oid
    LOOP
        IF routine.grantees IS NOT NULL THEN
            EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', routine.signature, routine.grantees);
        END IF;
        IF routine.is_for_all THEN
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO PUBLIC', routine.signature);
        END IF;
    END LOOP;

    -- Whoever may create a function beside ours may create one that fits a call better than ours.
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

    PERFORM set_config('search_path', caller_path, true);
END $install$;
