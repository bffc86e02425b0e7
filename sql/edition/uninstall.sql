-- Removes what pg_fernet_sql.sql has created in the first schema of search_path, and no other function. If something
-- else depends on that, such as a view or a trigger, an error names it, and everything stays.
DO $uninstall$
DECLARE
    self text := pg_catalog.current_schema();
    caller_path text := pg_catalog.current_setting('search_path');
    routines text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT string_agg(p.oid::regprocedure::text, ', ') INTO routines
    FROM pg_proc AS made
    CROSS JOIN unnest(substring(made.prosrc, '''(.*)''')::text[]) AS m (signature)
    JOIN pg_proc AS p ON p.oid = to_regprocedure(concat(quote_ident(self), '.', m.signature)) AND p.proowner = made.proowner
    WHERE made.oid = to_regprocedure(concat(quote_ident(self), '._fernet_made()'));
    IF routines IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42883', MESSAGE = format('pg_fernet_sql is not in schema %I', self),
            HINT = 'Set search_path to the schema that has its functions.';
    END IF;
    EXECUTE 'DROP ROUTINE ' || routines;
    PERFORM set_config('search_path', caller_path, true);
END $uninstall$;
