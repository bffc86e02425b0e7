"""Pulp: its models write secrets of several lengths to every encrypted column, and read them. Prints them as JSON."""

import json
import os
import sys

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "pulpcore.app.settings"
django.setup()

from pulp_file.app.models import FileRemote  # noqa: E402
from pulpcore.app.models import Domain, Task, TaskSchedule, UpstreamPulp  # noqa: E402

LOGIN = ["client_key", "username", "password"]
PROXY = ["proxy_username", "proxy_password"]
ENCRYPTED = {
    FileRemote: LOGIN + PROXY,
    UpstreamPulp: LOGIN,
    Domain: ["storage_settings"],
    Task: ["enc_args", "enc_kwargs"],
    TaskSchedule: ["task_args", "task_kwargs"],
}


def secrets(fields, number):
    """From none at all to a kilobyte."""
    lengths = [None, 0, 1, 16, 1000]
    chosen = [lengths[(number + place) % len(lengths)] for place in range(len(fields))]
    return {field: length and f"{field} ü " * length if length != 0 else "" for field, length in zip(fields, chosen)}


def document(number):
    return {"secret": f"hunter{number}", "list": [number, 1.5, True, None, "", {"deep": ["ü" * number]}], "empty": [{}, []]}


def write(rows):
    for number in range(rows // 5):
        FileRemote.objects.create(name=f"remote {number}", url="https://example.com", **secrets(LOGIN + PROXY, number))
    for number in range(5):
        UpstreamPulp.objects.create(name=f"upstream {number}", base_url="https://example.com", **secrets(LOGIN, number))
        Domain.objects.create(name=f"domain{number}", storage_class="pulpcore.app.models.storage.FileSystem",
                              storage_settings=document(number))
        TaskSchedule.objects.create(name=f"schedule {number}", task_name="t", task_args=[document(number), number],
                                    task_kwargs=document(number))
    Task.objects.bulk_create(
        Task(name="t", state="completed", logging_cid="", enc_args=[number, "hunter2"] if number else None,
             enc_kwargs=document(number % 7)) for number in range(rows - rows // 5))


def read():
    return {model.__name__: list(model.objects.order_by("pk").values_list(*fields)) for model, fields in ENCRYPTED.items()}


if sys.argv[1] == "write":
    write(int(sys.argv[2]))
print(json.dumps(read()))
