"""Stores the rows that stdin names, as JSON, through Airflow's own models."""

import json
import sys

import pendulum
from airflow.models import Connection, Trigger, Variable
from airflow.utils.session import create_session

rows = json.load(sys.stdin)
with create_session() as session:
    for row in rows.get("connections", []):
        session.add(Connection(**row))
    for row in rows.get("variables", []):
        session.add(Variable(**row))
    for row in rows.get("triggers", []):
        kwargs = row["kwargs"]
        if "moment" in kwargs:  # what the temporal triggers take is a time, not a string
            kwargs = {**kwargs, "moment": pendulum.parse(kwargs["moment"])}
        session.add(Trigger(classpath=row["classpath"], kwargs=kwargs))
    if rows.get("xcoms"):
        import xcoms

        xcoms.push(session, rows["xcoms"])
    if rows.get("connection_tests"):
        from airflow.models.connection_test import ConnectionTestRequest  # since 3.3

        for row in rows["connection_tests"]:
            session.add(ConnectionTestRequest(**row))
