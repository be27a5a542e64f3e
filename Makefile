# All commands for people and CI. `make help` lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PROTOS := $(shell find protos -name '*.proto')
TORCH := torch==2.13.0
# NVIDIA's client, for a test, in an environment of its own: its messages have the same names as this project's,
# and its protobuf is older.
TRITON := .cache/tritonclient
# libFuzzer for Python, for make fuzz alone: beside the environment, in which nothing else needs it.
ATHERIS := .cache/atheris
# Writes and checks the list of what is installed, for make sbom, in an environment of its own.
SBOM := .cache/sbom
CYCLONEDX := cyclonedx-python-lib[json-validation]>=11.12,<12
UV := uv==0.13.9

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# -- The environment ---------------------------------------------------------------------------------

# The locks have the hash of every file that may be installed. torch goes last and alone, with what it needs there
# already: together with other packages, pip may pick another build, gigabytes larger. It has no hash, as its builds
# (with CUDA, without, of another index) are different files of one version: SECURITY.md.
$(VENV)/.runtime: requirements.lock pyproject.toml client/pyproject.toml
	@echo "Setting up $(VENV): torch and the server's packages, a few minutes the first time ..."
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or later."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than Python 3.11: run make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install $(TORCH)
	@$(PIP) install --no-deps --no-build-isolation -e client -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Setting up $(VENV): the packages for training and tests ..."
	@$(PIP) install --require-hashes -r requirements.lock -r requirements-dev.lock
	@touch $@

$(TRITON)/.ready: requirements-triton.lock
	@echo "Setting up $(TRITON): NVIDIA's client for the Open Inference Protocol, to test with ..."
	@$(PYTHON) -m venv --clear $(TRITON)
	@$(TRITON)/bin/python -m pip --disable-pip-version-check -q install --no-deps --require-hashes \
	    -r requirements-triton.lock
	@touch $@

$(ATHERIS)/.ready: requirements-fuzz.lock
	@echo "Setting up $(ATHERIS): libFuzzer for Python ..."
	@rm -rf $(ATHERIS)
	@$(PIP) install --no-deps --require-hashes --target $(ATHERIS) -r requirements-fuzz.lock
	@touch $@

$(SBOM)/.ready: requirements-sbom.lock
	@echo "Setting up $(SBOM): the library that writes CycloneDX ..."
	@$(PYTHON) -m venv --clear $(SBOM)
	@$(SBOM)/bin/python -m pip --disable-pip-version-check -q install --require-hashes -r requirements-sbom.lock
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev ## Creates the environment in .venv: serving, training and tests

LOCK := .cache/lock
# Adds the hashes of every file that the index has of a version, and what another Python or system needs beside it.
HASH := $(LOCK)/bin/uv pip compile -q --no-config --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate

.PHONY: lock
lock: ## Renews the lock files within the bounds of pyproject.toml, with NVIDIA's newest client
	rm -rf $(LOCK) && $(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/pip install -q $(TORCH)
	$(LOCK)/bin/pip install -q -e client -e '.[envoy,redis]'
	$(LOCK)/bin/pip freeze --all --exclude-editable --exclude torch --exclude pip > $(LOCK)/requirements.txt
	$(LOCK)/bin/pip install -q -e client -e '.[dev]'
	$(LOCK)/bin/pip freeze --all --exclude-editable --exclude torch --exclude pip \
	    | grep -vxFf $(LOCK)/requirements.txt > $(LOCK)/requirements-dev.txt
	for pair in 'triton tritonclient[grpc]' "sbom $(CYCLONEDX)"; do set -- $$pair; \
	    $(PYTHON) -m venv $(LOCK)/$$1 && $(LOCK)/$$1/bin/pip install -q "$$2" \
	    && $(LOCK)/$$1/bin/pip freeze --exclude pip --exclude setuptools > $(LOCK)/requirements-$$1.txt || exit 1; done
	grep -o 'atheris==[0-9.]*' pyproject.toml > $(LOCK)/requirements-fuzz.txt
	$(LOCK)/bin/pip install -q $(UV)
	rm requirements*.lock
	for name in requirements requirements-triton requirements-sbom requirements-fuzz; do \
	    $(HASH) $(LOCK)/$$name.txt -o $$name.lock || exit 1; done
	$(HASH) $(LOCK)/requirements-dev.txt -o requirements-dev.lock -c $(LOCK)/requirements.txt \
	    $$(sed 's/==.*//; s/^/--no-emit-package /' $(LOCK)/requirements.txt)
	rm -rf $(LOCK)

# -- Running it --------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.runtime ## Streams a series through a server and shows the predictions; CSV=FILE for your own series
	@$(BIN)/python client/examples/demo.py $(if $(CSV),--csv '$(CSV)') $(if $(MODEL),--model '$(MODEL)')

.PHONY: serve
serve: $(VENV)/.runtime ## Serves the models of model/artifacts until it is stopped; ARGS='--workers 2 ...'
	@exec $(BIN)/python -m service --store sqlite:sessions.db $(ARGS)

.PHONY: pin-images
pin-images: ## Writes .env, by which Compose takes its images by digest; needs docker and the images' registries
	@$(PYTHON) deploy/pin_images.py

.PHONY: sbom
sbom: $(SBOM)/.ready ## Writes build/sbom.cdx.json: what the server installs, Envoy and the shipped artifacts, in CycloneDX
	@$(SBOM)/bin/python deploy/sbom.py build/sbom.cdx.json

# -- Working on it -----------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.dev $(TRITON)/.ready $(SBOM)/.ready ## Runs the tests; ARGS='-k NAME' for some tests, ARGS='-n 0' for one at a time
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

.PHONY: slow
slow: $(VENV)/.dev ## Runs the tests that take minutes each
	$(BIN)/python -m pytest -m slow --timeout 900 $(ARGS)

.PHONY: e2e
e2e: $(VENV)/.dev $(TRITON)/.ready redis ## Runs all tests with real processes: 20 minutes of crashes, moves and outages
	STREAMCELL_E2E=full $(BIN)/python -m pytest tests/e2e --timeout 3600 -n auto --maxprocesses 2 --dist worksteal $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev $(ATHERIS)/.ready ## Fuzzes requests, snapshots, manifests, lists, CSV files on two cores; SECONDS=1800
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),1800)

.PHONY: sim
sim: $(VENV)/.dev ## Simulates servers, store and clients: 10,000 seeds, then planted bugs; ARGS='--seed N --trace' for one
	$(BIN)/python -m tests.simulation --seeds 10000 --bugs 300 --jobs 2 $(ARGS)

# Debian's package; with RUNLEVEL=1 it starts no server of its own.
.PHONY: redis
redis:
	@command -v redis-server > /dev/null \
	    || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && echo "Installing redis-server ..." \
	        && apt-get -qq update \
	        && RUNLEVEL=1 apt-get -qq install -y --no-install-recommends redis-server > /dev/null; } \
	    || echo "There is no redis-server here, and it cannot be installed: the tests that need it are skipped."

# Debian's package, and gcc, which compiles the search.
.PHONY: spin
spin:
	@{ command -v spin && command -v gcc; } > /dev/null \
	    || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && echo "Installing spin ..." \
	        && apt-get -qq update \
	        && apt-get -qq install -y --no-install-recommends spin gcc libc6-dev > /dev/null; } \
	    || true

.PHONY: model-check
model-check: $(VENV)/.dev spin ## Searches the model of a session's ownership (docs/adr/0008-ownership.pml) for errors
	$(BIN)/python -m tests.model_check

.PHONY: lint
lint: $(VENV)/.dev ## Checks style, types, the Dockerfile and the compose file
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

BUF := .cache/buf/node_modules/.bin/buf

# A machine without npm, or that cannot reach npm's registry, skips the check and says so.
.PHONY: proto-check
proto-check: ## Checks the style of the protos, and that they break no client of the last release; needs npm
	@if [ ! -x $(BUF) ] && command -v npm >/dev/null; then \
	    npm install --prefix .cache/buf --no-save --no-package-lock --no-audit --no-fund --ignore-scripts \
	        --loglevel error --fetch-retries 0 --fetch-timeout 30000 @bufbuild/buf@1.75.0 || true; fi
	@if ! $(BUF) --version >/dev/null 2>&1; then echo "proto-check: skipped, as buf is not here and npm cannot install it"; \
	else echo "buf lint, buf breaking"; export BUF_CACHE_DIR=.cache/buf/cache; \
	    $(BUF) lint protos && $(BUF) breaking protos --against protos/baseline.binpb; fi

.PHONY: proto-baseline
proto-baseline: $(VENV)/.dev ## Renews the descriptors that proto-check compares with; only when a release is made
	$(BIN)/python -m grpc_tools.protoc -I protos --include_imports --descriptor_set_out=protos/baseline.binpb \
	    $(PROTOS:protos/%=%)

.PHONY: check
check: lint proto-check test ## Checks everything that CI checks: lint, types, protos, generated code, tests

.PHONY: format
format: $(VENV)/.dev ## Formats the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: protos
protos: $(VENV)/.dev ## Generates the messages in client/streamcell from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos \
	    --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	    --python_out=client --mypy_out=quiet:client --grpc_python_out=client --mypy_grpc_out=quiet:client \
	    $(PROTOS:protos/%=%)

.PHONY: bench
bench: $(VENV)/.dev ## Measures the server beside its floors: table, JSON and plot in bench/results
	$(BIN)/python -m bench $(ARGS)

.PHONY: clean
clean: ## Removes the environment and all generated files
	rm -rf $(VENV) .cache build client/build bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name '__pycache__' -o -name '*.egg-info' | xargs rm -rf
