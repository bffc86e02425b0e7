"""docs/troubleshooting.md has the warnings of the installation, and docs/airflow.md the messages of the scripts: what is written
in SQL. Errors and warnings of the library are compared with the page where they are made: `cargo test`."""

import re

from pages import ROOT


def test_warnings_of_the_installation_are_there():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    found = {warning for path in ROOT.glob("sql/*.sql") for warning in re.findall("RAISE WARNING '(.*)'", path.read_text())}
    assert len(found) >= 2
    assert [warning for warning in found if f"| `{warning}` |" not in page] == []


def messages_of_the_scripts():
    for path in ROOT.glob("sql/airflow/*.sql"):
        for call in r"ARRAY\[", r"coalesce\(problem\[1\], ", "RAISE (?:EXCEPTION|NOTICE) ":
            yield from re.findall(call + "'((?:[^']|'')+)'", path.read_text())
        yield from re.findall(r"\\warn WARNING: ([^,;]*)", path.read_text())


def test_every_message_of_the_scripts_is_there():
    page = (ROOT / "docs/airflow.md").read_text().split("## The scripts")[1]
    found = {message.replace("''", "'").strip("%: ") for message in messages_of_the_scripts()}
    assert len(found) >= 9
    assert [message for message in found if message not in page] == []
