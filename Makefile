# What one types here. `make` alone lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-bad-store test-clusters test-faults test-slot soak soak-replay soak-recover lint bench bench-quick bench-recover fuzz clean-cache

setup := bash tests/rig/setup.sh
# The one place where the cache's path is decided is setup.sh; this asks it.
cache = $(shell $(setup) where)
# The documentation is for who works on the code, so that a module's story may link to what is private in it.
doc_allows := --allow rustdoc::private_intra_doc_links

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## build the program and watch it archive and replay, without any server
	@$(setup) build
	cargo run --release --locked -- demo

# Failures are shown as they come; the last line counts all tests of all binaries. Tests wait for servers more than they compute:
# two more at a time than there are cores save time.
test: export RUST_TEST_THREADS := $(or $(RUST_TEST_THREADS),$(shell echo $$(($$(nproc) + 2))))
test: ## get the test servers (kept in a cache), then run every test
	@$(setup) test
	{ cargo test --locked --no-fail-fast || failed=1; bash tests/rig/bad_store.sh few || failed=1; exit $${failed:-0}; } 2>&1 \
	    | awk -f tests/rig/count.awk

test-bad-store: ## the Kafka and Postgres fault suites once more, with the archive in an S3 store that disturbs one request of eight; RIG_SEED=7
	@$(setup) test
	bash tests/rig/bad_store.sh all 2>&1 | awk -f tests/rig/count.awk

test-clusters: ## three brokers that are killed, restarted and out of room under load, records of 100 MiB, 5,000 partitions; as root, some 10 minutes
	@$(setup) test >/dev/null
	cargo test --locked --test main -- --ignored --nocapture --test-threads=1 clusters::

test-faults: export CRASH_SEEDS := $(or $(CRASH_SEEDS),50)
test-faults: export CRASH_SEED := $(or $(CRASH_SEED),1)
test-faults: export CRASH_MINUTES := $(or $(CRASH_MINUTES),30)
test-faults: export CRASH_AT_ONCE := $(or $(CRASH_AT_ONCE),2)
test-faults: ## the crash tests with 50 seeds over every step, for 30 minutes at the most; CRASH_SEEDS=50 CRASH_SEED=1 CRASH_MINUTES=30
	@$(setup) test >/dev/null
	cargo test --locked --test main -- --nocapture crashes::

# The seed is in the first line that it prints: SOAK_SEED=… draws the same schedule again.
soak: export SOAK_SEED := $(or $(SOAK_SEED),$(shell date +%s))
soak: export SOAK_MINUTES := $(or $(SOAK_MINUTES),20)
soak: ## three brokers, three archivers and everything that can happen to them for 20 minutes; SOAK_MINUTES=60 SOAK_SEED=7
	@$(setup) test >/dev/null
	cargo test --locked --test main -- --nocapture soak::

soak-replay: export SOAK_SEED := $(or $(SOAK_SEED),$(shell date +%s))
soak-replay: export SOAK_MINUTES := $(or $(SOAK_MINUTES),20)
soak-replay: ## random replays into random targets with accidents on the way for 20 minutes; SOAK_MINUTES=60 SOAK_SEED=7
	@$(setup) test >/dev/null
	cargo test --locked --test main -- --nocapture soak_replay::

test-slot: ## a slot that is lost for five minutes, PostgreSQL 15 to 18: eight minutes each
	@$(setup) test >/dev/null
	cargo test --locked --test main -- --nocapture --ignored --test-threads=1 recover_slot::five_minutes

soak-recover: export SOAK_SEED := $(or $(SOAK_SEED),$(shell date +%s))
soak-recover: export SOAK_ROUNDS := $(or $(SOAK_ROUNDS),10)
soak-recover: ## recover a pipeline to ten random moments, PostgreSQL 15 and 18, JSON and Avro; SOAK_ROUNDS=10 SOAK_SEED=7
	@$(setup) test >/dev/null
	cargo test --locked --test main -- --nocapture --ignored soak_recover::

lint: ## formatting, clippy, documentation, and cargo-deny where it is installed
	@$(setup) build
	cargo fmt --check
	cargo clippy --locked --all-features --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings $(doc_allows)" cargo doc --locked --no-deps --document-private-items
	@if ! cargo deny --version >/dev/null 2>&1; then \
	    echo "lint: NOT CHECKED: licences and advisories (deny.toml): cargo-deny is not installed; cargo install cargo-deny"; \
	else \
	    cargo deny --locked check --hide-inclusion-graph licenses bans sources; \
	    if cargo deny --locked fetch db >/dev/null 2>&1; then cargo deny --locked check --disable-fetch advisories; \
	    else echo "lint: NOT CHECKED: advisories: their database cannot be fetched; cargo deny fetch db says why"; fi; \
	fi

bench: ## measure against the alternatives on one real broker, and print the tables; BENCH="--write docs/PERFORMANCE.md" keeps them, BENCH="--quick" only tries that all runs
	@$(setup) bench >/dev/null
	cargo build $(if $(filter --quick,$(BENCH)),,--release) --locked --features bench --bins
	python3 benches/run.py $(BENCH)

bench-quick: ## archive, replay and live in a few minutes, once the program is built; the figures are in target/bench/results.json
	@$(setup) bench >/dev/null
	cargo build --release --locked --features bench --bins
	python3 benches/run.py --short

bench-recover: ## bring a pipeline of 1 GiB back with the optimised build, and print the seconds of each step
	@$(setup) test >/dev/null
	cargo build --release --locked --bin tidelog
	RIG_PROGRAM="$${CARGO_TARGET_DIR:-target}/release/tidelog" cargo test --locked --test main -- --nocapture --ignored recover_size::

fuzz: ## fuzz the parsers for a minute each; FUZZ=300 for longer
	bash fuzz/run.sh $(FUZZ)

clean-cache: ## remove the test servers and what CI has built
	rm -rf "$(cache)"
