# One verb a habit. Everything runs in .venv, which the first verb makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: quickstart test lint format bench docs notebooks clean

quickstart: $(VENV)/.installed  ## pretrain, select 10 images, learn from their labels: digits, a minute
	$(BIN)/usl run digits_quickstart.yaml

test: $(VENV)/.dev  ## all tests, a file on each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.dev  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## every benchmark; writes tests/benchmarks/results/
	set -e; for file in views fixmatch_throughput folder selection_speed sinkhorn "chain digits_quickstart"; do set -- $$file; $(BIN)/python tests/benchmarks/$$1.py $$2; done

docs: $(VENV)/.dev  ## the site, into build/docs; any warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

notebooks: $(VENV)/.dev  ## run the notebooks and keep their outputs in them
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

clean:  ## what the other verbs made; runs/ is kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@
