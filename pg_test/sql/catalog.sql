-- What the catalogs say about the extension: a change here is a change of the contract.

SELECT p.oid::regprocedure AS function, pg_get_function_result(p.oid) AS result,
       CASE provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
       CASE proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
       proisstrict AS strict,
       proacl IS NULL AS public
FROM pg_proc AS p JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet')
ORDER BY p.oid::regprocedure::text COLLATE "C";

-- Names and defaults of the arguments.
SELECT proname AS function, pg_get_function_arguments(p.oid) AS arguments
FROM pg_proc AS p JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet')
ORDER BY proname COLLATE "C", pg_get_function_arguments(p.oid) COLLATE "C";

-- Nothing runs as its owner.
SELECT p.oid::regprocedure FROM pg_proc AS p JOIN pg_depend AS d ON d.objid = p.oid AND d.deptype = 'e'
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet') AND p.prosecdef;

-- Everything has a comment, including the extension.
SELECT pg_describe_object(classid, objid, 0) AS undocumented
FROM pg_depend
WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet')
  AND coalesce(obj_description(objid, classid::regclass::name), '') = '';
SELECT obj_description(oid, 'pg_extension'), extrelocatable FROM pg_extension WHERE extname = 'pg_fernet';

-- The extension holds only functions: no types, no operators, no tables.
SELECT DISTINCT classid::regclass FROM pg_depend
WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fernet');
