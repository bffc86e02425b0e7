"""What must not be in a server's log."""

import re

# A crash of the server or of a process, the end of a session, an internal error, a panic in Rust.
COMPLAINT = re.compile("PANIC|FATAL|XX000|panicked|backtrace|terminated by signal|memory allocation of")


def complaints(lines):
    return [line for line in lines if COMPLAINT.search(line)]
