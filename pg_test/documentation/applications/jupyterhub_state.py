"""JupyterHub's database, with the state of an authenticator. Argument: write or read."""

import asyncio
import sys

from jupyterhub import crypto, orm


async def main():
    session = orm.new_session_factory("postgresql+psycopg://")()
    if sys.argv[1] == "write":
        session.add(orm.User(name="ada", encrypted_auth_state=await crypto.encrypt({"token": "hunter2"})))
        session.commit()
    print((await crypto.decrypt(session.query(orm.User).one().encrypted_auth_state))["token"])


asyncio.run(main())
