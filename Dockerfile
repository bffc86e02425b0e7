# The official image of PostgreSQL with pg_fernet. Untested: it was written on a machine without Docker.
#
#   docker build --build-arg PG_MAJOR=17 -t postgres-fernet:17 .

ARG PG_MAJOR=17
FROM postgres:${PG_MAJOR}-bookworm AS build
ARG PG_MAJOR

RUN apt-get update && apt-get install -y --no-install-recommends \
    build-essential ca-certificates curl libclang-dev postgresql-server-dev-${PG_MAJOR}
RUN curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --component rustfmt
ENV PATH=/root/.cargo/bin:$PATH USER=root PGRX_PG_CONFIG_PATH=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config

WORKDIR /build
COPY Cargo.toml ./
RUN cargo install cargo-pgrx --no-default-features --locked \
    --version "$(sed -n 's/^pgrx = "=\(.*\)"$/\1/p' Cargo.toml)"
RUN cargo pgrx init "--pg${PG_MAJOR}=$PGRX_PG_CONFIG_PATH"
COPY . .
RUN cargo pgrx package --pg-config "$PGRX_PG_CONFIG_PATH" --out-dir /package \
    --no-default-features --features "pg${PG_MAJOR}"

FROM postgres:${PG_MAJOR}-bookworm
COPY --from=build /package/usr/ /usr/
COPY sql/airflow /usr/share/pg_fernet/sql/airflow
