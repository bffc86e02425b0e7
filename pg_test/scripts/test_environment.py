"""The scripts in unusual environments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, cwd=ROOT, without=(), **environment):
    environment = {name: value for name, value in (os.environ | environment).items() if name not in without}
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PG_CONFIG = Path(os.environ["PG_CONFIG"])


@pytest.fixture(params=["bare", "relative"])
def named(request):
    """PG_CONFIG without its folder."""
    if request.param == "bare":
        return dict(PG_CONFIG="pg_config", PATH=f"{PG_CONFIG.parent}:{os.environ['PATH']}")
    return dict(PG_CONFIG=f"{PG_CONFIG.parent.name}/pg_config", cwd=PG_CONFIG.parents[1])


@pytest.mark.parametrize("command, expected", [
    (["scripts/setup"], f"export PG_CONFIG={PG_CONFIG}\n"),
    (["scripts/with-server", "sh", "-c", "command -v initdb"], f"{PG_CONFIG.parent}/initdb\n"),
    (["scripts/with-server", ROOT / "scripts/regress", "schema"], "1 test"),
    (["scripts/install"], ""),
], ids=["setup", "with-server", "regress", "install"])
def test_pg_config(named, command, expected):
    assert expected in run(ROOT / command[0], *command[1:], **named)


@pytest.fixture
def folder(tmp_path):
    """Settings that break programs which read them."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "psycopg.py").write_text("raise SystemExit('not the psycopg of the tests')")
    return str(tmp_path)


def beside_a_server(command, **environment):
    return run("scripts/with-server", "sh", "-c", command, **environment).strip()


def test_cdpath(folder):
    assert beside_a_server("pwd", CDPATH=folder) == str(ROOT)


def test_modules_of_others(folder):
    assert beside_a_server(f"{sys.executable} -c 'import psycopg; print(psycopg.__file__)'", PYTHONPATH=folder).endswith(
        "/psycopg/__init__.py")


def test_a_pip_that_installs_for_the_user(tmp_path):
    (tmp_path / "none").write_text("--no-index")
    run("bash", "-c", f"source scripts/common.sh; python_environment {tmp_path}/venv {tmp_path}/none", PIP_USER="1")


def test_a_folder_for_temporary_files_that_the_server_cannot_reach(folder):
    os.chmod(folder, 0o700)
    assert not beside_a_server("mktemp -u", TMPDIR=folder).startswith(folder)


def test_a_private_umask():
    assert run("bash", "-c", "umask 077; scripts/with-server sh -c umask").strip() == "0022"


@pytest.mark.parametrize("variable", ["LC_ALL", "LANG", "LANGUAGE"])
def test_another_language(variable):
    answer = beside_a_server('echo "$LC_ALL:${LANGUAGE-none}"; psql -c "SELECT 1/0" 2>&1; true', **{variable: "de_DE.UTF-8"})
    assert answer == "C.UTF-8:none\nERROR:  division by zero"


def test_no_home():
    home = run("bash", "-c", "source scripts/common.sh; echo $HOME", without=["HOME"]).strip()
    assert Path(home).is_dir()


def test_a_relative_cache(tmp_path):
    assert run("bash", "-c", "source scripts/common.sh; echo $PG_FERNET_CACHE",
               PG_FERNET_CACHE=os.path.relpath(tmp_path, ROOT)).strip() == str(tmp_path)


# Replaces programs of that name; records what it was called with, and does nothing.
DEBOOTSTRAP = '#!/bin/sh\necho "$@" >"$0.log"\nexit 1\n'
APT_GET = '#!/bin/sh\n[ "$1" != indextargets ] || echo "{}"\n'


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot make a root of Debian")
@pytest.mark.parametrize("known, mirror", [("", []), ("http://mirror.invalid/debian/", ["http://mirror.invalid/debian/"])])
@pytest.mark.parametrize("release, suite", [("13", "trixie"), ("unstable", "unstable")])
def test_the_mirror_of_a_debian_root(tmp_path, release, suite, known, mirror):
    """The mirror that this machine's apt knows; without one, debootstrap chooses."""
    for name, text in {"debootstrap": DEBOOTSTRAP, "apt-get": APT_GET.format(known)}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    subprocess.run(["scripts/in-debian", "--clean", release, "true"], cwd=ROOT, capture_output=True,
                   env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PG_FERNET_CACHE": str(tmp_path)})
    root = f"{tmp_path}/debian/{release}/root"
    assert (tmp_path / "debootstrap.log").read_text().split() == [
        "--variant=minbase", "--include=ca-certificates", suite, root, *mirror]
