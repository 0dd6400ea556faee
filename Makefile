# `make demo` and `make test` need only Python 3.10+, make and git: they build .venv from constraints.txt themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTO := proto/phs/v1/encoder.proto

.PHONY: demo test test-all test-fiftyone test-scale browser lint buf format proto bench clean

demo: $(VENV)/.demo
	$(BIN)/phs-milvus demo

# Each worker has servers of its own and takes whole files. One more than there are cores, because many tests wait.
WORKERS = $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")
test: $(VENV)/.dev
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup

# What is slow by nature, which `make test` leaves out; then what runs beside a real Milvus server.
test-all: $(VENV)/.dev
	$(BIN)/pytest -m slow
	tests/milvus_standalone.sh true  # installs it, once for all that follow
	$(MAKE) --jobs --output-sync $(BESIDE_MILVUS)

# Each folder with a Milvus server of its own, all at once: most of the time they wait for it.
BESIDE_MILVUS = $(addprefix beside-milvus-,milvus ingest search scale integrations)
.PHONY: $(BESIDE_MILVUS)
$(BESIDE_MILVUS): beside-milvus-%:
	tests/milvus_standalone.sh $(BIN)/pytest tests/$* --ignore tests/integrations/test_node.py

# FiftyOne weighs 1.2 GB and needs MongoDB: neither is installed for the other tests.
test-fiftyone:
	tests/fiftyone_app.sh python -m pytest tests/integrations/test_fiftyone.py

# Ray weighs 220 MB: it is not installed for the other tests.
test-scale: $(VENV)/.dev
	tests/ray_local.sh python -m pytest tests/scale

# What the tests of the page use beside playwright: a browser, from Debian, and axe-core, from npm, which looks for faults
# of accessibility. Without them those tests are skipped.
browser: | $(VENV)
	@if command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		apt-get install -qq -y --no-install-recommends chromium >/dev/null; }; then chromium --version; \
		else echo "SKIPPED: no chromium here, and it cannot be installed; the page is not tested in a browser"; fi
	@if ! command -v npm >/dev/null; then echo "SKIPPED: there is no npm here; axe-core does not check the page"; else \
		npm install --silent --no-audit --no-fund --prefix $(VENV)/axe axe-core@4.14.1 && echo "axe-core: installed"; fi

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The contract's own linter; it comes from npm, into the environment's folder.
buf: | $(VENV)
	@if ! command -v npm >/dev/null; then echo "SKIPPED: there is no npm here; buf did not check proto/"; else \
		npm install --silent --no-audit --no-fund --prefix $(VENV)/buf @bufbuild/buf@1.75.0 && \
		$(VENV)/buf/node_modules/.bin/buf lint proto && echo "buf: proto/ is clean"; fi

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Stubs are committed; tests/test_architecture.py fails when they are not the contract's. They refuse a grpcio or protobuf
# older than their generator, so the oldest that pyproject.toml allows makes them.
proto: | $(VENV)
	$(PYTHON) -m venv $(VENV)/proto
	$(VENV)/proto/bin/python -m pip install --quiet grpcio-tools==1.72.1 setuptools
	$(VENV)/proto/bin/python -m grpc_tools.protoc -I phs_milvus/contract/_pb=proto/phs/v1 \
		--python_out=. --grpc_python_out=. --pyi_out=. phs_milvus/contract/_pb/encoder.proto

# One stamp per set of extras; a changed pyproject or constraints file installs again.
$(VENV)/.demo: extras = server,lite,web
$(VENV)/.dev: extras = dev
$(VENV)/.demo $(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(extras)]'
	touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip

# Some minutes. On a machine that does other work as well: make bench CLOCK=--cpu-time
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.encode $(CLOCK)
	$(BIN)/python -m benchmarks.rerank $(CLOCK)
	$(BIN)/python -m benchmarks.grpc_end_to_end $(CLOCK)
	$(BIN)/python -m benchmarks.latency

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
