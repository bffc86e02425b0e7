"""Prints everything that can be encrypted, as JSON, as Airflow's own models decrypt it."""

import json
import sys

from airflow.models import Connection, Trigger, Variable
from airflow.utils.session import create_session
from sqlalchemy import select

import xcoms


def secrets_of(row):
    return {"password": row.password, "extra": row.extra}


with create_session() as session:
    found = {
        "connections": {
            row.conn_id: secrets_of(row) for row in session.scalars(select(Connection))
        },
        "variables": {row.key: row.val for row in session.scalars(select(Variable))},
        "triggers": {row.classpath: row.kwargs for row in session.scalars(select(Trigger))},
        "xcoms": xcoms.pull(session),
    }
    if sys.argv[1:] == ["connection_tests"]:
        from airflow.models.connection_test import ConnectionTestRequest  # since 3.3

        found["connection_tests"] = {
            row.connection_id: secrets_of(row)
            for row in session.scalars(select(ConnectionTestRequest))
        }

# Airflow logs to stdout too: the answer is the last line.
print()
print(json.dumps(found, default=lambda time: time.isoformat()))
