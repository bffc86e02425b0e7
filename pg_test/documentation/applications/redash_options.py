"""Redash's two columns, in SQLAlchemy-Utils' type and with its engine, as redash/models has them. Argument: write or read."""

import json
import os
import sys

from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, insert, select
from sqlalchemy_utils import EncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import FernetEngine

SECRET = os.environ.get("REDASH_SECRET_KEY", os.environ.get("REDASH_COOKIE_SECRET"))
OPTIONS = [{"dbname": "x"}, {"host": "db", "password": "hunter2", "port": 5432}, {"key": "long " * 500, "ü": "✓"}]


class Options(EncryptedType):
    """The JSON of a data source's options."""

    cache_ok = True

    def process_bind_param(self, value, dialect):
        return super().process_bind_param(json.dumps(value, sort_keys=True), dialect)

    def process_result_value(self, value, dialect):
        return json.loads(super().process_result_value(value, dialect))


metadata = MetaData()
tables = [Table(name, metadata, Column("id", Integer, primary_key=True), Column("encrypted_options", Options(Text, SECRET, FernetEngine)))
          for name in ["data_sources", "notification_destinations"]]

with create_engine("postgresql+psycopg://").begin() as connection:
    if sys.argv[1] == "write":
        metadata.create_all(connection)
        for table in tables:
            connection.execute(insert(table), [{"encrypted_options": options} for options in OPTIONS])
    for table in tables:
        assert connection.scalars(select(table.c.encrypted_options).order_by(table.c.id)).all() == OPTIONS
