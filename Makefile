# All targets need only Python 3.11 or newer. `make install` does not install what only the tests need.
PYTHON ?= python3
BIN := .venv/bin

# Without --no-compile, pip would compile all modules of all packages, most of which no command imports.
MAKE_VENV := $(PYTHON) -m venv .venv && \
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
STAGE := $(BIN)/python demo/stage.py

.PHONY: install demo test test-all quick check docs lock test-matrix bench soak

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
	$(BIN)/python -m pytest -m "not long"

test-all: .venv/ready
	$(BIN)/python -m pytest

quick: .venv/ready
	$(BIN)/python -m pytest -m "not slow"

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# JAX loads one CUDA plugin, so the two are exported one after the other. PyTorch (bench) comes with CUDA 13.
EXPORT := uv export --quiet --frozen --all-extras --no-hashes --no-annotate --no-header --no-emit-project

lock:
	uv lock
	{ $(EXPORT) --no-extra cuda12 && $(EXPORT) --no-extra cuda13 --no-extra bench; } | LC_ALL=C sort -u > constraints.txt

test-matrix:
	$(PYTHON) tests/matrix.py

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
	$(MAKE_VENV) --editable '.[tensorboard]'
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
