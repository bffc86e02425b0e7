-- From 0.1.0 to 0.2.0.

ALTER FUNCTION fernet_find_columns(integer) PARALLEL UNSAFE SET jit = off;

COMMENT ON FUNCTION fernet_rotate(text) IS
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';
COMMENT ON FUNCTION fernet_rotate(bytea) IS
    're-encrypt the Fernet tokens in a value under the first key, with their own timestamps; the rest stays, and so does a token that is under it already';
COMMENT ON FUNCTION fernet_key_index(text) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a value, the highest if there are several; NULL where there is none, or one that no key opens';
COMMENT ON FUNCTION fernet_key_index(bytea) IS
    'place in the key list, counted from 1, of the key that opens the tokens in a value, the highest if there are several; NULL where there is none, or one that no key opens';
COMMENT ON FUNCTION fernet_census(regclass, name) IS
    'what a column holds: the number of tokens under each key, of tokens under an unknown key, of values without a token and of NULLs';
COMMENT ON FUNCTION fernet_find_columns(integer) IS
    'the columns that hold Fernet tokens, as far as the caller may read them: how many values were sampled, and how many tokens are in them';
