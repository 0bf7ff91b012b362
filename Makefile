# `make help` lists what can be done. The work is done by workflow/ and the Snakefile; this file makes the
# environment first. Everything lives in this folder: .venv/, data/ (or KTLIB_DATA), runs/, book/_build/.

PYTHON ?= python3
PROFILE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILD := $(BIN)/python -m workflow.build
CORES ?=
# The value of a variable as one word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(value $(1)))'
# Options for Snakemake itself, such as SNAKEMAKE='--executor slurm --jobs 16'.
SNAKEMAKE ?=
BUILD_OPTIONS = --profile $(call quoted,PROFILE) $(if $(CORES),--cores $(call quoted,CORES)) \
	$(if $(SNAKEMAKE),--snakemake=$(call quoted,SNAKEMAKE))
# The runs of a sweep, or the parts of a record.
RUNS_OPTIONS = --chapter $(call quoted,CHAPTER) --seeds $(call quoted,SEEDS) --set $(call quoted,SET)

export PYTHONPATH := $(CURDIR)
# A chapter imports some 5,000 modules: compiled anew in each process, as containers like to ask for, they
# take 8 of the 20 s of a short chapter.
unexport PYTHONDONTWRITEBYTECODE
# Trust the certificates that the machine trusts, as pip does: behind a company's proxy there are others.
export UV_SYSTEM_CERTS ?= true
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book plan check test gpu drill lint types env data browser notebooks bench sweep record merge recheck lock clean clean-cache

help: ## say what can be done
	@echo "make <target> [PROFILE=smoke|cpu|full|gpu|paper] (default: cpu)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

book: env ## execute the chapters that need it, and render the book
	@$(BUILD) book $(BUILD_OPTIONS)

plan: env ## show what `make book` would do
	@$(BUILD) book $(BUILD_OPTIONS) --dry-run

# Minutes of the processor that all tests may take; runs/tests/minutes.csv has what each took.
MINUTES := 45

# Several tests share a core: a thread that waits for another must not spin there, else each step takes
# up to 20 times as long.
check test: export OMP_WAIT_POLICY = PASSIVE
check: lint types ## what to run before a commit: style, types, quick tests
	@$(BIN)/python -m pytest -n auto --dist worksteal -q -m "not slow and not browser" \
		tests/ktlib tests/workflow tests/book tests/data_prep tests/experiments/run

test: lint types data browser ## run every test
	@$(BIN)/python -m pytest -n auto --dist worksteal --budget $(MINUTES) \
		--cov=ktlib --cov-report=term:skip-covered --cov-fail-under=90

gpu: export CUBLAS_WORKSPACE_CONFIG = :4096:8
gpu: env ## run the tests that need a GPU, and every chapter at the smoke size on it
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu needs a CUDA device, and PyTorch finds none here.")'
	@$(MAKE) --no-print-directory data
	@$(BIN)/python -m pytest -m gpu

# Hours; one call goes on where another with the same code stopped.
drill: env data ## run every chapter with each parameter at its legal extremes
	@$(BIN)/python -m workflow.drill $(if $(CHAPTER),--chapter $(call quoted,CHAPTER)) $(if $(PARAMETER),--parameter $(call quoted,PARAMETER))

# Through Python: the scripts beside it do not start in a folder whose name holds a quote or a dollar.
lint: env ## check style, spelling, what imports what, and that chapters stay readable
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m codespell_lib .
	@$(BIN)/python -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache --no-logo
	@$(BIN)/python -m workflow.draw_architecture --check
	@$(BIN)/python -m workflow.check_chapters

types: env ## check types
	@$(BIN)/python -m mypy

data: env ## prepare the data sets that the default profile and the tests use
	@for name in mnist fashion_mnist pairs digits multi_fashion_mnist multi_mnist multi_fashion smollm2 chatterbot human_eval moby_dick; do $(BIN)/python -m data_prep.$$name || exit 1; done

browser: env ## find Chromium for the tests, or install it from Debian
	@$(BIN)/python -m workflow.browser

notebooks: env ## write the chapters as plain notebooks into notebooks/
	@$(BUILD) notebooks

bench: env ## measure speed next to other packages, for a page of the book
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(call quoted,ONLY))

sweep: env ## many runs: CHAPTER=fcl SEEDS=0,1,2 SET='noise_bound=0.01,0.02'
	@$(BUILD) sweep $(BUILD_OPTIONS) $(RUNS_OPTIONS)

record: env ## keep the record of a long run in results/: CHAPTER=fcl PROFILE=full, in parts SEEDS=0,1,2
	@$(BUILD) record $(BUILD_OPTIONS) $(RUNS_OPTIONS) $(if $(ALLOW_DIRTY),--allow-dirty)

merge: env ## merge the parts of a record that are there: CHAPTER=fcl PROFILE=full
	@$(BUILD) merge $(BUILD_OPTIONS) $(RUNS_OPTIONS) $(if $(ALLOW_DIRTY),--allow-dirty)

recheck: env ## compute a part of a kept record again with the present code: CHAPTER=fcl PROFILE=full
	@$(BUILD) recheck $(BUILD_OPTIONS) --chapter $(call quoted,CHAPTER) --against $(call quoted,AGAINST)

lock: env ## renew requirements.txt from the ranges in pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --group book --group test \
		--custom-compile-command 'make lock' --output-file requirements.txt pyproject.toml

clean: ## remove runs, the rendered book and caches; data and environment stay
	rm -rf runs notebooks .snakemake book/_build book/_generated book/chapters
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-cache: ## remove the kept trainings, so that each is computed again
	rm -rf runs/cache

env: $(READY) ## make the environment in .venv

$(READY): requirements.txt pyproject.toml
	@$(call quoted,PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed. Found: $$($(call quoted,PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/pip || $(call quoted,PYTHON) -m venv --clear $(VENV) \
		|| { echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing into $(VENV) (some minutes the first time)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --config-setting editable_mode=compat --editable .
	@touch $@
