-- Encrypt what an Airflow metadata database still holds as plaintext: every
-- password, extra and variable whose flag says so, and trigger arguments in
-- JSON. Run it with psql once every Airflow process has the key.
--
-- One transaction, which stops at the first error; safe to run twice. The keys
-- come from fernet.keys, fernet.keys_file or fernet.keys_command.

\set ON_ERROR_STOP on
\set QUIET on
\set SHOW_CONTEXT never
\pset pager off

-- At this level each statement sees what was committed before it began, and so
-- all that was before the tables were locked, whatever the database's default is.
BEGIN ISOLATION LEVEL READ COMMITTED;

-- Tell Airflow by its tables: connection_test_request came with 3.3, and
-- trigger.kwargs is text, so that it can hold a token, since 2.9.
SELECT to_regclass('connection') IS NOT NULL
         AND to_regclass('variable') IS NOT NULL
         AND to_regclass('dag_run') IS NOT NULL AS is_airflow,
       CASE WHEN to_regclass('dag_bundle') IS NULL THEN 2 ELSE 3 END AS airflow,
       to_regclass('connection_test_request') IS NOT NULL AS has_connection_tests,
       EXISTS (SELECT FROM pg_attribute
                WHERE attrelid = to_regclass('trigger')
                  AND attname = 'kwargs' AND atttypid = 'text'::regtype) AS has_trigger_tokens
\gset
\if :is_airflow
\else
  DO $$ BEGIN
    RAISE EXCEPTION 'no Airflow tables in the search path'
      USING HINT = 'Connect to the metadata database, with its schema in search_path.';
  END $$;
\endif
\echo Airflow :airflow, new tokens under key 1 of:
SELECT key_index AS key, fingerprint FROM fernet_keys();

-- Lock the tables against writers: all at once or none, so that we never wait
-- for a lock while we hold another, and no transaction of Airflow's, in whatever
-- order it writes, can meet a deadlock with us. Readers are not held up.
DO $$
DECLARE
  tables regclass[] := ARRAY(
    SELECT to_regclass(name)
      FROM unnest('{connection,variable,trigger,connection_test_request}'::text[]) AS name
     WHERE to_regclass(name) IS NOT NULL);
  names text := array_to_string(tables, ', ');
  attempts integer := 0;
BEGIN
  LOOP
    BEGIN
      EXECUTE 'LOCK TABLE ' || names || ' IN EXCLUSIVE MODE NOWAIT';
      EXIT;
    EXCEPTION WHEN lock_not_available THEN
      attempts := attempts + 1;
      IF attempts = 50 THEN
        RAISE NOTICE 'waiting until nobody else writes to %', names
          USING DETAIL = format('Processes: %s.', (
            SELECT string_agg(DISTINCT pid::text, ', ')
              FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
             WHERE datname = current_database() AND relation = ANY (tables)
               AND mode <> 'AccessShareLock'));
      END IF;
      PERFORM pg_sleep(0.02);
    END;
  END LOOP;
END $$;

-- Airflow never encrypts an empty password or extra. A value that one of the
-- keys opens although its flag says plaintext was encrypted by hand: it gets
-- the flag and no second layer. One that merely holds a token, in JSON for
-- instance, is plaintext.
UPDATE connection
   SET password = CASE WHEN password <> '' AND is_encrypted IS NOT TRUE
                            AND (NOT fernet_is_token(password) OR fernet_key_index(password) IS NULL)
                       THEN fernet_encrypt(password) ELSE password END,
       is_encrypted = is_encrypted IS TRUE OR coalesce(password <> '', false),
       extra = CASE WHEN extra <> '' AND is_extra_encrypted IS NOT TRUE
                         AND (NOT fernet_is_token(extra) OR fernet_key_index(extra) IS NULL)
                    THEN fernet_encrypt(extra) ELSE extra END,
       is_extra_encrypted = is_extra_encrypted IS TRUE OR coalesce(extra <> '', false)
 WHERE (password <> '' AND is_encrypted IS NOT TRUE)
    OR (extra <> '' AND is_extra_encrypted IS NOT TRUE);
\echo connection: :ROW_COUNT rows encrypted

-- Unlike a password, an empty variable is encrypted by Airflow too.
UPDATE variable
   SET val = CASE WHEN NOT fernet_is_token(val) OR fernet_key_index(val) IS NULL THEN fernet_encrypt(val) ELSE val END,
       is_encrypted = true
 WHERE val IS NOT NULL AND is_encrypted IS NOT TRUE;
\echo variable: :ROW_COUNT rows encrypted

-- A trigger has no flag: Airflow takes arguments that start with a brace for JSON.
\if :has_trigger_tokens
  UPDATE trigger SET kwargs = fernet_encrypt(kwargs) WHERE kwargs LIKE '{%';
  \echo trigger: :ROW_COUNT rows encrypted
\endif

\if :has_connection_tests
  UPDATE connection_test_request
     SET password = CASE WHEN password <> '' AND NOT is_encrypted
                              AND (NOT fernet_is_token(password) OR fernet_key_index(password) IS NULL)
                         THEN fernet_encrypt(password) ELSE password END,
         is_encrypted = is_encrypted OR coalesce(password <> '', false),
         extra = CASE WHEN extra <> '' AND NOT is_extra_encrypted
                           AND (NOT fernet_is_token(extra) OR fernet_key_index(extra) IS NULL)
                      THEN fernet_encrypt(extra) ELSE extra END,
         is_extra_encrypted = is_extra_encrypted OR coalesce(extra <> '', false)
   WHERE (password <> '' AND NOT is_encrypted)
      OR (extra <> '' AND NOT is_extra_encrypted);
  \echo connection_test_request: :ROW_COUNT rows encrypted
\endif

COMMIT;
