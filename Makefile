# `make` prints what there is. Everything runs in $(VENV), which is made when missing.

PYTHON ?= python3
VENV ?= .venv
DATASET ?= digits
DATA_DIR ?=
WORKDIR ?= runs/$(DATASET)
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
          --constraint constraints.txt

.PHONY: help demo test slow lint format docs dist readme build-file clean

help:  ## what there is
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  \1\t\2/p' Makefile | expand -t 14
	@echo "PYTHON=$(PYTHON) VENV=$(VENV) DATASET=$(DATASET) WORKDIR=$(WORKDIR) can be set."

demo: $(VENV)/.core  ## float model -> policy -> .tflite -> report on real images
	$(BIN)/python -m train.demo --dataset=$(DATASET) --workdir=$(WORKDIR) \
	    $(if $(DATA_DIR),--data_dir=$(DATA_DIR))

test: lint docs $(VENV)/clients/.made  ## lint, documentation, the quick tests
	GMPQ_CLIENTS=$(VENV)/clients $(BIN)/python -m pytest -q -n 2 --dist worksteal \
	    -m "not slow and not large"

slow: $(VENV)/.dev $(VENV)/.docs  ## the long tests: every command of the documentation too
	$(BIN)/python -m pytest -q -m "slow or large"

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the documentation, read from build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

dist: $(VENV)/.dev  ## wheel and source archive, checked, in dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

format: $(VENV)/.dev  ## the style that `make lint` asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(VENV)/.dev  ## table and picture of README.md, from results/
	$(BIN)/python tools/readme.py

build-file: $(VENV)/.dev  ## BUILD, after a file or an import was added
	$(BIN)/python tools/update_build.py

# The stamps renew the environment whenever the pins or the requirements change.
$(VENV)/.core: setup.py constraints.txt | $(VENV)
	@echo "Installing into $(VENV) (TensorFlow is large: this takes minutes once)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: setup.py constraints.txt | $(VENV)
	@echo "Installing into $(VENV) (TensorFlow is large: this takes minutes once)"
	$(INSTALL) --editable ".[dev]"
	@touch $@

$(VENV)/.docs: setup.py constraints.txt | $(VENV)
	@echo "Installing the tools of the documentation into $(VENV)"
	$(INSTALL) --editable ".[docs]"
	@touch $@

# MediaPipe and TFLite Micro want another absl-py than TFMOT. Where they cannot be had
# (no wheel for this Python, say), the tests that run them are skipped.
$(VENV)/clients/.made: constraints-clients.txt | $(VENV)
	@echo "Installing MediaPipe and TFLite Micro into $(VENV)/clients"
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints-clients.txt mediapipe tflite-micro && touch $@ || \
	    (echo "Not installed: their tests are skipped"; rm -rf $(VENV)/clients)

$(VENV):
	$(PYTHON) -m venv $(VENV)

clean:  ## delete what the targets made, but runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
