# Every target needs Python 3.11 or newer, and nothing else. `make install` leaves out what only the tests need.
PYTHON ?= python3
BIN := .venv/bin

MAKE_VENV := $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo test quick check bench soak

install: .venv/installed

demo: .venv/installed runs/demo-backbone
	$(BIN)/python train.py --config configs/demo.py:teacher
	$(BIN)/python train.py --config configs/demo.py:baseline
	$(BIN)/python train.py --config configs/demo.py:nrsrd
	$(BIN)/python train.py --config configs/demo.py:nrsrd_plus
	$(BIN)/python demo/compare.py

runs/demo-backbone: | .venv/installed
	$(BIN)/python convert/from_torch.py demo/backbone.pth --output $@

test: .venv/ready
	$(BIN)/python -m pytest

quick: .venv/ready
	$(BIN)/python -m pytest -m "not slow"

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/ready
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/evaluation.py

soak: .venv/ready
	$(BIN)/python tests/soak.py

.venv/installed: pyproject.toml constraints.txt | python
	$(MAKE_VENV) --editable .
	touch $@

.venv/ready: pyproject.toml constraints.txt | python
	$(MAKE_VENV) --editable '.[test]'
	touch .venv/installed $@

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
