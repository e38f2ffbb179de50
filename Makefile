# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
DEMO_VENV ?= .venv-demo
# The CPU build of torch: from this index where it can be reached, else whatever pip is configured to find.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' requirements.lock)
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
RUN ?= runs/digits
TEST_PROCESSES ?= 2
TESTS ?= not exhaustive
# ONNX Runtime for browsers is an npm package; --ignore-scripts: what it would fetch besides is for Node.js.
ONNXRUNTIME_WEB := onnxruntime-web@1.30.0

.PHONY: setup demo test test-all check unit arm64 docs-check clean

setup: $(VENV)/.done  ## .venv with edgekd and every extra, versions from requirements.lock

$(VENV)/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps --retries 0 --extra-index-url $(TORCH_INDEX) $(TORCH)
	$(VENV)/bin/python $(PIP_INSTALL) --constraint requirements.lock --editable '.[all,dev]'
	@if command -v npm >/dev/null; then \
	  npm install --silent --ignore-scripts --no-save --no-audit --no-fund --prefix $(VENV)/share/edgekd $(ONNXRUNTIME_WEB) \
	  || echo "setup: $(ONNXRUNTIME_WEB) could not be installed: browser targets are not executed here"; \
	else echo "setup: no npm here, so no $(ONNXRUNTIME_WEB): browser targets are not executed here"; fi
	@touch $@

$(DEMO_VENV)/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(PIP_INSTALL) --no-deps --retries 0 --extra-index-url $(TORCH_INDEX) $(TORCH)
	$(DEMO_VENV)/bin/python $(PIP_INSTALL) --constraint requirements.lock --editable '.[onnxruntime]'
	@touch $@

demo: $(DEMO_VENV)/.done  ## the main job on the embedded default: models/digits
	$(DEMO_VENV)/bin/edgekd compress models/digits -o $(RUN)

check: setup  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

unit: setup  ## tests without style and types
	$(VENV)/bin/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "$(TESTS)"

test: check unit  ## everything that CI runs

test-all: TESTS = exhaustive or not exhaustive
test-all: check unit  ## the tests that take minutes, too

arm64: setup  ## run the artifacts for ARM64 of RUN under qemu: parity, never time
	$(VENV)/bin/python tools/arm64.py $(RUN)

clean:
	rm -rf $(VENV) $(DEMO_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
