"""Ctrl-C, which a terminal sends to a script and to all that the script runs."""

import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interrupted(command, ready):
    """Runs a command of the shell, interrupts it once that file is there, and waits until nobody holds its output."""
    environment = os.environ | {"TMPDIR": str(ready.parent)}
    with subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=environment, start_new_session=True,
                          # These tests may run in the background of a shell, where interrupts are ignored.
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


def test_a_long_command_ends_with_the_script(tmp_path):
    ready = tmp_path / "ready"
    command = f"source scripts/common.sh; long() {{ touch {ready}; sleep 120; }}; quietly long"
    assert interrupted(command, ready)[0] == -signal.SIGINT
    assert list(tmp_path.iterdir()) == [ready]


def test_tests_have_not_passed(tmp_path):
    ready = tmp_path / "ready"
    command = f"source scripts/common.sh; source scripts/parts.sh; part long sh -c 'touch {ready}; exec sleep 120'"
    code, output = interrupted(command, ready)
    assert (code, output.splitlines()[-1]) == (1, "0 passed, 1 failed")
    assert list(tmp_path.iterdir()) == [ready]


def test_a_command_may_outlive_an_interrupt(tmp_path):
    """As psql does, where it is the end of a statement: the server stays, and the status is the command's."""
    ready = tmp_path / "ready"
    command = f"""scripts/with-server sh -c 'trap "echo interrupted" INT; touch {ready}; sleep 2; psql -Atc "SELECT 42"'"""
    code, output = interrupted(command, ready)
    assert code == 0, output
    assert output.splitlines()[-2:] == ["interrupted", "42"]
