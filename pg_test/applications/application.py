"""Applications, each in a Python environment of its own, and what docs/applications.md says about them."""

import os
import subprocess
from pathlib import Path

from conftest import DATABASE
from pages import ROOT, code_block

HERE = Path(__file__).parent
PAGE = "docs/applications.md"


class Application:
    """An application that is installed from the requirements in the folder of that name, with its section on
    the page."""

    def __init__(self, name, heading):
        self.folder = HERE / name
        self.heading = heading
        self.python = Path(os.environ["PG_FERNET_CACHE"], "applications", name, "bin", "python")

    def run(self, *command, **environment):
        """Runs a program of the folder, or other arguments for Python; returns what it prints. PG* variables and
        DATABASE_URL lead to the database."""
        url = f"postgresql://{os.environ['PGUSER']}@/{DATABASE}?host={os.environ['PGHOST']}"
        environment = os.environ | {"PGDATABASE": DATABASE, "DATABASE_URL": url} | environment
        done = subprocess.run([self.python, *command], cwd=self.folder, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def block(self, language, containing=""):
        """A code block of its section."""
        return code_block(PAGE, self.heading, language, containing)

    def text(self):
        """All of its section."""
        return (ROOT / PAGE).read_text().split(f"\n## {self.heading}\n")[1].split("\n## ")[0]

    def derive(self, **secret):
        """The keys that its section derives from a secret."""
        return self.run("-c", self.block("python"), **secret).split()


def tokens(session):
    """How many tokens the whole database has, by their status and their key's fingerprint."""
    return {(status, fingerprint): count for status, fingerprint, count in session.execute("""
        SELECT status, fingerprint, sum(counted.tokens) FROM fernet_find_columns(), fernet_census(relation, column_name) AS counted
        WHERE status NOT IN ('not a token', 'null') AND counted.tokens > 0 GROUP BY status, fingerprint""")}
