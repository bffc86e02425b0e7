-- From 0.1.0 to 0.2.0.

ALTER FUNCTION fernet_find_columns(integer) PARALLEL UNSAFE SET jit = off;
