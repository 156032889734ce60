# Two commands on a fresh machine: `make lab` and `make test`. `make help` lists the others.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8888
BROWSER ?= 1
NAME ?=
JOBS ?= 2
BIN := $(VENV)/bin
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)  # in a container
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup lab test unit exercises nbval lint notebooks new lock test-latest test-oldest clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## Environment and models: does nothing when nothing is missing
	@$(BIN)/python -m helpers.sources

lab: setup  ## Everything, then JupyterLab on 127.0.0.1 (BROWSER=0 opens none, PORT=8899 elsewhere)
	$(BIN)/jupyter lab --ip=127.0.0.1 --port=$(PORT) $(if $(filter 0 no,$(BROWSER)),--no-browser) $(AS_ROOT) \
	    --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: setup lint unit exercises nbval  ## Everything, then all tests: style, unit tests, every notebook

unit: setup  ## Unit tests alone (ARGS="-k lens" picks some)
	$(BIN)/python -m pytest tests --ignore=tests/notebooks $(ARGS)

# Notebooks run JOBS at a time, with one thread each: that is faster than one after the other with two.
exercises: setup  ## Each notebook's shape, its exercises with wrong answers and solutions, its show_source notes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/notebooks --numprocesses=$(JOBS) $(ARGS)

nbval: setup  ## Run every notebook and compare its outputs with the committed ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 \
	    --numprocesses=$(JOBS) --dist=loadfile $(NOTEBOOKS)

lint: setup  ## Style of all Python, in modules and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: setup  ## Run notebooks and write their outputs (NAME=03 picks one)
	$(BIN)/python tests/notebooks/execute.py $(filter notebooks/$(NAME)%,$(NOTEBOOKS))

new: setup  ## Start a notebook from the template (NAME=11_my_topic)
	$(BIN)/python tests/notebooks/new.py $(NAME)

lock: $(VENV)/.installed  ## Resolve pyproject.toml anew into requirements.lock
	( echo "# Made by \`make lock\` from pyproject.toml. torch itself brings its GPU libraries where it needs them."; \
	  $(BIN)/uv pip compile pyproject.toml --quiet --extra test --universal --python-version 3.11 --no-annotate \
	      --no-header | grep -vE '^(nvidia-|cuda-|triton)' ) > requirements.lock.new
	mv requirements.lock.new requirements.lock

test-latest: setup  ## What would break with the newest transformers
	$(BIN)/python tests/versions.py latest

test-oldest: setup  ## The same with the oldest one that pyproject.toml allows
	$(BIN)/python tests/versions.py oldest

clean:  ## Remove the environment and the prepared models
	rm -rf $(VENV) data/models/smollm2-135m data/models/llama-3-tokenizer

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 lab")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24.1"
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install -qqq --no-deps --editable .
	@touch $@
