# The commands a newcomer needs. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
.DEFAULT_GOAL := help

.PHONY: help setup demo test test-all lint format results docs typing clean notebooks app test-lowest audit

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) typing  ## create .venv and install the package with its development tools

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $(STAMP)

# mypy and pyright do not follow the editable import hook; these links show them the packages under their real names.
typing:  ## (re)create the links the type checkers follow
	@mkdir -p .typing/ham10000
	@for p in modeling training hub_upload; do ln -sfn ../../$$p .typing/ham10000/$$p; done

demo: setup  ## train, evaluate and predict all three variants on synthetic data (no network)
	$(BIN)/python examples/demo.py

app: setup  ## show the three models of examples/checkpoints side by side in a browser
	HF_HUB_OFFLINE=1 $(BIN)/python examples/app.py

notebooks: setup  ## execute the notebooks of examples/ again, on synthetic data (no network)
	OMP_NUM_THREADS=1 $(BIN)/python examples/notebooks.py

test: setup  ## lint, type-check and run the fast tests (no network, no GPU)
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not gpu"

test-all: setup  ## every test, the slow ones and those on ../shared too
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# uv reads the floors of pyproject.toml, so that they are written in one place.
test-lowest: setup  ## the fast tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(BIN)/uv venv --clear --quiet --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e ".[dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n auto --dist worksteal -m "not slow and not gpu"

# --strict: a package that could not be looked up is a failure, not a pass.
audit: setup  ## look for known vulnerabilities of what is installed (needs the network)
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audit.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --progress-spinner off -r $(VENV)/audit.txt

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: setup  ## render the tables of the README and of examples/results
	$(BIN)/python examples/benchmarks/results.py render --readme README.md examples/results/README.md examples/guides/speed.md

docs: setup  ## API documentation from the docstrings, in build/docs (no network)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/docs/build_docs.py

clean:  ## remove runs, caches and build outputs (keeps .venv)
	rm -rf runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .typing
