"""What differs by nature: the list that the suites follow, and the page that users read."""

import re

import pytest

from differences import HERE, differences
from postgres import ROOT

ROW = re.compile(r"^\| (.+?) \| .+ \|$", re.MULTILINE)


def test_the_page_has_the_same_rows():
    page = (ROOT / "docs" / "managed.md").read_text()
    _, _, table = page.partition("## What is different from the native extension")
    assert sorted(ROW.findall(table)) == sorted({entry.what for entry in differences()})


@pytest.mark.parametrize("entry", differences(), ids=lambda entry: entry.test)
def test_the_tests_are_there(entry):
    if entry.test.startswith("sql/"):
        assert (HERE / f"{entry.test}.sql").exists()
        return
    name = entry.test.partition("::")[2].partition("[")[0]
    assert f"def {name}(" in (HERE / entry.file).read_text() if name else (HERE / entry.file).exists()


def test_nothing_is_listed_twice():
    tests = [(entry.what, entry.test) for entry in differences()]
    assert len(set(tests)) == len(tests)
