# make demo   the whole pipeline at toy size, with its report
# make test   lint, then the fast and the slow tests
# make fast   the fast tests alone
# make real   every file of the folders that G3PT_MESHES names   (by hand)
# make soak   the long fault runs, 20 kills per stage            (by hand)
# make lint   ruff: format and rules
# make docs   write the generated pages again; the API reference in out/docs
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.installed
PYTEST := $(VENV)/bin/python -m pytest
# Test processes: a file's tests stay in one process, the longest files start first (tests/conftest.py).
WORKERS ?= 2
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test fast real soak lint docs clean
demo: $(STAMP)
	$(VENV)/bin/python jobs/quickstart.py

test: lint
	$(PYTEST) $(SPREAD) -m "not soak and not real"

fast: $(STAMP)
	$(PYTEST) $(SPREAD) -m "not slow and not soak and not real"

real: $(STAMP)
	$(PYTEST) -m real

soak: $(STAMP)
	$(PYTEST) -m soak

lint: $(STAMP)
	$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check .

docs: $(STAMP)
	$(VENV)/bin/python docs/make/overview.py
	$(VENV)/bin/python docs/make/reference.py
	$(VENV)/bin/python -m pdoc --output-directory out/docs g3pt

clean:
	rm -rf $(VENV) out

# The stamp is newer than both files only when an installation went through, so a broken one is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 on PATH; set PYTHON=..." >&2; exit 2; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	touch $@
