# make demo   the main job on real data, in an environment made on the first call
# make test   lint, types and the whole test suite, the documentation with its examples, then the estimator's tests at the
#             oldest supported scikit-learn
# make docs   the documentation site, warnings as errors; its doctests and links
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
OLDEST_SKLEARN := 1.6.1
LOWEST := .venv-lowest
LOWEST_PYTHON ?= python3.10
BIN := $(VENV)/bin
PIP_INSTALL := pip install --quiet --disable-pip-version-check
# a file's tests stay together, as many share a fitted model; in the order of tests/conftest.py
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder --durations=30 --durations-min=3
# what decides the content of an environment
INPUTS := pyproject.toml constraints.txt

# tests start a hundred processes, which would each compile the package's modules anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs docs-browser oldest lowest bench-smoke clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: lint $(VENV)/.test
	$(BIN)/python -m pytest $(TWO_PROCESSES)
	$(MAKE) docs
	$(MAKE) oldest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.test
	$(BIN)/sphinx-build -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -b doctest -d docs/_build/doctrees docs docs/_build/doctest
	$(BIN)/python docs/check_links.py docs/_build/html

# needs Debian's chromium
docs-browser: docs
	$(BIN)/python docs/check_pages.py docs/_build/html

oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pytest -p no:cacheprovider $(TWO_PROCESSES) $(OLDEST_TESTS)

# not in CI: everything at its lowest version, which brings gigabytes of CUDA
lowest: $(LOWEST)/.test
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider $(TWO_PROCESSES) $(LOWEST_TESTS)

bench-smoke: $(VENV)/.test
	$(BIN)/python -m pytest tests/test_benchmarks.py

# what leans on scikit-learn's own machinery
OLDEST_TESTS = $(wildcard tests/test_estimator*.py tests/test_transformer*.py)

# without those of what lowest versions lack: Triton 3, 8-bit products of PyTorch on the CPU, an OpenBLAS whose sums do not
# depend on its number of threads, extras that are not in `test`
LOWEST_TESTS = $(filter-out $(foreach name,architecture benchmarks docs examples guide packed_benchmark screening sharing triton_kernels,tests/test_$(name).py),$(wildcard tests/test_*.py))

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(OLDEST)/bin/python:
	$(PYTHON) -m venv $(OLDEST)

$(LOWEST)/bin/python:
	$(LOWEST_PYTHON) -m venv $(LOWEST)

$(VENV)/.demo: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e ".[plot]"
	touch $@

$(VENV)/.test: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e ".[test-integrations]"
	touch $@ $(VENV)/.demo

$(OLDEST)/.test: $(INPUTS) | $(OLDEST)/bin/python
	$(OLDEST)/bin/$(PIP_INSTALL) -c constraints.txt -e ".[test]" "scikit-learn==$(OLDEST_SKLEARN)"
	touch $@

$(LOWEST)/.test: pyproject.toml constraints-lowest.txt | $(LOWEST)/bin/python
	$(LOWEST)/bin/$(PIP_INSTALL) -c constraints-lowest.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(LOWEST) build demo-output docs/_build docs/generated docs/auto_examples .pytest_cache .mypy_cache .ruff_cache .hypothesis
