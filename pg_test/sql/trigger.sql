-- fernet_encrypt_trigger: plaintext that is written to a column is encrypted before it is stored.

LOAD 'pg_fernet';
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
CREATE TABLE login (id int PRIMARY KEY, name text, password text, extra bytea);
CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON login
    FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('password', 'extra');
CREATE VIEW plain AS
    SELECT id, name, fernet_is_token(password) AS encrypted, fernet_decrypt(password) AS password,
           fernet_is_token(extra) AS extra_encrypted, fernet_decrypt_bytea(extra) AS extra
    FROM login;

-- Each way to write. NULL stays NULL; an empty string is a value.
INSERT INTO login VALUES (1, 'ann', 'one', '\x00ff'), (2, 'bob', NULL, NULL), (3, 'cy', '', '');
INSERT INTO login SELECT 4, 'di', 'größe ' || repeat('x', 20), NULL;
COPY login FROM stdin;
5	ed	from a file	\N
\.
INSERT INTO login VALUES (5, 'ed', 'in conflict') ON CONFLICT (id) DO UPDATE SET password = EXCLUDED.password;
MERGE INTO login USING (VALUES (5, 'merged'), (6, 'added')) AS new (id, password) ON login.id = new.id
    WHEN MATCHED THEN UPDATE SET extra = convert_to(new.password, 'UTF8')
    WHEN NOT MATCHED THEN INSERT (id, password) VALUES (new.id, new.password);
UPDATE login SET password = 'two' WHERE id = 2 RETURNING fernet_decrypt(password);
SELECT * FROM plain ORDER BY id;

-- A value that is already a token stays, byte for byte, even when other columns change.
CREATE TEMP TABLE before AS TABLE login;
UPDATE login SET name = upper(name);
UPDATE login SET password = password, extra = extra;
SELECT count(*) FROM login JOIN before USING (id, password) WHERE login.extra IS NOT DISTINCT FROM before.extra;
INSERT INTO login VALUES (7, 'eve', fernet_encrypt('encrypted before'), NULL);
INSERT INTO login SELECT 8, 'fay', password || E'\n' FROM before WHERE id = 1;
SELECT id, left(password, 4), fernet_key_index(password) FROM login WHERE id > 6 ORDER BY id;
DELETE FROM login WHERE id > 6;

-- Text beside a token is plaintext that decryption would drop: it is refused, unless it is there already.
INSERT INTO login SELECT 7, 'eve', password || ' and more' FROM before WHERE id = 1;
INSERT INTO login SELECT 7, 'eve', '{"password": "' || password || '"}' FROM before WHERE id = 1;
INSERT INTO login SELECT 7, 'eve', password || ',' || password FROM before WHERE id = 1;
UPDATE login SET password = fernet_decrypt(password) || password;
UPDATE login SET password = 'gPASSWORD' || repeat('x', 55) || password WHERE id = 1;
ALTER TABLE login DISABLE TRIGGER encrypt;
INSERT INTO login SELECT 7, 'eve', 'fernet:' || password FROM before WHERE id = 1;
ALTER TABLE login ENABLE TRIGGER encrypt;
UPDATE login SET name = 'eva' WHERE id = 7;
DELETE FROM login WHERE id > 6;

-- So does one under an older key. A new one is made under the first.
SET fernet.keys = 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=,MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
UPDATE login SET name = lower(name), password = CASE WHEN id = 1 THEN 'new' ELSE password END;
SELECT id, fernet_key_index(password) FROM login ORDER BY id;

-- A value that has the form of a token that no key opens is refused when it is written. If the row already
-- has it, it stays, and the row's other columns can change.
SET fernet.keys = 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=';
INSERT INTO login SELECT 7, 'eve', password FROM login WHERE id = 2;
UPDATE login SET password = (SELECT password FROM login WHERE id = 2) WHERE id = 1;
INSERT INTO login SELECT 7, 'eve', 'fernet:' || password FROM login WHERE id = 2;
UPDATE login SET name = 'bo' WHERE id = 2;
SELECT name, fernet_key_index(password) FROM login WHERE id = 2;

-- Plaintext that is there already is encrypted when its row is written, whatever column changes.
ALTER TABLE login DISABLE TRIGGER encrypt;
INSERT INTO login VALUES (7, 'eve', 'plaintext'), (8, 'fay', 'plaintext');
ALTER TABLE login ENABLE TRIGGER encrypt;
UPDATE login SET name = 'eva' WHERE id = 7;
SELECT id, fernet_is_token(password) FROM login WHERE id > 6 ORDER BY id;

-- Without keys nothing is written, unless there is nothing to encrypt. No message has a plaintext in it:
-- COPY would show its line.
RESET fernet.keys;
INSERT INTO login VALUES (9, 'guy', 'a plaintext');
COPY login FROM stdin;
9	guy	a plaintext	\N
\.
INSERT INTO login VALUES (9, 'guy', NULL);
SELECT id, password FROM login WHERE id = 9;
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';

-- A role that writes needs no right to encrypt or decrypt. Creating a trigger takes EXECUTE on its function.
CREATE ROLE regress_fernet ROLE CURRENT_USER;
GRANT INSERT ON login TO regress_fernet;
GRANT UPDATE (password), SELECT (id) ON login TO regress_fernet;
SET ROLE regress_fernet;
INSERT INTO login VALUES (10, 'writer', 'cannot be read');
UPDATE login SET password = 'not by the writer' WHERE id = 10;
\set VERBOSITY terse
SELECT password FROM login;
SELECT fernet_decrypt('x');
CREATE TEMP TABLE own (password text);
CREATE TRIGGER encrypt BEFORE INSERT ON own FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('password');
RESET ROLE;
GRANT EXECUTE ON FUNCTION fernet_encrypt_trigger() TO regress_fernet;
SET ROLE regress_fernet;
CREATE TRIGGER encrypt BEFORE INSERT ON own FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('password');
\set VERBOSITY default
INSERT INTO own VALUES ('x') RETURNING fernet_is_token(password);
RESET ROLE;
SELECT password FROM plain WHERE id = 10;

-- Each type: the length and the domain of a column are checked again, and the blanks of char(n) do not
-- belong to the plaintext.
CREATE DOMAIN secret AS varchar(120) CHECK (length(value) <> 100);
CREATE TABLE types (v varchar(100), c char(125), d secret, "A quoted ""name""" text);
CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON types
    FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('v', 'c', 'd', 'A quoted "name"');
INSERT INTO types VALUES ('fifteen letters', 'blanks follow   ', 'sixteen letters.', 'quoted');
SELECT fernet_decrypt(v), '|' || fernet_decrypt(c) || '|' AS c, octet_length(c), fernet_decrypt(d) AS d,
       fernet_decrypt("A quoted ""name""") AS quoted
FROM types;
UPDATE types SET v = v, c = c;
SELECT fernet_key_index(v), fernet_key_index(c), octet_length(c) FROM types;
UPDATE types SET v = 'sixteen letters.';
UPDATE types SET c = 'thirty-two letters and no blanks';
UPDATE types SET d = 'fifteen letters';
UPDATE types SET "A quoted ""name""" = 'gAAAAAB' || repeat('A', 91) || '==';
UPDATE types SET d = 'the token of this is longer than the domain takes';
ALTER TABLE types RENAME v TO renamed;
UPDATE types SET c = c;

-- Partitions: a column has another number there, and a row that moves keeps its token.
CREATE TABLE parted (id int, password text, region text) PARTITION BY LIST (region);
CREATE TABLE parted_a (dropped int, password text, region text, id int);
ALTER TABLE parted_a DROP COLUMN dropped;
ALTER TABLE parted ATTACH PARTITION parted_a FOR VALUES IN ('a');
CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b');
CREATE TRIGGER encrypt BEFORE INSERT OR UPDATE ON parted
    FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('password');
INSERT INTO parted VALUES (1, 'in a', 'a'), (2, 'in b', 'b');
UPDATE parted SET region = 'b' WHERE id = 1;
SELECT tableoid::regclass, id, fernet_decrypt(password) FROM parted ORDER BY id;
CREATE TRIGGER encrypt_key BEFORE INSERT ON parted FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('region');
INSERT INTO parted VALUES (3, 'in a', 'a');

-- Triggers fire in the order of their names: earlier ones get the plaintext, later ones the token. So does
-- a generated column.
CREATE TABLE beside (password text, seen text[], length int GENERATED ALWAYS AS (length(password)) STORED, added text DEFAULT 'later');
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.seen := NEW.seen || CASE WHEN fernet_is_token(NEW.password) THEN 'token' ELSE NEW.password END;
    RETURN NEW;
END $$;
CREATE TRIGGER a BEFORE INSERT OR UPDATE ON beside FOR EACH ROW EXECUTE FUNCTION see();
CREATE TRIGGER b BEFORE INSERT OR UPDATE ON beside
    FOR EACH ROW WHEN (NEW.password <> 'left') EXECUTE FUNCTION fernet_encrypt_trigger('password', 'added');
CREATE TRIGGER c BEFORE INSERT OR UPDATE ON beside FOR EACH ROW EXECUTE FUNCTION see();
INSERT INTO beside VALUES ('secret'), ('left');
SELECT seen, length, fernet_is_token(added) AS added FROM beside;
ALTER TABLE beside ADD COLUMN with_default text DEFAULT 'of old rows';
CREATE TRIGGER d BEFORE UPDATE ON beside FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('with_default');
UPDATE beside SET seen = NULL;
SELECT seen, fernet_decrypt(with_default) FROM beside;

-- A trigger that cannot work raises an error when it first fires.
CREATE TABLE refused (id int, password text, document jsonb, passwords text[], xml xml,
                      upper text GENERATED ALWAYS AS (upper(password)) STORED, domain secret);
CREATE FUNCTION refusal(arguments text, fires text DEFAULT 'BEFORE INSERT OR UPDATE', level text DEFAULT 'ROW') RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    message text;
    hint text;
BEGIN
    EXECUTE format('CREATE TRIGGER encrypt %s ON refused FOR EACH %s EXECUTE FUNCTION fernet_encrypt_trigger(%s)', fires, level, arguments);
    BEGIN
        INSERT INTO refused (id, password) VALUES (1, 'x');
        DELETE FROM refused;
        TRUNCATE refused;
        RAISE NOTICE 'not refused';
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
        RAISE NOTICE '% %', SQLSTATE, message USING HINT = hint;
    END;
    DROP TRIGGER encrypt ON refused;
END $$;
SELECT refusal($$'password'$$);
SELECT refusal($$$$);
SELECT refusal($$'nothing'$$);
SELECT refusal($$'password', 'Password'$$);
SELECT refusal($$'ctid'$$);
SELECT refusal($$'id'$$);
SELECT refusal($$'document'$$);
SELECT refusal($$'passwords'$$);
SELECT refusal($$'xml'$$);
SELECT refusal($$'upper'$$);
SELECT refusal($$'password'$$, 'AFTER INSERT OR UPDATE');
SELECT refusal($$'password'$$, 'BEFORE INSERT OR UPDATE OR DELETE');
SELECT refusal($$'password'$$, 'BEFORE DELETE');
SELECT refusal($$'password'$$, 'BEFORE INSERT', 'STATEMENT');
SELECT refusal($$'password'$$, 'BEFORE TRUNCATE', 'STATEMENT');
CREATE VIEW refused_view AS SELECT password FROM refused;
CREATE TRIGGER encrypt INSTEAD OF INSERT ON refused_view FOR EACH ROW EXECUTE FUNCTION fernet_encrypt_trigger('password');
INSERT INTO refused_view VALUES ('x');
SELECT fernet_encrypt_trigger();

DROP TABLE login, before, own, types, parted, beside, refused CASCADE;
DROP DOMAIN secret;
DROP FUNCTION see, refusal;
DROP OWNED BY regress_fernet;
DROP ROLE regress_fernet;
