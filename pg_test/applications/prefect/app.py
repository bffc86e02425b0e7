"""Prefect's own server, in this process, and its client: `write` saves blocks, and both print what is read back."""

import asyncio
import json
import os
import sys
import tempfile

folder = tempfile.TemporaryDirectory()
os.environ |= {
    "PREFECT_HOME": folder.name,
    "PREFECT_API_DATABASE_CONNECTION_URL": os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:"),
    # The client sends no events: they would go to a server of its own if it has a key but no URL.
    "PREFECT_API_KEY": "none",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.server.api.server import create_app
from pydantic import SecretStr

SECRETS = {"short": "x", "text": "Grüße 東京", "document": {"list": [1, None, "a"]}, "key": "k" * 32, "long": "hunter2 " * 1000}


class Account(Block):
    """Has another block in it, and a field that is not secret."""

    user: str
    password: SecretStr
    token: Secret


async def write(client):
    for name, value in SECRETS.items():
        await Secret(value=value).save(name, client=client)
    token = await Secret.load("text", client=client)
    await Account(user="ann", password="hunter2", token=token).save("account", client=client)


async def read(client):
    secrets = {name: (await Secret.load(name, client=client)).get() for name in SECRETS}
    account = await Account.load("account", client=client)
    return secrets, account.user, account.password.get_secret_value(), account.token.get()


async def main():
    async with PrefectClient(create_app(ephemeral=True)) as client:
        if sys.argv[1] == "write":
            await write(client)
        print(json.dumps(await read(client)))


asyncio.run(main())
