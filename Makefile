# One virtual environment, one lock, one command per purpose. Needs Python 3.11 or newer and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes with one thread each are faster than one with two, and as deterministic. What they compile they keep,
# whatever the environment says: they start many more processes.
TESTS := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal --durations=25

.PHONY: demo test test-quick test-rest check-all lint install lock clean

demo: install
	$(BIN)/python cli.py optimize --study demo --trials 24 --group-size 64,128

test: lint test-quick

test-quick: install
	$(TESTS) -m "not slow"

# What `test` leaves out.
test-rest: install
	$(TESTS) -m slow

check-all: test test-rest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 setuptools
	$(BIN)/python -m pip install --quiet --editable .[dev]
	(head -1 requirements.lock; $(BIN)/python -m pip freeze --all --exclude-editable | grep -v '^pip=' | sed 's/+cpu//') > lock.tmp
	mv lock.tmp requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
