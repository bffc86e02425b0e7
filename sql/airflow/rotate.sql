-- Rotate an Airflow metadata database: bring every token of connection,
-- variable, trigger, connection_test_request and xcom under the first key. Run it
-- with psql once every Airflow process has the list "new,old".
--
-- One transaction, which stops at the first error, such as a connection that no key
-- opens; safe to run twice. The keys come from fernet.keys, fernet.keys_file or
-- fernet.keys_command.

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

-- At this level each statement sees what was committed before it began. That
-- includes everything committed before the tables were locked, whatever the
-- database's default level is.
BEGIN ISOLATION LEVEL READ COMMITTED;

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
\echo Rotating to key 1 of:
SELECT key_index, fingerprint FROM :"fernet".fernet_keys();
\echo If this stops at a value, run check.sql: it names the value.
SELECT count(*) = 1 AS is_single FROM :"fernet".fernet_keys() \gset
\if :is_single
  \warn WARNING: there is a single key in the list, so there is nothing to rotate from
\endif

-- Airflow encrypts the credentials of a Delta Lake or Iceberg table inside xcom.
-- That table can be large, so the rows to rotate are found before anything is
-- locked. Rows written meanwhile are under the first key already.
\if :has_xcom
  SELECT coalesce(array_agg(ctid), '{}') AS xcoms
    FROM :"schema".xcom WHERE :"fernet".fernet_key_index(value) > 1 \gset
\endif

-- Lock the tables against writers, all at once or none. So we never wait for a lock
-- while we hold another, and no transaction of Airflow's can deadlock with us, in
-- whatever order it writes. Readers do not wait, nor do writers to xcom, to which
-- every task writes.
SET LOCAL airflow.schema = :'schema';
SET LOCAL airflow.tables = :'tables';
DO $$
DECLARE
  tables oid[] := current_setting('airflow.tables');
  xcom oid;
  names text;
  are_locked boolean := false;
  attempts integer := 0;
  stranger text;
BEGIN
  SELECT min(c.oid) FILTER (WHERE relname = 'xcom'),
         string_agg(c.oid::regclass::text, ', ' ORDER BY relname) FILTER (WHERE relname <> 'xcom')
    INTO xcom, names FROM pg_class AS c WHERE c.oid = ANY (tables);
  LOOP
    -- Before and after, names refer to the tables that were found.
    IF tables IS DISTINCT FROM (
      SELECT array_agg(c.oid ORDER BY relname)
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
       WHERE nspname = current_setting('airflow.schema')
         AND relname IN ('connection', 'variable', 'trigger', 'connection_test_request', 'xcom')) THEN
      RAISE EXCEPTION 'Airflow''s tables were replaced while this waited for them'
        USING HINT = 'Find out by whom, then run this again.';
    END IF;
    EXIT WHEN are_locked;
    BEGIN
      EXECUTE 'LOCK TABLE ' || names || ' IN EXCLUSIVE MODE NOWAIT';
      IF xcom IS NOT NULL THEN
        EXECUTE 'LOCK TABLE ' || xcom::regclass || ' IN ROW EXCLUSIVE MODE NOWAIT';
      END IF;
      are_locked := true;
    EXCEPTION WHEN lock_not_available THEN
      attempts := attempts + 1;
      IF attempts = 50 THEN
        RAISE NOTICE 'waiting until nobody else writes to %', names
          USING DETAIL = format('Processes: %s.', (
            SELECT string_agg(DISTINCT pid::text, ', ')
              FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
             WHERE datname = current_database() AND relation = ANY (tables) AND mode <> 'AccessShareLock'
               AND NOT (relation IS NOT DISTINCT FROM xcom AND mode IN ('RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock'))));
      END IF;
      PERFORM pg_sleep(0.02);
    END;
  END LOOP;

  -- A role with the TRIGGER privilege on a table may have attached code to it.
  SELECT format('trigger %I on %s runs code of %I', tgname, c.oid::regclass, rolname) INTO stranger
    FROM pg_trigger AS t
    JOIN pg_class AS c ON c.oid = tgrelid
    JOIN pg_depend AS d ON classid = 'pg_trigger'::regclass AND objid = t.oid AND refclassid = 'pg_proc'::regclass
    JOIN pg_proc AS p ON p.oid = refobjid
    JOIN pg_roles AS r ON r.oid = proowner
   WHERE c.oid = ANY (tables) AND NOT tgisinternal AND tgenabled <> 'D'
     AND NOT rolsuper AND r.oid <> relowner AND rolname <> current_user
   ORDER BY 1 LIMIT 1;
  IF stranger IS NOT NULL THEN
    RAISE EXCEPTION '%', stranger
      USING HINT = 'It would run with your rights. Drop it, disable it, or give its functions to the owner of the table.';
  END IF;
END $$;

-- IS DISTINCT FROM 1 selects the tokens under older keys, and also the values that
-- no key opens: fernet_rotate stops at those, so that none is left out unnoticed.
UPDATE :"schema".connection
   SET password = CASE WHEN is_encrypted AND password <> ''
                       THEN :"fernet".fernet_rotate(password::text) ELSE password END,
       extra = CASE WHEN is_extra_encrypted AND extra <> ''
                    THEN :"fernet".fernet_rotate(extra::text) ELSE extra END
 WHERE (is_encrypted AND password <> '' AND :"fernet".fernet_key_index(password::text) IS DISTINCT FROM 1)
    OR (is_extra_encrypted AND extra <> '' AND :"fernet".fernet_key_index(extra::text) IS DISTINCT FROM 1);
\echo connection: rows rotated: :ROW_COUNT

UPDATE :"schema".variable
   SET val = :"fernet".fernet_rotate(val::text)
 WHERE is_encrypted AND val <> '' AND :"fernet".fernet_key_index(val::text) IS DISTINCT FROM 1;
\echo variable: rows rotated: :ROW_COUNT

-- A trigger has no flag: Airflow takes arguments that start with a brace for JSON.
-- JSON may hold tokens, and text that only looks like one and is not Airflow's.
-- What no key opens is left there, as in xcom, and check.sql reports it.
\if :trigger_is_text
  UPDATE :"schema".trigger
     SET kwargs = :"fernet".fernet_rotate(kwargs::text)
   WHERE CASE WHEN kwargs LIKE '{%' THEN :"fernet".fernet_key_index(kwargs::text) > 1
              ELSE :"fernet".fernet_key_index(kwargs::text) IS DISTINCT FROM 1 END;
  \echo trigger: rows rotated: :ROW_COUNT
\elif :has_trigger
  UPDATE :"schema".trigger
     SET kwargs = :"fernet".fernet_rotate(kwargs)
   WHERE :"fernet".fernet_key_index(kwargs) > 1;
  \echo trigger: rows rotated: :ROW_COUNT
\endif

\if :has_connection_tests
  UPDATE :"schema".connection_test_request
     SET password = CASE WHEN is_encrypted AND password <> ''
                         THEN :"fernet".fernet_rotate(password::text) ELSE password END,
         extra = CASE WHEN is_extra_encrypted AND extra <> ''
                      THEN :"fernet".fernet_rotate(extra::text) ELSE extra END
   WHERE (is_encrypted AND password <> '' AND :"fernet".fernet_key_index(password::text) IS DISTINCT FROM 1)
      OR (is_extra_encrypted AND extra <> '' AND :"fernet".fernet_key_index(extra::text) IS DISTINCT FROM 1);
  \echo connection_test_request: rows rotated: :ROW_COUNT
\endif

-- A row that another transaction is writing is left: an XCom is only ever deleted
-- or replaced.
\if :has_xcom
  UPDATE :"schema".xcom
     SET value = :"fernet".fernet_rotate(value)
   WHERE ctid = ANY (ARRAY (
           SELECT ctid FROM :"schema".xcom WHERE ctid = ANY (:'xcoms') FOR NO KEY UPDATE SKIP LOCKED))
     AND :"fernet".fernet_key_index(value) > 1;
  \echo xcom: rows rotated: :ROW_COUNT
\endif

COMMIT;
