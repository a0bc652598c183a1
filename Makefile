# make run    set up .venv and train the default        make test   the tests
# make check  slower: known accuracies on real data     make gpu    what needs a CUDA device
# make bench  speed, as ratios in one run               make lint   ruff: lint and format
# make gpu-tables MINUTES=40    papers' tables on a GPU, those first that tell most for a minute
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

MINUTES ?= 40

.PHONY: run test check gpu gpu-tables bench lint docs

run: $(VENV)/run.stamp
	$(BIN)/python -m runner

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu"

check: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

gpu: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m scripts.bench.gpu

gpu-tables: $(VENV)/run.stamp
	$(BIN)/python -m scripts.gpu_tables --minutes $(MINUTES)

bench: $(VENV)/bench.stamp
	$(BIN)/python -m scripts.bench

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/test.stamp
	$(BIN)/python -m scripts.tables

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "runner needs Python 3.11, 3.12 or 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@ $(VENV)/run.stamp

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@
