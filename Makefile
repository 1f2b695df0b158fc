# Everything runs from .venv, which is made once from the lock file and again when that changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install run test test-store check bench clean lock

install: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

run: .venv/ready
	$(BIN)/spanhouse serve

# A process a core, four at most; each takes whole files. PYTEST= for one after the other.
PYTEST ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: .venv/ready-dev
	$(BIN)/pytest $(PYTEST)

# On the server at CLICKHOUSE_URL, or the cluster at CLICKHOUSE_NODES. STORE="store and not slow" leaves out a few.
STORE ?= store
test-store: .venv/ready-dev
	$(BIN)/pytest -m "$(STORE)"

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready-dev
	$(BIN)/python -m benchmarks

lock:
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --constraint constraints.txt --output-file requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
