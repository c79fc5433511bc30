# Slipway. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON_FOUND = $$(scripts/find-python)
BIN := .venv/bin
SERVING_BIN := serving/.venv/bin

.PHONY: help setup demo test lint up down status bench proof docs lock clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: ## Both environments from their locks (nothing to do: under a second)
	@python=$(PYTHON_FOUND) && "$$python" scripts/setup.py

demo: setup ## The year in minutes: data, training, promotion, harm, drift; ends in a report and a running stack
	@$(BIN)/slipway demo $(ARGS)

test: setup ## Everything: lint, unit, contract, DAGs, serving, end to end
	@scripts/test

lint: setup ## Style, types, architecture
	@scripts/lint

up: setup ## Start Airflow, MLflow, gateway and collector on this machine
	@$(BIN)/slipway up

down: ## Stop them; the data stays
	@if [ -x $(BIN)/slipway ]; then $(BIN)/slipway down; fi

status: setup ## What runs
	@$(BIN)/slipway status

bench: setup ## The benchmarks, beside their peers
	@scripts/run-benchmarks bench

proof: setup ## The long simulations and benchmarks; writes benchmarks/results/*.json
	@scripts/run-benchmarks proof

docs: setup ## The generated pages of docs/reference and docs/schema
	@$(BIN)/python scripts/reference.py
	@$(BIN)/slipway check --write-schemas >/dev/null

lock: setup ## Compile the locks again after a change of requirements*.in
	@scripts/compile-locks

clean: down ## Stop everything, and remove what running has made (the environments stay)
	rm -rf var .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
