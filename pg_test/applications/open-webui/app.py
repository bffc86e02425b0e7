"""Open WebUI's own models write secrets into every column that holds tokens, and read them."""

import asyncio
import json
import sys

from open_webui.internal.db import get_async_db
from open_webui.models.apps import App, Apps
from open_webui.models.auths import Auths
from open_webui.models.config import Config
from open_webui.models.functions import FunctionForm, Functions
from open_webui.models.oauth_sessions import OAuthSessions
from open_webui.models.tools import ToolForm, Tools
from open_webui.models.users import Users
from open_webui.utils import mfa, oauth
from open_webui.utils.apps import get_app_encryption_cipher

CONNECTIONS = "tool_server.connections"
# Of different lengths, and not all ASCII.
SECRETS = ["x", "pässwörd", "s" * 4000]


async def write():
    await Config.upsert({"auth.mfa.enable": True, CONNECTIONS: [
        {"url": "https://example.com", "info": {"id": str(n), "oauth_client_info": oauth.encrypt_data({"client_id": secret})}}
        for n, secret in enumerate(SECRETS)]})
    for n, secret in enumerate(SECRETS):
        user = (await Auths.insert_new_auth(f"{n}@example.com", "password", "A user", role="admin")).id
        await OAuthSessions.create_session(user, "provider", {"access_token": secret})
        await Functions.insert_new_function(user, "filter", FunctionForm(id=f"function{n}", name="", content="", meta={}))
        await Functions.update_function_valves_by_id(f"function{n}", {"key": secret})
        await Functions.update_user_valves_by_id_and_user_id(f"function{n}", user, {"key": secret})
        await Tools.insert_new_tool(user, ToolForm(id=f"tool{n}", name="", content="", meta={}), [])
        await Tools.update_tool_valves_by_id(f"tool{n}", {"key": secret})
        await Tools.update_user_valves_by_id_and_user_id(f"tool{n}", user, {"key": secret})
        await write_mfa(user, secret)
        await write_app(f"app{n}", secret)


async def write_mfa(user, secret):
    """An authenticator in use, one that is being set up, and one that is to replace it."""
    await mfa.start_mfa_enrollment((await mfa.start_mfa_login(await mfa.get_auth(user), "password"))["challenge_token"])
    auth = await mfa.get_auth(user)
    data = auth.mfa.model_copy(deep=True)
    data.secret = mfa.cipher().encrypt(secret.encode()).decode()
    data.manage_challenge = data.login_challenge.model_copy()
    data.manage_challenge.secret = mfa.cipher().encrypt(secret.encode()).decode()
    await mfa.save_mfa(auth, data)


async def write_app(name, secret):
    tokens = [get_app_encryption_cipher().encrypt(secret.encode()).decode() for _ in range(2)]
    async with get_async_db() as db:
        db.add(App(id=name, slug=name, name=name, api_key=tokens[0], data={"connection_token": tokens[1]}, created_at=0, updated_at=0))
        await db.commit()


async def read():
    """What the application makes of each secret, by its place."""
    found = {}

    async def note(place, reading, *arguments):
        try:
            result = reading(*arguments)
            found[place] = await result if asyncio.iscoroutine(result) else result
        except Exception as error:
            found[place] = type(error).__name__

    for n, connection in enumerate(await Config.get(CONNECTIONS)):
        await note(f"client {n}", oauth.resolve_oauth_client_info, connection)
    for n in range(len(SECRETS)):
        user = await user_id(n)
        await note(f"session {n}", read_session, user)
        await note(f"function {n}", Functions.get_function_valves_by_id, f"function{n}")
        await note(f"function of a user {n}", Functions.get_user_valves_by_id_and_user_id, f"function{n}", user)
        await note(f"tool {n}", Tools.get_tool_valves_by_id, f"tool{n}")
        await note(f"tool of a user {n}", Tools.get_user_valves_by_id_and_user_id, f"tool{n}", user)
        data = (await mfa.get_auth(user)).mfa
        await note(f"authenticator {n}", mfa.decrypt_secret, data.secret)
        await note(f"authenticator being set up {n}", mfa.decrypt_secret, data.login_challenge.secret)
        await note(f"authenticator to replace it {n}", mfa.decrypt_secret, data.manage_challenge.secret)
        app = await Apps.get_app_by_id(f"app{n}")
        await note(f"app {n}", get_app_encryption_cipher().decrypt, app.api_key)
        await note(f"connection of app {n}", get_app_encryption_cipher().decrypt, app.data["connection_token"])
    return found


async def user_id(n):
    return (await Users.get_user_by_email(f"{n}@example.com")).id


async def read_session(user):
    session = await OAuthSessions.get_session_by_provider_and_user_id("provider", user)
    return session and session.token


async def list_sessions():
    """How many sessions each user is shown."""
    return [len(await OAuthSessions.get_sessions_by_user_id(await user_id(n))) for n in range(len(SECRETS))]


async def main():
    if sys.argv[1] == "write":
        await write()
    print(json.dumps(await (list_sessions if sys.argv[1] == "sessions" else read)(), default=bytes.decode))


asyncio.run(main())
