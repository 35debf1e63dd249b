# `make demo` runs distributed inference on 4 ranks over queues and objects, and checks the result.
# `make test` runs the whole test suite. CONTRIBUTING.md describes the other targets.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# A change of one of these files installs the package again.
SOURCES = pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/*)
QUICK = not emulator and not slow and not network and not mpi and not root

demo: $(VENV)/.demo
	$(BIN)/smpirun -n 4 --stats text examples/sparse_dnn.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -q

quick: $(VENV)/.test
	$(BIN)/python -m pytest -q -m "$(QUICK)"

check: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/budgets.py

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Old releases of pip resolve slowly, above all the test extra, where the emulator pins one release of
# botocore and moto needs the boto3 that suits it, so the environment gets a current pip first.
$(VENV)/.pip:
	@echo "== making $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip
	@touch $@

$(VENV)/.%: $(SOURCES) | $(VENV)/.pip
	@echo "== installing serverless-mpi[$*] into $(VENV): downloads, then the C kernel is built"
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$*]'
	@touch $@

.PHONY: demo test quick check bench docs clean
.PRECIOUS: $(VENV)/.pip
