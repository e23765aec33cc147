# Everything runs in a virtual environment of the project's own; nothing else on the machine is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test faults fuzz mutants lint clean

demo: $(VENV)/.demo
	$(BIN)/rootstock demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

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
