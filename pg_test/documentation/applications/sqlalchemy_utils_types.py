"""An application with a column of a type from SQLAlchemy-Utils. Arguments: type; engine; write or read."""

import os
import sys

import sqlalchemy_utils
from sqlalchemy import Integer, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column
from sqlalchemy_utils.types.encrypted import encrypted_type

kind, engine, action = sys.argv[1:]


class Base(DeclarativeBase):
    pass


class Secret(Base):
    __tablename__ = "vault_secret"
    id = mapped_column(Integer, primary_key=True)
    value = mapped_column(getattr(sqlalchemy_utils, kind)(String, os.environ["SECRET_KEY"], getattr(encrypted_type, engine)))


engine = create_engine("postgresql+psycopg://")
with Session(engine) as session:
    if action == "write":
        Base.metadata.create_all(engine)
        session.add(Secret(value="hunter2"))
        session.commit()
    print(session.query(Secret).one().value)
