# `make demo` and `make test` need Python 3.11 or newer, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench soak

demo: .venv/ready runs/demo-backbone
	$(BIN)/python train.py --config configs/demo.py:teacher
	$(BIN)/python train.py --config configs/demo.py:baseline
	$(BIN)/python train.py --config configs/demo.py:nrsrd
	$(BIN)/python demo/compare.py

runs/demo-backbone: | .venv/ready
	$(BIN)/python convert/from_torch.py demo/backbone.pth --output $@

test: .venv/ready
	$(BIN)/python -m pytest

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

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@
