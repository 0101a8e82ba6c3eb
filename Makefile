# make demo   show the whole path on this machine
# make test   lint, type-check and test
# make docs   write docs/derivatives.md anew, from the primitive table
# Each makes the virtual environment first where it is not there.

PYTHON ?= python3
VENV ?= .venv
OLDEST := .venv-oldest
# Two files of tests at a time, each file in one process: its tests share a cluster.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test lint oldest bench docs clean

demo: $(VENV)/.demo
	$(VENV)/bin/taskgraph demo $(ARGS)

test: lint
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The path's tests on the oldest Dask that is supported (the one beside which dask-cuda can be installed).
oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pytest $(PYTEST_ARGS) tests/test_path.py tests/test_plugin.py tests/test_tensor.py tests/test_session.py

bench: $(VENV)/.test
	for name in build_cost plugin_cost product gradient training_memory makespan straggler peak_memory bytes_moved; do $(VENV)/bin/python -m benchmarks.$$name || exit 1; done

docs: $(VENV)/.test
	$(VENV)/bin/taskgraph rules > docs/derivatives.md.new
	mv docs/derivatives.md.new docs/derivatives.md

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.demo

$(OLDEST)/.test: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[test]' dask==2026.7.1 distributed==2026.7.1
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST)
