"""Phoenix's own server, in this process, stores what the arguments name, and returns all that is stored."""

import asyncio
import json
import os
import sys
import tempfile

folder = tempfile.TemporaryDirectory()
os.environ |= {"PHOENIX_WORKING_DIR": folder.name, "PHOENIX_TELEMETRY_ENABLED": "false"}

import httpx
from phoenix.config import get_env_phoenix_secret
from phoenix.db.engines import create_engine
from phoenix.server.app import _db, create_app
from phoenix.server.redaction import Redactor
from phoenix.server.types import DbSessionFactory

SECRETS = {"OPENAI_API_KEY": "x", "E2B_API_KEY": "Grüße 東京", "GITHUB_TOKEN": "k" * 32, "GEMINI_API_KEY": "hunter2 " * 1000}
PROVIDERS = {
    "short": {"openaiAuthenticationMethod": {"apiKey": "hunter2"}, "openaiClientKwargs": None},
    "long": {"openaiAuthenticationMethod": {"apiKey": "h" * 1000},
             "openaiClientKwargs": {"baseUrl": "https://example.com", "defaultHeaders": {"X-Team": "red"}}},
}
STORE = """
    mutation ($name: String!, $openai: OpenAICustomProviderConfigInput!) {
        createGenerativeModelCustomProvider(
            input: {name: $name, provider: "openai", clientConfig: {openai: $openai}}
        ) { __typename }
    }"""
READ = """{
    secrets { edges { node { key value { ... on DecryptedSecret { value } ... on UnparsableSecret { parseError } } } } }
    generativeModelCustomProviders { edges { node { name config {
        ... on OpenAICustomProviderConfig { openaiAuthenticationMethod { apiKey } openaiClientKwargs { baseUrl defaultHeaders } }
        ... on UnparsableConfig { parseError }
    } } } }
}"""


async def store_secrets(client):
    secrets = [{"key": key, "value": value} for key, value in SECRETS.items()]
    (await client.put("/v1/secrets", json={"secrets": secrets})).raise_for_status()


async def store_providers(client):
    for name, config in PROVIDERS.items():
        answer = await client.post("/graphql", json={"query": STORE, "variables": {"name": name, "openai": config}})
        assert "errors" not in answer.json(), answer.text


async def read(client, redactor):
    """What the user interface shows, with the secrets that it hides."""
    def shown(node):
        return {name: redactor.unredact(value) if isinstance(value, str) else value for name, value in node.items()}

    data = json.loads((await client.post("/graphql", json={"query": READ})).text, object_hook=shown)["data"]
    return [edge["node"][field] for name, field in [("secrets", "value"), ("generativeModelCustomProviders", "config")]
            for edge in data[name]["edges"]]


async def main():
    secret = get_env_phoenix_secret()
    engine = create_engine(os.environ["DATABASE_URL"], log_migrations=False)
    sessions = DbSessionFactory(_db(engine), engine.dialect.name)
    app = create_app(sessions, authentication_enabled=False, secret=secret, serve_ui=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://phoenix") as client:
        for what in sys.argv[1:]:
            await {"secrets": store_secrets, "providers": store_providers}[what](client)
        print(json.dumps(await read(client, Redactor(secret))))
    await engine.dispose()


asyncio.run(main())
