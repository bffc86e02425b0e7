"""An application on Django with a field that encrypts. Arguments: a module with such fields; write or read; a class, if it is
not that for texts."""

import os
import sys
from importlib import import_module

import django
from django.conf import settings

fields, action, *kind = sys.argv[1:]
settings.configure(
    SECRET_KEY=os.environ["SECRET_KEY"],
    SALT_KEY=os.environ.get("SALT_KEY"),
    FERNET_KEYS=[os.environ.get("FERNET_KEY")],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"],
                           "HOST": os.environ["PGHOST"], "USER": os.environ["PGUSER"]}},
)
django.setup()

from django.db import connection, models  # noqa: E402, needs the settings

fields = import_module(fields)


class Secret(models.Model):
    if hasattr(fields, "encrypt"):
        value = fields.encrypt(models.TextField())
    else:
        value = getattr(fields, *kind or ["EncryptedTextField"])()

    class Meta:
        app_label = "vault"


if action == "write":
    with connection.schema_editor() as editor:
        editor.create_model(Secret)
    Secret.objects.create(value={"user": "ada", "keys": ["hunter2", "x"]} if kind else "hunter2")
print(Secret.objects.get().value)
