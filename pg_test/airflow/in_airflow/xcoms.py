"""XComs, as a task pushes and pulls them, with Delta Lake and Iceberg tables in them.

A test names such a table by the part of it that Airflow encrypts: {"delta": {"secret_key": "..."}}.
"""

import json
import os
from pathlib import Path

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils import timezone
from deltalake import DeltaTable, Field, Schema
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table
from sqlalchemy import insert

try:  # since 3.0
    from airflow.models.xcom import XComModel
    from airflow.sdk.bases.xcom import BaseXCom
except ImportError:
    from airflow.models.xcom import BaseXCom
    XComModel = BaseXCom

TASK = {"dag_id": "a_dag", "run_id": "a_run", "task_id": "a_task"}
ICEBERG = {"py-catalog-impl": "catalog.Catalog"}


def push(session, rows):
    run = {"dag_id": TASK["dag_id"], "run_id": TASK["run_id"], "run_type": "manual"}
    run["execution_date" if "execution_date" in DagRun.__table__.columns else "run_after"] = timezone.utcnow()
    for model, values in (DagRun, run), (TaskInstance, TASK | {"pool": "default_pool", "pool_slots": 1}):
        if not session.query(model).count():
            session.execute(insert(model.__table__).values(**values))
    for key, value in rows.items():
        value = with_tables(value)
        if XComModel is BaseXCom:
            XComModel.set(key=key, value=value, **TASK, session=session)
        else:  # what the API server does with what a task has sent
            value = json.loads(json.dumps(BaseXCom.serialize_value(value)))
            XComModel.set(key=key, value=value, **TASK, serialize=False, session=session)


def pull(session):
    return {row.key: without_tables(BaseXCom.deserialize_value(row))
            for row in session.query(XComModel.key, XComModel.value)}


def with_tables(value):
    match value:
        case {"delta": secrets}:
            folder = Path(os.environ["AIRFLOW_HOME"], "delta")
            if not folder.exists():
                DeltaTable.create(folder, Schema([Field("id", "integer")]))
            return DeltaTable(folder, storage_options=secrets)
        case {"iceberg": secrets}:
            return load_catalog("warehouse", **ICEBERG, **secrets).load_table(("warehouse", "sales", "orders"))
        case dict():
            return {key: with_tables(child) for key, child in value.items()}
        case list():
            return [with_tables(child) for child in value]
    return value


def without_tables(value):
    match value:
        case DeltaTable():
            return {"delta": value._storage_options}
        case Table():
            return {"iceberg": {name: secret for name, secret in value.catalog.properties.items() if name not in ICEBERG}}
        case dict():
            return {key: without_tables(child) for key, child in value.items()}
        case list():
            return [without_tables(child) for child in value]
    return value
