"""The recipes of the documentation: keys from where systemd, Kubernetes, Airflow and Vault put them, and files that are
replaced."""

import json
import os
import struct
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from key_files import key, needs_root, server_user, write
from pages import code_block
from postgres import connect, server
from pyca import fingerprint
from settings import fingerprints, refusal, reload, use_file


def prints(*keys):
    return [fingerprint(key) for key in keys]


#
# systemd: LoadCredential=fernet.keys:FILE
#

def allow(path, user):
    """Lets a user read a file or folder that root owns, by an access control list, as systemd does."""
    OWNER, USER, GROUP, MASK, OTHER, NOBODY = 0x01, 0x02, 0x04, 0x10, 0x20, 0xffffffff
    may = 5 if path.is_dir() else 4
    entries = (OWNER, may, NOBODY), (USER, may, user), (GROUP, 0, NOBODY), (MASK, may, NOBODY), (OTHER, 0, NOBODY)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries))


@needs_root
@pytest.mark.parametrize("file_system", ["with access control lists", "without"])
def test_systemd(db, folder, keys, file_system):
    credentials = folder / "postgresql.service"
    credentials.mkdir()
    path = write(credentials / "fernet.keys", *keys, owner=(0, 0), mode=0o400)
    credentials.chmod(0o500)
    if file_system == "without":
        os.chown(path, *server_user())
        os.chown(credentials, *server_user())
    else:
        allow(path, server_user()[0])
        allow(credentials, server_user()[0])
        assert path.stat().st_mode & 0o777 == 0o440
    use_file(db, path)
    assert fingerprints(db) == prints(*keys)


#
# Kubernetes: a secret as a volume
#

class Mount:
    """What the kubelet makes of a secret, and how it swaps in another version."""

    def __init__(self, folder, **attributes):
        self.folder, self.attributes, self.versions = folder, attributes, 0

    def publish(self, *keys):
        self.versions += 1
        version = self.folder / f"..2026_01_01_00_00_00.{self.versions}"
        version.mkdir()
        write(version / "fernet.keys", *keys, **self.attributes)
        data = self.folder / "..data"
        old = data.resolve() if data.is_symlink() else None
        self.folder.joinpath("..data_tmp").symlink_to(version.name)
        self.folder.joinpath("..data_tmp").rename(data)
        link = self.folder / "fernet.keys"
        if not link.is_symlink():
            link.symlink_to("..data/fernet.keys")
        if old:
            old.joinpath("fernet.keys").unlink()
            old.rmdir()
        return link


@needs_root
def test_kubernetes(db, folder):
    """defaultMode: 0440 with fsGroup: owned by root, for the server's group."""
    mount = Mount(folder, mode=0o440, owner=(0, server_user()[1]))
    old, new = key(), key()
    use_file(db, mount.publish(old))
    assert fingerprints(db) == prints(old)
    mount.publish(new, old)
    assert fingerprints(db) == prints(new, old)
    for _ in range(50):
        another = key()
        mount.publish(another)
        assert fingerprints(db) == prints(another)


@needs_root
def test_kubernetes_with_its_default_mode(db, folder):
    use_file(db, Mount(folder, mode=0o644, owner=(0, 0)).publish(key()))
    assert "0640" in refusal(db, "F0000")


@needs_root
def test_kubernetes_with_a_sub_path(db, folder):
    """The kubelet mounts the file of that moment."""
    secret = folder / "secret"
    secret.mkdir()
    mount = Mount(secret, mode=0o440, owner=(0, server_user()[1]))
    old = key()
    path = mount.publish(old).resolve()
    mounted = write(folder / "fernet.keys")
    done = subprocess.run(["mount", "--bind", path, mounted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("cannot mount a file: " + done.stderr.strip())
    try:
        use_file(db, mounted)
        assert fingerprints(db) == prints(old)
        mount.publish(key())
        assert fingerprints(db) == prints(old)
    finally:
        subprocess.run(["umount", mounted], check=True)


#
# A file that root replaces keeps its owner and its mode
#

@needs_root
@pytest.mark.parametrize("owner, mode", [("server", 0o600), ("root", 0o640)])
@pytest.mark.parametrize("page, heading, containing", [
    ("docs/airflow.md", "Rotate with no downtime", "cat new.key"),
    ("README.md", "Rotating keys", "fernet_generate_key"),
    ("README.md", "Rotating keys", "fernet.keys.old"),
])
def test_root_replaces_the_file(db, folder, owner, mode, page, heading, containing):
    user, group = server_user()
    old, new = key(), key()
    path = write(folder / "fernet.keys", *((new, old) if "old" in containing else (old,)), owner=(user if owner == "server" else 0, group), mode=mode)
    write(folder / "new.key", new)
    before = path.stat()
    use_file(db, path)
    recipe = code_block(page, heading, "sh", containing).replace("/etc/postgresql", str(folder))
    subprocess.run(["bash", "-euc", recipe], env=os.environ | {"PGDATABASE": db.info.dbname}, check=True)

    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino
    match containing:
        case "cat new.key":
            assert fingerprints(db) == prints(new, old)
        case "fernet_generate_key":
            assert fingerprints(db)[1:] == prints(old)
        case "fernet.keys.old":
            assert fingerprints(db) == prints(new)
            kept = folder / "fernet.keys.old"
            assert kept.read_text().split() == [new, old] and kept.stat().st_mode == before.st_mode


#
# Airflow: printenv AIRFLOW__CORE__FERNET_KEY
#

def test_airflow(keys, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", ",".join(keys))
    with server("fernet.keys_command = 'printenv AIRFLOW__CORE__FERNET_KEY'") as host, connect("postgres", host=host) as session:
        session.execute("CREATE EXTENSION pg_fernet")
        assert fingerprints(session) == prints(*keys)


#
# Vault: VAULT_ADDR=… VAULT_TOKEN=$(cat FILE) vault kv get -field=keys secret/fernet
#

CLIENT = r"""#!/usr/bin/env bash
# vault kv get -field=FIELD MOUNT/NAME
field=${3#-field=} mount=${4%%/*} name=${4#*/} host=${VAULT_ADDR#http://}
exec 3<>"/dev/tcp/${host/://}"
printf 'GET /v1/%s/data/%s HTTP/1.0\r\nX-Vault-Token: %s\r\n\r\n' "$mount" "$name" "$VAULT_TOKEN" >&3
read -r _ status _ <&3
[ "$status" = 200 ] || exit 2
sed -n "s/.*\"$field\": \"\([^\"]*\)\".*/\1/p" <&3
"""


@contextmanager
def vault(secrets):
    """A server that speaks as much of Vault's protocol as that needs; its address."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            allowed = self.headers["X-Vault-Token"] == "s.token" and self.path in secrets
            self.send_response(200 if allowed else 403)
            self.end_headers()
            if allowed:
                self.wfile.write(json.dumps({"data": {"data": secrets[self.path]}}).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_vault(db, configuration, folder, keys):
    secrets = {"/v1/secret/data/fernet": {"keys": ",".join(keys)}}
    with vault(secrets) as address:
        token = write(folder / "token", "s.token")
        client = write(folder / "vault", CLIENT, mode=0o700)
        environment = f"VAULT_ADDR={address} VAULT_TOKEN=$(cat {token})"
        configuration.set("fernet.keys_command", f"{environment} {client} kv get -field=keys secret/fernet")
        assert fingerprints(db) == prints(*keys)
        secrets["/v1/secret/data/fernet"]["keys"] = keys[0]
        reload(db)
        assert fingerprints(db) == prints(keys[0])
        token.write_text("s.revoked")
        reload(db)
        assert "exit status" in refusal(db, "F0000")
