# `make demo` runs distributed inference on 4 ranks over queues and objects, and checks the result.
# `make test` runs the whole test suite. CONTRIBUTING.md describes the other targets.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# Each release of boto3 needs one release of botocore, and the emulator pins that. Without this
# bound pip downloads up to 100 releases of boto3 until one fits: 30 s. Both have the same numbers.
EMULATORS_BOTO = $(BIN)/python -c "from importlib.metadata import requires; \
	print(next(r.partition('==')[2] for r in requires('ministack') if r.startswith('botocore==')))"
# A change of one of these files installs the package again.
SOURCES = pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/*)
# Three processes, since many tests wait; each takes the next file, in the order of tests/conftest.py.
PARALLEL = -n 3 --dist loadfile --no-loadscope-reorder
QUICK = not emulator and not slow and not network and not mpi and not root

demo: $(VENV)/.demo
	$(BIN)/smpirun -n 4 --stats text examples/sparse_dnn.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -q $(PARALLEL)

quick: $(VENV)/.test
	$(BIN)/python -m pytest -q $(PARALLEL) -m "$(QUICK)"

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

# Old releases of pip resolve slowly, so the environment gets a current pip first.
$(VENV)/.pip:
	@echo "== making $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip
	@touch $@

$(VENV)/.%: $(SOURCES) | $(VENV)/.pip
	@echo "== installing serverless-mpi[$*] into $(VENV): downloads, then the C kernel is built"
	@case $* in demo|test) \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-deps -q 'ministack>=1.5' && \
	  echo "boto3<=$$($(EMULATORS_BOTO))" > $(VENV)/.bounds;; \
	*) : > $(VENV)/.bounds;; esac
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$*]' -c $(VENV)/.bounds
	@touch $@

.PHONY: demo test quick check bench docs clean
.PRECIOUS: $(VENV)/.pip
