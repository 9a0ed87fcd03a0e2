# All targets need only Python 3.11 or newer. `make install` does not install what only the tests need.
PYTHON ?= python3
BIN := .venv/bin

MAKE_VENV := $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
STAGE := $(BIN)/python demo/stage.py

.PHONY: install demo test quick check docs bench soak

install: .venv/installed

# Each stage prints one line with its time. Its output is in runs/demo-STAGE.log.
demo: .venv/installed runs/demo-backbone
	@$(STAGE) teacher train.py --config configs/demo.py:teacher
	@$(STAGE) baseline train.py --config configs/demo.py:baseline
	@$(STAGE) nrsrd train.py --config configs/demo.py:nrsrd
	@$(STAGE) nrsrd_plus train.py --config configs/demo.py:nrsrd_plus
	@$(STAGE) --show compare demo/compare.py

runs/demo-backbone: | .venv/installed
	@$(STAGE) backbone convert/from_torch.py demo/backbone.pth --output $@

test: .venv/ready
	$(BIN)/python -m pytest

quick: .venv/ready
	$(BIN)/python -m pytest -m "not slow"

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/documented
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs --doctree-dir build/doctrees . build/docs
	@echo 'open build/docs/docs/index.html'

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

.venv/documented: pyproject.toml constraints.txt | python
	$(MAKE_VENV) --editable '.[docs]'
	touch .venv/installed $@

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
