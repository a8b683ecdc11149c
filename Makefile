# Everything runs in .venv, made from hashed locks; `make` alone says what there is.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "Celeriac needs Python 3.11 or newer: '$(PYTHON)' is not on the PATH (set PYTHON=...)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Celeriac needs Python 3.11 or newer: '$(PYTHON)' says '$$($(PYTHON) -V 2>&1 | head -n 1)' (set PYTHON=...)." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Celeriac needs Python's venv module: install it (on Debian: python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# A stamp for each lock: a second start installs nothing. What pip says goes to standard error: `make demo` prints JSON.
$(VENV)/.local: requirements-local.lock pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), once:" >&2
	@$(PIP) install --no-deps --require-hashes -r requirements-local.lock >&2
	@$(PIP) install --no-deps --no-build-isolation -e . >&2
	@touch $@

# Without the model everything runs too, so a failure leaves no stamp and stops nothing; the next start tries again.
$(VENV)/.model: requirements-model.lock | $(VENV)/.local
	@if $(PIP) install --no-deps --require-hashes --only-binary :all: -r requirements-model.lock >&2; then touch $@; \
	else echo "No wheel of the local model server fits this platform: the scripted model answers instead." >&2; fi

$(VENV)/.dev: requirements-dev.lock $(VENV)/.local
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.lock >&2
	@touch $@

$(VENV)/.containers: requirements-containers.lock $(VENV)/.dev
	@$(PIP) install --no-deps --require-hashes -r requirements-containers.lock >&2
	@touch $@

install: $(VENV)/.local $(VENV)/.model ## the environment, the locked packages and the project
run: install ## start everything on this machine, submit one job, stay up until Ctrl-C
	@exec $(BIN)/celeriac up $(ARGS)
demo: install ## one job end to end on free ports in a temporary directory, printed as JSON
	@exec $(BIN)/celeriac demo

dev: $(VENV)/.dev $(VENV)/.model ## the environment with what tests and checks need
test: dev ## the tests, in four processes, since they mostly wait (ARGS='-k lease' for some, ARGS='-n 0' in one)
	@exec $(BIN)/python -m pytest -m "not rabbitmq" -n 4 --dist worksteal $(ARGS)
test-rabbitmq: dev ## the tests that need a rabbitmq-server on this machine
	@exec $(BIN)/python -m pytest -m rabbitmq $(ARGS)
check: dev ## formatting, lint, types, the import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
test-containers: $(VENV)/.containers ## the images and the Compose stack, with Docker; root on Debian needs none before
	@.ci/engine
	$(BIN)/hadolint ops/docker/Dockerfile
	@exec $(BIN)/python -m pytest tests/containers $(ARGS)
drill: $(VENV)/.local ## break everything while 10,000 jobs run, about half an hour (ARGS='--list' for the scenarios)
	@exec $(BIN)/celeriac drill $(ARGS)
drill-short: $(VENV)/.local ## the same with few jobs and short leases, within three minutes
	@exec $(BIN)/celeriac drill --short $(ARGS)
bench: dev ## measure against plain Celery, side by side
	$(BIN)/python -m bench $(ARGS)

locks: dev ## resolve the locks anew (UPGRADE=--upgrade for newer versions)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q $(UPGRADE) $(LOCK) pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q $(UPGRADE) $(LOCK) pyproject.toml --extra local -c requirements.lock -o requirements-local.lock
	$(BIN)/uv pip compile -q $(UPGRADE) $(LOCK) pyproject.toml --extra local --extra dev -c requirements-local.lock -o requirements-dev.lock
	$(BIN)/uv pip compile -q $(UPGRADE) $(LOCK) --no-deps requirements-model.in -o requirements-model.lock
	$(BIN)/uv pip compile -q $(UPGRADE) $(LOCK) --no-deps requirements-containers.in -o requirements-containers.lock
	$(BIN)/uv pip compile -q $(UPGRADE) $(LOCK) requirements-litellm.in -o requirements-litellm.lock
LOCK = --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make locks"

clean: ## remove the environment and caches (.celeriac/, your state, stays)
	rm -rf $(VENV) .venv-litellm build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: help install run demo dev test test-rabbitmq test-containers check drill drill-short bench locks clean
