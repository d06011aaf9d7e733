# A new machine needs git, make and Python 3.11, 3.12 or 3.13; the rest is fetched into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "fewshot needs Python 3.11 to 3.13: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

setup: .venv/ready ## environment and packages, in .venv (5 GB)

demo: setup ## train MAML on the embedded data for two minutes, score it on unseen classes
	$(BIN)/python train.py experiment=demo
	@echo "for comparison, the nearest support image by pixels:"
	@$(BIN)/python evaluate.py algo=nearest data=strokes

test: setup ## the whole test suite
	$(BIN)/python -m pytest

lint: setup ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup ## speed and memory of a step, beside a plain loop and other libraries
	$(BIN)/python -m fewshot.bench

clean: ## remove the environment
	rm -rf .venv
