# Everything runs in .venv; `make` alone lists the targets.
WINDOWS := $(filter Windows_NT,$(OS))
PYTHON ?= $(if $(WINDOWS),python,python3)
BIN := .venv/$(if $(WINDOWS),Scripts,bin)

.PHONY: help setup demo test check lint types format dist oldest api licences golden clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

setup: .venv/ready  ## make .venv and install everything into it

demo: .venv/ready  ## cluster 1,797 handwritten digits (a minute)
	$(BIN)/deepcluster fit digits --clusters 10 --out runs/demo --overwrite

test: .venv/ready  ## run the tests (slow ones too with SLOW=1, alone with SLOW=only)
	$(BIN)/pytest $(if $(SLOW),$(if $(filter only,$(SLOW)),-m slow),-m "not slow" --numprocesses auto --maxprocesses 4)

lint: .venv/ready  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready  ## mypy, strict
	$(BIN)/mypy

check: lint types test  ## what a change must pass

format: .venv/ready  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: .venv/ready  ## sdist and wheel in dist/, tried in an empty environment
	rm -rf dist
	$(BIN)/hatchling build
	.ci/try-wheel

api: .venv/ready  ## write docs/api.md from the docstrings
	$(BIN)/python docs/make_api.py

golden: .venv/ready  ## store the loss curve of a small fixed fit anew, after a change that is meant
	$(BIN)/python benchmarks/golden.py

licences: .venv/ready  ## list the licences of all dependencies
	$(BIN)/python benchmarks/licences.py

oldest: .venv/ready  ## the fast tests with the oldest dependencies that pyproject.toml allows
	$(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .oldest
	$(BIN)/uv pip install --quiet --python .oldest --resolution lowest-direct --editable '.[tensorboard]'
	$(BIN)/uv pip install --quiet --python .oldest pytest faiss-cpu onnxruntime
	.oldest/$(notdir $(BIN))/python -m pytest -m "not slow and not browser" -W ignore::DeprecationWarning

clean:  ## remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
