# Needs make, Python 3.11 or newer, and a Python package index. `make` alone lists the targets.
# The first target that needs an extra of pyproject.toml installs it into .venv, once.

PYTHON ?= python3
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# $(call installed,EXTRA...): one stamp file for each extra that is installed in .venv.
installed = $(1:%=$(VENV)/.installed-%)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # two pips must not write to one environment
.PHONY: help demo test test-all lint docs bench clean distclean
.SECONDARY:

help: ## List the targets.
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(call installed,experiments) ## Train a small network with SEHT and without, and compare them.
	$(BIN)/python -m experiments demo $(ARGS)

test: $(call installed,test) ## Run the tests, the docstrings' examples and the README's (ARGS="-k name").
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long" $(ARGS)

test-all: $(call installed,test) ## Run all tests, the long ones too.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# PYRIGHT_PYTHON_IGNORE_WARNINGS: pyright does not go online to look for a newer release of itself.
lint: $(call installed,experiments dev) ## Check style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# Not with --quiet: MkDocs then drops its warnings before it counts them, and a strict build passes.
docs: $(call installed,docs) ## Build the documentation's site in build/site, and run its tutorials.
	$(BIN)/mkdocs build $(ARGS)

bench: $(call installed,bench) ## Measure step time, memory and compile time.
	$(BIN)/python -m benchmarks step_time $(ARGS)

clean: ## Delete caches and built packages.
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## Delete the environment (.venv) too.
	rm -rf $(VENV)

# --no-compile: Python compiles what is imported, when it is; to compile everything takes as long
# as the rest of the installation.
$(VENV)/.installed-%: pyproject.toml constraints.txt $(BIN)/python
	@echo "Installing seht-jax[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  -c constraints.txt -e ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "seht_jax needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another interpreter: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
