# `make demo` and `make test` make their own environment first, once.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -m

.PHONY: demo test batteries reliability lint docs clean

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

demo: $(VENV)/.installed
	@$(RUN) pyro_bvae demo

# One process a core, one thread each.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(RUN) pytest -n logical --dist worksteal -m "not sample"

# The batteries of docs/reliability.md that take minutes, to their ends; with `make --jobs 2` two at a time.
batteries: battery-bad_inputs battery-damage battery-fuzz

battery-%: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(RUN) tests.reliability.$*

# Every battery, the soak of 30 minutes last.
reliability: batteries
	$(RUN) tests.reliability.doors
	$(RUN) pytest -m slow tests/reliability tests/runs/test_kill.py
	$(RUN) tests.reliability.soak --minutes 30

# The site, in docs/_build/html; a warning is an error.
docs: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	cd docs && $(abspath $(VENV))/bin/python -m sphinx -q -W -b html . _build/html

lint: $(VENV)/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
