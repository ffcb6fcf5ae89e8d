# Everything runs in a virtual environment of its own, made on first use from the pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup compare test test-large lint bench gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make the virtual environment
$(READY): setup.py pyproject.toml constraints.txt
	@echo "seqconv: setting up $(VENV) (torch and friends are several hundred MB: some minutes on a first run)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt setuptools
	$(PIP) --constraint constraints.txt --editable '.[test,bench]'
	@touch $@

compare: $(READY)  ## train and compare the notebook's models; DATA and options through ARGS
	$(BIN)/seqconv compare all $(ARGS)

test: $(READY)  ## all tests but the large and GPU ones, with coverage
	@$(BIN)/seqconv warmup --dtype float32 float64 > /dev/null  # once, instead of in every process of tests
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not large and not gpu" --cov --cov-report=term:skip-covered --cov-fail-under=90 $(ARGS)

test-large: $(READY)  ## tests that need much memory or time
	$(BIN)/python -m pytest -m large $(ARGS)

lint: $(READY)  ## ruff, and mypy on the package as it is built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build  # what an earlier build left would be checked, too
	$(PIP) --no-deps --no-build-isolation --target build/lint .
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p seqconv

bench: $(READY)  ## the CPU benchmarks and their report
	$(BIN)/python -m benchmarks $(ARGS)

gpu:  ## the GPU tests, then the GPU benchmarks, into one results file
	@if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; \
	then $(PYTHON) benchmarks/gpu_env.py .venv-gpu && .venv-gpu/bin/python -m benchmarks.gpu $(ARGS); \
	else $(MAKE) --no-print-directory $(READY) && $(BIN)/python -m benchmarks.gpu $(ARGS); fi

clean:  ## remove what the targets made
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
