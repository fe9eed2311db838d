# make demo   the main job on real data, in an environment made on the first call
# make test   lint, types and the whole test suite, then the estimator's tests at the oldest supported scikit-learn
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
OLDEST_SKLEARN := 1.6.1
BIN := $(VENV)/bin
PIP_INSTALL := pip install --quiet --disable-pip-version-check
# what decides the content of an environment
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test lint oldest bench-smoke clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: lint $(VENV)/.test
	$(BIN)/python -m pytest
	$(MAKE) oldest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pytest -p no:cacheprovider $(OLDEST_TESTS)

bench-smoke: $(VENV)/.test
	$(BIN)/python -m pytest tests/test_benchmarks.py

# what leans on scikit-learn's own machinery
OLDEST_TESTS = $(wildcard tests/test_estimator*.py tests/test_transformer*.py)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(OLDEST)/bin/python:
	$(PYTHON) -m venv $(OLDEST)

$(VENV)/.demo: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e ".[plot]"
	touch $@

$(VENV)/.test: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e ".[test-integrations]"
	touch $@ $(VENV)/.demo

$(OLDEST)/.test: $(INPUTS) | $(OLDEST)/bin/python
	$(OLDEST)/bin/$(PIP_INSTALL) -c constraints.txt -e ".[test]" "scikit-learn==$(OLDEST_SKLEARN)"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
