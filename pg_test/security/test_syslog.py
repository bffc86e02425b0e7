"""What the server sends to syslog, which gets lines of more than 1,000 bytes in parts: on a socket of our own."""

import re
import socket
import subprocess
from threading import Thread

import pytest

from cluster import RUN, Cluster
from key_files import key
from tables import wait_until
from test_mask_log import KEYS, MASK, Logged

# The server gets a /dev of its own, which nobody else sees: the devices that it needs, and the socket.
NAMESPACE = ["unshare", "--mount", "--propagation=private"]
DEVICES = """
    cd "$0"
    for device in null zero random urandom; do touch "$device"; mount --bind "/dev/$device" "$device"; done
    mkdir -p shm; mount --bind /dev/shm shm
    mount --rbind . /dev
    exec "$@" """

if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
    pytest.skip("syslog is NOT tested: a private mount namespace takes root", allow_module_level=True)


class Syslog:
    """A socket like /dev/log, and what has arrived there."""

    def __init__(self, folder):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "log"))
        (folder / "log").chmod(0o666)
        self.parts = []
        Thread(target=self.receive, daemon=True).start()

    def receive(self):
        while part := self.socket.recv(1 << 20):
            self.parts.append(part)


class LogsToSyslog(Cluster):
    def __init__(self, folder, *settings):
        self.launcher = [*NAMESPACE, "sh", "-ec", DEVICES, str(folder), *RUN]
        super().__init__([key()], "log_destination = syslog", "log_statement = all", *settings)


@pytest.mark.parametrize("split", ["on", "off"])
def test_no_key_is_in_any_part(folder, split):
    secret = key()
    syslog = Syslog(folder)
    with LogsToSyslog(folder, f"syslog_split_messages = {split}") as cluster, cluster.connect() as session:
        Logged.run(session, KEYS, key=secret, piece=secret[:30])
        # At every place of a part, with and without a blank near its end.
        for filler in "x", "x ", "é":
            for length in range(900, 1010):
                session.execute(f"SELECT '{filler * (length // len(filler.encode()))}', '{secret}'")
        session.execute(f"SELECT '{f'{secret} ' * 1000}'")
        # What is not masked does arrive.
        unmasked = key()
        session.execute("SET fernet.mask_log = off")
        session.execute(f"SELECT '{unmasked}'")
        wait_until(lambda: unmasked.encode() in syslog.parts[-1])
    log = b"".join(re.sub(rb"^<\d+>.*?\]: \[\d+-\d+\] ", b"", part, flags=re.DOTALL) for part in syslog.parts)
    assert not any(secret[start:start + 6].encode() in log for start in range(38))
    assert log.count(MASK.encode()) > 330
    assert max(map(len, syslog.parts)) < 1100 or split == "off"
