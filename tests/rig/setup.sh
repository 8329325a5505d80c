#!/usr/bin/env bash
# Gets everything that the tests need and that cargo does not bring, and prints where it is:
#
#     RIG_KAFKA=<cache>/kafka-<key>      libs/*.jar, bootstrap.checkpoint, classes.jsa
#     RIG_PYTHON=<cache>/python-<key>    a venv: bin/python with duckdb, pyarrow, fastavro, moto, confluent-kafka
#
# Only these lines go to standard output; what is being done goes to standard error. The second run finds all
# in the cache and takes a moment, so that the tests simply call this script to learn the paths.
#
#     setup.sh           what `make test` needs
#     setup.sh bench     and what `make bench` needs more (kcat)
#
# Cache: $TIDELOG_CACHE, else $XDG_CACHE_HOME/tidelog, else ~/.cache/tidelog. A part lives in a folder named by a
# hash of all that it is made from: a new version makes a new folder and disturbs no checkout that uses the old
# one. The file `ready` is written last; a folder without it is made anew. One flock guards all making.
#
# To add a server: write a function like `kafka`, let it `print_part`, name its Debian packages in `system_packages`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TIDELOG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidelog}

say() { printf 'rig: %s\n' "$*" >&2; }
fail() {
    printf 'rig: error: %s\n' "$*" >&2
    exit 1
}

# A registry that fails once often answers the second time.
retry() {
    local attempt
    for attempt in 1 2 3; do
        "$@" >&2 && return 0
        say "attempt $attempt failed: $*"
        sleep $((attempt * 2))
    done
    return 1
}

hash_of() { sha256sum | cut -c1-12; }

# ---- what comes from the system

has_java() { [ "$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java\.specification\.version = //p' | cut -d. -f1)" -ge 17 ] 2>/dev/null; }
has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }
has_library() { pkg-config --exists "$1" 2>/dev/null; }

# Prints the Debian packages that are missing.
system_packages() {
    has_java || echo default-jre-headless
    command -v mvn >/dev/null || echo maven
    command -v python3 >/dev/null || echo python3
    has_venv || echo python3-venv
    command -v g++ >/dev/null || echo g++
    command -v make >/dev/null || echo make
    command -v pkg-config >/dev/null || echo pkg-config
    has_library libssl || echo libssl-dev
    has_library zlib || echo zlib1g-dev
    if [ "${1:-}" = bench ]; then command -v kcat >/dev/null || echo kcat; fi
}

install_system_packages() {
    local missing
    missing=$(system_packages "$@" | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "missing on this machine: $missing- on Debian or Ubuntu: sudo apt-get install $missing"
    fi
    say "installing $missing"
    retry apt-get update -qq || fail "apt-get update failed; install by hand: $missing"
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive retry apt-get install -y -qq --no-install-recommends $missing ||
        fail "apt-get could not install: $missing"
    missing=$(system_packages "$@" | tr '\n' ' ')
    [ -z "$missing" ] || fail "still missing after apt-get: $missing(Java must be 17 or newer)"
}

# ---- parts of the cache

# make_part VARIABLE FOLDER FUNCTION: prints the line for VARIABLE; calls FUNCTION with the folder if it is not ready.
make_part() {
    local variable=$1 folder=$cache/$2 function=$3
    if [ ! -e "$folder/ready" ]; then
        (
            flock 9
            [ ! -e "$folder/ready" ] || exit 0
            say "making $folder"
            rm -rf "$folder"
            mkdir -p "$folder"
            "$function" "$folder"
            touch "$folder/ready"
        ) 9>"$cache/lock"
    fi
    printf '%s=%s\n' "$variable" "$folder"
}

make_kafka() {
    retry mvn -B -q -C -f "$here/kafka/pom.xml" dependency:copy-dependencies -DoutputDirectory="$1/libs" ||
        fail "the Kafka jars could not be fetched by mvn; see above"
    train_kafka "$1"
}

# Starts the broker once. That proves that it runs here, keeps what `kafka-storage format` writes (the feature levels;
# the same for every cluster), and leaves an archive of the loaded classes (JEP 350), which halves every later start.
train_kafka() {
    local folder=$1 work attempt
    work=$(mktemp -d)
    for attempt in 1 2 3; do
        if train_kafka_once "$folder" "$work" >"$work/log" 2>&1; then
            rm -rf "$work"
            return 0
        fi
        say "attempt $attempt to start the broker failed"
    done
    tail -n 30 "$work/log" >&2
    fail "the Kafka broker does not start on this machine; its log is above and in $work"
}

train_kafka_once() {
    local folder=$1 work=$2 broker controller java broker_pid tries
    rm -rf "$work/data" "$folder/classes.jsa"
    read -r broker controller < <(python3 -c '
import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*[x.getsockname()[1] for x in s])')
    cat >"$work/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$broker,CONTROLLER://127.0.0.1:$controller
controller.listener.names=CONTROLLER
log.dirs=$work/data
PROPERTIES
    java=(java -Xmx256m -XX:+UseSerialGC -Dlog4j2.configurationFile="$here/kafka/log4j2.properties")
    export CLASSPATH="$folder/libs/*"
    "${java[@]}" kafka.tools.StorageTool format -t "$(head -c 16 /dev/zero | base64 | tr -d =)" \
        -c "$work/server.properties" || return 1
    cp "$work/data/bootstrap.checkpoint" "$folder/" || return 1
    # 9>&-: a broker must not hold the lock of the cache
    "${java[@]}" -XX:ArchiveClassesAtExit="$folder/classes.jsa" kafka.Kafka "$work/server.properties" 9>&- &
    broker_pid=$!
    for ((tries = 0; tries < 600; tries++)); do
        kill -0 "$broker_pid" || return 1
        (: <"/dev/tcp/127.0.0.1/$broker") 2>/dev/null && break
        sleep 0.1
    done
    kill "$broker_pid"
    wait "$broker_pid" || true # 143: it ended by our SIGTERM
    ((tries < 600))
}

make_python() {
    python3 -m venv "$1" >&2 || fail "python3 -m venv failed; see above"
    retry "$1/bin/python" -m pip install -q --no-deps --disable-pip-version-check -r "$here/requirements.txt" ||
        fail "the Python packages could not be fetched by pip; see above"
    "$1/bin/python" -m pip check >&2 || fail "tests/rig/requirements.txt does not name all that its packages need"
}

# ---- the run

mkdir -p "$cache"
kafka_folder=kafka-$({ cat "$here/kafka/pom.xml" "$here/kafka/log4j2.properties" &&
    stat -Lc '%n %s %Y' "$(readlink -f "$(command -v java)")"; } 2>/dev/null | hash_of || true)
python_folder=python-$({ cat "$here/requirements.txt" &&
    python3 -c 'import sys; print(sys.version, sys.executable)'; } 2>/dev/null | hash_of || true)
# Asking for every package costs two seconds of starting JVMs and interpreters: only when something is to be made.
if [ "${1:-}" = bench ] || [ ! -e "$cache/$kafka_folder/ready" ] || [ ! -e "$cache/$python_folder/ready" ]; then
    (
        flock 9
        install_system_packages "$@"
    ) 9>"$cache/lock"
fi
make_part RIG_KAFKA "$kafka_folder" make_kafka
make_part RIG_PYTHON "$python_folder" make_python
