# The one front door. What a target does is in a script in scripts/.
#
#   PG_CONFIG=FILE   the server to build for and to test on
#   PG=16            its major version, where there is no PG_CONFIG: 15 unless told

.DEFAULT_GOAL := help
.PHONY: help all demo psql test soak test-sql-edition test-arm64 test-airflow test-applications fuzz mutants audit install installcheck lint bench \
	bench-airflow bench-operations package test-package clean

export PG PG_CONFIG

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

# The pgxn client calls this before `install`, which builds what it installs.
all:

demo: ## rotate an Airflow-shaped database on a throwaway server
	@scripts/demo

psql: ## open psql on a throwaway server that has pg_fernet
	@scripts/psql

test: ## run all tests (PG=16, 17, 18 or 19: on that server)
	@scripts/test

test-sql-edition: ## run the tests of both editions on the SQL edition
	@scripts/test sql-edition

test-arm64: ## run the core's and the main SQL tests on arm64, emulated (as root)
	@scripts/test arm64

soak: ## run the long form of the hardening tests (hours)
	@scripts/test soak

test-airflow: ## run the tests on real Airflow, 2.11 and 3.3
	@scripts/test airflow

test-applications: ## run the tests on the larger applications of docs/applications.md
	@scripts/test applications

fuzz: ## fuzz the core, ten seconds for each target
	@scripts/fuzz

mutants: ## show which faults in the core its tests would miss
	@scripts/mutants

audit: ## check the dependencies: licences, sources, advisories
	@scripts/audit

install: ## install the extension into the server of PG_CONFIG
	@scripts/install

installcheck: ## run the regression tests on the running server that PGHOST, PGPORT … name
	@scripts/regress

bench: ## measure the core and what it costs in a server, beside the targets
	@scripts/bench

bench-airflow: ## measure beside Airflow's own command
	@scripts/bench airflow

bench-operations: ## measure batches beside an UPDATE
	@scripts/bench operations

package: ## make what a release consists of, in dist/: packages for Debian, tarballs (as root)
	@scripts/package

test-package: ## install, use and remove what is in dist/, packages on clean roots (as root)
	@scripts/test-package

lint: ## check formatting, lints, documentation, spelling
	@scripts/lint

clean: ## remove what was built here
	@cargo clean
