-- fernet.keys: how it is set, what it refuses, who is shown what. Fingerprints tell the keys apart.

\set new 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE='
\set old 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI='
\set older 'MzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzMzM='
LOAD 'pg_fernet';

-- Both ways to write a list.
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=,MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=';
SHOW fernet.keys;
SELECT * FROM fernet_keys();
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=', 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=';
SHOW fernet.keys;
SELECT * FROM fernet_keys();
SET fernet.keys TO :'older';
SELECT * FROM fernet_keys();

-- A change counts at once, within a statement, too.
SELECT set_config('fernet.keys', keys, false) IS NOT NULL AS set, fernet_decrypt_bytea(fernet_encrypt('hello')),
       fernet_key_index('gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD5WyLJgw_9P2iEy0NokqJ-CmHJ1R9U9eQJix9FbEyasbydUOp8SIUKjh8vE4I5Vbew==')
FROM (VALUES (:'new'), (:'old'), (:'new' || ',' || :'old')) AS lists (keys);

-- SET LOCAL ends with the transaction, however that ends.
SET fernet.keys = :'new';
BEGIN;
SET LOCAL fernet.keys = :'old';
SELECT fingerprint FROM fernet_keys();
COMMIT;
SELECT fingerprint FROM fernet_keys();
BEGIN;
SET LOCAL fernet.keys = :'old';
ROLLBACK;
SELECT fingerprint FROM fernet_keys();

-- SET is undone by a rollback, to a savepoint as well.
BEGIN;
SET fernet.keys = :'old';
SAVEPOINT before;
SET fernet.keys = :'older';
SELECT fingerprint FROM fernet_keys();
ROLLBACK TO before;
SELECT fingerprint FROM fernet_keys();
ROLLBACK;
SELECT fingerprint FROM fernet_keys();

-- A refused list leaves the one before it.
SET fernet.keys = 'bad';
SELECT fingerprint FROM fernet_keys();

-- For only one function.
CREATE FUNCTION under_old() RETURNS text LANGUAGE sql SET fernet.keys = 'MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=' AS 'SELECT fingerprint FROM fernet_keys()';
SELECT under_old(), fingerprint FROM fernet_keys();
DROP FUNCTION under_old;

-- RESET: no keys.
RESET fernet.keys;
SHOW fernet.keys;
SELECT * FROM fernet_keys();
SET fernet.keys = :'new';
SET fernet.keys TO DEFAULT;
SELECT * FROM fernet_keys();

-- For a database and for a role: the next session has the keys, before the library is loaded. (Others
-- can then read them, which causes a warning unless the library is preloaded.)
SELECT current_user AS me, current_database() AS db \gset
ALTER DATABASE :"db" SET fernet.keys = :'new', :'old';
\c -
SET client_min_messages = error;
SELECT fernet_decrypt(fernet_encrypt('hello')), string_agg(fingerprint, ' ') FROM fernet_keys();
ALTER ROLE :"me" IN DATABASE :"db" SET fernet.keys = :'older';
\c -
SET client_min_messages = error;
SELECT string_agg(fingerprint, ' ') FROM fernet_keys();
SET fernet.keys = :'new';
RESET fernet.keys;
SELECT string_agg(fingerprint, ' ') FROM fernet_keys();
ALTER DATABASE :"db" SET fernet.keys = 'bad';
ALTER DATABASE :"db" RESET fernet.keys;
ALTER ROLE :"me" IN DATABASE :"db" RESET fernet.keys;
\c -
LOAD 'pg_fernet';

-- A refused list is named by position.
SET fernet.keys = 'bad', :'new';
SET fernet.keys = :'new', 'bad';
SET fernet.keys = :'new', :'old', 'bad', 'worse';
SELECT set_config('fernet.keys', 'bad', false);
-- One character less, one more, no padding.
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMT=';
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMQ==';
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE';
-- No comma between two keys: the second would be forgotten.
SELECT set_config('fernet.keys', :'new' || ' ' || :'old', false);
SELECT set_config('fernet.keys', :'old' || ',' || :'new' || ';' || :'old', false);
-- Empty elements, empty lists.
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=,,MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=';
SET fernet.keys = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=,';
SET fernet.keys = ',MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
SET fernet.keys = :'new', '';
SET fernet.keys = ',';
SET fernet.keys = '';
SET fernet.keys = ' ';
SELECT count(*) FROM fernet_keys();

-- A key is read as pyca reads it: white space, quotes, the other alphabet, unused bits.
SET fernet.keys = E' MTExMTExMTExMTExMTEx\nMTExMTExMTExMTExMTExMTE= , "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE="\t';
SELECT * FROM fernet_keys();
SET fernet.keys = 'cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=', 'cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4e4=', 'cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e5=';
SELECT * FROM fernet_keys();

-- Many keys.
SELECT set_config('fernet.keys', string_agg(:'old', ',') || ',' || :'new', false) IS NOT NULL AS set FROM generate_series(1, 10000);
SELECT count(*), count(DISTINCT fingerprint) FROM fernet_keys();
SELECT fernet_key_index('gAAAAAA7msoAAAECAwQFBgcICQoLDA0OD4Oa9HceBlHtqfer4ex74njluYlp7UTMDyi4IkXdT7r7ugf4j_ApZ4_OGRC2fUT64g==');

-- Any other name under fernet. is a typing mistake.
SET fernet.key = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
SELECT set_config('fernet.kyes', 'x', false);
SHOW fernet.key;
SET FERNET.KEYS = 'MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=';
SELECT * FROM fernet_keys();

-- The views of all settings do not have it. Superusers see there where the keys come from.
SELECT name FROM pg_settings WHERE name LIKE 'fernet.%' ORDER BY name;
SELECT name FROM pg_show_all_settings() WHERE name LIKE 'fernet.%' ORDER BY name;

-- What is masked in the server log.
SHOW fernet.mask_log;
SET fernet.mask_log = literals;
SET fernet.mask_log = everything;
SHOW fernet.mask_log;

-- A command can be set only in the configuration file.
SET fernet.keys_command = 'true';
\echo :SQLSTATE
