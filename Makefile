# Every target works alone in a fresh clone: it installs what it needs first, and only when the lists changed.
PYTHON ?= python3
BIN := .venv/bin
RUN := .venv/.installed-run
DEV := .venv/.installed-dev
TYPESCRIPT := packages/sie-ts-sdk
TYPESCRIPT_DEV := $(TYPESCRIPT)/node_modules/.installed
DOCS := .venv-docs/.installed
INTEGRATIONS := sie-langchain sie-llamaindex sie-haystack
KERNELS := $(addprefix packages/sie-kernels/,pyproject.toml hatch_build.py src/sie_kernels/int8.c src/sie_kernels/attention.c)
SOURCES := packages/sie-sdk/src packages/sie-server/src $(INTEGRATIONS:%=packages/%/src)
ARGS ?=
# Processes that run tests; service tests wait for servers, so three keep two cores busy.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest
# The tests of one server against clusters: those in CI take one cluster of each folder.
ONE_SERVER := tests/service tests/integrations tests/examples
ONE_SERVER_SHORT := tests/service/test_contract.py tests/service/test_sdk_end_to_end.py tests/integrations/test_same_scores.py
PARALLEL := -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo test test-unit test-floors test-cluster test-cluster-short check format bench bench-gpu parity quality hostile soak overload simulate bench-cluster cluster-faults image-test release-test docs notebooks clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

install: $(RUN) ## fill .venv with the server, the client and the demo
	@echo "Installed. Next: make demo"

demo: $(RUN) ## rerank keyword search results with a local server
	@$(BIN)/python examples/demo/demo.py $(ARGS)

test: $(DEV) $(TYPESCRIPT_DEV) ## run all tests (ARGS="-k name" picks some, WORKERS=4 runs four at once)
	$(PYTEST) $(PARALLEL) $(ARGS)

test-unit: $(DEV) ## run the unit tests, which need no server
	$(PYTEST) $(PARALLEL) tests/unit $(ARGS)

test-cluster: $(DEV) $(TYPESCRIPT_DEV) ## run the tests of one server against clusters, about half an hour
	SIE_TEST_CLUSTER=1 $(PYTEST) $(ONE_SERVER) $(ARGS)

test-cluster-short: $(DEV) ## run some of these tests, about two minutes
	SIE_TEST_CLUSTER=1 $(PYTEST) $(ONE_SERVER_SHORT) $(ARGS)

test-floors: ## run the tests with the lowest promised versions of the requirements
	PYTHON="$(PYTHON)" scripts/test_floors $(ARGS)

check: $(DEV) $(TYPESCRIPT_DEV) ## formatting, lint, types, import rules, generated pages, spelling and prose
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/python scripts/generate_ts_types.py --check
	$(BIN)/python scripts/set_version.py --check
	$(BIN)/codespell
	$(BIN)/proselint check $$(git ls-files '*.md')
	$(BIN)/python scripts/check_prose.py
	@if [ -e $(TYPESCRIPT_DEV) ]; then npm --silent --prefix $(TYPESCRIPT) run check && echo "TypeScript: types are right"; fi

format: $(DEV) ## format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV) ## compare engine and server with other libraries in one table (15 minutes; ARGS="--quick": two)
	$(BIN)/python -m bench.table $(ARGS)

bench-gpu: $(DEV) ## what a GPU does with this engine: parity, waits, speed, profile (four minutes)
	$(BIN)/python -m bench.gpu $(ARGS)

parity: $(DEV) ## compare scores with the reference implementations (SIE_TEST_DEVICE=cuda: on a GPU, SIE_TEST_ATTENTION=varlen: in its layout)
	$(PYTEST) $(PARALLEL) tests/parity $(ARGS)

quality: $(DEV) ## measure ranking quality on the evaluation sets
	$(BIN)/python -m bench.quality $(ARGS)

hostile: $(DEV) ## attack a server: the long form of tests/hostile, about half an hour
	SIE_HOSTILE=long $(PYTEST) tests/hostile $(ARGS)

soak: $(DEV) ## serve mixed traffic with faults for 20 minutes, and check that nothing grows
	$(BIN)/python -m bench.soak $(ARGS)

overload: $(DEV) ## measure goodput and refusals at 0.5 to 20 times the capacity
	$(BIN)/python -m bench.overload $(ARGS)

simulate: $(DEV) ## simulate 1 to 16 replicas: latency against load, splitting, bulk jobs, routing
	$(BIN)/python -m bench.simulate $(ARGS)

cluster-faults: $(DEV) ## kill parts of a cluster of three nodes under load (as root, Linux; about an hour)
	$(BIN)/python -m bench.cluster_faults $(ARGS)

bench-cluster: $(DEV) ## measure a cluster: cost of the ingress, replicas, bulk jobs, loads, scaling (20 minutes)
	$(BIN)/python -m bench.cluster $(ARGS)

notebooks: $(DEV) ## execute the notebook that trains a LoRA reranker (minutes)
	SIE_NOTEBOOKS=long $(PYTEST) tests/examples/test_lora_notebook.py $(ARGS)

docs: $(DOCS) ## build the documentation site into site/ and check its links (no network after the first time)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	.venv-docs/bin/python scripts/site/check.py site
	@echo "Open it: python3 -m http.server --bind 127.0.0.1 --directory site 8001    then http://localhost:8001 in a browser"

release-test: $(DEV) $(TYPESCRIPT_DEV) ## build a release and install it in clean environments (about ten minutes)
	SIE_RELEASE=long $(PYTEST) tests/release $(ARGS)

image-test: ## build the image with buildah, run it with podman and check it (as root; ARGS=FOLDER keeps the layers)
	deploy/docker/try_image $(ARGS)

clean: ## remove caches and build outputs; .venv stays
	rm -rf .mypy_cache .pytest_cache .hypothesis .ruff_cache .import_linter_cache site bench/out packages/*/dist packages/*/build
	find packages examples tests bench training scripts -type d -name __pycache__ -prune -exec rm -rf {} +

$(RUN): requirements-lock.txt packages/sie-sdk/pyproject.toml packages/sie-server/pyproject.toml $(KERNELS) examples/demo/requirements.txt scripts/install scripts/install_torch.py
	@PYTHON="$(PYTHON)" scripts/install run
	@touch $@

$(DEV): $(RUN) requirements-dev.txt requirements-test.txt requirements-integrations.txt scripts/install_helm.py $(INTEGRATIONS:%=packages/%/pyproject.toml)
	@PYTHON="$(PYTHON)" scripts/install dev
	@touch $@

$(DOCS): requirements-docs.txt
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet --requirement requirements-docs.txt
	@touch $@

# Not made where there is no Node: the TypeScript client is then neither checked nor tested, and every run says so.
$(TYPESCRIPT_DEV): $(TYPESCRIPT)/package-lock.json examples/two-stage/package-lock.json
	@scripts/install typescript
