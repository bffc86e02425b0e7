# Sourced by the other scripts: paths, versions, and how the scripts print.

set -euo pipefail
# Installed files must be readable for the server's user, too.
umask 022
# The scripts and tests read what programs print, so it must be in English. LANGUAGE would take
# precedence.
export LC_ALL=C.UTF-8
unset LANGUAGE
# Python's modules come only from our virtual environments, and cd goes only where it is told.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX CDPATH
export HOME=${HOME:-~}

# A bare PG_CONFIG is looked up on PATH; a relative one is relative to the caller's directory.
if found=$(type -P "${PG_CONFIG:-}"); then
    PG_CONFIG=$(realpath -s "$found")
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The Debian on which the packages for a server version are built and tested: the oldest that has what it takes, for
# the sake of its C library.
# shellcheck disable=SC2034 # for package and test-package
declare -A package_release=([15]=12 [16]=12 [17]=13 [18]=12)

crate_version() { sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml; }

# What outlives a clone: tools, servers, virtual environments. The user that a server runs as must
# be able to read it, which /root does not allow.
if [ "$(id -u)" = 0 ]; then
    cache=${PG_FERNET_CACHE:-/var/cache/pg_fernet}
else
    cache=${PG_FERNET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pg_fernet}
fi
mkdir -p "$cache"
cache=$(realpath -s "$cache")
export PG_FERNET_CACHE=$cache

# Each major version of the server needs its own build: pgrx compiles against its headers.
export PG_FERNET_TARGET=${PG_FERNET_TARGET:-${CARGO_TARGET_DIR:-$PWD/target}}

# runuser and ldconfig are in sbin, which is not on every PATH.
export PATH=$cache/tools/bin:$PATH:/usr/sbin:/sbin

# The toolchain may be older than Cargo.toml declares, at the user's own risk.
older_rust() {
    local declared found
    declared=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    found=$(rustc --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+' | head -1) || return 1
    [ "$found" != "$declared" ] && printf '%s\n' "$found" "$declared" | sort --check=quiet --version-sort
}

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

if [ -z "${PG_FERNET_CARGO:-}" ] && older_rust; then
    say "This is $(rustc --version), older than what Cargo.toml declares: building with --ignore-rust-version"
    PG_FERNET_CARGO=$(command -v cargo)
    export PG_FERNET_CARGO PATH=$PWD/scripts/older-rust:$PATH
fi

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Forgets every variable that steers a client of PostgreSQL or a server, from PGHOSTADDR to PSQLRC,
# but keeps the project's own. Every script that starts a server calls it first: it must not reach
# another server.
forget_other_servers() {
    local name
    for name in $(compgen -e PG) $(compgen -e PSQL); do
        case $name in
        PG | PG_CONFIG | PG_FERNET_* | PGRX_*) ;;
        *) unset "$name" ;;
        esac
    done
}

# Runs a long command, printing a dot every few seconds. Shows its output only if it fails.
quietly() {
    local log out in pid
    log=$(mktemp)
    # An open file needs no name, and without one nothing is left behind if this is interrupted.
    exec {out}>"$log"
    exec {in}<"$log"
    rm "$log"
    # bash makes commands in the background ignore interrupts; this one ends with the script.
    (trap - INT QUIT && "$@") >&"$out" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            sleep 0.3
            kill -0 "$pid" 2>/dev/null || break
        done
        printf . >&2
    done
    echo >&2
    if ! wait "$pid"; then
        cat <&"$in" >&2
        die "failed: $*"
    fi
    exec {out}>&- {in}<&-
}

# Runs a command as root, if we are root or can become root without a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_apt() { command -v apt-get >/dev/null && as_root true 2>/dev/null; }

# A new machine has no list of packages, or an old one. Once per script is enough.
apt_update() {
    [ -n "${apt_updated:-}" ] || quietly as_root apt-get update
    apt_updated=1
}

apt_has() { apt_update && apt-cache show "$1" >/dev/null 2>&1; }

apt_install() {
    say "Installing Debian packages: $*"
    apt_update
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

is_debian() { # RELEASE
    # shellcheck disable=SC1091 # of this machine; what is not released has no number
    (. /etc/os-release 2>/dev/null && [ "${ID:-} ${VERSION_ID:-unstable}" = "debian $1" ])
}

# Installs this version of a cargo subcommand into the cache, unless it is already there.
cargo_tool() { # NAME VERSION [OPTION ...]
    if ! grep -qsF "\"$1 $2 " "$cache/tools/.crates.toml"; then
        say "Installing $1 $2 (some minutes, once)"
        quietly env -u CARGO_TARGET_DIR -u RUSTC_BOOTSTRAP \
            cargo install "$1" --version "$2" --locked --root "$cache/tools" "${@:3}"
    fi
}

# Makes a Python environment, if it is missing or was made from other requirements.
python_environment() { # DIR REQUIREMENTS [CONSTRAINTS]
    if ! cat "${@:2}" | cmp -s - "$1/made-from.txt"; then
        command -v python3 >/dev/null && python3 -c 'import ensurepip' 2>/dev/null ||
            { may_apt && apt_install python3-venv; } ||
            die "Python 3 with its venv module is missing; install python3-venv"
        say "Making a Python environment in $1 (up to a minute, once)"
        rm -rf "$1"
        python3 -m venv "$1"
        quietly "$1/bin/pip" install -r "$2"
        cat "${@:2}" >"$1/made-from.txt"
    fi
}

# Makes an environment for each Airflow that we test with.
airflow_environments() {
    local requirements version
    for requirements in pg_test/airflow/requirements-*.txt; do
        version=${requirements#*requirements-} version=${version%.txt}
        python_environment "$cache/airflow-$version" "$requirements" "pg_test/airflow/constraints-$version.txt"
    done
}

# Makes an environment for each application that we test with, with exactly the packages in its
# list: the application's other dependencies, which are not needed here, can take gigabytes.
application_environments() {
    local requirements
    for requirements in pg_test/applications/*/requirements.txt; do
        PIP_NO_DEPS=1 python_environment "$cache/applications/$(basename "$(dirname "$requirements")")" "$requirements"
    done
}

major_of() { "$1" --version | grep -oE '[0-9]+' | head -1; }

# Tells whether a server of that version is there with its headers.
usable() { # PG_CONFIG [MAJOR]
    [ -x "$1" ] && [ -e "$("$1" --includedir-server)/postgres.h" ] &&
        [ -x "$("$1" --bindir)/initdb" ] && [[ $("$1" --version) == "PostgreSQL ${2:-}"* ]]
}

# Prints the pg_config of an installed server.
installed() { # MAJOR
    local candidate
    for candidate in "/usr/lib/postgresql/$1/bin/pg_config" "/usr/pgsql-$1/bin/pg_config" \
        "$(command -v pg_config || true)"; do
        if usable "$candidate" "$1"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Builds the extension for the server of a pg_config, and puts the files to install into DIR/lib and DIR/extension.
# Since sql/pg_fernet.sql is written by hand, this needs only cargo, not cargo-pgrx, which takes longer to build than
# the extension.
build_into() { # PG_CONFIG DIR
    cargo build --release --lib --no-default-features --features "pg$(major_of "$1")"
    rm -rf "$2"
    install -D -m 755 "$CARGO_TARGET_DIR/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release/libpg_fernet.so" "$2/lib/pg_fernet.so"
    install -D -m 644 -t "$2/extension" pg_fernet.control sql/pg_fernet--*.sql
    install -m 644 sql/pg_fernet.sql "$2/extension/pg_fernet--$(crate_version).sql"
}

# Builds the extension and installs it into that server.
install_into() { # PG_CONFIG [COMMAND, such as sudo, to install with]
    local built=$CARGO_TARGET_DIR/built
    build_into "$1" "$built"
    # This makes new files, and leaves alone the one that a running server has mapped.
    "${@:2}" install -m 755 -t "$("$1" --pkglibdir)" "$built/lib/pg_fernet.so"
    "${@:2}" install -m 644 -t "$("$1" --sharedir)/extension" "$built"/extension/*
}

# What a newcomer's first command needs: the environment, and the extension in its server.
set_up_with_extension() {
    local env
    env=$(scripts/setup) || exit
    eval "$env"
    say "Building pg_fernet for $("$PG_CONFIG" --version) (a minute or two the first time)"
    quietly install_into "$PG_CONFIG"
}
