"""What differs by nature between the editions: pg_test/sql_edition/differences, applied to the tests of the SQL edition."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
LIST = HERE / "sql_edition" / "differences"
ENTRY = re.compile(r"    (fails|not run|differs|shown by) +([^ :]+(?:::[^:]+)?): (.+)")


@dataclass
class Difference:
    # A row of the table in docs/managed.md.
    what: str
    how: str
    # A file or a test in pg_test/.
    test: str
    reason: str

    @property
    def file(self):
        return self.test.partition("::")[0]

    def is_of(self, nodeid):
        return self.test in (nodeid, nodeid.partition("[")[0], nodeid.partition("::")[0])


def differences():
    found, what = [], None
    for line in LIST.read_text().splitlines():
        if entry := ENTRY.fullmatch(line):
            found.append(Difference(what, *entry.groups()))
        elif line and line[0] not in " #":
            what = line
        else:
            assert not line.strip() or line.startswith("#"), f"{LIST}: {line}"
    return found


def apply(config, items):
    """What fails must fail, and what is not run is skipped. An entry that matches no test is an error, unless only some
    tests are run."""
    entries = [entry for entry in differences() if entry.how in ("fails", "not run")]
    used = set()
    for item in items:
        for entry in entries:
            if entry.is_of(item.nodeid):
                used.add(entry.test)
                reason = f"{entry.what}: {entry.reason}"
                item.add_marker(pytest.mark.skip(reason=reason) if entry.how == "not run" else pytest.mark.xfail(reason=reason, strict=True))
    if not any("::" in argument for argument in config.args):
        files = {item.nodeid.partition("::")[0] for item in items}
        if idle := [entry.test for entry in entries if entry.file in files and entry.test not in used]:
            raise pytest.UsageError(f"{LIST} has tests that there are not: {', '.join(idle)}")
