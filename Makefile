# `make` lists the verbs. Every verb sets up what it needs: .venv with the pinned packages, once.
# What is kept is made inside this folder; what runs has its files in the temporary folder, and leaves none.
# Nothing is started that is not stopped.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup gen fmt lint secrets test check prove run demo bench docs image clean pins
SHELL := /bin/sh

BIN := .venv/bin
ARGS ?=
ONLY ?=
AGAINST ?=
PYTHON ?=
export PYTHON
# Of the theme, which tells at each build of a successor.
export NO_MKDOCS_2_WARNING := 1
export BUF_CACHE_DIR := $(CURDIR)/.venv/.cache/buf

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with the pinned packages (PYTHON=... chooses the interpreter); every other verb does it too
	@sh tools/setup.sh

gen: setup ## generate clients/protos, the Python package and the server's descriptor set from protos/, docs/reference/, and Grafana's dashboards
	@sh protos/gen.sh generate
	@$(BIN)/python -m tools.gen_docs docs/reference
	@$(BIN)/python -m tools.gen_dashboards deploy/grafana/dashboards

fmt: setup ## format Python and protos
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/buf format --write --exclude-path protos/buf

# Not by `mkdocs build --quiet`, from which strict mode hears of no warning.
lint: setup ## style, types, import contracts, house rules, protos, freshness of what is generated, links of the docs
	@echo "lint: ruff" && $(BIN)/ruff check --quiet --output-format concise . && $(BIN)/ruff format --quiet --check .
	@echo "lint: mypy" && $(BIN)/mypy --no-error-summary
	@echo "lint: import contracts" && $(BIN)/lint-imports > .venv/.lint-imports.txt 2>&1 || { cat .venv/.lint-imports.txt; exit 1; }
	@echo "lint: house rules" && $(BIN)/python tools/check_house.py && $(BIN)/python tools/adr_index.py --check
	@echo "lint: table owners" && $(BIN)/python -m tools.check_tables
	@echo "lint: protos" && sh protos/gen.sh lint && sh protos/gen.sh breaking
	@echo "lint: what is generated is fresh" && sh tools/check_drift.sh
	@echo "lint: docs" && $(BIN)/mkdocs build > .venv/.mkdocs.txt 2>&1 || { grep -E "WARNING|ERROR|Aborted|Error" .venv/.mkdocs.txt; exit 1; }
	@echo "lint: Dockerfile" && $(BIN)/hadolint Dockerfile

# All of it in two processes, each with stores of its own, by whole files; some of it in one, to be read and debugged.
test: setup ## the test suite, on real PostgreSQL and Valkey, in two processes (ARGS="-k name" for some, in one)
	@$(BIN)/pytest --quiet $(if $(strip $(ARGS)),$(ARGS),--numprocesses 2 --dist loadfile --no-loadscope-reorder)

secrets: setup ## scan the working tree and its history for secrets
	@echo "secrets: tree and history" && $(BIN)/python tools/scan_secrets.py

check: lint secrets test demo ## what CI runs: lint, secrets, test, demo

# Half an hour. What this machine cannot have (Patroni, PgBouncer) is named in the last line; REQUIRE_ALL=1 makes it a failure.
prove: setup ## the long proofs: kills, fail-overs, a stopped host, faults of FCM, a pooler, an audit of the pins; results go to docs/proof/ (ARGS="-k patroni" for one)
	@sh tools/proof_tools.sh
	@sh tools/client_tools.sh
	@$(BIN)/pytest --quiet --hypothesis-profile roaming $(if $(strip $(ARGS)),tests/prove,tests/*/ -m "prove or hypothesis and (unit or rpc)") $(ARGS)

run: setup ## serve on embedded stores and a fake FCM until Ctrl-C, at SYNCBEAT_LISTEN; prints address, tokens and a command to try
	@$(BIN)/syncbeat-server demo --serve $(ARGS)

demo: setup ## play the whole story over real processes and check each claim (ARGS=--json for JSON lines)
	@$(BIN)/syncbeat-server demo $(ARGS)

bench: setup ## one JSON line per figure, each beside its baseline (ONLY=name,name for some; AGAINST=REV compares with a commit)
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(AGAINST),--against $(AGAINST)) $(ARGS)

docs: setup ## serve the site of docs/ until Ctrl-C, and show changes as they are saved (ARGS="--dev-addr 127.0.0.1:8001")
	@$(BIN)/mkdocs serve $(ARGS)

image: setup ## build the container image; without an engine: lint the Dockerfile and run its steps in an empty folder
	@$(BIN)/hadolint Dockerfile
	@if docker info >/dev/null 2>&1; then docker build --tag syncbeat --label org.opencontainers.image.version=$$($(BIN)/syncbeat-server --version) . ; else $(BIN)/python tools/dockerfile_steps.py; fi

pins: setup ## write requirements/ anew from pyproject.toml (ARGS=--upgrade for the newest versions)
	@sh tools/pins.sh $(ARGS)

clean: ## remove everything made here, .venv included
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
