"""A reader who follows a page: types its commands, and compares what is printed with what the page shows."""

import os
import re
import shlex
import shutil
import subprocess
import time

from key_files import folder_for
from pages import ROOT
from postgres import is_progress

RUN = shlex.split(os.environ.get("PG_FERNET_RUN", ""))
END = "-- end of the block --"
# Only values.
TERSE = "\\set QUIET on\n\\pset format unaligned\n\\pset tuples_only on\n"
NOT_TERSE = "\\pset tuples_only off\n\\pset format aligned\n\\set QUIET off\n"


class Reader:
    """The reader has one terminal, as the user that the server runs as. A command for the shell ends the
    session in psql.

    Files go to a folder of the reader's own, which also replaces /etc/postgresql.
    """

    def __init__(self, host):
        self.folder = folder_for(host)
        shutil.copytree(ROOT / "sql", self.folder / "sql")
        self.environment = os.environ | {"PGHOST": host, "PSQLRC": "/dev/null"}
        self.psql = None
        # Names on the pages that are replaced, and what replaces them.
        self.replaced = {"/etc/postgresql": str(self.folder)}
        self.fingerprints = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave_psql()

    def follow(self, block):
        text = block.text
        for written, meant in (self.replaced | self.fingerprints).items():
            text = text.replace(written, meant)
        if block.file:
            self.write(block.file, text)
        elif block.language == "sql":
            self.follow_sql(block, text)
        elif block.language == "sh":
            printed = self.run_sh(text)
            if block.output:
                self.compare(block, printed, block.output)
        elif block.language == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                self.compare(block, self.run_sh(command), output)
        else:
            raise AssertionError(f"{block}: neither run nor listed with a reason")

    def follow_sql(self, block, text):
        printed = ""
        # A comment after a statement says what that prints.
        for statements, answer in re.findall(r"((?:(?!-- ).*\n)+)((?:-- .*\n)*)", text):
            assert re.search(r"(;|^\\.*)\n$", statements, re.MULTILINE), f"{block}: the last statement has no end"
            result = self.type_sql(TERSE + statements + NOT_TERSE if answer else statements)
            if answer:
                self.compare(block, result, re.sub("^-- ", "", answer, flags=re.MULTILINE))
            printed += result
        if block.output:
            self.compare(block, printed, block.output)
        elif "ERROR:" in printed:
            raise AssertionError(f"{block}: {printed}")

    def compare(self, block, printed, shown):
        """The text shown may have … for what differs each time. A fingerprint represents that of some key, always the
        same."""
        printed, shown = (relevant_lines(text) for text in (printed, shown))
        pattern = re.sub("[0-9a-f]{16}", "([0-9a-f]{16})", re.escape("\n".join(shown)).replace("…", ".*"))
        match = re.fullmatch(pattern, "\n".join(printed))
        assert match, "\n".join([f"{block} prints", *printed, "", "but shows", *shown])
        for key, fingerprint in zip(re.findall("[0-9a-f]{16}", "\n".join(shown)), match.groups()):
            assert self.fingerprints.setdefault(key, fingerprint) == fingerprint, f"{block}: the key with fingerprint {key}"

    # What the reader does.

    def run_sql(self, statements):
        """What psql prints of them; they must succeed."""
        printed = self.type_sql(statements)
        assert "ERROR:" not in printed, printed
        return printed

    def type_sql(self, statements):
        """What psql prints of them, in a session that goes on."""
        if not self.psql:
            command = ["psql", "-X", "-P", "footer=off", "-P", "pager=off"]
            self.psql = subprocess.Popen([*RUN, *command], cwd=self.folder, env=self.environment, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        before = self.loaded()
        printed = self.send(statements)
        while "pg_reload_conf" in statements and self.loaded() == before:
            time.sleep(0.01)
        return printed

    def send(self, text):
        self.psql.stdin.write(f"{text}\n\\echo {END}\n")
        self.psql.stdin.flush()
        printed = ""
        while not printed.endswith(END + "\n"):
            line = self.psql.stdout.readline()
            assert line, f"psql has ended: {printed}"
            printed += line
        return printed.removesuffix(END + "\n")

    def loaded(self):
        """When this session's server last read its configuration."""
        return self.send("SELECT pg_conf_load_time();")

    def leave_psql(self):
        if self.psql:
            self.psql.communicate()
            self.psql = None

    def use_database(self, name):
        self.leave_psql()
        self.environment["PGDATABASE"] = name

    def run_sh(self, commands):
        """What they print; they must succeed."""
        self.leave_psql()
        # The server's user may not enter the folder that Python is in.
        user = [] if commands.startswith("alembic ") else RUN
        done = subprocess.run([*user, "bash", "-euc", commands], cwd=self.folder, env=self.environment, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def write(self, name, text):
        subprocess.run([*RUN, "sh", "-c", 'umask 077; mkdir -p "$(dirname "$0")"; cat >"$0"', str(self.folder / name)],
                       cwd="/", input=text, text=True, check=True)


def relevant_lines(text):
    """Without blank lines, and without what depends on progress and speed."""
    lines = (re.sub(r"( rows) in .* rows/s$", r"\1", line.rstrip()) for line in text.splitlines())
    return [line for line in lines if line and not is_progress(line.removeprefix("NOTICE:  "))]
