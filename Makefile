# `make repro` and `make test` set up what they need. The environment is made once, in .venv, and again only when
# the pinned versions or the project's requirements change.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help env repro test test-fast lint format clean

help:
	@echo "make repro      set up, then run the pipeline of params.yaml (dvc repro)"
	@echo "make test       set up, then run all tests"
	@echo "make test-fast  the tests that take seconds"
	@echo "make lint       check format, lint, floors, types and the Dockerfile"
	@echo "make format     mend format and lint where possible"
	@echo "make clean      remove the environment and caches; architectures, images, runs and results stay"

env: $(READY)

$(READY): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[pipeline,test,lint]"
	touch $@

repro: env
	@$(BIN)/python -c 'from pipeline.workspace import scm_hint; print(scm_hint() or "git: ready")'
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro

# Two processes with one thread each: most tests are too small for a second thread to help. One that starts Ray keeps one
# core and a half busy, and more of them at once only wait for each other. Tests start hundreds of processes: compiled
# modules are kept even where the environment says otherwise.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 10

test: env
	$(PYTEST)

test-fast: env
	$(PYTEST) -m "not slow"

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
