# make demo   the whole system on this machine, about three minutes, ends with a report
# make test   everything that must hold, on synthetic sound (and on real data where a data folder is found)
# make lint   ruff and mypy      make bench   the measured figures, as JSON under benchmarks/results/

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?=
ARGS   ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_NUM_THREADS ?= 1
# A container often sets it, and then each of the processes that demo and test start compiles torch anew, for 2 s.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint format bench system clean

demo: $(VENV)/.server
	$(BIN)/streamsplit demo $(if $(DATA),--data "$(DATA)") $(ARGS)

# Three at once, for many wait for processes and sockets; then one by one those that need the machine for themselves.
# ARGS runs what it names.
test: $(VENV)/.dev
ifeq ($(ARGS),)
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not realtime"
	$(BIN)/python -m pytest -m realtime tests/runtime
else
	$(BIN)/python -m pytest $(ARGS)
endif

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "got $$($(PYTHON) --version 2>&1), expected Python >= 3.10; set PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python venv failed; on Debian/Ubuntu: sudo apt-get install python3-venv"; exit 1; }

$(VENV)/.server: pyproject.toml | $(VENV)/bin/python system
	$(BIN)/python -m pip install -q -e '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python system
	$(BIN)/python -m pip install -q --no-compile -e '.[dev]'
	@touch $@ $(VENV)/.server

# libopus is the one system library; without it everything but the Opus cut works.
system: | $(VENV)/bin/python
	@$(PYTHON) -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("opus") is None)' || \
	{ run=; [ "$$(id -u)" = 0 ] || run="sudo -n"; \
	  command -v apt-get >/dev/null && { $$run apt-get update -q && $$run apt-get install -y -q libopus0; } >/dev/null 2>&1 || \
	  echo "note: libopus is missing, so the Opus cut is off; on Debian/Ubuntu: sudo apt-get install libopus0"; }

clean:
	rm -rf $(VENV) build dist runs .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
