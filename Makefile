# The commands of this project. `make` alone lists them.
#
# Everything runs in .venv, made on first use with the versions pinned in constraints.txt. As root or not.
#   make PYTHON=python3.12 setup    another interpreter (3.10 to 3.13)
#   make EXTRAS=query setup         other extras than those for development
#   make PIP_ARGS="..." setup       options for pip, such as a mirror

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
EXTRAS ?= dev
PIP_ARGS ?=
SEEDS ?= 20
FIRST ?= 0
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
FAST := not ray and not s3 and not slow and not notebook and not gpu
# Whole jobs, whole outputs, hostile corpora and the commands of the docs take minutes: `make test` has them.
LONG := tests/running tests/faults tests/hostile tests/labels tests/test_docs_run.py
# A file each at a time. `make test` has one process more than cores: much of its time is waiting, for Ray and servers.
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder

##@ Use

.PHONY: help
help:  ## List these commands
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*##/ {printf "  make %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP)  ## Make .venv and install the package with pinned dependencies

.PHONY: demo
demo: setup  ## Label generated pictures and photographs, end to end, into demo/ (CHECKPOINTS=~/sapiens_host)
	@bash tests/demo/run.sh demo

##@ Develop

.PHONY: check-fast
check-fast: lint  ## Inner loop, under a minute: lint, types, tests without Ray, S3 or slow parts
	$(PY) -m pytest -q -n 2 $(SIDE_BY_SIDE) -m "$(FAST)" $(addprefix --ignore=,$(LONG))

.PHONY: test
test: lint  ## Everything that CI checks: lint, types, all tests
	$(PY) -m pytest -n 3 $(SIDE_BY_SIDE)

.PHONY: lint
lint: setup  ## ruff, ruff format, mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

.PHONY: format
format: setup  ## Let ruff put code in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: bench
bench: setup  ## Run tests/bench/ and print its tables
	@for script in tests/bench/bench_*.py; do echo "== $$script"; $(PY) "$$script"; done

.PHONY: chaos
chaos: setup  ## Lose workers, nodes, drivers and S3, a schedule a seed (SEEDS=20, FIRST=0)
	$(PY) -m tests.chaos --seeds $(SEEDS) --first $(FIRST)

.PHONY: pins
pins: setup  ## Write what .venv holds to constraints.txt
	$(PY) infra/freeze.py > constraints.tmp
	mv constraints.tmp constraints.txt
	touch $(STAMP)

.PHONY: clean
clean:  ## Remove the demo, build leftovers and caches (not .venv)
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find annotator tests infra -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is looked for, not python: without Debian's python3-venv, `-m venv` leaves a .venv that has no pip.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "annotator needs Python 3.10 to 3.13; '$(PYTHON)' is not one." \
			"Name another: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV) || $(PYTHON) -m virtualenv --clear $(VENV) || { \
		rm -rf $(VENV); \
		echo "No virtual environment could be made. Install Debian's python3-venv" \
			"(as root: apt-get install python3-venv), or virtualenv for '$(PYTHON)'; then try again." >&2; exit 1; }
	@echo "Installing into $(VENV); the first time this takes minutes."
	$(PY) -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
