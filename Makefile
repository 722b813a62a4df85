# harmonywatch: few verbs. `make demo` shows it, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help setup demo cluster test test-cluster check release lock clean

help:  ## what each verb does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready  ## the environment, from requirements.lock

.venv/.ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing from requirements.lock ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) 2>/dev/null \
	  && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q src
	@touch $@

demo: setup  ## the whole city on this machine, ending with a table of truth against result
	@$(BIN)/harmonywatch demo

cluster: setup  ## the same on three brokers, S3, PostgreSQL and MQTT, two of each worker
	@$(BIN)/python -m engines install
	@$(BIN)/python -m engines play

check: setup  ## style, types and the one-way imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

test: check  ## every test
	@$(BIN)/python -m pytest

test-cluster: setup  ## the same contracts on real engines: Kafka and others, fetched first
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-spark.lock
	@$(BIN)/python -m engines install
	@$(BIN)/python -m pytest tests/cluster

release: setup  ## wheel, sdist, bill of materials, notices and checksums, into dist/
	@$(BIN)/python deploy/release.py

lock:  ## resolve pyproject.toml again into requirements.lock (needs the network)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --group spark --constraint requirements.lock -o requirements-spark.lock

clean:  ## everything generated
	rm -rf .venv .engines build dist demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis
