"""Changes the password of a connection as Airflow's web server does, in steps that a test sets.

Answers each step on a line of stdout, so that the test knows when it is done:
load, change PASSWORD, flush, commit.
"""

import sys

from airflow.models import Connection
from airflow.utils.session import create_session
from sqlalchemy import select

conn_id = sys.argv[1]
with create_session() as session:
    connection = None
    for line in sys.stdin:
        step, _, argument = line.strip().partition(" ")
        if step == "load":
            connection = session.scalar(select(Connection).where(Connection.conn_id == conn_id))
        elif step == "change":
            connection.password = argument
        elif step == "flush":
            session.flush()
        elif step == "commit":
            session.commit()
        else:
            sys.exit(f"no such step: {step}")
        print("done:", step, flush=True)
