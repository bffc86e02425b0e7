-- Removes what pg_fernet_sql.sql has created in the first schema of search_path. What depends on it, such as a
-- view or a trigger, is not removed: it is named by an error, and everything stays.
DO $uninstall$
DECLARE
    self text := pg_catalog.current_schema();
    caller_path text := pg_catalog.current_setting('search_path');
    routines text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT string_agg(p.oid::regprocedure::text, ', ') INTO routines
    FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
    WHERE p.pronamespace = to_regnamespace(quote_ident(self)) AND p.proname ~ '^_?fernet_' AND l.lanname IN ('sql', 'plpgsql');
    IF routines IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42883', MESSAGE = format('pg_fernet_sql is not in schema %I', self),
            HINT = 'Set search_path to the schema that has its functions.';
    END IF;
    EXECUTE 'DROP ROUTINE ' || routines;
    PERFORM set_config('search_path', caller_path, true);
END $uninstall$;
