"""What a page takes for granted: keys, tables, projects. By page and heading, done before the first block there."""

import os
from pathlib import Path

from cryptography.fernet import Fernet
from key_files import server_user
from pyca import fingerprint

NEW, OLD = (Fernet.generate_key().decode() for _ in range(2))
VENV = Path(os.environ["PG_FERNET_CACHE"], "documentation")


def use_keys(reader, *keys):
    """A key file for the whole server, as in Getting started."""
    reader.write("fernet.keys", "\n".join(keys))
    reader.run_sql(f"""
        CREATE EXTENSION IF NOT EXISTS pg_fernet;
        ALTER SYSTEM SET fernet.keys_file = '{reader.folder}/fernet.keys';
        SELECT pg_reload_conf();""")


def database_to_try(reader):
    """As Getting started advises, after the first statements have been typed elsewhere."""
    reader.run_sql("CREATE DATABASE try;")
    reader.use_database("try")


def airflow(reader):
    """The relevant parts of the metadata database of Airflow 3.3."""
    reader.run_sql("CREATE ROLE airflow LOGIN; CREATE DATABASE airflow OWNER airflow;")
    reader.use_database("airflow")
    reader.run_sql("""
        SET ROLE airflow;
        CREATE TABLE dag_run ();
        CREATE TABLE dag_bundle ();
        CREATE TABLE connection (conn_id text, password text, extra text, is_encrypted bool, is_extra_encrypted bool);
        CREATE TABLE variable (key text, val text, is_encrypted bool);
        CREATE TABLE trigger (id serial, kwargs text);
        CREATE TABLE xcom (dag_id text, run_id text, task_id text, map_index integer, key text, value jsonb);
        CREATE TABLE connection_test_request
            (connection_id text, password text, extra text, is_encrypted bool, is_extra_encrypted bool);
        RESET ROLE;""")
    reader.write("fernet.keys", f"{NEW}\n{OLD}")


def airflow_with_the_extension(reader):
    airflow(reader)
    reader.run_sql("""
        CREATE SCHEMA fernet;
        CREATE EXTENSION pg_fernet SCHEMA fernet;
        GRANT USAGE ON SCHEMA fernet TO airflow;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA fernet TO airflow;""")
    reader.use_database("try")


def airflow_without_keys(reader):
    reader.run_sql("""
        INSERT INTO connection SELECT id, 'secret', '{}', false, false FROM generate_series(1, 10) AS id;
        INSERT INTO variable SELECT id, 'value', false FROM generate_series(1, 10) AS id;""")


def airflow_with_old_tokens(reader):
    reader.write("fernet.keys", OLD)
    reader.run_sql(f"""
        TRUNCATE connection, variable, trigger, xcom;
        BEGIN;
        SET LOCAL search_path = public, fernet;
        SET LOCAL fernet.keys = '{OLD}';
        INSERT INTO connection SELECT id, CASE WHEN id <= 771 THEN fernet_encrypt('secret') END,
            CASE WHEN id > 172 THEN fernet_encrypt('{{}}') END, id <= 771, id > 172 FROM generate_series(1, 812) AS id;
        INSERT INTO variable SELECT id, fernet_encrypt('value'), true FROM generate_series(1, 95) AS id;
        INSERT INTO trigger (kwargs) SELECT fernet_encrypt('{{}}') FROM generate_series(1, 3);
        INSERT INTO trigger (kwargs) SELECT '{{}}' FROM generate_series(1, 12);
        INSERT INTO xcom SELECT 'dag', id, 'task', -1, 'return_value', jsonb_build_array(fernet_encrypt('key'), fernet_encrypt('secret'))
            FROM generate_series(1, 8) AS id;
        INSERT INTO xcom SELECT 'dag', id, 'task', -1, 'rows', to_jsonb(id) FROM generate_series(1, 100) AS id;
        COMMIT;""")


def keys_for_secrets(reader):
    use_keys(reader, NEW, OLD)
    reader.run_sql("CREATE TABLE secrets (id integer, value text);")


def large_column(reader):
    def fill(rows, value, key=None):
        return f"""
            BEGIN;
            SET LOCAL fernet.keys = '{key or Fernet.generate_key().decode()}';
            INSERT INTO secrets SELECT id, {value} FROM generate_series(1, {rows}) AS id;
            COMMIT;"""

    reader.run_sql(fill(2, "fernet_encrypt('lost')") + fill(1934, "fernet_encrypt('secret')", NEW)
                   + fill(197061, "fernet_encrypt('secret')", OLD) + fill(1003, "NULL") + "ANALYZE secrets;")


def table_with_owners(reader):
    reader.run_sql("""
        CREATE TABLE connection (id integer, password varchar(1000), owner name);
        CREATE SCHEMA fernet;
        CREATE EXTENSION pg_fernet SCHEMA fernet;""")
    use_keys(reader, NEW)


def project(reader):
    reader.run_sql("CREATE DATABASE app;")
    reader.use_database("app")
    use_keys(reader, NEW, OLD)
    reader.fingerprints["cbeb362f1fa69a66"] = fingerprint(NEW)
    reader.run_sql("CREATE TABLE secrets (id integer, value text);")
    old_secrets(reader)


def old_secrets(reader):
    reader.run_sql(f"""
        TRUNCATE secrets;
        BEGIN;
        SET LOCAL fernet.keys = '{OLD}';
        INSERT INTO secrets SELECT id, fernet_encrypt('secret') FROM generate_series(1, 1000) AS id;
        COMMIT;""")


def alembic_project(reader):
    old_secrets(reader)
    reader.environment["PATH"] = f"{VENV}/bin:{reader.environment['PATH']}"
    reader.run_sh("alembic init migrations; sed -i 's|^sqlalchemy.url = .*|sqlalchemy.url = postgresql+psycopg:///app|' alembic.ini")
    for path in reader.folder.rglob("*"):
        os.chown(path, *server_user())


def all_rotated(reader):
    reader.run_sql("SELECT 1 / (count(*) = 0)::int FROM secrets WHERE fernet_key_index(value) IS DISTINCT FROM 1;")


def rotated_by_alembic(reader):
    all_rotated(reader)
    old_secrets(reader)


def vault(reader):
    use_keys(reader, NEW)
    reader.write("vault.keys", NEW)
    reader.run_sql("""
        CREATE TABLE vault_secret AS SELECT fernet_encrypt('hunter2') AS value;
        CREATE TABLE users AS SELECT fernet_encrypt('{}')::bytea AS encrypted_auth_state;
        CREATE TABLE account AS SELECT jsonb_build_object('token', fernet_encrypt('hunter2')) AS settings;""")


def one_key(reader):
    use_keys(reader, NEW)


def prefect(reader):
    reader.run_sql(f"""
        CREATE TABLE block_document AS SELECT to_jsonb(fernet_encrypt('{{}}')) AS data;
        CREATE TABLE configuration AS SELECT 'ENCRYPTION_KEY' AS key, jsonb_build_object('fernet_key', '{NEW}') AS value;""")


def one_column(reader):
    use_keys(reader, NEW, OLD)
    reader.run_sql("CREATE TABLE connection (id integer, password text);")


def keys_of_the_client(reader):
    old_secrets(reader)
    reader.run_sql("ALTER SYSTEM RESET fernet.keys_file; SELECT pg_reload_conf();")


def token(plaintext):
    """A token under the old key, made in a place without the native extension."""
    return Fernet(OLD).encrypt(plaintext.encode()).decode()


def managed(reader):
    """A database whose owner has no other rights, with tokens and the files of keys."""
    reader.run_sql("CREATE ROLE app LOGIN; CREATE DATABASE app OWNER app;")
    reader.use_database("app")
    reader.run_sql(f"SET ROLE app; CREATE TABLE secrets AS SELECT '{token('secret')}'::text AS value FROM generate_series(1, 3);")
    reader.leave_psql()
    reader.write("new.key", NEW)
    reader.write("old.key", OLD)


def managed_airflow(reader):
    """Airflow's tables with tokens, in a database of a role that has no other rights."""
    airflow(reader)
    reader.run_sql(f"""
        SET ROLE airflow;
        INSERT INTO connection SELECT id, CASE WHEN id <= 771 THEN '{token("secret")}' END,
            CASE WHEN id > 172 THEN '{token("{}")}' END, id <= 771, id > 172 FROM generate_series(1, 812) AS id;
        INSERT INTO variable SELECT id, '{token("value")}', true FROM generate_series(1, 95) AS id;
        INSERT INTO trigger (kwargs) SELECT '{token("{}")}' FROM generate_series(1, 3);
        INSERT INTO xcom SELECT 'dag', id, 'task', -1, 'return_value', jsonb_build_array('{token("key")}', '{token("secret")}')
            FROM generate_series(1, 8) AS id;""")
    reader.leave_psql()


def managed_rotator(reader):
    """Tokens under the old key, a role that may not decrypt them, and a session of the owner."""
    reader.use_database("app")
    reader.run_sql(f"CREATE ROLE rotator LOGIN; SET ROLE app; UPDATE secrets SET value = '{token('secret')}';")


PREPARATIONS = {
    ("README.md", "Getting started"): database_to_try,
    ("README.md", "Airflow"): airflow_with_the_extension,
    ("docs/airflow.md", "Before you start"): airflow,
    ("docs/airflow.md", "Encrypt later"): airflow_without_keys,
    ("docs/airflow.md", "Rotate with no downtime"): airflow_with_old_tokens,
    ("docs/applications.md", "Other applications"): vault,
    ("docs/applications.md", "Prefect"): prefect,
    ("docs/columns.md", "Encrypting a column"): one_key,
    ("docs/managed.md", "Install"): managed,
    ("docs/managed.md", "Airflow on RDS"): managed_airflow,
    ("docs/managed.md", "Rotate without being able to decrypt"): managed_rotator,
    ("docs/migrations.md", "Rules"): project,
    ("docs/migrations.md", "Alembic"): alembic_project,
    ("docs/migrations.md", "Alembic, in batches"): rotated_by_alembic,
    ("docs/migrations.md", "sqitch"): all_rotated,
    ("docs/migrations.md", "Where the client has the keys"): keys_of_the_client,
    ("docs/operations.md", "Rotating a large column"): keys_for_secrets,
    ("docs/operations.md", "2. Dry run"): large_column,
    ("docs/security.md", "Privileges"): table_with_owners,
    ("docs/troubleshooting.md", "Troubleshooting"): one_column,
}
