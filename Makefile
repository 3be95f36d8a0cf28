# Every target that needs the environment makes it first: `make train` or `make test` is enough on a fresh clone.
# Variables, on the command line:  ARGS="fold=1 shot=5"   CHECKPOINT=path/to.ckpt   PYTHON=python3.12

# The first Python that the package supports; looked for only when the environment has to be made.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
CHECKPOINT ?= runs/latest/checkpoints/best.ckpt
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install train evaluate test test-all lint format typecheck mutants fuzz audit bench bench-full bench-gpu bench-busy bench-photographs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make .venv with the tested versions of everything (takes some minutes)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv with $(PYTHON): PyTorch is large, this takes some minutes, once."
	@"$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	@touch $@

train: $(STAMP) ## train SD-AANet on the embedded data set, then evaluate it on classes it never saw
	@$(BIN)/sd-aanet train $(ARGS)

evaluate: $(STAMP) ## evaluate the last trained checkpoint, or CHECKPOINT=...
	@$(BIN)/sd-aanet evaluate checkpoint=$(CHECKPOINT) $(ARGS)

# A process a core, each with one thread: more would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: $(STAMP) ## run the default tests
	@$(PYTEST) $(ARGS)

test-all: $(STAMP) ## run every test, the slow ones too
	@$(PYTEST) -m "slow or not slow" $(ARGS)

lint: $(STAMP) ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## put style and formatting right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(STAMP) ## check the types of src
	@$(BIN)/mypy

audit: $(STAMP) ## look for holes: in src (bandit), and known ones of the tested versions where their list can be reached
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt -e '.[audit]'
	@$(BIN)/bandit -q -c pyproject.toml -r src
	-@$(BIN)/pip-audit --timeout 5 --progress-spinner off --disable-pip --no-deps -r constraints.txt

mutants: $(STAMP) ## change the code in 200 places and see whether tests notice (an hour or two on 2 cores); ARGS="--count 20"
	@$(BIN)/python tests/mutants.py $(ARGS)

fuzz: $(STAMP) ## read 10,000 damaged and odd inputs of every kind: each is taken, or refused in one line (10 minutes on 2 cores); ARGS="--seed 1"
	@$(BIN)/python tests/fuzz.py $(ARGS)

bench: $(STAMP) ## measure speed and memory against the published way, small (7 minutes on 2 cores)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-full: $(STAMP) ## the same at the paper's sizes (half an hour on 2 cores); ARGS="--data VOC --weights FILE" for photographs
	@$(BIN)/python -m benchmarks --full $(ARGS)

bench-gpu: $(STAMP) ## training steps and evaluations on a GPU
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-busy: $(STAMP) ## evaluation and training beside other work on the same cores (10 minutes)
	@$(BIN)/python -m benchmarks.busy $(ARGS)

bench-photographs: $(STAMP) ## from three photographs with masks to masks of others: time and memory (3 minutes)
	@$(BIN)/python -m benchmarks.photographs $(ARGS)

clean: ## remove caches and builds; keeps .venv and runs
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
