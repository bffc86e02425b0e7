-- From plaintexts to tokens, and back, in batches.

-- The notices have times in them.
SET client_min_messages = warning;
\set new 'cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4='
\set old 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
\set lost 'IIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIA='
\set new_old :new,:old

LOAD 'pg_fernet';
CREATE SCHEMA conversion;
SET search_path = conversion, public;
SET fernet.keys = :'new_old';

-- Resets a table's values to n plaintexts, an empty value and a NULL.
CREATE TABLE secrets (id integer, value text);
CREATE PROCEDURE fill(n integer) LANGUAGE sql AS $$
    TRUNCATE secrets;
    INSERT INTO secrets SELECT i, 'secret ' || i FROM generate_series(1, n) AS i;
    INSERT INTO secrets VALUES (0, ''), (-1, NULL)
$$;
CALL fill(1000);
CREATE TABLE before AS TABLE secrets;

-- There and back. A second call finds nothing to do.
CALL fernet_encrypt_column('secrets', 'value');
SELECT status, tokens FROM fernet_census('secrets', 'value') WHERE tokens > 0;
SELECT count(*) FILTER (WHERE fernet_decrypt(s.value) = b.value) AS plaintexts, count(DISTINCT s.value) AS different,
       bool_and(fernet_timestamp(s.value) BETWEEN now() - interval '1 hour' AND clock_timestamp()) AS made_now
FROM secrets AS s JOIN before AS b USING (id);
CREATE TABLE after AS SELECT xmin AS writer, * FROM secrets;
CALL fernet_encrypt_column('secrets', 'value');
SELECT count(*) AS untouched FROM secrets AS s JOIN after AS a ON s.xmin = a.writer AND s.id = a.id AND s.value IS NOT DISTINCT FROM a.value;
CALL fernet_decrypt_column('secrets', 'value');
(TABLE secrets EXCEPT TABLE before) UNION ALL (TABLE before EXCEPT TABLE secrets);
CALL fernet_decrypt_column('secrets', 'value');

-- Batches of any size: a transaction each, with at least one row.
CALL fill(98);
CALL fernet_encrypt_column('secrets', 'value', 7);
SELECT rows, count(*) AS transactions FROM (SELECT count(*) AS rows FROM secrets WHERE value IS NOT NULL GROUP BY xmin::text) AS t GROUP BY rows ORDER BY rows;
CALL fernet_decrypt_column('secrets', 'value', batch_size => 1);
SELECT count(DISTINCT xmin::text) AS transactions FROM secrets WHERE value IS NOT NULL;
CALL fernet_encrypt_column('secrets', 'value', 0);
\echo :LAST_ERROR_SQLSTATE
CALL fernet_decrypt_column('secrets', 'value', NULL);
\echo :LAST_ERROR_SQLSTATE
CALL fernet_encrypt_column(NULL, 'value');
CALL fernet_decrypt_column('secrets', NULL);

-- A value with a token is not encrypted: one under the first key, an older one, one that is not in the list,
-- or with text beside it. Not decrypted are tokens that no key opens, and tokens with text beside them.
SET fernet.keys = :'lost';
TRUNCATE secrets;
INSERT INTO secrets SELECT 1, fernet_encrypt('lost');
SET fernet.keys = :'old';
INSERT INTO secrets SELECT 2, fernet_encrypt('old');
INSERT INTO secrets SELECT 3, 'fernet:' || fernet_encrypt('prefix');
INSERT INTO secrets SELECT 4, fernet_encrypt('one') || ',' || fernet_encrypt('two');
SET fernet.keys = :'new_old';
INSERT INTO secrets SELECT 5, fernet_encrypt('new');
INSERT INTO secrets SELECT 6, E'\n ' || fernet_encrypt('blanks') || E'\n';
INSERT INTO secrets VALUES (7, 'plain'), (8, NULL);
TRUNCATE before;
INSERT INTO before TABLE secrets;
CALL fernet_encrypt_column('secrets', 'value');
SELECT id, fernet_decrypt(s.value) FROM secrets AS s JOIN before AS b USING (id) WHERE s.value <> b.value;
CALL fernet_decrypt_column('secrets', 'value');
SELECT id, CASE WHEN s.value = b.value THEN '(as it was)' ELSE s.value END AS value FROM secrets AS s LEFT JOIN before AS b USING (id) ORDER BY id;
CALL fernet_decrypt_column('secrets', 'value');
-- A value that only has the form of a token, but has one at its end, is a token among other text.
TRUNCATE secrets;
INSERT INTO secrets VALUES (1, 'gPASSWORD' || repeat('x', 55) || fernet_encrypt('in text'));
CALL fernet_encrypt_column('secrets', 'value');
-- A plaintext may be a token that a key opens: that is decrypted as well.
TRUNCATE secrets;
INSERT INTO secrets VALUES (1, fernet_encrypt(fernet_encrypt('twice')));
CALL fernet_decrypt_column('secrets', 'value');
SELECT value FROM secrets;

-- Text of all types, bytes, and domains over these: converted as by the functions on single values.
CREATE DOMAIN code AS varchar(120);
CREATE DOMAIN short_code AS code;
CREATE TABLE types (a text, b varchar, c varchar(100), d char(120), e bytea, f code, g short_code, h integer,
                    i text GENERATED ALWAYS AS ('x' || h) STORED, j json, k jsonb, l text[], m varchar(99), n char(99), o xml);
INSERT INTO types SELECT v, v, v, v, '\x00ff', v, v, 1 FROM unnest('{secret,  two blanks  ,""}'::text[]) AS v;
CREATE TABLE types_before AS TABLE types;
SELECT format('CALL fernet_encrypt_column(''types'', %L)', c) FROM unnest('{a,b,c,d,e,f,g}'::text[]) AS c \gexec
SELECT fernet_decrypt(a) AS a, fernet_decrypt(b) AS b, fernet_decrypt(c) AS c, fernet_decrypt(d) AS d, fernet_decrypt_bytea(e) AS e,
       fernet_decrypt(f) AS f, fernet_decrypt(g) AS g FROM types ORDER BY 1;
SELECT format('CALL fernet_decrypt_column(''types'', %L)', c) FROM unnest('{a,b,c,d,e,f,g}'::text[]) AS c \gexec
SELECT count(*) AS equal FROM types AS t JOIN types_before AS b
ON (t.a, t.b, t.c, t.d, t.e, t.f, t.g) IS NOT DISTINCT FROM (b.a, b.b, b.c, b.d, b.e, b.f, b.g);
-- Values of other types have secret parts and other parts. No token fits into a short column.
CALL fernet_encrypt_column('types', 'h');
CALL fernet_encrypt_column('types', 'i');
CALL fernet_encrypt_column('types', 'j');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_decrypt_column('types', 'k');
CALL fernet_encrypt_column('types', 'l');
CALL fernet_encrypt_column('types', 'm');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_encrypt_column('types', 'n');
CALL fernet_decrypt_column('types', 'n');
CALL fernet_decrypt_column('types', 'o');
CALL fernet_encrypt_column('types', 'z');
-- A value that is too long for its column is named. What was done before it stays.
TRUNCATE types;
INSERT INTO types (c) SELECT 'short' FROM generate_series(1, 5);
INSERT INTO types (c) VALUES (repeat('x', 16));
CALL fernet_encrypt_column('types', 'c', 2);
\echo :LAST_ERROR_SQLSTATE
SELECT status, tokens FROM fernet_census('types', 'c') WHERE tokens > 0;
-- A value longer than what is stored in the row itself.
TRUNCATE secrets;
INSERT INTO secrets SELECT 1, repeat('long', 100000);
CALL fernet_encrypt_column('secrets', 'value');
SELECT md5(fernet_decrypt(value)) = md5(repeat('long', 100000)) AS same FROM secrets;
CALL fernet_decrypt_column('secrets', 'value');
SELECT md5(value) = md5(repeat('long', 100000)) AS same FROM secrets;

-- Bytes that are not text are not decrypted to text. The row is named.
TRUNCATE secrets;
INSERT INTO secrets SELECT i, fernet_encrypt('x'::text) FROM generate_series(1, 3) AS i;
INSERT INTO secrets SELECT 4, fernet_encrypt('\xff'::bytea);
CALL fernet_decrypt_column('secrets', 'value', 2);
\echo :LAST_ERROR_SQLSTATE
SELECT id, value FROM secrets WHERE fernet_key_index(value) IS NULL;
ALTER TABLE secrets ALTER value TYPE bytea USING value::bytea;
CALL fernet_decrypt_column('secrets', 'value');
SELECT * FROM secrets ORDER BY id;
DROP TABLE secrets;
CREATE TABLE secrets (id integer, value text);

-- Constraints and indexes that may refuse a token, or a plaintext: each is found before it refuses the
-- first value.
CREATE TABLE bound (id integer PRIMARY KEY, value text, other text);
INSERT INTO bound VALUES (1, 'a', 'a'), (2, 'b', 'b');
ALTER TABLE bound ADD CONSTRAINT checked CHECK (value <> '');
CALL fernet_encrypt_column('bound', 'value');
\echo :LAST_ERROR_SQLSTATE
-- There is nothing to decrypt.
CALL fernet_decrypt_column('bound', 'value');
ALTER TABLE bound DROP CONSTRAINT checked;
ALTER TABLE bound ADD CONSTRAINT of_the_row CHECK (length(bound::text) < 50);
CALL fernet_encrypt_column('bound', 'value');
ALTER TABLE bound DROP CONSTRAINT of_the_row;
ALTER TABLE bound ADD CONSTRAINT unequal UNIQUE (value, other);
CALL fernet_encrypt_column('bound', 'value');
ALTER TABLE bound DROP CONSTRAINT unequal;
ALTER TABLE bound ADD length integer GENERATED ALWAYS AS (length(value)) STORED;
CALL fernet_encrypt_column('bound', 'value');
ALTER TABLE bound DROP COLUMN length;
CREATE UNIQUE INDEX "In dex" ON bound (id, lower(value));
CALL fernet_encrypt_column('bound', 'value');
DROP INDEX "In dex";
-- Its rows would no longer be in it.
CREATE UNIQUE INDEX predicate ON bound (other) WHERE value = 'a';
CALL fernet_encrypt_column('bound', 'value');
DROP INDEX predicate;
CREATE INDEX computed ON bound (lower(value));
CALL fernet_encrypt_column('bound', 'value');
DROP INDEX computed;
CREATE INDEX computed ON bound (id) WHERE bound = bound;
CALL fernet_encrypt_column('bound', 'value');
DROP INDEX computed;
ALTER TABLE bound ADD CONSTRAINT excluded EXCLUDE (value WITH =);
CALL fernet_encrypt_column('bound', 'value');
ALTER TABLE bound DROP CONSTRAINT excluded;
ALTER TABLE bound ADD CONSTRAINT excluded EXCLUDE (other WITH =) WHERE (value <> '');
CALL fernet_encrypt_column('bound', 'value');
ALTER TABLE bound DROP CONSTRAINT excluded;
-- ANALYZE would fail.
CREATE STATISTICS "Of numbers" ON (value::integer) FROM bound;
CALL fernet_encrypt_column('bound', 'value');
DROP STATISTICS "Of numbers";
-- Other rows would be shown, or sent to a subscriber.
CREATE POLICY shown ON bound USING (value = current_user);
CALL fernet_encrypt_column('bound', 'value');
DROP POLICY shown ON bound;
CREATE POLICY shown ON bound USING (true) WITH CHECK (length(bound::text) < 50);
CALL fernet_encrypt_column('bound', 'value');
DROP POLICY shown ON bound;
CREATE TABLE beside_it (id integer, number integer);
CREATE POLICY shown ON beside_it USING (EXISTS (SELECT FROM bound WHERE bound.id = number AND value > 'a'));
CALL fernet_encrypt_column('bound', 'value');
DROP POLICY shown ON beside_it;
SET client_min_messages = error;
CREATE PUBLICATION regress_fernet_filtered FOR TABLE bound WHERE (value <> 'a') WITH (publish = 'insert');
SET client_min_messages = warning;
CALL fernet_encrypt_column('bound', 'value');
DROP PUBLICATION regress_fernet_filtered;
CREATE TABLE parent (value text PRIMARY KEY);
INSERT INTO parent VALUES ('a'), ('b');
ALTER TABLE bound ADD CONSTRAINT referring FOREIGN KEY (value) REFERENCES parent;
CALL fernet_encrypt_column('bound', 'value');
-- The index that it refers to.
CALL fernet_encrypt_column('parent', 'value');
ALTER TABLE parent DROP CONSTRAINT parent_pkey CASCADE;
CREATE DOMAIN lower_case AS text CONSTRAINT lower_case_check CHECK (VALUE = lower(VALUE));
CREATE DOMAIN lower_case_code AS lower_case;
ALTER TABLE bound ADD lower lower_case_code DEFAULT 'x';
CALL fernet_encrypt_column('bound', 'lower');
-- A constraint that holds only from now on may be meant for the tokens, and is left to the server. Those on
-- other columns are not in the way, nor are those that only ask whether there is a value. A WARNING names an
-- index that begins with the column.
ALTER TABLE bound ADD CONSTRAINT encrypted CHECK (fernet_is_token(value)) NOT VALID;
ALTER TABLE bound ADD CONSTRAINT about_another CHECK (other <> '');
ALTER TABLE bound ADD length integer GENERATED ALWAYS AS (length(other)) STORED;
ALTER TABLE bound ADD CONSTRAINT there CHECK (value IS NOT NULL OR other <> '');
CREATE DOMAIN there AS text CHECK (VALUE IS NOT NULL);
ALTER TABLE bound ADD of_domain there DEFAULT 'x';
CREATE INDEX partial ON bound (id) WHERE value IS NOT NULL;
CREATE STATISTICS of_columns ON value, other FROM bound;
CREATE POLICY shown ON bound USING (id IN (SELECT number FROM beside_it));
SET client_min_messages = error;
CREATE PUBLICATION regress_fernet_filtered FOR TABLE bound (id, value) WHERE (id > 0 AND value IS NOT NULL) WITH (publish = 'insert');
SET client_min_messages = warning;
CREATE UNIQUE INDEX beside ON bound (id) INCLUDE (value);
CREATE INDEX behind ON bound (id, value);
ALTER TABLE bound ADD CONSTRAINT beside_too UNIQUE (other) INCLUDE (value);
CREATE INDEX looked_up ON bound (value);
CREATE INDEX computed ON bound (lower(other)) WHERE id > 0;
CALL fernet_encrypt_column('bound', 'value');
CALL fernet_encrypt_column('bound', 'of_domain');
SELECT id, fernet_decrypt(value), other, fernet_decrypt(of_domain) FROM bound ORDER BY id;
-- Once the constraint holds for all rows, the proof can be repeated.
ALTER TABLE bound VALIDATE CONSTRAINT encrypted;
DROP INDEX looked_up;
DROP PUBLICATION regress_fernet_filtered;
ALTER TABLE bound DROP COLUMN of_domain;
CALL fernet_encrypt_column('bound', 'value');
CALL fernet_decrypt_column('bound', 'value');
ALTER TABLE bound DROP CONSTRAINT encrypted;
ALTER TABLE bound ADD CONSTRAINT unequal UNIQUE (value, other);
CALL fernet_decrypt_column('bound', 'value');
ALTER TABLE bound DROP CONSTRAINT unequal;
-- Nor does the message of another constraint show the plaintext.
ALTER TABLE bound ADD is_encrypted boolean GENERATED ALWAYS AS (length(value) > 90) STORED CHECK (is_encrypted);
CALL fernet_decrypt_column('bound', 'value');
ALTER TABLE bound DROP COLUMN is_encrypted;
CREATE INDEX computed_number ON bound (id) WHERE length(value) > 90 OR value::integer > 0;
CALL fernet_decrypt_column('bound', 'value');
DROP INDEX computed_number;
CALL fernet_decrypt_column('bound', 'value');
TABLE bound ORDER BY id;

-- A partitioned table: each partition, whatever the order of its columns. Its constraints and indexes count.
CREATE TABLE parts (id integer, value text) PARTITION BY LIST (id);
CREATE TABLE part_1 (value text, gone text, id integer);
ALTER TABLE part_1 DROP COLUMN gone;
ALTER TABLE parts ATTACH PARTITION part_1 FOR VALUES IN (1);
CREATE TABLE part_2 PARTITION OF parts FOR VALUES IN (2, 3);
CREATE INDEX ON parts (value);
INSERT INTO parts SELECT i, 'x' FROM unnest('{1,2,2,3,3,3}'::integer[]) AS i;
CALL fernet_encrypt_column('part_2', 'value');
CALL fernet_encrypt_column('parts', 'value');
SELECT tableoid::regclass AS partition, count(fernet_decrypt(value)) FROM parts GROUP BY 1 ORDER BY 1;
CALL fernet_decrypt_column('parts', 'value');
ALTER TABLE part_2 ADD CONSTRAINT of_one CHECK (value = 'x');
CALL fernet_encrypt_column('parts', 'value');
SELECT DISTINCT value FROM parts;
-- Reading a partition through its table would also show other rows, whatever the column's number there.
ALTER TABLE part_2 DROP CONSTRAINT of_one;
CREATE POLICY shown ON parts USING (value <> '');
CALL fernet_encrypt_column('part_1', 'value');
DROP POLICY shown ON parts;
CREATE POLICY shown ON parts USING (id > 0);
CALL fernet_encrypt_column('part_1', 'value');
CREATE TABLE hashed (value text) PARTITION BY HASH (value);
CALL fernet_encrypt_column('hashed', 'value');
\echo :LAST_ERROR_SQLSTATE

-- What else cannot be encrypted or decrypted.
CREATE VIEW view AS TABLE secrets;
CREATE MATERIALIZED VIEW matview AS TABLE secrets;
CALL fernet_encrypt_column('view', 'value');
CALL fernet_decrypt_column('matview', 'value');
CALL fernet_encrypt_column('pg_description', 'description');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_encrypt_column('information_schema.sql_features', 'comments');
SET default_transaction_read_only = on;
CALL fernet_encrypt_column('secrets', 'value');
CALL fernet_decrypt_column('secrets', 'value');
SET default_transaction_read_only = off;
BEGIN;
CALL fernet_encrypt_column('secrets', 'value');
ROLLBACK;
BEGIN;
CALL fernet_decrypt_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
RESET fernet.keys;
CALL fernet_encrypt_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
-- With one key there is something to do.
SET fernet.keys = :'new';
CALL fill(1);
CALL fernet_encrypt_column('secrets', 'value');
SET fernet.keys = :'new_old';

-- A WARNING tells of a trigger that keeps plaintexts, or encrypts what is decrypted.
CALL fill(3);
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.value := CASE TG_ARGV[0] WHEN 'encrypt' THEN public.fernet_encrypt(NEW.value) ELSE OLD.value END;
    RETURN NEW;
END $$;
CREATE TRIGGER meddle BEFORE UPDATE ON secrets FOR EACH ROW WHEN (OLD.id = 2) EXECUTE FUNCTION meddle('keep');
CALL fernet_encrypt_column('secrets', 'value');
SELECT id FROM secrets WHERE NOT fernet_is_token(value);
DROP TRIGGER meddle ON secrets;
CALL fernet_encrypt_column('secrets', 'value');
CREATE TRIGGER meddle BEFORE UPDATE ON secrets FOR EACH ROW WHEN (OLD.id = 3) EXECUTE FUNCTION meddle('encrypt');
CALL fernet_decrypt_column('secrets', 'value');
SELECT id, fernet_decrypt(value) FROM secrets WHERE fernet_is_token(value);
DROP TRIGGER meddle ON secrets;

-- Privileges: EXECUTE on each procedure, SELECT on the table, UPDATE on the column.
CALL fill(3);
CREATE ROLE regress_fernet_converter ROLE CURRENT_USER;
GRANT USAGE ON SCHEMA conversion, public TO regress_fernet_converter;
GRANT SELECT ON secrets TO regress_fernet_converter;
GRANT EXECUTE ON PROCEDURE fernet_encrypt_column TO regress_fernet_converter;
SET ROLE regress_fernet_converter;
CALL fernet_encrypt_column('secrets', 'value');
RESET ROLE;
GRANT UPDATE (value) ON secrets TO regress_fernet_converter;
SET ROLE regress_fernet_converter;
CALL fernet_encrypt_column('secrets', 'value');
CALL fernet_decrypt_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column('secrets', 'value');
SELECT fernet_decrypt(value) FROM secrets;
RESET ROLE;
REVOKE EXECUTE ON PROCEDURE fernet_encrypt_column FROM regress_fernet_converter;
GRANT EXECUTE ON PROCEDURE fernet_decrypt_column TO regress_fernet_converter;
SET ROLE regress_fernet_converter;
CALL fernet_encrypt_column('secrets', 'value');
CALL fernet_decrypt_column('secrets', 'value');
RESET ROLE;
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
SET ROLE regress_fernet_converter;
CALL fernet_decrypt_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

-- A shard, for a call on another node of Citus: only with the same keys, in the same order.
CREATE VIEW fingerprints AS SELECT string_agg(fingerprint, ',' ORDER BY key_index) AS caller FROM fernet_keys();
SELECT caller FROM fingerprints \gset
CALL fernet_encrypt_shard('secrets', 'value', 10, :'caller');
SELECT count(fernet_decrypt(value)) FROM secrets;
CALL fernet_decrypt_shard('secrets', 'value', 10, 'others');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_decrypt_shard('secrets', 'value', 10, NULL);
CALL fernet_decrypt_shard('secrets', 'value', 10, :'caller');
TABLE secrets ORDER BY id;

DROP SCHEMA conversion CASCADE;
DROP OWNED BY regress_fernet_converter;
DROP ROLE regress_fernet_converter;
