"""pg_upgrade to this server from each older server in the cache that has the extension."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from cluster import Cluster, run
from postgres import value
from tables import LOST, NEW, OLD, census, fill, rotate


def major(pg_config):
    return int(re.search(r"\d+", ask(pg_config, "--version"))[0])  # as of 15.20 and 19rc1


def ask(pg_config, what):
    return subprocess.run([pg_config, what], check=True, capture_output=True, text=True).stdout.strip()


def older_servers():
    here = Path(os.environ["PG_CONFIG"])
    servers = [server for server in Path(os.environ["PG_FERNET_CACHE"], "server").glob("*/**/bin/pg_config")
               if os.access(server, os.X_OK)]
    return {major(server): server for server in servers
            if major(server) < major(here) and Path(ask(server, "--pkglibdir"), "pg_fernet.so").exists()}


OLDER = older_servers()
NONE = pytest.param(None, marks=pytest.mark.skip(
    reason=f"pg_upgrade is NOT tested: no older server with pg_fernet in {os.environ['PG_FERNET_CACHE']}."
    " `make test PG=15` puts one there, for newer ones"))


@pytest.mark.parametrize("version", sorted(OLDER) or [NONE])
def test_pg_upgrade(version):
    old_bin, new_bin = OLDER[version].parent, ask(os.environ["PG_CONFIG"], "--bindir")
    with Cluster([NEW, OLD], "fsync = off", programs=old_bin) as cluster:
        with cluster.connect() as db:
            assert value(db, "SHOW server_version_num").startswith(str(version))
            for statement in (
                "CREATE SCHEMA crypt",
                "CREATE EXTENSION pg_fernet SCHEMA crypt",
                "ALTER DATABASE postgres SET search_path = public, crypt",
                "CREATE ROLE fernet_rotator LOGIN",
                "GRANT USAGE ON SCHEMA crypt TO fernet_rotator",
                "GRANT EXECUTE ON PROCEDURE crypt.fernet_rotate_column TO fernet_rotator",
                "REVOKE EXECUTE ON FUNCTION crypt.fernet_generate_key() FROM PUBLIC",
                "GRANT SET ON PARAMETER fernet.keys TO fernet_rotator",
            ):
                db.execute(statement)
        with cluster.connect() as db:
            fill(db, 1000)
            db.execute("ALTER TABLE secrets ADD CHECK (crypt.fernet_is_token(value))")
            db.execute("GRANT SELECT, UPDATE ON secrets TO fernet_rotator")
            functions = privileges(db)
            # PostgreSQL 15.20 marks columns with the option pg_attver, which 18.6, released in an earlier month, cannot
            # restore.
            db.execute("UPDATE pg_attribute SET attoptions = NULL WHERE attoptions IS NOT NULL")
        cluster.stop()

        upgrade(cluster, old_bin, new_bin)

        cluster.programs = new_bin
        cluster.start()
        with cluster.connect() as db:
            assert value(db, "SHOW server_version_num")[:2] == str(major(os.environ["PG_CONFIG"]))
            assert privileges(db) == functions
            assert census(db) == {"old key": 1000}
            assert value(db, "SELECT fernet_decrypt(value) FROM secrets WHERE id = 7") == "secret 7"
            with pytest.raises(Exception, match="violates check constraint"):
                db.execute("INSERT INTO secrets VALUES (0, 'plaintext')")
        with cluster.connect(user="fernet_rotator") as rotator:
            rotator.execute(f"SET fernet.keys = '{LOST},{OLD}'")
            assert rotate(rotator)["rotated"] == 1000
            with pytest.raises(Exception, match="permission denied for function fernet_decrypt"):
                rotator.execute("SELECT fernet_decrypt(value) FROM secrets")
        with cluster.connect() as db:
            assert census(db) == {"unknown key": 1000}
            db.execute("ALTER EXTENSION pg_fernet UPDATE")


def privileges(db):
    return db.execute("SELECT oid::regprocedure::text, proacl::text FROM pg_proc WHERE proname ~ '^fernet_' ORDER BY 1").fetchall()


def upgrade(cluster, old_bin, new_bin):
    """Puts a new server's data in place of the old one's."""
    data, old = cluster.data, cluster.data + ".old"
    run("mv", data, old)
    cluster.programs = new_bin
    cluster.init("--data-checksums")  # as the old one was made
    run("cp", os.path.join(old, "postgresql.auto.conf"), data)
    run(cluster.program("pg_upgrade"), "-b", str(old_bin), "-B", new_bin, "-d", old, "-D", data,
        "-U", "postgres", "-s", cluster.dir, cwd=cluster.dir)
