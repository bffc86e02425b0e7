"""docs/troubleshooting.md has every warning that the source can raise, and every reason that an error can give; docs/airflow.md
has the messages of the scripts. The errors themselves are compared with the page where they are made: `cargo test`."""

import re

from pages import ROOT

STRING = r'"((?:[^"\\]|\\.)*)"'


def strings(path, start, end):
    """The string literals of a part of a source file."""
    part = (ROOT / path).read_text().split(start)[1].split(end)[0]
    return re.findall(STRING, part)


def messages():
    yield from strings("src/columns/find.rs", "fn reason(", "fn hint(")
    yield from re.findall(r"\bwarn\(\s*(?:format!\(\s*)?" + STRING, (ROOT / "src/columns/find.rs").read_text())
    for path in ROOT.glob("sql/*.sql"):
        yield from re.findall("RAISE WARNING '(.*)'", path.read_text())


def test_every_message_is_there():
    """With an example for what is put in."""
    page = (ROOT / "docs/troubleshooting.md").read_text()

    def is_there(message):
        parts = (re.escape(part.strip(": ")) for part in re.split(r"\{\w*\}", message.replace('\\"', '"')))
        return re.search("[^`|]*".join(parts), page)

    assert len(set(messages())) >= 8
    assert [message for message in messages() if not is_there(message)] == []


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
