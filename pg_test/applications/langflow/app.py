"""Langflow's own models write secrets into every column that holds tokens, and read them."""

import asyncio
import json
import os
import sys
from datetime import datetime, timedelta, timezone
from uuid import uuid4

# This comes first: in another order, its modules import each other in a circle.
import langflow.services.database.models
import langflow.services.factory
from cryptography.fernet import Fernet
from langflow.cli.integrity import check_credentials
from langflow.services.auth import mcp_encryption, utils
from langflow.services.auth.service import AuthService
from langflow.services.background_execution.service import BackgroundExecutionService
from langflow.services.connection import service as connections
from langflow.services.database.models import ApiKey, Flow, Folder, User, Variable
from langflow.services.database.models.api_key.crud import create_api_key
from langflow.services.database.models.api_key.model import ApiKeyCreate
from langflow.services.database.models.connection.model import Connection, ConnectionSecret
from langflow.services.database.models.connection.oauth import ConnectionOAuth
from langflow.services.database.models.deployment_provider_account import crud as accounts
from langflow.services.database.models.deployment_provider_account.model import DeploymentProviderAccount
from langflow.services.database.models.jobs.model import Job
from langflow.services.database.models.mcp_server.model import MCPServer
from langflow.services.database.models.trigger.model import Trigger, TriggerCleanup
from langflow.services.database.service import DatabaseService
from langflow.services.deps import get_settings_service
from langflow.services.schema import ServiceType
from langflow.services.triggers.service import TriggerService
from langflow.services.variable.service import DatabaseVariableService
from lfx.services.manager import get_service_manager
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

# The factories of its services import all services, and with them all of LangChain, only to learn what each
# needs. The services that are needed here are made by hand.
langflow.services.factory.import_all_services_into_a_dict = dict
langflow.services.factory.infer_service_types = lambda *_: []

# Of different lengths, and not all ASCII.
SECRETS = ["x", "pässwörd", "s" * 4000]


async def write(session):
    for n, secret in enumerate(SECRETS):
        user = User(username=str(n), password="", store_api_key=utils.encrypt_api_key(secret))
        flow = Flow(name="flow", user_id=user.id, data={})
        session.add_all([user, flow])
        await session.flush()
        await variables().create_variable(user.id, "variable", secret, session=session)
        session.add(Variable(name="of an old version", type="Credential", user_id=user.id, value=encrypted_by_an_old_version(secret)))
        await create_api_key(session, ApiKeyCreate(name="key"), user.id)
        session.add(Folder(name="folder", user_id=user.id, auth_settings=mcp_encryption.encrypt_auth_settings(
            {"auth_type": "oauth", "oauth_client_secret": secret, "api_key": secret})))
        session.add(MCPServer(name="server", user_id=user.id, config=mcp_encryption.encrypt_mcp_config(
            {"command": "x", "env": {"TOKEN": secret}, "headers": {"Authorization": secret}, "args": ["--headers", "Key", secret]})))
        await accounts.create_provider_account(
            session, user_id=user.id, name="account", provider_tenant_id=None, provider_key="watsonx-orchestrate",
            provider_url="https://example.com", api_key=secret)
        await write_connection(session, user, secret)
        await write_trigger(session, user, flow, secret)
        await write_job(session, user, flow, secret)


async def write_connection(session, user, secret):
    connection = Connection(owner_id=user.id, provider_key="provider", name="connection", display_name="", executing_identity={})
    session.add(connection)
    await session.flush()
    session.add(ConnectionSecret(connection_id=connection.id, encrypted_payload=payload(secret)))
    session.add(ConnectionOAuth(
        connection_id=connection.id, user_id=user.id, registration_id="", config_digest="", scopes=[],
        expires_at=soon(), encrypted_verifier=utils.encrypt_api_key(secret)))


async def write_trigger(session, user, flow, secret):
    trigger = Trigger(name="trigger", kind="webhook", user_id=user.id, flow_id=flow.id, node_id="node", config={}, provider_state={})
    session.add(trigger)
    await session.flush()
    await TriggerService().rotate_signing_secret(session, row=trigger)
    session.add(TriggerCleanup(
        id=uuid4(), trigger_id=trigger.id, user_id=user.id, provider="provider", kind="webhook", provider_subscription_id="",
        encrypted_credential=payload(secret)))


async def write_job(session, user, flow, secret):
    job = Job(job_id=uuid4(), flow_id=flow.id, user_id=user.id)
    job.job_metadata = jobs()._persisted_request_metadata(
        job_id=job.job_id, flow_id=flow.id, request={"flow_id": str(flow.id), "globals": {"secret": secret}})
    session.add(job)


async def read(session):
    """What the application makes of each secret, by its place."""
    found = {}

    async def note(place, reading, *arguments):
        try:
            result = reading(*arguments)
            found[place] = await result if asyncio.iscoroutine(result) else result
        except Exception as error:
            found[place] = type(error).__name__

    async def all_of(model, owner):
        return (await session.exec(select(model).where(owner == user.id))).all()

    for user in (await session.exec(select(User).order_by(User.username))).all():
        n = user.username
        await note(f"store {n}", utils.decrypt_api_key, user.store_api_key)
        for name in "variable", "of an old version":
            await note(f"{name} {n}", read_variable, session, user, name)
        for key in await all_of(ApiKey, ApiKey.user_id):
            await note(f"API key {n}", utils.decrypt_api_key, key.api_key)
        for folder in await all_of(Folder, Folder.user_id):
            await note(f"folder {n}", mcp_encryption.decrypt_auth_settings, folder.auth_settings)
        for server in await all_of(MCPServer, MCPServer.user_id):
            await note(f"server {n}", mcp_encryption.decrypt_mcp_config, server.config)
        for account in await all_of(DeploymentProviderAccount, DeploymentProviderAccount.user_id):
            await note(f"account {n}", utils.decrypt_api_key, account.api_key)
        for connection in await all_of(Connection, Connection.owner_id):
            secret = await session.get(ConnectionSecret, connection.id)
            await note(f"connection {n}", connections._decrypt_credential_payload, secret.encrypted_payload)
        for oauth in await all_of(ConnectionOAuth, ConnectionOAuth.user_id):
            await note(f"verifier {n}", utils.decrypt_api_key, oauth.encrypted_verifier)
        for trigger in await all_of(Trigger, Trigger.user_id):
            await note(f"trigger {n}", utils.decrypt_api_key, trigger.signing_secret_encrypted)
        for cleanup in await all_of(TriggerCleanup, TriggerCleanup.user_id):
            await note(f"cleanup {n}", connections._decrypt_credential_payload, cleanup.encrypted_credential)
        for job in await all_of(Job, Job.user_id):
            await note(f"job {n}", jobs()._decrypt_request_overrides, job, job.job_metadata)
    found["its own check"] = (await check_credentials(session)).status
    return found


async def read_variable(session, user, name):
    return (await variables().get_variable(user.id, name, "", session)).get_secret_value()


def encrypted_by_an_old_version(secret):
    """Before 1.10.1 a short secret key became another Fernet key."""
    key = get_settings_service().auth_settings.SECRET_KEY.get_secret_value()
    derive = utils._ensure_legacy_fernet_key if len(key) < 32 else utils.ensure_fernet_key
    return Fernet(derive(key)).encrypt(secret.encode()).decode()


def payload(secret):
    return connections._encrypt_credential_payload(json.dumps({"version": 1, "access_token": secret}))


def soon():
    return datetime.now(timezone.utc) + timedelta(hours=1)


def variables():
    return DatabaseVariableService(get_settings_service())


def jobs():
    return BackgroundExecutionService(get_settings_service())


async def main():
    os.environ["LANGFLOW_DATABASE_URL"] = os.environ["DATABASE_URL"]
    manager = get_service_manager()
    manager.set_factory_registered()
    manager.services[ServiceType.AUTH_SERVICE] = AuthService(get_settings_service())
    database = DatabaseService(get_settings_service())
    if sys.argv[1] == "write":
        await database.run_migrations()
    async with AsyncSession(database.engine, expire_on_commit=False) as session:
        if sys.argv[1] == "write":
            await write(session)
            await session.commit()
        print(json.dumps(await read(session)))


asyncio.run(main())
