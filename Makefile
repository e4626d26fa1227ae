# `make demo` and `make test` need nothing but Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-slow results-small lint types layers check format clean

# The stamps remember what was installed, so that a second run starts at once.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.core

demo: $(VENV)/.core  ## detect with the default model, offline, and draw the result
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev  ## the whole suite but for what is marked slow
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(VENV)/.dev  ## what takes longer: every network of the zoo, fresh environments, long runs
	$(BIN)/python -m pytest -n 2 -m slow

results-small: $(VENV)/.dev  ## repeat a short training and compare its accuracy with the stored band
	$(BIN)/python scripts/results_small.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy scripts
	$(BIN)/mypy benchmarks

layers: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types layers test  ## what CI runs

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
