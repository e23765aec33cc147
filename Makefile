# Every target runs in the project's own virtual environment, $(VENV), and changes nothing else on the machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test integration slow short faults fuzz mutants lint clean

demo: $(VENV)/.demo
	$(BIN)/rootstock demo

# The fast tests.
test: $(VENV)/.dev
	$(BIN)/python -m pytest

# The tests of whole commands and runs.
integration: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'integration and not slow'

# The slow tests: injected failures, the commands of the documents, runs of many processes.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# A few fast tests that show whether another version of Python and its JAX work: PYTHON=python3.12 VENV=.venv312.
short: $(VENV)/.dev
	$(BIN)/python -m pytest tests/configs tests/data tests/model/test_transformer.py
	$(BIN)/python -m pytest -m 'not slow' tests/test_golden.py

faults: $(VENV)/.dev
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.faults

fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-2000} JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/fuzz

mutants: $(VENV)/.dev
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.mutants

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[tasks]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV)
