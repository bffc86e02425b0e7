"""Keystone: its credential API stores a blob of each type and of several lengths, and reads them. Prints them as JSON."""

import json
import sys

import keystone.conf
from keystone.common import sql
from keystone.server import backends

CONF, COMMAND, CONFIGURATION = keystone.conf.CONF, *sys.argv[1:]

keystone.conf.configure()
CONF(["--config-file", CONFIGURATION], project="keystone")
sql.initialize()
api = backends.load_backends()["credential_api"]

if COMMAND == "write":
    for number, length in enumerate([1, 15, 16, 32, 200, 5000]):
        api.create_credential(f"totp{number}", {"id": f"totp{number}", "user_id": "u", "project_id": None, "type": "totp",
                                                "blob": "ü" * length})
    api.create_credential("ec2", {"id": "ec2", "user_id": "u", "project_id": "p", "type": "ec2",
                                  "blob": {"access": "a", "secret": "hunter2"}})
print(json.dumps({ref["id"]: ref["blob"] for ref in api.list_credentials()}, sort_keys=True))
