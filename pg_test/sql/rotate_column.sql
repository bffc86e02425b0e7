-- fernet_rotate_column: a column rotated in batches.

-- The notices have times in them.
SET client_min_messages = warning;
\set new 'cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4='
\set old 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='
\set lost 'IIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIA='
\set new_old :new,:old
\set old_new :old,:new
\set lost_old :lost,:old

CREATE SCHEMA rotation;
SET search_path = rotation, public;
SET fernet.keys = :'old';

-- Resets a table's values to n tokens under the current first key.
CREATE TABLE secrets (id integer, value text);
CREATE PROCEDURE fill(n integer) LANGUAGE sql AS $$
    TRUNCATE secrets;
    INSERT INTO secrets SELECT i, fernet_encrypt('secret ' || i) FROM generate_series(1, n) AS i
$$;
CALL fill(1000);
CREATE TABLE before AS TABLE secrets;

-- The plaintext and the timestamp stay; a second call finds nothing to do.
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('secrets', 'value');
SELECT * FROM fernet_census('secrets', 'value');
SELECT count(*), count(*) FILTER (WHERE fernet_decrypt(s.value) = 'secret ' || id) AS plaintexts,
       count(*) FILTER (WHERE fernet_timestamp(s.value) = fernet_timestamp(b.value)) AS timestamps,
       count(DISTINCT s.value) AS different, count(*) FILTER (WHERE s.value = b.value) AS unchanged
FROM secrets AS s JOIN before AS b USING (id);
CREATE TABLE after AS SELECT xmin AS writer, * FROM secrets;
CALL fernet_rotate_column('secrets', 'value');
SELECT count(*) FROM secrets AS s JOIN after AS a ON s.xmin = a.writer AND s.id = a.id AND s.value = a.value;
-- The old key can be removed.
SET fernet.keys = :'new';
SELECT count(fernet_decrypt(value)) FROM secrets;

-- Batches of any size: a transaction each, with at least one row.
SET fernet.keys = :'old';
CALL fill(100);
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('secrets', 'value', 7);
SELECT rows, count(*) AS transactions FROM (SELECT count(*) AS rows FROM secrets GROUP BY xmin::text) AS t GROUP BY rows ORDER BY rows;
CALL fernet_rotate_column('secrets', 'value', batch_size => 1);
SET fernet.keys = :'old_new';
CALL fernet_rotate_column('secrets', 'value', batch_size => 1);
SELECT count(DISTINCT xmin::text) AS transactions FROM secrets;
CALL fernet_rotate_column(relation => 'secrets', column_name => 'value', batch_size => 2147483647);
CALL fernet_rotate_column('secrets', 'value', 0);
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column('secrets', 'value', NULL);
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column('secrets', 'value', strict => NULL);
CALL fernet_rotate_column(NULL, 'value');
CALL fernet_rotate_column('secrets', NULL);

-- A token that no key opens is left unchanged, counted and named.
SET fernet.keys = :'lost';
CALL fill(1);
INSERT INTO secrets VALUES (2, 'plain'), (3, ''), (4, NULL), (5, 'plain'), (6, 'plain'), (7, 'plain'), (8, 'plain');
INSERT INTO secrets VALUES (9, 'gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0OD_Q50EsFpVbS9Zxdx2xWxW6ucAVWsQpWylDKpS9fIfNQBI8EGeWJtRviu9TR4KdS2Q==');
SET fernet.keys = :'old';
INSERT INTO secrets SELECT 10, fernet_encrypt('secret 10');
SET fernet.keys = :'new';
INSERT INTO secrets SELECT 11, fernet_encrypt('secret 11');
TRUNCATE before;
INSERT INTO before TABLE secrets;
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('secrets', 'value');
SELECT string_agg(s.id::text, ' ' ORDER BY s.id) AS unchanged
FROM secrets AS s JOIN before AS b ON s.id = b.id AND s.value IS NOT DISTINCT FROM b.value;
SELECT fernet_decrypt(value) FROM secrets WHERE id = 10;

-- Strict: it stops at the first. Batches before it stay.
CALL fernet_rotate_column('secrets', 'value', strict => true);
\echo :LAST_ERROR_SQLSTATE
DELETE FROM secrets WHERE id = 1;
CALL fernet_rotate_column('secrets', 'value', strict => true);
\echo :LAST_ERROR_SQLSTATE
SET fernet.keys = :'old';
CALL fill(10);
INSERT INTO secrets VALUES (11, 'plain');
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('secrets', 'value', 4, true);
SELECT status, tokens FROM fernet_census('secrets', 'value') WHERE tokens > 0;

-- Every type that can hold a token, through domains. A domain's constraint holds.
SET fernet.keys = :'old';
CREATE DOMAIN token AS varchar(200);
CREATE DOMAIN short_token AS token CHECK (length(VALUE) < 200);
CREATE TABLE types (a text, b varchar, c varchar(100), d char(200), e bytea, f token, g short_token, h integer,
                    i text GENERATED ALWAYS AS ('x' || a) STORED);
INSERT INTO types SELECT t, t, t, t, t::bytea, t, t, 1 FROM fernet_encrypt('x') AS t;
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('types', 'a');
CALL fernet_rotate_column('types', 'b');
CALL fernet_rotate_column('types', 'c');
CALL fernet_rotate_column('types', 'd');
CALL fernet_rotate_column('types', 'e');
CALL fernet_rotate_column('types', 'f');
CALL fernet_rotate_column('types', 'g');
SELECT c AS "column", string_agg(status || ': ' || tokens, ', ') AS holds
FROM unnest('{a,b,c,d,e,f,g}'::name[]) AS c, fernet_census('types', c) WHERE tokens > 0 GROUP BY c ORDER BY c;
SELECT i = 'x' || a AS computed_anew, fernet_decrypt(e) FROM types;
-- A value longer than what is stored in the row itself.
SET fernet.keys = :'old';
INSERT INTO secrets SELECT 100, fernet_encrypt(repeat('long', 100000));
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('secrets', 'value');
SELECT fernet_key_index(value), md5(fernet_decrypt(value)) = md5(repeat('long', 100000)) AS same FROM secrets WHERE id = 100;

-- A partitioned table: each partition, whatever the order of its columns.
SET fernet.keys = :'old';
CREATE TABLE parts (id integer, value text) PARTITION BY LIST (id);
CREATE TABLE part_1 (value text, gone text, id integer);
ALTER TABLE part_1 DROP COLUMN gone;
ALTER TABLE parts ATTACH PARTITION part_1 FOR VALUES IN (1);
CREATE TABLE part_2 PARTITION OF parts FOR VALUES IN (2, 3) PARTITION BY LIST (id);
CREATE TABLE part_3 PARTITION OF part_2 FOR VALUES IN (2);
CREATE TABLE part_4 PARTITION OF part_2 FOR VALUES IN (3);
INSERT INTO parts SELECT i, fernet_encrypt('x') FROM unnest('{1,2,2,3,3,3}'::integer[]) AS i;
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('part_2', 'value');
CALL fernet_rotate_column('parts', 'value');
SELECT status, tokens FROM fernet_census('parts', 'value') WHERE tokens > 0;
CREATE TABLE no_parts (id integer, value text) PARTITION BY LIST (id);
CALL fernet_rotate_column('no_parts', 'value');
-- Partitioned by the tokens themselves: each new one belongs to another partition. As one UPDATE it works.
SET fernet.keys = :'old';
CREATE TABLE hashed (value text) PARTITION BY HASH (value);
CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO hashed SELECT fernet_encrypt('x') FROM generate_series(1, 20);
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('hashed', 'value');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column('hashed_1', 'value');
CREATE TABLE by_length (value text) PARTITION BY RANGE (length(value));
CALL fernet_rotate_column('by_length', 'value');
UPDATE hashed SET value = fernet_rotate(value) WHERE fernet_key_index(value) > 1;
SELECT status, tokens FROM fernet_census('hashed', 'value') WHERE tokens > 0;

-- Children, each once.
SET fernet.keys = :'old';
CREATE TABLE parent (value text);
CREATE TABLE child_1 (more text) INHERITS (parent);
CREATE TABLE child_2 (rest text) INHERITS (parent);
CREATE TABLE grandchild () INHERITS (child_1, child_2);
INSERT INTO parent SELECT fernet_encrypt('x');
INSERT INTO child_1 SELECT fernet_encrypt('x');
INSERT INTO child_2 SELECT fernet_encrypt('x');
INSERT INTO grandchild SELECT fernet_encrypt('x');
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('parent', 'value');
SELECT tableoid::regclass AS table, fernet_key_index(value) FROM parent ORDER BY 1;

-- Names that need quotes, a temporary table.
SET fernet.keys = :'old';
CREATE SCHEMA "Sch ema.";
CREATE TABLE "Sch ema."."T""able" ("select" integer, "Va""lue;" text);
INSERT INTO "Sch ema."."T""able" SELECT 1, fernet_encrypt('x');
CREATE TEMP TABLE temporary AS SELECT fernet_encrypt('x') AS t;
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('"Sch ema."."T""able"', 'Va"lue;');
CALL fernet_rotate_column('temporary', 't');

-- What cannot be rotated.
CREATE VIEW view AS TABLE secrets;
CREATE MATERIALIZED VIEW matview AS TABLE secrets;
CREATE FOREIGN DATA WRAPPER regress_fernet_wrapper;
CREATE SERVER regress_fernet_server FOREIGN DATA WRAPPER regress_fernet_wrapper;
CREATE FOREIGN TABLE remote (value text) SERVER regress_fernet_server;
CREATE SEQUENCE sequence;
CALL fernet_rotate_column('view', 'value');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column('matview', 'value');
CALL fernet_rotate_column('remote', 'value');
CALL fernet_rotate_column('sequence', 'value');
ALTER FOREIGN TABLE remote INHERIT parent;
CALL fernet_rotate_column('parent', 'value');
ALTER FOREIGN TABLE remote NO INHERIT parent;
CALL fernet_rotate_column('types', 'h');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column('types', 'i');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column('types', 'z');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_column(1, 'value');
\echo :LAST_ERROR_SQLSTATE
SET default_transaction_read_only = on;
CALL fernet_rotate_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
SET default_transaction_read_only = off;
RESET fernet.keys;
CALL fernet_rotate_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
-- With one key there is nothing to rotate to.
SET fernet.keys = :'new';
CALL fernet_rotate_column('part_1', 'value');

-- It commits, so it must be on its own.
SET fernet.keys = :'new_old';
BEGIN;
CALL fernet_rotate_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
CREATE FUNCTION in_function() RETURNS void LANGUAGE plpgsql AS $$
DECLARE a bigint; b bigint; c bigint; d bigint; e bigint;
BEGIN CALL fernet_rotate_column('part_1', 'value', 10000, false, 0, a, b, c, d, e); END $$;
SELECT in_function();
\echo :LAST_ERROR_SQLSTATE
DO $$
DECLARE a bigint; b bigint; c bigint; d bigint; e bigint;
BEGIN CALL fernet_rotate_column('part_1', 'value', 10000, false, 0, a, b, c, d, e); EXCEPTION WHEN division_by_zero THEN NULL; END $$;
\echo :LAST_ERROR_SQLSTATE
-- In a procedure that may commit itself, it works, and returns its counts.
CREATE PROCEDURE in_procedure() LANGUAGE plpgsql AS $$
DECLARE rotated bigint; current bigint; unknown_key bigint; not_a_token bigint; nulls bigint;
BEGIN
    INSERT INTO rotation.part_1 SELECT NULL, 1;
    CALL public.fernet_rotate_column('rotation.part_1', 'value', 10000, false, 0, rotated, current, unknown_key, not_a_token, nulls);
    RAISE WARNING 'rotated %, current %, null %', rotated, current, nulls;
    ROLLBACK;
END $$;
CALL in_procedure();
CALL in_procedure();

-- Settings that do not matter: READ COMMITTED, and scans of ranges of blocks, whatever they are.
SET fernet.keys = :'old';
CALL fill(100);
SET fernet.keys = :'new_old';
SET default_transaction_isolation = serializable;
SET enable_tidscan = off;
SET row_security = off;
CALL fernet_rotate_column('secrets', 'value', 10);
SHOW transaction_isolation;
SHOW enable_tidscan;
RESET default_transaction_isolation;
RESET enable_tidscan;
RESET row_security;

-- Triggers fire, and constraints hold.
SET fernet.keys = :'old';
CALL fill(3);
CREATE TABLE seen (id integer);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO rotation.seen VALUES (NEW.id);
    IF NEW.id = 2 THEN RETURN NULL; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER see BEFORE UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION see();
SET fernet.keys = :'new_old';
CALL fernet_rotate_column('secrets', 'value');
SELECT status, tokens FROM fernet_census('secrets', 'value') WHERE tokens > 0;
SELECT DISTINCT id FROM seen ORDER BY id;
DROP TRIGGER see ON secrets;

-- Privileges: EXECUTE on the procedure, SELECT on the table, UPDATE on the column.
SET fernet.keys = :'old';
CALL fill(3);
SET fernet.keys = :'new_old';
CREATE ROLE regress_fernet_rotator ROLE CURRENT_USER;
GRANT USAGE ON SCHEMA rotation, public TO regress_fernet_rotator;
SET ROLE regress_fernet_rotator;
CALL fernet_rotate_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
GRANT EXECUTE ON PROCEDURE fernet_rotate_column TO regress_fernet_rotator;
SET ROLE regress_fernet_rotator;
CALL fernet_rotate_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
-- Rows are found by their places and writers, which are columns, too.
GRANT SELECT (value) ON secrets TO regress_fernet_rotator;
SET ROLE regress_fernet_rotator;
CALL fernet_rotate_column('secrets', 'value');
RESET ROLE;
GRANT SELECT (ctid, xmin, xmax) ON secrets TO regress_fernet_rotator;
SET ROLE regress_fernet_rotator;
CALL fernet_rotate_column('secrets', 'value');
RESET ROLE;
REVOKE SELECT (value, ctid, xmin, xmax) ON secrets FROM regress_fernet_rotator;
GRANT SELECT ON secrets TO regress_fernet_rotator;
SET ROLE regress_fernet_rotator;
CALL fernet_rotate_column('secrets', 'value');
RESET ROLE;
GRANT UPDATE (value) ON secrets TO regress_fernet_rotator;
SET ROLE regress_fernet_rotator;
CALL fernet_rotate_column('secrets', 'value');
SELECT fernet_decrypt(value) FROM secrets;
RESET ROLE;

-- Row-level security hides no rows silently.
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON secrets USING (id < 3);
SET ROLE regress_fernet_rotator;
CALL fernet_rotate_column('secrets', 'value');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
CALL fernet_rotate_column('secrets', 'value');
ALTER TABLE secrets DISABLE ROW LEVEL SECURITY;

-- Nothing is looked up in the caller's search_path.
SET fernet.keys = :'old';
CALL fill(3);
SET fernet.keys = :'new_old';
CREATE SCHEMA trap;
CREATE FUNCTION trap.trap(tid, tid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE OPERATOR trap.= (LEFTARG = tid, RIGHTARG = tid, FUNCTION = trap.trap);
CREATE OPERATOR trap.< (LEFTARG = tid, RIGHTARG = tid, FUNCTION = trap.trap);
CREATE OPERATOR trap.>= (LEFTARG = tid, RIGHTARG = tid, FUNCTION = trap.trap);
CREATE FUNCTION trap.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION trap.age(xid) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE TABLE trap.pg_inherits (inhrelid oid, inhparent oid);
SET search_path = trap, pg_catalog, public;
CALL fernet_rotate_column('rotation.secrets', 'value');
RESET search_path;

-- A shard, for a call on another node of Citus: only with the same keys, in the same order.
CREATE VIEW rotation.fingerprints AS SELECT string_agg(fingerprint, ',' ORDER BY key_index) AS caller FROM fernet_keys();
SELECT caller FROM rotation.fingerprints \gset
SET fernet.keys = :'lost_old';
CALL fernet_rotate_shard('rotation.secrets', 'value', 10, false, :'caller');
\echo :LAST_ERROR_SQLSTATE
CALL fernet_rotate_shard('rotation.secrets', 'value', 10, false, NULL);
SELECT caller FROM rotation.fingerprints \gset
INSERT INTO rotation.secrets VALUES (4, 'plain'), (5, NULL), (6, fernet_encrypt('x'));
CALL fernet_rotate_shard('rotation.secrets', 'value', 10, false, :'caller');
CALL fernet_rotate_shard('rotation.secrets', 'value', 0, false, :'caller');
BEGIN;
CALL fernet_rotate_shard('rotation.secrets', 'value', 10, false, :'caller');
ROLLBACK;

DROP SCHEMA rotation, trap, "Sch ema." CASCADE;
DROP FOREIGN DATA WRAPPER regress_fernet_wrapper CASCADE;
DROP OWNED BY regress_fernet_rotator;
DROP ROLE regress_fernet_rotator;
