#!/usr/bin/env bash
# Fuzzes every parser that reads what others have written: each target of this directory for a while.
#
#     run.sh [SECONDS]    60 for each target, unless said
#
# The stable toolchain is enough. cargo-fuzz is put into the cache of the test servers where it is missing. A finding ends
# the run and lies in fuzz/artifacts; `cargo fuzz run --sanitizer none TARGET FILE` in fuzz/ shows it again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
seconds=${1:-60}
tools=$(bash "$root/tests/rig/setup.sh" where)/cargo-fuzz
export PATH="$tools/bin:$PATH"

if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --quiet --locked --root "$tools" cargo-fuzz ||
        { echo "fuzz: error: cargo-fuzz could not be installed; see above, or put it into PATH: cargo install cargo-fuzz" >&2 && exit 1; }
fi
cd "$root"
# The versions that the program is built with.
[ -e fuzz/Cargo.lock ] || cp Cargo.lock fuzz/Cargo.lock
# The parsers are safe code: what there is to find are panics, hangs and memory that an input asks for. Without a sanitizer
# no flag is needed that only a nightly toolchain takes.
cargo fuzz build --sanitizer none
for target in $(cargo fuzz list); do
    mkdir -p "fuzz/corpus/$target"
    seeds=()
    case $target in
    segment) seeds=(tests/golden) ;;
    manifest) seeds=(src/manifest/tests/golden) ;;
    event) seeds=(tests/data/cut) ;;
    text) seeds=(config) ;;
    esac
    echo "fuzz: $target for $seconds s"
    # -rss_limit_mb looks once a second at what was touched. What is asked for and never touched, or asked for and freed at once,
    # shows where there is no room for it: the allocation fails, and that ends the target.
    (ulimit -v $((2 << 20)); cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "${seeds[@]}" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1)
done
