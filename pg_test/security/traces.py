"""Secrets, and where they are found."""

import base64
import json
import re
import secrets
import string
from collections import defaultdict

# No more than this many characters of a secret in a row may be found: a message may cut it short.
WINDOW = 12
ALPHABET = r"[A-Za-z0-9+/_=-]"


class Traces:
    """Makes secrets, each with a label, and notes in which places they are found."""

    def __init__(self):
        self._labels = {}
        self._found = defaultdict(set)

    def key(self, label):
        """A key. In a configuration file without quotes, it is two words that are each a number and a unit."""
        def letters(count):
            return "".join(secrets.choice(string.ascii_letters) for _ in range(count))

        encoded = "1" + letters(9) + "2" + letters(31) + secrets.choice("AEIMQUYcgkosw") + "="
        raw = base64.urlsafe_b64decode(encoded)
        self._watch(label, encoded, raw.hex(), raw.hex().upper())
        return encoded

    def text(self, label):
        """A plaintext, or part of a list that is no key."""
        text = secrets.token_urlsafe(30)
        raw = text.encode()
        self._watch(label, text, raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode())
        return text

    def _watch(self, label, *forms):
        for form in forms:
            for start in range(len(form) - WINDOW + 1):
                self._labels[form[start:start + WINDOW]] = label

    def search(self, place, text):
        """Notes which secrets are in a text, or in the bytes of a file."""
        text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
        # Where the server shows a parsed query, constants are the numbers of their bytes.
        for numbers in re.findall(r"\[ ((?:-?\d+\s+){12,})\]", text):
            text += " " + bytes(int(number) & 0xff for number in numbers.split()).decode("latin-1")
        for run in set(re.findall(ALPHABET + f"{{{WINDOW},}}", text)):
            for start in range(len(run) - WINDOW + 1):
                if label := self._labels.get(run[start:start + WINDOW]):
                    self._found[place].add(label)

    def found(self):
        return dict(self._found)


PARTS = "message", "detail", "hint", "context", "internal_query", "statement"
# Of the session, and of the message.
ABOUT = "application_name", "error_severity"


def search_diagnostics(traces, reader, parts):
    """Searches what the server sends to a client, or writes to its log. Some of it is a statement, some a
    message about it.

    A session with a setting that has something else logged than log_statement has the setting's name."""
    kind = "message"
    for pattern, name in {
        "(statement|(execute|parse|bind) .*): ": "log_statement",
        r"duration: .* ms +(statement|(execute|parse|bind) .*): ": parts["application_name"],
        "((raw )?parse|rewritten parse) tree:|plan:": parts["application_name"],
        "duration: .* plan:": "auto_explain",
        r".* \(PID \d+\) was terminated by signal": "crash",
        "deadlock detected": "deadlock",
        r'parameter "fernet\.\w+" changed to ': "reload",
        "syntax error in file ": "syntax error",
    }.items():
        if re.match(pattern, parts["message"] or ""):
            kind = name
    statement = "statement of an error" if parts["error_severity"] == "ERROR" else "statement of another message"
    for part in PARTS:
        place = {"context": "context", "internal_query": "context", "statement": statement}.get(part, kind)
        if re.search("^[Pp]arameters: |portal.* with parameters: ", parts[part] or ""):
            place = "parameters of an error" if part == "context" else "parameters of a statement"
        traces.search(f"{reader}: {place}", parts[part])


def search_error(traces, diag):
    """Searches an error or a notice that a client got."""
    search_diagnostics(traces, "client", {
        "message": diag.message_primary, "detail": diag.message_detail, "hint": diag.message_hint,
        "context": diag.context, "internal_query": diag.internal_query, "statement": None,
        "error_severity": diag.severity, "application_name": None})


def search_text_log(traces, log):
    """What the log collector itself says, and what processes have said without the server."""
    for line in log.splitlines():
        if message := re.match(r"\S+ \S+ \S+ \[\d+\] \w+:  (?:\w{5}: )?(.*)", line):
            search_diagnostics(traces, "log", dict.fromkeys([*PARTS, *ABOUT]) | {"message": message[1]})
        else:
            traces.search("log: standard error", line)


def search_json_log(traces, log):
    for line in log.splitlines():
        record = json.loads(line)
        search_diagnostics(traces, "log", {part: record.pop(part, None) for part in PARTS} | {part: record.get(part) for part in ABOUT})
        traces.search("log: other", json.dumps(record))
