# The map of the project: every command, and the environment they share.

PROFILE ?= full
DEVICE ?= cpu
PYTHON ?= python3
ENGINE ?= loky
EXTRA_INDEX ?=
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# With one extra besides: $(INSTALLED)-benchmark, $(INSTALLED)-lab, $(INSTALLED)-site.
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt \
	$(if $(EXTRA_INDEX),--extra-index-url $(EXTRA_INDEX))

# All variables given on the command line but those of make: the options of an order, quoted for the shell.
ORDER = $(foreach name,$(filter-out PROFILE DEVICE PYTHON ENGINE EXTRA_INDEX,$(.VARIABLES)),\
	$(if $(filter command,$(origin $(name))),'$(name)=$(subst ','\'',$($(name)))'))

# What runs side by side prints its output in one piece, where make can do that (4.0 or later).
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync)

# One thread a process: torch's own threads cost more than they bring here, and change the last digits.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := passive
export KMP_BLOCKTIME := 0
# glibc gives freed blocks back at once by default; fetching them anew takes half the time of a simulation.
export MALLOC_TRIM_THRESHOLD_ := 1000000000
export MALLOC_MMAP_THRESHOLD_ := 1000000000
# Modules are compiled once, not by each of the many processes of a run.
unexport PYTHONDONTWRITEBYTECODE
# Kernels read the checkout's configuration, not the user's.
export IPYTHONDIR := $(CURDIR)/.ipython
export FLOWOE_ENGINE := $(ENGINE)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce notebooks order work review test unit-tests notebook-tests lint lab explore test-lab site benchmark clean

help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PROFILE=full|quick (quick: small scale), PYTHON=python3 (3.11 or later),"
	@echo "           ENGINE=loky|local-dask|tcp://host:8786 (runs sweeps: local processes, Dask's, a Dask cluster),"
	@echo "           DEVICE=cpu|cuda (where policies are refined),"
	@echo "           EXTRA_INDEX=URL (a second package index, such as one with CPU builds of torch)"
	@echo "The options of an order are in docs/order.md."

reproduce: $(INSTALLED) ## make every figure and table; does only what is not up to date
	$(BIN)/python -m flowoe_lib.reproduce --profile $(PROFILE) --device $(DEVICE)

notebooks: $(INSTALLED) ## reproduce in full, then put the executed copies into notebooks/
	$(BIN)/python -m flowoe_lib.reproduce --profile full --device $(DEVICE) --publish

# Two processes of tests, one file at a time each, so that what the tests of a file share is made once.
test: $(INSTALLED) ## lint, the tests, and the committed notebooks run again and compared, side by side
	@WORKERS=2 $(MAKE) --jobs=3 $(SYNC) notebook-tests unit-tests lint

unit-tests: $(INSTALLED) ## the tests alone, on all cores
	MPLBACKEND=agg $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

notebook-tests: $(INSTALLED) ## the committed notebooks alone, run again and compared
	FLOWOE_FIGURES=$(CURDIR)/build/test/figures FLOWOE_STORE=$(CURDIR)/build/test/artifacts \
	$(BIN)/python -m pytest -p no:xdist \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=1200 \
		$$($(BIN)/python -m flowoe_lib.reproduce --list)

order: $(INSTALLED) ## plan an order: make order DATA=docs/sample_bars.csv SIDE=buy SHARES=250000
	@$(BIN)/python -m flowoe_lib.desk order $(ORDER)

work: $(INSTALLED) ## work a plan during its day: make work PLAN=build/order/plan.json BARS=today.csv
	@$(BIN)/python -m flowoe_lib.desk work $(ORDER)

review: $(INSTALLED) ## review a worked order: make review FILLS=fills.csv PLAN=build/order/plan.json BARS=today.csv
	@$(BIN)/python -m flowoe_lib.desk review $(ORDER)

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lab: $(INSTALLED) ## open the notebooks in JupyterLab
	@[ $$(id -u) != 0 ] || echo "running as root: the notebooks may change every file of this machine"
	$(BIN)/jupyter lab $$([ $$(id -u) != 0 ] || echo --allow-root) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

site: $(INSTALLED)-site ## build README, docs, notebooks as committed and the API into build/site; fails on a warning
	rm -rf build/site
	$(BIN)/python -m sphinx -W --keep-going -q -c docs/site -d build/doctrees . build/site
	cp build/site/README.html build/site/index.html
	$(BIN)/python -W error -m pdoc --docformat numpy --template-directory docs/site/pdoc -o build/site/api flowoe_lib

explore: $(INSTALLED)-lab ## open the page that explores the trained policy, with voila
	$(BIN)/voila notebooks/00_explore.ipynb

test-lab: $(INSTALLED)-lab site ## open that page in JupyterLab and voila with a real browser and move a slider; click through the site
	$(BIN)/python -m pytest -rs tests_lab

benchmark: $(INSTALLED)-benchmark ## measure speed and memory, beside other implementations
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file; done

clean: ## remove build/, artifacts/ and tool caches; keeps .venv, .cache (downloads) and figures
	rm -rf build artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

# The stamps come last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' is not Python 3.11 or later; name one with: make PYTHON=python3.13" >&2; exit 1; }
	@echo "installing into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e ".[test]"
	@touch $@

$(INSTALLED)-%: $(INSTALLED)
	@$(PIP_INSTALL) -e ".[$*]"
	@touch $@
