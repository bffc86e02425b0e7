"""Transactions, savepoints, plans that are kept, and expressions that are stored."""

import pytest
from psycopg import errors

import pyca
from postgres import force_parallel, plan, set_keys, value

ROWS = 1000


@pytest.fixture
def keys(rng):
    return [pyca.key_of(rng) for _ in range(3)]


@pytest.fixture
def table(db, keys):
    """A table of tokens under the second of the keys, which are the session's."""
    set_keys(db, keys[1])
    db.execute(f"CREATE TABLE secrets AS SELECT n, fernet_encrypt(n::text) AS token FROM generate_series(1, {ROWS}) AS n")
    db.execute("ANALYZE secrets")
    set_keys(db, *keys)
    yield
    db.rollback()
    db.execute("DROP TABLE secrets CASCADE")


def indexes(db):
    """Under which keys the tokens are, and how many."""
    return dict(db.execute("SELECT fernet_key_index(token), count(*) FROM secrets GROUP BY 1").fetchall())


def contents(db):
    return db.execute("SELECT n, token, ctid FROM secrets ORDER BY n").fetchall()


# Errors in row N.

@pytest.mark.parametrize("n", [1, 2, ROWS // 2, ROWS])
@pytest.mark.parametrize("call", ["fernet_rotate(token)", "fernet_encrypt(fernet_decrypt(token))"])
def test_an_error_in_one_row_undoes_the_others(db, table, n, call):
    db.execute("UPDATE secrets SET token = 'plaintext' WHERE n = %s", [n])
    db.execute("CREATE SEQUENCE seen")
    try:
        before = contents(db)
        with pytest.raises(errors.InvalidTextRepresentation):
            # The inner query gives the order of the rows.
            db.execute(f"UPDATE secrets SET token = {call} FROM (SELECT n FROM secrets ORDER BY n OFFSET 0) AS o"
                       " WHERE o.n = secrets.n AND nextval('seen') > 0")
        assert contents(db) == before
        # A sequence is not undone: the rows before it had been updated.
        assert value(db, "SELECT last_value FROM seen") >= 1
    finally:
        db.execute("DROP SEQUENCE seen")


def test_an_error_undoes_the_transaction_up_to_the_savepoint(db, table):
    with db.transaction():
        db.execute("UPDATE secrets SET token = fernet_rotate(token) WHERE n <= 10")
        with pytest.raises(errors.InvalidTextRepresentation), db.transaction():
            db.execute("UPDATE secrets SET token = fernet_rotate(token)")
            assert indexes(db) == {1: ROWS}
            db.execute("SELECT fernet_rotate('plaintext')")
        assert indexes(db) == {1: 10, 2: ROWS - 10}
    assert indexes(db) == {1: 10, 2: ROWS - 10}


def test_a_rolled_back_rotation_changes_nothing(db, table):
    before = contents(db)
    with db.transaction(force_rollback=True):
        db.execute("UPDATE secrets SET token = fernet_rotate(token)")
        assert indexes(db) == {1: ROWS}
    assert contents(db) == before


def test_a_caught_error_undoes_its_block(db, table):
    db.execute("UPDATE secrets SET token = 'plaintext' WHERE n = 50")
    db.execute(f"""DO $$
        BEGIN
            UPDATE secrets SET token = fernet_rotate(token) WHERE n < 10;
            BEGIN
                UPDATE secrets SET token = fernet_rotate(token);
            EXCEPTION WHEN invalid_text_representation THEN
                UPDATE secrets SET token = fernet_rotate(token) WHERE n > {ROWS - 10};
            END;
        END $$""")
    assert indexes(db) == {1: 9 + 10, 2: ROWS - 20, None: 1}


def test_an_error_at_commit_undoes_a_rotation(db, table):
    db.execute("CREATE TEMP TABLE parent (n integer PRIMARY KEY)")
    db.execute("CREATE TEMP TABLE child (n integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    before = contents(db)
    with pytest.raises(errors.ForeignKeyViolation), db.transaction():
        db.execute("UPDATE secrets SET token = fernet_rotate(token)")
        db.execute("INSERT INTO child VALUES (1)")
        assert indexes(db) == {1: ROWS}
    assert contents(db) == before


# Keys that change with a transaction.

def primary(db):
    """The fingerprint of the key that the session encrypts with; None without keys."""
    try:
        return value(db, "SELECT fingerprint FROM fernet_keys() WHERE key_index = 1")
    except errors.ObjectNotInPrerequisiteState:
        return None


def test_keys_of_a_transaction_end_with_it(db, keys):
    a, b, c = map(pyca.fingerprint, keys)
    set_keys(db, keys[0])
    for end in "COMMIT", "ROLLBACK", "PREPARE":
        db.execute("BEGIN")
        assert primary(db) == a
        db.execute(f"SET LOCAL fernet.keys = '{keys[1]}'")
        assert primary(db) == b
        token = value(db, "SELECT fernet_encrypt('x')")
        assert pyca.decrypt([keys[1]], token.encode()) == b"x"
        db.execute(f"SET LOCAL fernet.keys = '{keys[2]}'")
        assert primary(db) == c
        if end == "PREPARE":
            with pytest.raises(errors.ObjectNotInPrerequisiteState):  # max_prepared_transactions is 0
                db.execute("PREPARE TRANSACTION 'x'")
        else:
            db.execute(end)
        assert primary(db) == a


def test_keys_follow_savepoints(db, keys):
    a, b, c = map(pyca.fingerprint, keys)
    set_keys(db, keys[0])
    db.execute("BEGIN")
    db.execute("SAVEPOINT one")
    db.execute(f"SET LOCAL fernet.keys = '{keys[1]}'")
    assert primary(db) == b
    db.execute("SAVEPOINT two")
    db.execute(f"SET fernet.keys = '{keys[2]}'")
    assert primary(db) == c
    db.execute("ROLLBACK TO two")
    assert primary(db) == b
    db.execute("RELEASE two")
    assert primary(db) == b
    # An error ends the subtransaction, and with it the keys.
    db.execute("SAVEPOINT three")
    db.execute(f"SET LOCAL fernet.keys = '{keys[2]}'")
    with pytest.raises(errors.InvalidTextRepresentation):
        db.execute("SELECT fernet_decrypt('plaintext')")
    db.execute("ROLLBACK TO three")
    assert primary(db) == b
    # A refused list changes nothing.
    with pytest.raises(errors.InvalidParameterValue):
        db.execute(f"SET LOCAL fernet.keys = '{keys[2]}', 'x'")
    db.execute("ROLLBACK TO three")
    assert primary(db) == b
    db.execute("ROLLBACK TO one")
    assert primary(db) == a
    db.execute("COMMIT")
    assert primary(db) == a


def test_keys_that_were_set_for_good_are_undone_with_the_transaction(db, keys):
    assert primary(db) is None
    with db.transaction(force_rollback=True):
        set_keys(db, keys[0])
        assert primary(db) == pyca.fingerprint(keys[0])
    assert primary(db) is None
    with db.transaction():
        set_keys(db, keys[0])
    assert primary(db) == pyca.fingerprint(keys[0])
    db.execute("DISCARD ALL")
    assert primary(db) is None


def test_keys_of_a_block_that_fails_end_with_it(db, keys):
    set_keys(db, keys[0])
    a, b, c = map(pyca.fingerprint, keys)
    db.execute("""
        CREATE FUNCTION pg_temp.steps(b text, c text) RETURNS text[] LANGUAGE plpgsql AS $$
        DECLARE
            seen text[] := '{}';
        BEGIN
            BEGIN
                PERFORM set_config('fernet.keys', b, true);
                seen := seen || (SELECT fingerprint FROM fernet_keys());
                PERFORM fernet_decrypt('plaintext');
            EXCEPTION WHEN OTHERS THEN
                seen := seen || (SELECT fingerprint FROM fernet_keys());
            END;
            PERFORM set_config('fernet.keys', c, true);
            RETURN seen || (SELECT fingerprint FROM fernet_keys());
        END $$""")
    assert value(db, "SELECT pg_temp.steps(%s, %s)", keys[1], keys[2]) == [b, a, c]
    assert primary(db) == a


def test_keys_of_a_function_end_with_it(db, keys):
    set_keys(db, keys[0])
    a, b, _ = map(pyca.fingerprint, keys)
    for body in "SELECT fingerprint FROM fernet_keys()", "SELECT fernet_decrypt('plaintext')":
        db.execute(f"CREATE OR REPLACE FUNCTION pg_temp.bring() RETURNS text LANGUAGE sql SET fernet.keys = '{keys[1]}' AS $${body}$$")
        try:
            assert value(db, "SELECT pg_temp.bring()") == b
        except errors.InvalidTextRepresentation:
            assert "decrypt" in body
        assert primary(db) == a


def test_a_statement_that_changes_the_keys_uses_them_from_there_on(db, keys):
    set_keys(db, keys[0])
    rows = db.execute("SELECT set_config('fernet.keys', k, false) IS NOT NULL, fernet_encrypt('x') FROM unnest(%s::text[]) AS k", [keys]).fetchall()
    assert [pyca.opener(keys, token.encode()) for _, token in rows] == [0, 1, 2]


def test_parallel_workers_follow_savepoints(db, table, keys):
    force_parallel(db)
    query = "SELECT sum(fernet_key_index(token)) FROM secrets"

    def total():
        _, workers = plan(db, query)
        assert workers > 0
        return value(db, query)

    set_keys(db, keys[1])
    assert total() == ROWS
    with db.transaction():
        db.execute(f"SET LOCAL fernet.keys = '{keys[0]}', '{keys[1]}'")
        assert total() == 2 * ROWS
        with db.transaction(force_rollback=True):
            db.execute(f"SET LOCAL fernet.keys = '{keys[0]}', '{keys[2]}', '{keys[1]}'")
            assert total() == 3 * ROWS
        assert total() == 2 * ROWS
    assert total() == ROWS


# Plans that are kept.

@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan", "auto"])
def test_a_prepared_statement_uses_the_keys_of_its_execution(db, table, keys, mode):
    db.execute(f"SET plan_cache_mode = {mode}")
    token = value(db, "SELECT token FROM secrets WHERE n = 1")
    # With a parameter; with a constant, which the planner may evaluate; inside a condition, which it estimates.
    db.execute("PREPARE parameter(text) AS SELECT fernet_key_index($1)")
    db.execute(f"PREPARE constant AS SELECT fernet_key_index('{token}')")
    db.execute(f"PREPARE condition AS SELECT count(*) FROM secrets WHERE n <= fernet_key_index('{token}') AND fernet_key_index(token) > 0")
    db.execute("PREPARE encrypting AS SELECT fernet_encrypt('x')")
    lists = [keys, keys[1:], [keys[0], keys[2]], [keys[1], keys[0]], [keys[0], keys[1]]] * 3
    for configured in lists:
        set_keys(db, *configured)
        index = configured.index(keys[1]) + 1 if keys[1] in configured else None
        assert value(db, f"EXECUTE parameter('{token}')") == index
        assert value(db, "EXECUTE constant") == index
        assert value(db, "EXECUTE condition") == (index or 0)
        assert pyca.opener(configured, value(db, "EXECUTE encrypting").encode()) == 0
    db.execute("RESET fernet.keys")
    for statement in f"parameter('{token}')", "constant", "condition", "encrypting":
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            db.execute("EXECUTE " + statement)
    # Without keys, a statement can be prepared, and explained as long as nothing is evaluated.
    db.execute(f"PREPARE later AS SELECT fernet_decrypt('{token}')")
    set_keys(db, *keys)
    assert value(db, "EXECUTE later") == "1"


def test_plans_of_plpgsql_use_the_keys_of_the_moment(db, table, keys):
    db.execute("""
        CREATE FUNCTION pg_temp.index_of(t text) RETURNS integer LANGUAGE plpgsql AS $$
        DECLARE
            i integer := fernet_key_index(t);
        BEGIN
            RETURN i;
        END $$""")
    token = value(db, "SELECT token FROM secrets WHERE n = 1")
    for configured in [keys, keys[1:], [keys[0]]] * 5:
        set_keys(db, *configured)
        assert value(db, "SELECT pg_temp.index_of(%s)", token) == value(db, "SELECT fernet_key_index(%s)", token)


def test_a_cursor_uses_the_keys_of_each_fetch(db, table, keys):
    with db.transaction():
        db.execute("DECLARE c CURSOR FOR SELECT fernet_key_index(token) FROM secrets")
        for configured, index in (keys, 2), (keys[1:], 1), ([keys[0]], None):
            db.execute(f"SET LOCAL fernet.keys = '{','.join(configured)}'")
            assert db.execute("FETCH 3 FROM c").fetchall() == [(index,)] * 3


# Expressions that are stored.

def test_triggers(db, table, keys):
    db.execute("""
        CREATE FUNCTION pg_temp.seal() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT fernet_is_token(NEW.token) THEN
                NEW.token := fernet_encrypt(NEW.token);
            END IF;
            RETURN NEW;
        END $$""")
    db.execute("CREATE TRIGGER seal BEFORE INSERT OR UPDATE ON secrets FOR EACH ROW EXECUTE FUNCTION pg_temp.seal()")
    db.execute("INSERT INTO secrets SELECT n, 'new ' || n FROM generate_series(1001, 1100) AS n")
    assert indexes(db) == {1: 100, 2: ROWS}
    assert value(db, "SELECT count(*) FROM secrets WHERE fernet_decrypt(token) = 'new ' || n") == 100
    db.execute("UPDATE secrets SET token = fernet_rotate(token)")
    assert indexes(db) == {1: ROWS + 100}
    # Without keys the statement fails as a whole.
    db.execute("RESET fernet.keys")
    before = contents(db)
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.execute("INSERT INTO secrets VALUES (1, fernet_generate_key()), (2, 'plaintext')")
    assert contents(db) == before


CHANGING = ["fernet_encrypt(token)", "fernet_decrypt(token)", "fernet_decrypt(token, '1 day')", "fernet_decrypt_bytea(token)", "fernet_rotate(token)",
            "fernet_key_index(token)", "fernet_timestamp(token)"]


@pytest.mark.parametrize("call", CHANGING)
def test_what_depends_on_the_keys_is_not_stored(db, table, call):
    for command in (f"CREATE INDEX ON secrets (({call}))",
                    f"CREATE INDEX ON secrets (n) WHERE {call} IS NOT NULL",
                    f"ALTER TABLE secrets ADD g text GENERATED ALWAYS AS (({call})::text) STORED",
                    f"CREATE TABLE secrets_2 (token text) PARTITION BY LIST (({call}))"):
        with pytest.raises(errors.InvalidObjectDefinition, match="IMMUTABLE|immutable"):
            db.execute(command)


def test_the_form_of_a_token_is_stored(db, table, keys):
    """Its result does not depend on the keys: in an index, a generated column, a check."""
    db.execute("ALTER TABLE secrets ADD is_token boolean GENERATED ALWAYS AS (fernet_is_token(token)) STORED")
    db.execute("CREATE INDEX of_form ON secrets (fernet_is_token(token))")
    db.execute("CREATE INDEX of_plaintexts ON secrets (n) WHERE NOT fernet_is_token(token)")
    db.execute("INSERT INTO secrets SELECT n, 'plaintext' FROM generate_series(1001, 1010) AS n")
    db.execute("SET enable_seqscan = off")
    for configured in keys, [keys[0]], []:
        if configured:
            set_keys(db, *configured)
        else:
            db.execute("RESET fernet.keys")
        assert value(db, "SELECT count(*) FROM secrets WHERE is_token") == ROWS
        query = "SELECT count(*) FROM secrets WHERE NOT fernet_is_token(token)"
        assert "Index" in str(plan(db, query)[0])
        assert value(db, query) == 10
    set_keys(db, *keys)
    db.execute("UPDATE secrets SET token = CASE WHEN is_token THEN fernet_rotate(token) ELSE fernet_encrypt(token) END")
    assert indexes(db) == {1: ROWS + 10}
    assert value(db, "SELECT count(*) FROM secrets WHERE NOT is_token") == 0
    db.execute("ALTER TABLE secrets ADD CHECK (fernet_is_token(token))")
    with pytest.raises(errors.CheckViolation):
        db.execute("INSERT INTO secrets VALUES (1, 'plaintext')")
