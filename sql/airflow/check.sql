-- Check an Airflow metadata database: under which key is every password, extra,
-- variable and trigger, and every token in an XCom? Succeeds only if all that
-- Airflow encrypts is under the first key. The older keys can then be removed.
-- Otherwise psql exits with 3, and the rows with "ok = no" say why.
--
-- Changes nothing, and runs on a standby. The keys come from fernet.keys,
-- fernet.keys_file or fernet.keys_command.

\set ON_ERROR_STOP on
\set QUIET on
\set SHOW_CONTEXT never
\pset pager off
-- Set here, whatever .psqlrc says: these would change what the statements do.
\set ON_ERROR_ROLLBACK off
\set AUTOCOMMIT on
\set SINGLELINE off
\set FETCH_COUNT 0
-- Ends a transaction that .psqlrc has begun with AUTOCOMMIT off.
BEGIN; COMMIT;

BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- After this, functions, operators, types and tables without a schema are only the
-- server's own. So nothing that others have put into a schema of the caller's path
-- can run. That path is used once, to find Airflow's tables.
SELECT pg_catalog.current_schemas(false) AS path \gset
SET LOCAL search_path = pg_catalog, pg_temp;
-- A policy that would hide rows is an error.
SET LOCAL row_security = off;

-- Recognise Airflow by its tables: dag_bundle came with 3.0, connection_test_request
-- with 3.3. trigger.kwargs is json before 2.9, and then text, which may be a token.
-- xcom.value is bytea before 3.0, and then jsonb. xcom has a run_id since 2.2, long
-- before Airflow put tokens there.
-- Airflow's tables are all in one schema and have one owner. The owner of that
-- schema, or of the extension's, can replace everything in it at any time: so a
-- superuser trusts only schemas whose owner can be trusted.
WITH tables AS (
  SELECT c.oid, relname, nspname, nspowner, relowner, format('%I.%I', nspname, relname) AS name,
         relkind IN ('r', 'p') AND relpersistence <> 't' AS is_table,
         relname IN ('connection', 'variable', 'trigger', 'connection_test_request', 'xcom') AS has_tokens
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
   WHERE nspname = ANY (:'path'::name[]) AND relkind IN ('r', 'p', 'v', 'm', 'f')
     AND relname IN ('connection', 'variable', 'trigger', 'connection_test_request', 'xcom', 'dag_run', 'dag_bundle')),
columns AS (
  SELECT relname, attname, atttypid::regtype::text AS type
    FROM tables JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped),
airflow AS (
  SELECT min(nspname) AS schema, min(relowner::regrole::text) AS owner,
         CASE WHEN bool_or(relname = 'dag_bundle') THEN 3 ELSE 2 END AS airflow,
         coalesce(bool_or(relname = 'connection_test_request'), false) AS has_connection_tests,
         (SELECT coalesce(min(type), 'none') FROM columns WHERE (relname, attname) = ('trigger', 'kwargs')) AS trigger_type,
         (SELECT coalesce(min(type), 'none') FROM columns WHERE (relname, attname) = ('xcom', 'value')
             AND EXISTS (SELECT FROM columns WHERE (relname, attname) = ('xcom', 'run_id'))) AS xcom_type,
         array_agg(oid ORDER BY relname) FILTER (WHERE has_tokens) AS tables,
         min(relowner) AS tables_owner, min(nspowner) AS schema_owner,
         CASE WHEN count(DISTINCT nspname) > 1
              THEN ARRAY['several schemas in the search path have tables with the same names as Airflow''s: '
                           || string_agg(DISTINCT quote_ident(nspname), ', '),
                         'Name only Airflow''s schema: PGOPTIONS=''-c search_path=...'' psql ...']
              WHEN count(*) FILTER (WHERE relname IN ('connection', 'variable', 'dag_run')) < 3
              THEN ARRAY['no Airflow tables in the search path',
                         'Connect to the metadata database, with its schema in search_path.']
              WHEN NOT bool_and(is_table)
              THEN ARRAY['not an ordinary table: ' || string_agg(name, ', ') FILTER (WHERE NOT is_table),
                         'Airflow has tables there: find out what has replaced them.']
              WHEN count(DISTINCT relowner) > 1
              THEN ARRAY['Airflow''s tables have several owners: '
                           || string_agg(format('%s of %s', name, relowner::regrole), ', ' ORDER BY relname),
                         'Make sure that none belongs to a stranger, then give them all to one role: ALTER TABLE ... OWNER TO ...']
          END AS problem
    FROM tables),
-- The SQL edition is recognised by its functions, whose owners must all be trusted.
extension AS (
  SELECT nspname AS fernet, nspowner AS fernet_owner, 'pg_fernet ' || extversion AS version, 0 AS place
    FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace
   WHERE extname = 'pg_fernet'
   UNION ALL
  SELECT nspname, nspowner, 'pg_fernet_sql', coalesce(array_position(:'path'::name[], nspname), 2147483647)
    FROM pg_namespace AS n CROSS JOIN airflow
    JOIN pg_database ON datname = current_database()
    JOIN pg_proc ON pronamespace = n.oid AND proname ~ '^_?fernet_'
    JOIN pg_roles AS r ON r.oid = proowner
   GROUP BY nspname, nspowner, tables_owner, datdba
  HAVING bool_or(proname = 'fernet_version')
     AND bool_and(rolsuper OR proowner IN (tables_owner, datdba, current_user::regrole))
   ORDER BY place, fernet LIMIT 1),
stranger AS (
  SELECT min(format('schema %I belongs to %I, who is neither a superuser nor the owner of Airflow''s tables', name, rolname)) AS problem
    FROM airflow LEFT JOIN extension ON true
    CROSS JOIN LATERAL (VALUES (schema, schema_owner), (fernet, fernet_owner)) AS schemas (name, holder)
    JOIN pg_database ON datname = current_database()
    JOIN pg_roles AS r ON r.oid = CASE holder WHEN 'pg_database_owner'::regrole THEN datdba ELSE holder END
   WHERE current_setting('is_superuser')::boolean AND NOT rolsuper AND r.oid <> tables_owner)
SELECT schema, fernet, airflow, has_connection_tests, tables,
       trigger_type IN ('text', 'json') AS has_trigger, trigger_type = 'text' AS trigger_is_text,
       xcom_type IN ('bytea', 'json', 'jsonb') AS has_xcom, xcom_type = 'bytea' AS xcom_is_bytea,
       format('Airflow %s in schema %s of %s, %s in schema %s',
              airflow, quote_ident(schema), owner, version, quote_ident(fernet)) AS taken,
       format('BEGIN RAISE EXCEPTION USING MESSAGE = %L, HINT = %L; END',
              coalesce(airflow.problem[1], stranger.problem, 'pg_fernet is not installed in this database'),
              CASE WHEN airflow.problem IS NOT NULL THEN airflow.problem[2]
                   WHEN stranger.problem IS NOT NULL
                   THEN 'Run this as the owner of the tables, or give the schema to that role: ALTER SCHEMA ... OWNER TO ...'
                   ELSE 'As a superuser: CREATE SCHEMA fernet; CREATE EXTENSION pg_fernet SCHEMA fernet. On a managed service, see docs/managed.md.' END) AS refusal,
       airflow.problem IS NOT NULL OR stranger.problem IS NOT NULL OR fernet IS NULL AS is_refused
  FROM airflow LEFT JOIN extension ON true CROSS JOIN stranger
\gset
\if :is_refused
  DO :'refusal';
\endif
\echo :taken

-- Documents in which there may be tokens: JSON, and what pickle makes.
SELECT $$
  SELECT NULL AS "column", NULL AS name, NULL AS document WHERE false
$$ AS documents \gset
\if :has_trigger
  SELECT :'documents' || $$
  UNION ALL
  SELECT 'trigger.kwargs', id::text, kwargs::text
    FROM :"schema".trigger WHERE kwargs::text LIKE '{%'
  $$ AS documents \gset
\endif
\if :has_xcom
  \if :xcom_is_bytea
    \set xcom_text 'encode(value, ''escape'')'
  \else
    \set xcom_text value::text
  \endif
  -- The table can be large, so it is read completely only once.
  SELECT coalesce(array_agg(ctid), '{}') AS xcoms FROM :"schema".xcom WHERE :xcom_text LIKE '%gAAAAA%' \gset
  SELECT :'documents' || $$
  UNION ALL
  SELECT 'xcom.value', concat_ws('/', dag_id, run_id, task_id, NULLIF(map_index, -1), key), :xcom_text
    FROM :"schema".xcom WHERE ctid = ANY (:'xcoms')
  $$ AS documents \gset
\endif

-- Every value, and every token in a document. Each has its name, what Airflow takes
-- it for, and whether Airflow itself put it there: any text in a document may look
-- like a token. Empty values are left out: Airflow does not encrypt them, except in
-- a variable. psql inserts the schemas where it uses the text.
SELECT $$
  SELECT 'connection.password' AS "column", conn_id::text AS name,
         password::text AS value, is_encrypted IS TRUE AS encrypted, true AS is_airflows
    FROM :"schema".connection WHERE password <> ''
  UNION ALL
  SELECT 'connection.extra', conn_id, extra, is_extra_encrypted IS TRUE, true
    FROM :"schema".connection WHERE extra <> ''
  UNION ALL
  SELECT 'variable.val', key, val, is_encrypted IS TRUE, true
    FROM :"schema".variable WHERE val IS NOT NULL
  UNION ALL
  SELECT "column", name, token[1], true, document ~ 'deltalake[.]table[.]DeltaTable|pyiceberg[.]table[.]Table'
    FROM (:documents) AS documents
    CROSS JOIN regexp_matches(document, '(?<![A-Za-z0-9+/_-])gAAAAA[A-Za-z0-9_-]+=*', 'g') AS token
   WHERE document LIKE '%gAAAAA%' AND :"fernet".fernet_is_token(token[1])
$$ AS values_of_airflow \gset
\if :has_trigger
  SELECT :'values_of_airflow' || $$
  UNION ALL
  SELECT 'trigger.kwargs', id::text, kwargs::text, kwargs::text NOT LIKE '{%', true
    FROM :"schema".trigger
  $$ AS values_of_airflow \gset
\endif
\if :has_connection_tests
  SELECT :'values_of_airflow' || $$
  UNION ALL
  SELECT 'connection_test_request.password', connection_id, password, is_encrypted, true
    FROM :"schema".connection_test_request WHERE password <> ''
  UNION ALL
  SELECT 'connection_test_request.extra', connection_id, extra, is_extra_encrypted, true
    FROM :"schema".connection_test_request WHERE extra <> ''
  $$ AS values_of_airflow \gset
\endif

-- The columns and statuses are those of fernet_census, with two more statuses:
-- "plaintext", and "flag missing" for a token that Airflow would return
-- undecrypted, because its flag says plaintext. A value with the form of a token is
-- never plaintext. If no key opens it, the key may be missing, or, in a document,
-- it may not be Airflow's. Plaintext is right only in a trigger: Airflow 3 itself
-- writes the arguments of a deferred task as JSON. Airflow reads all other values
-- as a whole, so one that only holds a token is not a token.
SELECT $$
  SELECT "column", name, status, key_index,
         status = 'current' OR (status = 'plaintext' AND "column" = 'trigger.kwargs')
           OR (status = 'unknown key' AND NOT is_airflows) AS ok
    FROM (SELECT "column", name, key_index, is_airflows,
                 CASE WHEN is_token AND key_index IS NULL THEN 'unknown key'
                      WHEN NOT encrypted AND NOT is_token THEN 'plaintext'
                      WHEN NOT encrypted THEN 'flag missing'
                      WHEN NOT is_token THEN 'not a token'
                      WHEN key_index = 1 THEN 'current'
                      ELSE 'old key' END AS status
            FROM (SELECT *, CASE WHEN is_token THEN :"fernet".fernet_key_index(value) END AS key_index
                    FROM (SELECT *, :"fernet".fernet_is_token(value) AS is_token
                            FROM ($$ || :'values_of_airflow' || $$) AS found) AS parsed) AS indexed) AS judged
$$ AS statuses_of_airflow \gset

SELECT "column", status, key_index, fingerprint, count(*) AS tokens,
       CASE WHEN ok THEN 'yes' ELSE 'no' END AS ok
  FROM (:statuses_of_airflow) AS found LEFT JOIN :"fernet".fernet_keys() USING (key_index)
 GROUP BY "column", status, key_index, fingerprint, found.ok
 ORDER BY "column", found.ok, status, key_index;

SELECT count(*) > 0 AS failed FROM (:statuses_of_airflow) AS found WHERE NOT ok \gset
\if :failed
  \echo The first 20 that are not ok; first those that no script can correct:
  SELECT "column", name, status FROM (:statuses_of_airflow) AS found
   WHERE NOT ok
   GROUP BY "column", name, status
   ORDER BY status NOT IN ('unknown key', 'not a token'), "column", name LIMIT 20;

  DO $$ BEGIN
    RAISE EXCEPTION 'not every value is under the first key'
      USING HINT = 'Run rotate.sql for old keys and encrypt.sql for plaintext and missing flags. '
                   'If an old key stays, the value also holds a token that no key opens: CALL fernet_rotate_column. '
                   'Add the missing key to the list for unknown ones, or set the value again in Airflow; '
                   'for an XCom, run the task again. '
                   'For "not a token", correct the flag if the value is plaintext, then run encrypt.sql.';
  END $$;
\endif

COMMIT;
\echo All that Airflow encrypts is under the first key.
