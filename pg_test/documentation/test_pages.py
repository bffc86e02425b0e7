"""Every code block of README.md and docs/ is run, in the order of its page, and prints what the page shows; or it is
listed here, with the reason."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from pages import PAGES, ROOT, anchors, blocks, links
from postgres import server
from preparations import PREPARATIONS
from reader import Reader

# Blocks that are not run here, by a text in them; and the test that runs each, or why there is none.
NOT_RUN = {
    "README.md": {
        "-- the new key, and": "what Getting started says at length",
        "make demo": "these are the tests",
        "make psql": "the tests run beside such a server",
        "make install": "scripts/test installs in this way",
    },
    "docs/airflow.md": {
        "PGOPTIONS=": "pg_test/airflow/test_rotate.py::test_airflow_in_a_schema_of_its_own",
        "LOCK TABLE": "pg_test/airflow/test_rotate.py::test_plain_statements",
        "airflow config get-value": "pg_test/airflow/test_documentation.py::test_fingerprints_of_airflows_list",
        "from alembic import op": "pg_test/airflow/test_documentation.py::test_alembic_migration",
    },
    "docs/applications.md": {
        "set -C; SECRET_KEY": "pg_test/documentation/test_applications.py::test_key_files_of_derived_keys",
        "NEW_SECRET": "pg_test/documentation/test_applications.py::test_key_files_of_derived_keys",
        "UPDATE apikey": "pg_test/applications/test_langflow.py::test_rotation",
        "UPDATE oauth_session": "pg_test/applications/test_open_webui.py::test_rotation",
        "UPDATE secrets": "pg_test/applications/test_phoenix.py::test_rotation",
        "UPDATE mcp_refresh_token": "pg_test/documentation/test_applications.py::test_tracecat",
        "UPDATE vault SET": "pg_test/applications/test_galaxy.py::test_rotation",
        "sha1sum": "pg_test/applications/test_keystone.py::test_rotation",
        "UPDATE credential": "pg_test/applications/test_keystone.py::test_rotation",
        "database_fields.symmetric.key": "pg_test/applications/test_pulp.py::test_rotation",
        "UPDATE core_remote": "pg_test/applications/test_pulp.py::test_rotation",
        "CREATE EXTENSION postgres_fdw": "pg_test/documentation/test_provider.py::test_rotation",
        '"__Auth"': "pg_test/documentation/test_formats.py::test_frappe",
        "UPDATE data_sources": "pg_test/documentation/test_applications.py::test_redash",
        "UPDATE sentry_integration": "pg_test/documentation/test_formats.py::test_sentry",
    },
    "docs/managed.md": {
        "CREATE EXTENSION pg_tle": "pg_test/sql_edition/test_pg_tle.py::app",
        "sql-edition pg_tle": "pg_test/sql_edition/test_pg_tle.py::test_install_use_remove",
        "pgtle.uninstall_extension": "pg_test/sql_edition/test_pg_tle.py::test_install_use_remove",
        "airflow config get-value": "pg_test/airflow/test_managed.py::test_runbook",
    },
    "docs/migrations.md": {
        "sqitch init": "sqitch brings 60 packages of Perl",
        "sqitch deploy": "the same",
        "executeInTransaction": "Flyway is not to be had from a registry that the tests use",
    },
    "docs/operations.md": {
        "4 of 8 shards failed": "pg_test/operations/test_citus.py::test_a_worker_with_other_keys_is_named",
        "run_command_on_all_nodes": "pg_test/operations/test_citus.py::test_a_role_needs_its_privileges_on_each_node",
        "enable_unsafe_triggers": "pg_test/operations/test_citus.py::test_the_trigger_fires_where_a_row_is",
    },
    "docs/security.md": {
        "shared_preload_libraries": "pg_test/security/test_process_kinds.py",
        "fernet.mask_log = 'literals'": "pg_test/security/test_mask_log.py::test_setting_it_for_all_sessions",
        "install -o root": "pg_test/security/test_key_file.py::test_a_file_of_roots_for_the_servers_group",
        "fsGroup": "pg_test/security/test_recipes.py::test_kubernetes",
        "'/etc/fernet/": "pg_test/security/test_recipes.py::test_kubernetes",
        "LoadCredential": "pg_test/security/test_recipes.py::test_systemd",
        "/run/credentials": "pg_test/security/test_recipes.py::test_systemd",
        "printenv": "pg_test/security/test_recipes.py::test_airflow",
    },
}


def reason(block):
    """Why the block is not run."""
    for text, why in NOT_RUN.get(block.page, {}).items():
        if text in block.text:
            return why


def missing_extensions(block):
    """The schemas that a block creates, and that the server may lack, since one from PyPI has few."""
    sharedir = subprocess.run([os.environ["PG_CONFIG"], "--sharedir"], check=True, capture_output=True, text=True).stdout.strip()
    names = re.findall(r"^(?:.* -c ')?CREATE EXTENSION (?:IF NOT EXISTS )?(\w+)", block.text, re.MULTILINE)
    return "" if reason(block) else ", ".join(name for name in names if not Path(sharedir, "extension", f"{name}.control").exists())


@pytest.mark.parametrize("page", PAGES)
def test_page(page):
    with server() as host, Reader(host) as reader:
        heading = None
        for block in blocks(page):
            if block.heading != heading:
                heading = block.heading
                PREPARATIONS.get((page, heading), lambda reader: None)(reader)
            if missing := missing_extensions(block):
                pytest.skip(f"the page is followed up to line {block.line}: no {missing} here")
            if not reason(block):
                reader.follow(block)


def test_what_is_not_run_is_there():
    for page, listed in NOT_RUN.items():
        texts = [block.text for block in blocks(page)]
        for text in listed:
            assert sum(text in block for block in texts) == 1, f"{page} has not one block with {text}"
    for page, heading in PREPARATIONS:
        assert any(block.heading == heading for block in blocks(page)), f"{page} has no block under {heading}"


def test_the_tests_that_run_the_others_are_there():
    for listed in NOT_RUN.values():
        for why in listed.values():
            if test := re.fullmatch(r"(pg_test/\S+\.py)::(\w+)", why):
                assert f"def {test[2]}(" in (ROOT / test[1]).read_text(), why


def test_the_table_of_performance_is_what_was_recorded():
    page = (ROOT / "docs/performance.md").read_text()
    recorded = json.loads((ROOT / "docs/performance.json").read_text())
    for figure in recorded["figures"]:
        work = figure["work"].replace("|", "\\|")
        assert f"| {work} | {figure['measured']:.2f}" in page, f"docs/performance.md has not what `make bench` recorded for {work}"
    for work, ways in recorded["ways"].items():
        times = " | ".join(f"{ways[name]:.1f}" if name in ways else "" for name in recorded["ways"]["encrypt"])
        assert re.sub(" +", " ", f"| {work} | {times} |") in page, f"docs/performance.md has not what `make bench` recorded for {work}"


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for path, anchor in links(page):
        assert path.exists(), path
        assert not anchor or anchor in anchors(path), f"{path} has no heading {anchor}"
