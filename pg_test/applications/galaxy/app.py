"""Galaxy: its vault in the database keeps secrets of several lengths, and reads them. Prints them as JSON."""

import json
import os
import sys
from types import SimpleNamespace

from galaxy.model import mapping
from galaxy.security.vault import UserVaultWrapper, VaultFactory

SECRETS = {f"preferences/{name}/secret": value for name, value in {
    "short": "x", "block": "0123456789abcdef", "words": "ein Geheimnis für später", "json": '{"token": "hunter2"}',
    "long": "hunter2 " * 1000}.items()}

command, configuration = sys.argv[1:]
models = mapping.init("/tmp", os.environ["DATABASE_URL"], create_tables=command == "write")
app = SimpleNamespace(config=SimpleNamespace(vault_config_file=configuration), model=models)
vault = VaultFactory.from_app(app)
users = [UserVaultWrapper(vault, SimpleNamespace(id=number)) for number in (1, 2)]
if command == "write":
    for user in users:
        for name, value in SECRETS.items():
            user.write_secret(name, value)
    vault.write_secret("oidc/client_secret", "hunter2")
print(json.dumps([vault.read_secret("oidc/client_secret")] + [user.read_secret(name) for user in users for name in SECRETS]))
