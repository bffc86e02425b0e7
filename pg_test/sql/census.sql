-- fernet_census and fernet_find_columns: what columns hold.

\set new 'cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4='
\set old 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
\set lost 'IIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIA='
\set new_old :new,:old
\set old_lost_new :old,:lost,:new

CREATE SCHEMA census;
SET search_path = census, public;
SET fernet.keys = :'lost';
CREATE TABLE secrets (id serial, value text);
INSERT INTO secrets (value) SELECT fernet_encrypt('lost') FROM generate_series(1, 2);
SET fernet.keys = :'old';
INSERT INTO secrets (value) SELECT fernet_encrypt('old') FROM generate_series(1, 3);
SET fernet.keys = :'new';
INSERT INTO secrets (value) SELECT fernet_encrypt('new') FROM generate_series(1, 4);
INSERT INTO secrets (value) VALUES ('plain'), (''), (NULL), (NULL), (NULL);

-- A row for each status and each key, in this order, whether there are such values or not.
SET fernet.keys = :'new_old';
SELECT * FROM fernet_census('secrets', 'value');
SET fernet.keys = :'old_lost_new';
SELECT * FROM fernet_census('secrets', 'value');
SELECT status, tokens FROM fernet_census('secrets', 'value') WHERE fingerprint = (SELECT fingerprint FROM fernet_keys() WHERE key_index = 1);
SET fernet.keys = :'new_old';
CREATE TABLE nothing (value text);
SELECT * FROM fernet_census('nothing', 'value');

-- The HMAC is right, but the padding is not: no key opens it.
CREATE TABLE padding (value text);
INSERT INTO padding VALUES ('gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0OD_Q50EsFpVbS9Zxdx2xWxW6ucAVWsQpWylDKpS9fIfNQBI8EGeWJtRviu9TR4KdS2Q==');
SELECT fernet_key_index(value) FROM padding;
SELECT status, key_index, tokens FROM fernet_census('padding', 'value') WHERE tokens > 0;

-- Every type that can hold a token, through domains.
CREATE DOMAIN token AS varchar(200);
CREATE DOMAIN short_token AS token CHECK (length(VALUE) < 200);
CREATE TABLE types (a text, b varchar, c varchar(140), d char(200), e bytea, f token, g short_token, h integer, i json, j text[], k name);
INSERT INTO types SELECT t, t, t, t, t::bytea, t, t, 1, '{}', '{}', 'x' FROM fernet_encrypt('x') AS t;
SELECT c AS "column", string_agg(status || ': ' || tokens, ', ') AS holds
FROM unnest('{a,b,c,d,e,f,g}'::name[]) AS c, fernet_census('types', c) WHERE tokens > 0 GROUP BY c ORDER BY c;

-- Partitions, children, views, names that need quotes.
CREATE TABLE parts (id integer, value text) PARTITION BY LIST (id);
CREATE TABLE part_1 (value text, id integer);
ALTER TABLE parts ATTACH PARTITION part_1 FOR VALUES IN (1);
CREATE TABLE part_2 PARTITION OF parts FOR VALUES IN (2);
INSERT INTO parts SELECT i, fernet_encrypt('x') FROM unnest('{1,2,2}'::integer[]) AS i;
SELECT status, tokens FROM fernet_census('parts', 'value') WHERE tokens > 0;
CREATE TABLE parent (value text);
CREATE TABLE child (more text) INHERITS (parent);
INSERT INTO child SELECT fernet_encrypt('x'), 'more';
SELECT status, tokens FROM fernet_census('parent', 'value') WHERE tokens > 0;
CREATE VIEW view AS SELECT value AS seen FROM secrets WHERE id < 4;
SELECT status, tokens FROM fernet_census('view', 'seen') WHERE tokens > 0;
CREATE MATERIALIZED VIEW matview AS TABLE view;
SELECT status, tokens FROM fernet_census('matview', 'seen') WHERE tokens > 0;
CREATE SCHEMA "Sch ema.";
CREATE TABLE "Sch ema."."T""able" ("select" integer, "Va""lue;" text);
INSERT INTO "Sch ema."."T""able" SELECT 1, fernet_encrypt('x');
SELECT status, tokens FROM fernet_census('"Sch ema."."T""able"', 'Va"lue;') WHERE tokens > 0;
CREATE TEMP TABLE temporary AS SELECT fernet_encrypt('x') AS value;
SELECT status, tokens FROM fernet_census('temporary', 'value') WHERE tokens > 0;

-- It sees what the calling query sees, including its own transaction's changes.
BEGIN;
DELETE FROM secrets WHERE value IS NULL;
SELECT tokens FROM fernet_census('secrets', 'value') WHERE status = 'null';
WITH gone AS (DELETE FROM secrets WHERE value IS NOT NULL RETURNING 1)
SELECT status, tokens FROM fernet_census('secrets', 'value'), (SELECT count(*) FROM gone) AS g WHERE tokens > 0;
ROLLBACK;

-- NULL in, nothing out.
SELECT * FROM fernet_census(NULL, 'value');
SELECT * FROM fernet_census('secrets', NULL);

-- What cannot be counted.
SELECT * FROM fernet_census('types', 'h');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM fernet_census('types', 'i');
SELECT * FROM fernet_census('types', 'j');
SELECT * FROM fernet_census('types', 'k');
SELECT * FROM fernet_census('types', 'z');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM fernet_census('types', 'ctid');
SELECT * FROM fernet_census('secrets_id_seq', 'value');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM fernet_census(1, 'value');
\echo :LAST_ERROR_SQLSTATE
RESET fernet.keys;
SELECT * FROM fernet_census('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE

-- Columns that hold tokens: no key is needed. A partitioned table represents its partitions, and any
-- other table counts on its own.
SELECT * FROM fernet_find_columns();
SELECT relation, sampled, tokens FROM fernet_find_columns(2) WHERE column_name = 'value';
SELECT * FROM fernet_find_columns(0);
\echo :LAST_ERROR_SQLSTATE
-- The sample of a large table is from blocks all over it.
CREATE TABLE large AS SELECT i AS id, repeat('plain', 100) AS value FROM generate_series(1, 20000) AS i;
SET fernet.keys = :'new';
UPDATE large SET value = fernet_encrypt('x') WHERE id > 12000;
VACUUM ANALYZE large;
SELECT column_name, sampled, tokens BETWEEN 1 AND 999 AS some FROM fernet_find_columns() WHERE relation = 'large'::regclass;
-- Beside a foreign partition, which is not read, the others count on their own.
BEGIN;
CREATE FOREIGN DATA WRAPPER regress_fernet_nothing;
CREATE SERVER regress_fernet_nowhere FOREIGN DATA WRAPPER regress_fernet_nothing;
CREATE FOREIGN TABLE part_3 PARTITION OF parts FOR VALUES IN (3) SERVER regress_fernet_nowhere;
SELECT * FROM fernet_find_columns() WHERE relation::text LIKE 'part%';
ROLLBACK;
SELECT * FROM fernet_find_columns() WHERE relation::text LIKE 'part%';

-- Privileges: EXECUTE, and SELECT on the column.
CREATE ROLE regress_fernet_reader ROLE CURRENT_USER;
SET fernet.keys = :'new_old';
GRANT USAGE ON SCHEMA census, public TO regress_fernet_reader;
SET ROLE regress_fernet_reader;
SELECT * FROM fernet_census('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM fernet_find_columns();
RESET ROLE;
GRANT EXECUTE ON FUNCTION fernet_census, fernet_find_columns TO regress_fernet_reader;
SET ROLE regress_fernet_reader;
SELECT * FROM fernet_census('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM fernet_find_columns();
RESET ROLE;
GRANT SELECT (value) ON secrets TO regress_fernet_reader;
SET ROLE regress_fernet_reader;
SELECT status, tokens FROM fernet_census('secrets', 'value') WHERE tokens > 0;
SELECT * FROM fernet_find_columns();
RESET ROLE;

-- Row-level security hides no rows silently.
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON secrets USING (id < 3);
SET ROLE regress_fernet_reader;
SELECT * FROM fernet_census('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM fernet_find_columns();
RESET ROLE;
SELECT status, tokens FROM fernet_census('secrets', 'value') WHERE tokens > 0;

-- Nothing is looked up in the caller's search_path.
CREATE SCHEMA trap;
CREATE FUNCTION trap.equal(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE OPERATOR trap.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = trap.equal);
CREATE FUNCTION trap.quote_ident(name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE TABLE trap.pg_class (oid oid);
SET search_path = trap, pg_catalog, public, census;
SELECT status, tokens FROM fernet_census('padding', 'value') WHERE tokens > 0;
SELECT count(*) FROM fernet_find_columns();

SET client_min_messages = warning;
RESET search_path;
DROP SCHEMA census, trap, "Sch ema." CASCADE;
DROP OWNED BY regress_fernet_reader;
DROP ROLE regress_fernet_reader;
