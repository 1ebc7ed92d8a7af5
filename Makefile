# Two commands: `make demo` and `make test`. Both set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ONE_CORE := $(if $(shell command -v taskset),taskset -c 0)

.PHONY: help setup demo test check soak bench fix clean

help:            ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

setup: $(READY)  ## the virtual environment, with everything installed

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "SAIMP Train needs Python 3.11 or newer; choose one with: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Setting up $(VENV) (once; torch is large) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)   ## train on real market data, end to end, in a folder of its own (demo/)
	@$(BIN)/saimp demo

test: $(READY)   ## the tests
	@$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(READY)   ## the crash rigs and the use matrix for MINUTES=10; their tally is in bench/RESULTS.md
	PYTHONPATH=. $(BIN)/python bench/soak.py --minutes $(or $(MINUTES),10)

bench: $(READY)  ## stream, trainer and recovery side by side with peers, on one core; see bench/RESULTS.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(ONE_CORE) $(BIN)/python -m bench.stream
	$(ONE_CORE) $(BIN)/python -m bench.stream_peers
	$(ONE_CORE) $(BIN)/python -m bench.stream_memory
	$(BIN)/python -m bench.stream_shuffle
	$(BIN)/python -m bench.trainer
	$(BIN)/python -m bench.recovery

fix: $(READY)    ## format, fix what ruff can, write docs/config.md anew
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/saimp config > docs/config.md

clean:           ## what setup and demo made
	rm -rf $(VENV) demo
