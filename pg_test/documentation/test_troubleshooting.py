"""docs/troubleshooting.md has the warnings of the installation and the errors and warnings of the SQL edition, and
docs/airflow.md the messages of the scripts: all messages that are written in SQL. `cargo test` compares the library's
own errors and warnings with the page."""

import re

from pages import ROOT


def test_warnings_of_the_installation_are_there():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    found = {warning for path in ROOT.glob("sql/*.sql") for warning in re.findall("RAISE WARNING '(.*)'", path.read_text())}
    assert len(found) >= 2
    assert [warning for warning in found if f"| `{warning}` |" not in page] == []


STRING = "'(?:[^']|'')*'"


def messages_of_the_edition():
    """(SQLSTATE or nothing, message) of each error and warning. % replaces a value in it."""
    source = "".join(path.read_text() for path in sorted(ROOT.glob("sql/edition/*.sql")))
    literal = rf"(?:\(SELECT )?(?:(?:format|@\.concat)\()?({STRING})"
    for severity, said in re.findall(rf"RAISE (EXCEPTION|WARNING) ((?:{STRING}|[^';])*);", source):
        code = re.search(r"ERRCODE = .*'(\w{5})'", said)[1] if severity == "EXCEPTION" else ""
        message = re.search(rf"MESSAGE = (?:{literal}|(\w+))", said) or re.match(rf"({STRING})()", said)
        # In a variable, it is one of those that are assigned to it.
        for text in [message[1]] if message[1] else re.findall(rf"(?<![\w.]){message[2]} := {literal}", source):
            yield code, re.sub("%[sIL]?", "%", text[1:-1].replace("''", "'"))


def test_every_message_of_the_edition_is_there():
    """An error in a row with its SQLSTATE, a warning under its heading."""
    errors, warnings = (ROOT / "docs/troubleshooting.md").read_text().replace("`", "").split("\n## Warnings\n")
    found = set(messages_of_the_edition())
    assert len(found) >= 30 and {code for code, _ in found} >= {"", "55000", "3F000"}

    def is_there(code, message):
        pattern = re.escape(message).replace("%", ".+")
        return any(code in row and re.search(pattern, row) for row in (errors if code else warnings).splitlines())

    assert [message for message in sorted(found) if not is_there(*message)] == []


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
