# One command per job. Every target sets up what it needs; a second run is fast.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
comma := ,
# Where downloads go through a proxy, what runs here is still asked directly.
export no_proxy := $(if $(no_proxy)$(NO_PROXY),$(or $(no_proxy),$(NO_PROXY))$(comma))localhost,127.0.0.1

PYTHON ?= python3.11
BIN := .venv/bin
UV := $(BIN)/uv
STUBS := clients/python/keek/v1
DATA ?= synth
# 0 leaves out torch and open-clip, several gigabytes that only the export of CLIP needs.
CLIP ?= 1
CLIP_READY := $(if $(filter 0,$(CLIP)),,.venv/.clip-ready)

# Other data than the default has a data directory and a model repository of its own, so that
# catalogues do not mix.
DATASET := $(firstword $(subst :, ,$(DATA)))
ifneq ($(DATASET),synth)
export KEEK_DATA_DIR ?= var/$(DATASET)
export KEEK_MODEL_REPOSITORY ?= var/$(DATASET)/model_repository
endif


.PHONY: help setup repository demo run test bench load-test lint format proto proto-check lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready .venv-triton/.ready ## both environments: Keek's and Triton's

.venv/.ready: requirements/dev.lock requirements/uv.lock pyproject.toml
	@# Its python is there before its pip.
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/uv.lock
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.lock \
		$(if $(wildcard .venv/.clip-ready),requirements/clip.lock)
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.venv/.clip-ready: requirements/clip.lock .venv/.ready
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/clip.lock
	@touch $@

.venv-triton/.ready: requirements/triton.lock | .venv/.ready
	@test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	@$(UV) pip sync --quiet --python .venv-triton/bin/python --require-hashes requirements/triton.lock
	@touch $@

repository:
	@for config in model_repository/*/config.pbtxt; do \
		target="$${KEEK_MODEL_REPOSITORY:-model_repository}/$$(basename "$$(dirname "$$config")")"; \
		test -f "$$target/config.pbtxt" || { mkdir -p "$$target" && cp "$$config" "$$target/"; }; \
	done

demo: setup $(CLIP_READY) repository ## the main job, end to end: train, publish, serve, stream, like (DATA=kuairand:DIR EPOCHS=3 for real data, sooner; CLIP=0 without CLIP)
	@$(BIN)/keek-train demo --data $(DATA) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(CLIP_READY),,--no-clip)

run: setup repository ## the server with its embedded Triton and Redis, until Ctrl-C
	@$(BIN)/keek-server up

test: setup $(CLIP_READY) ## all tests, against real servers (CLIP=0 leaves out those that export CLIP)
	@$(BIN)/pytest

bench: setup .venv/.clip-ready ## the benchmarks; JSON to benchmarks/results/ (the feed's needs Go, and curl)
	@$(BIN)/python -m benchmarks.feed
	@$(BIN)/python -m benchmarks.interactions
	@$(BIN)/python -m benchmarks.interactions --database postgresql
	@$(BIN)/python -m benchmarks.trending
	@$(BIN)/python -m benchmarks.freshness
	@$(BIN)/python -m benchmarks.retrieval --videos 10000 1000000
	@$(BIN)/python -m benchmarks.torture
	@$(BIN)/python -m benchmarks.bad_videos
	@$(BIN)/python -m benchmarks.ingest
	@$(BIN)/python -m benchmarks.publish
	@$(BIN)/python -m benchmarks.bad_models
	@$(BIN)/python -m benchmarks.overload
	@$(BIN)/python -m benchmarks.faults
	@$(BIN)/python -m benchmarks.experiments
	@$(BIN)/python -m benchmarks.exposures
	@$(BIN)/python -m benchmarks.ranker

load-test: setup repository ## ghz against the running server, or one that it starts; an HTML report (needs Go)
	@clients/ghz/run.sh

lint: .venv/.ready proto-check ## ruff, mypy, import-linter, stubs without drift
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/.ready ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: .venv/.ready ## the stubs, from proto/
	@rm -f $(STUBS)/*_pb2*.py $(STUBS)/*_pb2*.pyi
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto \
		--python_out=clients/python --grpc_python_out=clients/python \
		--mypy_out=quiet:clients/python --mypy_grpc_out=quiet:clients/python proto/keek/v1/*.proto

proto-check: .venv/.ready
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto \
		--python_out="$$tmp" --grpc_python_out="$$tmp" \
		--mypy_out=quiet:"$$tmp" --mypy_grpc_out=quiet:"$$tmp" proto/keek/v1/*.proto; \
	diff -r --exclude=__init__.py --exclude=__pycache__ "$$tmp/keek/v1" $(STUBS) \
		|| { echo "the committed stubs differ from proto/: run 'make proto'" >&2; exit 1; }

lock: .venv/.ready ## new locks within the ranges of pyproject.toml
	@$(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-header \
		--extra server --extra training --extra milvus --extra dev --constraint requirements/constraints.txt \
		pyproject.toml --output-file requirements/dev.lock
	@$(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-header \
		--extra clip --constraint requirements/dev.lock pyproject.toml --output-file requirements/clip.lock
	@for extra in server gpu training; do $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --extra $$extra --constraint requirements/dev.lock pyproject.toml \
		--output-file requirements/$$extra.lock; done
	@for name in triton uv build; do $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-header \
		requirements/$$name.in --output-file requirements/$$name.lock; done

clean: ## everything that was made here
	@rm -rf .venv .venv-triton var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find model_repository -mindepth 2 -maxdepth 2 -type d -exec rm -rf {} +
