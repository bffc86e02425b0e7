-- Check an Airflow metadata database: under which key is every password, extra,
-- variable and trigger? Succeeds only if all that Airflow encrypts is under the
-- first key, so that the older keys may go; otherwise psql exits with 3, and the
-- rows of the table with "ok = no" tell why.
--
-- Changes nothing, and runs on a standby. The keys come from fernet.keys,
-- fernet.keys_file or fernet.keys_command.

\set ON_ERROR_STOP on
\set QUIET on
\set SHOW_CONTEXT never
\pset pager off

BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

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

-- Every value with its name and with what Airflow takes it for. Empty ones are
-- left out: Airflow does not encrypt them, except in a variable.
SELECT $$
  SELECT 'connection.password' AS "column", conn_id::text AS name,
         password AS value, is_encrypted IS TRUE AS encrypted
    FROM connection WHERE password <> ''
  UNION ALL
  SELECT 'connection.extra', conn_id, extra, is_extra_encrypted IS TRUE
    FROM connection WHERE extra <> ''
  UNION ALL
  SELECT 'variable.val', key, val, is_encrypted IS TRUE
    FROM variable WHERE val IS NOT NULL
$$ AS values_of_airflow \gset
\if :has_trigger_tokens
  SELECT :'values_of_airflow' || $$
  UNION ALL
  SELECT 'trigger.kwargs', id::text, kwargs, kwargs NOT LIKE '{%'
    FROM trigger
  $$ AS values_of_airflow \gset
\endif
\if :has_connection_tests
  SELECT :'values_of_airflow' || $$
  UNION ALL
  SELECT 'connection_test_request.password', connection_id, password, is_encrypted
    FROM connection_test_request WHERE password <> ''
  UNION ALL
  SELECT 'connection_test_request.extra', connection_id, extra, is_extra_encrypted
    FROM connection_test_request WHERE extra <> ''
  $$ AS values_of_airflow \gset
\endif

-- The states are those of fernet_census, and two more: "plaintext", and "flag
-- missing" for a token that Airflow would hand out as it is, because its flag
-- says plaintext. Plaintext is right in a trigger alone: Airflow 3 itself writes
-- the arguments of a deferred task as JSON. Airflow reads a value as a whole: one
-- that merely holds a token is none.
SELECT $$
  SELECT "column", name, key_index, state,
         state = 'current' OR (state = 'plaintext' AND "column" = 'trigger.kwargs') AS ok
    FROM (SELECT "column", name, key_index,
                 CASE WHEN NOT encrypted AND key_index IS NULL THEN 'plaintext'
                      WHEN NOT encrypted THEN 'flag missing'
                      WHEN key_index = 1 THEN 'current'
                      WHEN key_index > 1 THEN 'old key'
                      WHEN fernet_is_token(value) THEN 'unknown key'
                      ELSE 'not a token' END AS state
            FROM (SELECT *, CASE WHEN fernet_is_token(value) THEN fernet_key_index(value) END AS key_index
                    FROM ($$ || :'values_of_airflow' || $$) AS found) AS indexed) AS judged
$$ AS states_of_airflow \gset

\echo Airflow :airflow
SELECT "column", state, key_index AS key, fingerprint, count(*) AS "values",
       CASE WHEN ok THEN 'yes' ELSE 'no' END AS ok
  FROM (:states_of_airflow) AS states LEFT JOIN fernet_keys() USING (key_index)
 GROUP BY "column", state, key_index, fingerprint, states.ok
 ORDER BY "column", states.ok, state, key_index;

SELECT count(*) > 0 AS failed FROM (:states_of_airflow) AS states WHERE NOT ok \gset
\if :failed
  \echo The first 20 that are not ok, those that no script can mend before the others:
  SELECT "column", name, state FROM (:states_of_airflow) AS states
   WHERE NOT ok
   ORDER BY state NOT IN ('unknown key', 'not a token'), "column", name LIMIT 20;

  DO $$ BEGIN
    RAISE EXCEPTION 'not every value is under the first key'
      USING HINT = 'Run rotate.sql for old keys and encrypt.sql for plaintext and missing flags. '
                   'Add the missing key to the list for unknown ones, or set the value anew in Airflow.';
  END $$;
\endif

COMMIT;
\echo All that Airflow encrypts is under the first key.
