# make demo   float model -> policy -> .tflite -> report on real images
# make test   lint and the quick tests
# Everything runs in $(VENV), which is made when it is missing.

PYTHON ?= python3
VENV ?= .venv
DATASET ?= digits
DATA_DIR ?=
WORKDIR ?= runs/$(DATASET)
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
          --constraint constraints.txt

.PHONY: demo test slow lint format build-file clean

demo: $(VENV)/.core
	$(BIN)/python -m train.demo --dataset=$(DATASET) --workdir=$(WORKDIR) \
	    $(if $(DATA_DIR),--data_dir=$(DATA_DIR))

test: lint $(VENV)/clients/.made
	GMPQ_CLIENTS=$(VENV)/clients $(BIN)/python -m pytest -q -n 2 --dist worksteal \
	    -m "not slow and not large"

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "slow or large"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build-file: $(VENV)/.dev
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

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
