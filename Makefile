# `make demo` and `make test` do everything on a fresh machine that has Python 3.11 or 3.12, make and a package index.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && ! python3 -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,13))' 2>/dev/null && echo python3.12 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test lint clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: $(READY)  ## the environment, in .venv

$(READY): pyproject.toml Makefile
	@$(PYTHON) .ci/check_system.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@mkdir -p .typing && ln -sfn .. .typing/headlift
	@touch $(READY)

demo: setup  ## run the main job on a real photo, into out/demo
	$(BIN)/python benchmarks/demo.py out/demo

test: setup  ## the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd .typing && ../$(BIN)/mypy --config-file ../pyproject.toml -p headlift

clean:  ## remove the environment and what was built
	rm -rf $(VENV) .typing build dist *.egg-info
