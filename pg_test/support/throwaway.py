"""The tests, the demo and the benchmarks write only to a server that scripts/with-server has started."""

import os

import psycopg


def refuse_another_server():
    """Ends the program if the environment leads to a server that is not ours."""
    try:
        with psycopg.connect() as connection:
            # Nothing, for a role that may not see it: then it is not ours either.
            (reached,) = connection.execute(
                "SELECT max(setting) FROM pg_settings WHERE name = 'data_directory'").fetchone()
    except psycopg.OperationalError:
        return  # no server, nothing to protect
    # with-server sets both.
    if "PG_FERNET_RUN" not in os.environ or reached != os.environ.get("PGDATA"):
        raise SystemExit("this would write to a server that is not a throwaway one: run it with scripts/with-server")
