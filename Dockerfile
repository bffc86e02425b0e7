# The official image of PostgreSQL 17 with pg_fernet:
#
#   docker build -t postgres-fernet .
#
# Written where no Docker is. Its commands, but for rustup's, have been run in a root of Debian 13; the image itself has
# not been built.

FROM rust:1-trixie AS build
# hadolint ignore=DL3008
RUN rustup component add rustfmt && \
    apt-get update && apt-get install -y --no-install-recommends postgresql-17 postgresql-server-dev-17
COPY . /pg_fernet
RUN make -C /pg_fernet install PG_CONFIG=/usr/lib/postgresql/17/bin/pg_config

FROM postgres:17-trixie
COPY --from=build /usr/lib/postgresql/17/lib/pg_fernet.so /usr/lib/postgresql/17/lib/
COPY --from=build /usr/share/postgresql/17/extension/pg_fernet* /usr/share/postgresql/17/extension/
