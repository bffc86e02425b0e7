"""The counts with which `make test` ends: scripts/parts.sh, with which scripts/test runs its parts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTPUTS = "pg_test/scripts/outputs"  # seen from ROOT


def last_line(*command, **environment):
    """Runs a command; returns its exit status and the last line that it prints."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, text=True, capture_output=True)
    return done.returncode, done.stdout.splitlines()[-1]


def run(*steps):
    """Runs a script of these steps, as scripts/test is one."""
    return last_line("bash", "-c", "\n".join(["source scripts/common.sh", "source scripts/parts.sh", *steps]))


@pytest.mark.parametrize("output, counts", [
    ("pg_regress-15", "10 passed, 1 failed"),
    ("pg_regress-16", "10 passed, 1 failed"),
    ("pg_regress-18", "10 passed, 1 failed"),
    ("cargo-fails", "3 passed, 1 failed, 1 skipped"),
    ("cargo-does-not-compile", "0 passed, 1 failed"),
])
def test_recorded_output(output, counts):
    assert run(f"part recorded sh -c 'cat {OUTPUTS}/{output}.txt; exit 1'") == (1, counts)


TESTS = {
    "good": "import pytest\ndef test_1(): pass\ndef test_2(): pass\n@pytest.mark.skip\ndef test_3(): pass",
    "bad": "def test_1(): pass\ndef test_2(): assert False, '7 passed in 1.0s'",
    "not_collected": "import there_is_no_such_module\ndef test_1(): pass",
    "no_fixture": "def test_1(): pass\ndef test_2(missing): pass",
    "crash": "import os\ndef test_1(): pass\ndef test_2(): os._exit(0)",
    "empty": "",
}


@pytest.mark.parametrize("files, status, counts", [
    (["good"], 0, "2 passed, 0 failed, 1 skipped"),
    (["good", "bad"], 1, "3 passed, 1 failed, 1 skipped"),
    (["good", "not_collected"], 1, "0 passed, 1 failed"),
    (["no_fixture"], 1, "1 passed, 1 failed"),
    (["crash"], 1, "0 passed, 1 failed"),
    (["empty"], 1, "0 passed, 1 failed"),
])
@pytest.mark.parametrize("options", ["-q", ""])
def test_pytest(tmp_path, options, files, status, counts):
    for file in files:
        (tmp_path / f"test_{file}.py").write_text(TESTS[file])
    assert run(f"part pytest {sys.executable} -m pytest {options} {tmp_path}") == (status, counts)


@pytest.mark.parametrize("variable, value", [("PYTEST_ADDOPTS", "-qq"), ("FORCE_COLOR", "1"), ("PY_COLORS", "1")])
def test_pytest_told_to_print_otherwise(tmp_path, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    test_pytest(tmp_path, "-q", ["good"], 0, "2 passed, 0 failed, 1 skipped")


PASSES = "part passes echo '7 passed in 0.10s'"


@pytest.mark.parametrize("steps, status, counts", [
    ([PASSES, PASSES], 0, "14 passed, 0 failed"),
    ([PASSES, "part crashes sh -c 'kill -SEGV $$'", PASSES], 1, "14 passed, 1 failed"),
    (["part crashes-at-its-end sh -c \"echo '7 passed in 0.10s'; exit 1\""], 1, "7 passed, 1 failed"),
    (["part prints-nothing true"], 1, "0 passed, 1 failed"),
    (["part not-there scripts/nothing", PASSES], 1, "7 passed, 1 failed"),
    ([PASSES, "die 'the build fails'", PASSES], 1, "7 passed, 1 failed"),
])
def test_steps(steps, status, counts):
    assert run(*steps) == (status, counts)


def test_a_script_of_parts_as_a_part(tmp_path):
    """As scripts/test in a root of Debian: its own sum is not counted twice."""
    inner = tmp_path / "inner"
    inner.write_text("\n".join(["source scripts/common.sh", "source scripts/parts.sh", PASSES,
                                *(f"part recorded cat {OUTPUTS}/{name}.txt" for name in ("cargo-fails", "pg_regress-18"))]))
    assert run(f"part inner bash {inner}", PASSES) == (1, "27 passed, 2 failed, 1 skipped")


def test_scripts_test_without_a_server():
    assert last_line("scripts/test", PG_CONFIG="/no/where/pg_config") == (1, "0 passed, 1 failed")
