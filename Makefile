# keyheat: every task sets itself up (in .venv and target/) and is quick the second time.
#
#   make setup   .venv with the pinned tools and the release build of the native module
#   make demo    a hot key is found and disarmed on three local Valkey primaries
#   make test    Rust and Python tests
#
# Variables: PYTHON (python3), ARGS (passed on to demo, pytest and the proxy bench), SMALL=1 (bench of a few minutes),
# CARGO_TARGET_DIR (target), JOBS=2 (tests at a time).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
SMALL ?=
# Tests at a time: most of their time they wait for servers.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
export CARGO_TARGET_DIR ?= target
# One interpreter for every build of the native crate, or cargo would rebuild it for each of them.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Seconds `make fuzz` spends in all.
FUZZ_SECONDS ?= 60

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find crates -type f -not -path '*/target/*' -not -path '*/tests/*' -not -name '*.md')
BENCH_ARGS := $(if $(SMALL),--small) $(ARGS)

.PHONY: help setup demo example test test-rust test-python compat consistency soak lint format bench fuzz clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(VENV)/.native ## .venv with pinned tools and the release build of keyheat
	@echo "keyheat is ready: $(BIN)/keyheat --help"

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "keyheat needs Python 3.11 or newer; no '$(PYTHON)' here (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "keyheat needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1) (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian: python3-venv)" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "keyheat needs a C compiler for linking: no 'cc' here (Debian: gcc)" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "keyheat needs Rust 1.85 or newer: no 'cargo' here (see https://rustup.rs)" >&2; exit 1; }
	@echo "[1/3] $(VENV): $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.tools: $(VENV)/.made pyproject.toml constraints.txt tools/requirements.py
	@echo "[2/3] Python packages, as pinned in constraints.txt"
	@$(BIN)/python tools/requirements.py > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $(VENV)/requirements.txt
	@touch $@

$(VENV)/.native: $(VENV)/.tools $(RUST_SOURCES)
	@echo "[3/3] the native module, release build (the first one takes a few minutes)"
	@PIP_QUIET=1 PIP_CONSTRAINT=$(CURDIR)/constraints.txt VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked
	@touch $@

demo: $(VENV)/.native ## a flash sale on three primaries, without and with keyheat (under a minute)
	@$(BIN)/keyheat demo $(ARGS)

example: $(VENV)/.native ## a shop with a flash sale, without and with the protected client (half a minute)
	@$(BIN)/python -m examples.shop $(ARGS)

test: $(VENV)/.native ## all tests, Rust then Python
	cargo test --locked
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-rust: $(VENV)/.tools ## Rust tests only
	cargo test --locked

test-python: $(VENV)/.native ## Python tests only (ARGS="-k demo")
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

compat: $(VENV)/.native ## redis-py's own tests with every client protected (most of an hour)
	@for mode in sync asyncio cluster asyncio-cluster; do $(BIN)/python -m tests.compat.redis_py_suite --mode $$mode --wrap $(ARGS) || exit 1; done

consistency: $(VENV)/.native ## the protected client under random faults for ten minutes
	@$(BIN)/python -m tests.client.consistency $(ARGS)

soak: $(VENV)/.native ## the proxy under failing servers and networks for ten minutes (ARGS="--seconds 60 --only cluster")
	@$(BIN)/python -m tests.soak.rolling_upgrade
	@$(BIN)/python -m tests.soak $(ARGS)

lint: $(VENV)/.tools ## formatting, types, clippy and import arrows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports --no-cache
	$(BIN)/python tools/arrows.py
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

format: $(VENV)/.tools ## rewrite the sources in the house format
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	cargo fmt --all

bench: $(VENV)/.native ## core, proxy and client figures, into benches/results/ (SMALL=1 for a few minutes)
	cargo run --locked --release -p keyheat-bench-core -- $(if $(SMALL),--small)
	$(BIN)/python benches/proxy.py $(BENCH_ARGS)
	$(BIN)/python benches/latency.py $(if $(SMALL),--small)
	$(BIN)/python benches/idle_clients.py
	$(BIN)/python benches/compare.py $(if $(SMALL),--small)
	$(BIN)/python benches/client.py

fuzz: ## a minute of fuzzing of the protocol parsers
	fuzz/run.sh $(FUZZ_SECONDS)

clean: ## remove everything the other targets made
	rm -rf $(VENV) target .cache python/keyheat/*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find python tests tools benches -name __pycache__ -type d -prune -exec rm -rf {} +
