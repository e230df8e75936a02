# `make demo` and `make test` work on a machine with Python 3.11+, git and make; nothing else has to be installed.
PYTHON ?= python3
VENV := .venv
# Tests run in so many processes at a time.
JOBS ?= 2
LOWEST := .venv-lowest

.PHONY: demo test test-slow test-lowest check docs clean

demo: $(VENV)/installed
	$(VENV)/bin/python -m synflow_pl demo

test: $(VENV)/installed-test check
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

# SLICE=3/12 runs the third of twelve slices.
test-slow: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -m slow $(if $(SLICE),--slice $(SLICE))

check: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell

.PHONY: dist
# The source distribution and the wheel, into dist/.
dist: $(VENV)/installed-test
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation

# The documentation site, into site/; a warning is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

# The suite on the lower bounds that setup.cfg states.
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -n $(JOBS) --dist worksteal

# A stamp file says that an environment is ready: a second call does not install again, a changed setup.cfg does.
$(VENV)/installed: setup.cfg
	@echo "Installing into $(VENV); torch is large, so this takes a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable ".[docs]"
	@touch $@

$(LOWEST)/installed: setup.cfg
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist site *.egg-info
