"""Databases that belong to a role, and the SQL edition in them as the documentation installs it."""

import os
import subprocess

from psycopg import sql

from edition import superuser
from postgres import ROOT, create_database, drop_database

EDITION = ROOT / "sql" / "edition"


class owned_database:
    """A database of that role's."""

    def __init__(self, name, owner, encoding="UTF8"):
        self.name, self.owner, self.encoding = name, owner, encoding

    def __enter__(self):
        create_database(self.name, self.encoding)
        with superuser() as server:
            server.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(self.name), sql.Identifier(self.owner)))
        return self.name

    def __exit__(self, *_):
        drop_database(self.name)


def run_psql(database, user, file, schema, **options):
    """Runs a file of the edition as the documentation says, with a schema in the path."""
    return subprocess.run(
        ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-U", user, "-f", file],
        env=os.environ | {"PGOPTIONS": f"-c search_path={schema}"}, capture_output=True, text=True,
        **{"check": True} | options)
