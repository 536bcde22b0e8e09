# Five commands, each complete on a machine with Python 3.11 or newer and make:
#   make train       fine-tune MiniLM with LoRA on film reviews, evaluate on films it has never seen
#   make sweep       12 such runs in one program, of four ranks and three seeds, and a page about them
#   make notebooks   open the notebooks in JupyterLab
#   make docs        build this project's site into build/docs
#   make test        lint, type-check and test
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/lora_sentiment.py
# The versions to install; `make train PYTHON=python3.13 CONSTRAINTS=/dev/null` takes the newest.
CONSTRAINTS ?= constraints.txt
WORKDIR ?= runs/lora_sentiment
SWEEPDIR ?= runs/sweep
# An environment is current while it is younger than the files that describe it.
RECIPE := setup.cfg pyproject.toml constraints.txt experiments/assets.txt
# pip brings uv, and uv the rest, in a tenth of pip's time.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
# Large pages for the scratch memory of programs, see docs/scaling.md.
LARGE_PAGES := GLIBC_TUNABLES=$${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}

.PHONY: train sweep notebooks test docs lint types unit clean

train: $(VENV)/.ready-to-train
	$(LARGE_PAGES) $(BIN)/peftjax train --config $(CONFIG) --workdir $(WORKDIR)

sweep: $(VENV)/.ready-to-train
	$(LARGE_PAGES) $(BIN)/peftjax sweep --config $(CONFIG) --sweep rank --workdir $(SWEEPDIR) \
	    --data.limit 512 --data.batch_size 16 --duration '1 epoch' \
	    --log_every '2 steps' --eval_every '8 steps'

notebooks: $(VENV)/.ready-to-open
	$(BIN)/jupyter lab notebooks

test: lint types unit

# A warning is an error, and a link without a page is a warning. Sphinx cannot know which pages the
# code has changed, so it reads all of them; notebooks run again where they changed.
docs: $(VENV)/.ready-to-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -d build/doctrees docs build/docs
	@echo 'The site is in build/docs: open build/docs/index.html'

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-to-test
	$(BIN)/basedpyright

# Python keeps compiled test modules unless this variable says otherwise: they collect twice as fast.
unit: $(VENV)/.ready-to-test
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

$(VENV)/.ready-to-train: $(RECIPE)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"peftjax needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}: run make PYTHON=<a newer one>" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint $(CONSTRAINTS) uv
	$(UV) --constraint $(CONSTRAINTS) --editable '.[train]'
	$(UV) --no-deps --requirement experiments/assets.txt
	touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready-to-train
	$(UV) --constraint $(CONSTRAINTS) --editable '.[train,datasets,search]' --group test
	touch $@

$(VENV)/.ready-to-open: $(VENV)/.ready-to-train
	$(UV) --constraint $(CONSTRAINTS) --editable '.[train]' --group lab
	touch $@

$(VENV)/.ready-to-docs: $(VENV)/.ready-to-train
	$(UV) --constraint $(CONSTRAINTS) --editable '.[train,search]' --group docs
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
