# `make demo` and `make test` make their own environment first, once.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -m

.PHONY: demo test batteries reliability lint docs linkcheck package oldest clean

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

# The site, in docs/_build/html; a warning is an error. Three tutorials as notebooks, in docs/_build/notebooks.
docs: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	cd docs && $(abspath $(VENV))/bin/python -m sphinx -q -W -b html . _build/html
	rm -rf docs/_build/notebooks && PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python docs/notebooks.py

# Every link that leads out of the site; it needs a network.
linkcheck: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	cd docs && $(abspath $(VENV))/bin/python -m sphinx -q -b linkcheck . _build/linkcheck

# Source and wheel, in dist/; the wheel alone shows its help from an empty folder.
package: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check build twine
	rm -rf dist && $(RUN) build --outdir dist . > /dev/null
	$(RUN) twine check --strict dist/*
	work=$$(mktemp -d) && $(VENV)/bin/pip install --quiet --no-deps --target $$work dist/*.whl \
	  && (cd $$work && $(abspath $(VENV))/bin/python -m pyro_bvae --help > /dev/null); status=$$?; rm -rf $$work; exit $$status

# The oldest versions that pyproject.toml allows, in an environment of their own.
oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt --editable . pytest hypothesis mpmath
	$(VENV)-oldest/bin/python -m pytest -q -m "not slow" tests/core tests/program tests/evaluation tests/runs tests/test_vae.py

lint: $(VENV)/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
