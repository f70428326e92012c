# One command sets everything up: `make test`, or `make help` for the rest. Needs Python 3.10 or newer and a package
# index; COMFYUI_PATH=folder uses that ComfyUI instead of the tested versions.

PYTHON ?= python3
VENV := .venv
AUDIT := .venv-audit
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest
# Tests compute on one thread each, so two processes take half the time; each takes up to 2.3 GB.
WORKERS ?= 2
PARALLEL := $(PYTEST) -q -n $(WORKERS) --dist worksteal
FETCH := $(RUN) -m tools.fetch_comfyui
BROWSER := $(RUN) -m tools.fetch_browser
REQUIREMENTS := requirements.txt requirements-dev.txt requirements-dev-bare.txt tools/fetch_comfyui.py $(if $(COMFYUI_PATH),$(wildcard $(COMFYUI_PATH)/requirements.txt))

# The environment is stamped with what it was made from, so it is made anew when that changes and only then.
STAMP := $(VENV)/stamp-$(shell cat $(REQUIREMENTS) | cksum | tr ' ' -)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help setup test test-quick test-core test-nodes test-browser test-page test-slow test-gpu test-weights evaluate fuzz soak lint audit format demo serve screenshots bench bench-quick scout shortcuts bench-decode controls bench-gpu clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and fetch ComfyUI (every target below does this first)

test: lint test-core test-nodes test-page ## Lint, then every test that needs no GPU, no weights and no patience

test-quick: $(STAMP) ## The core's tests alone, without ComfyUI's servers
	$(PARALLEL) -x

# Triton decides for its interpreter when it is imported, so that one has a process of its own.
test-core: $(STAMP)
	$(PARALLEL)
	TRITON_INTERPRET=1 $(PARALLEL) tests/interpreter

# One process for each ComfyUI: they claim the same module names.
test-nodes: $(STAMP)
	@if [ ! -d tests/nodes ]; then exit 0; fi; \
	trees=$$($(FETCH) --all) || exit; \
	for tree in $$trees; do \
		echo "tests/nodes in $$tree"; \
		COMFYUI_PATH="$$tree" $(PARALLEL) tests/nodes || exit; \
	done

# As part of `make test`: a machine without a Chromium, to which none can be fetched, is told so and fails nothing.
test-page: $(STAMP)
	@if $(BROWSER) > /dev/null; then $(MAKE) --no-print-directory test-browser; else \
		echo "NOT RUN: the tests of ComfyUI's page (make test-browser), for the reason above" >&2; fi

test-browser: $(STAMP) ## The pack in ComfyUI's own page, in a headless Chromium (fetched where there is none)
	@chromium=$$($(BROWSER)) || exit; trees=$$($(FETCH) --all) || exit; \
	for tree in $$trees; do \
		echo "tests/browser in $$tree, in $$chromium"; \
		COMFYUI_PATH="$$tree" $(PYTEST) -q tests/browser || exit; \
	done

test-slow: $(STAMP) ## Full-size networks and long runs
	COMFYUI_PATH="$$($(FETCH))" $(PYTEST) -q -s -m "slow and not gpu and not weights" -o faulthandler_timeout=0 tests/nodes

test-gpu: $(STAMP) ## Tests that need a CUDA device
	$(PYTEST) -q -m gpu tests/gpu

test-weights: $(STAMP) ## Tests on released weights: SVD_CHECKPOINT=file make test-weights
	@[ -n "$(SVD_CHECKPOINT)" ] || { echo "error: set SVD_CHECKPOINT to a released .safetensors file" >&2; exit 2; }
	$(PYTEST) -q -m weights

fuzz: $(STAMP) ## 100,000 damaged files, command lines, nodes and prompts (hours; CASES=5000 for fewer)
	$(RUN) -m tools.fuzz --cases $(or $(CASES),90000)
	COMFYUI_PATH="$$($(FETCH))" FUZZ_CASES=$(or $(CASES),10000) $(PYTEST) -q -s -o faulthandler_timeout=0 tests/nodes/test_fuzz_nodes.py

soak: $(STAMP) ## 200 prompts in a row in one server, whose memory must stay flat (10 minutes)
	COMFYUI_PATH="$$($(FETCH))" $(PYTEST) -q -s -m soak -o faulthandler_timeout=0 tests/nodes

evaluate: $(STAMP) ## Judge the demo model on held-out scenes: every figure of docs/demo-model.md (10 minutes)
	$(RUN) -m training evaluate --folder output/evaluation

lint: $(STAMP) ## Check style and format, and what the code does that an attacker would like
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m bandit --quiet --recursive __init__.py nodes svd_core training
	$(RUN) -m bandit --quiet --configfile pyproject.toml --recursive benchmarks tools

audit: lint ## Ask an advisory service about every installed package (needs more of the network than make test)
	test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit==2.10.1; }
	$(AUDIT)/bin/pip-audit --strict --path "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || \
		{ echo "error: pip-audit lists packages with known flaws above, or its advisory service cannot be reached from here" >&2; exit 1; }

format: $(STAMP) ## Repair style and format
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

demo: $(STAMP) ## Render a clip in the real ComfyUI and print where it is
	$(RUN) -m tools.demo

serve: $(STAMP) ## Open ComfyUI with the pack in it
	$(RUN) -m tools.demo --serve

screenshots: $(STAMP) ## Take the pictures of docs/in-the-page.md anew
	$(RUN) -m tools.screenshots

bench: $(STAMP) ## Every measurement: forwards beside diffusers and ComfyUI, import cost, a run at real size
	$(RUN) -m benchmarks

bench-quick: $(STAMP) ## Small cases of the same, and the import cost
	$(RUN) -m benchmarks --quick

scout: $(STAMP) ## Whether cheap clips rank seeds as full ones do, on the demo model (10 minutes)
	$(RUN) -m benchmarks.scout

shortcuts: $(STAMP) ## What the approximate shortcuts save and cost, on the demo model (minutes)
	$(RUN) -m benchmarks.shortcuts

bench-decode: $(STAMP) ## Decoding beside diffusers and ComfyUI: memory, time and pixels (minutes, about 10 GB)
	$(RUN) -m benchmarks.decode

controls: $(STAMP) ## Measure control over motion on the demo model: every figure of the help pages (20 minutes)
	$(RUN) -m benchmarks.controls

bench-gpu: $(STAMP) ## One UNet step and the decoder on a CUDA device, beside diffusers and ComfyUI
	COMFYUI_PATH="$$($(FETCH))" $(RUN) -m benchmarks.gpu

clean: ## Remove everything that make has made
	rm -rf $(VENV) $(AUDIT) .comfyui .browser .bench output .pytest_cache .ruff_cache build *.egg-info

$(STAMP): | $(VENV)/bin/pip
	tree=$$($(FETCH)) && $(RUN) -m pip install --quiet -r requirements-dev.txt -r "$$tree/requirements.txt"
	$(RUN) -m pip install --quiet --no-deps -r requirements-dev-bare.txt
	rm -f $(VENV)/stamp-*
	touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is missing or older than 3.10: install Python 3.10 or newer, or run make PYTHON=path" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
