"""Keys, and files that hold them."""

import os
import tempfile
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

# The server refuses files of other users, which only root can make.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot give files away")


def key():
    return Fernet.generate_key().decode()


def server_user():
    """User and group of the server's processes."""
    status = os.stat(os.environ["PGDATA"])
    return status.st_uid, status.st_gid


def folder_for(parent):
    """A new folder of the server's user."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    os.chown(folder, *server_user())
    return folder


def write(path, *lines, mode=0o600, owner=None):
    """Writes a complete new file. If there is an old file of that name, the new one replaces it."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(b"".join(line.encode() + b"\n" for line in lines))
    os.chown(new, *(owner or server_user()))
    new.chmod(mode)
    return new.rename(path)
