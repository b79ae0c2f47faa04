# make demo   the whole pipeline at toy size, with its report      (about 20 minutes on 2 slow cores, installed)
# make test   all tests, in two lanes side by side                  (26 minutes on 2 cores)
# make fast   the fast tests alone
# make soak   the long fault runs, 20 kills a stage                (by hand)
# make lint   ruff: format and rules
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test fast soak lint clean
demo: $(STAMP)
	$(VENV)/bin/python jobs/quickstart.py

test: $(STAMP)
	$(VENV)/bin/python tests/all_tiers.py

fast: $(STAMP)
	$(VENV)/bin/python -m pytest -m "not slow and not soak"

soak: $(STAMP)
	$(VENV)/bin/python -m pytest -m soak

lint: $(STAMP)
	$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) out

# The stamp is newer than both files only when an installation went through, so a broken one is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 on PATH; set PYTHON=..." >&2; exit 2; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	touch $@
