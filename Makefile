# make demo: distributed inference on 4 ranks over queues and objects, checked.  make test: the whole suite.
VENV ?= .venv
SOURCES = pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/*)

demo: $(VENV)/.demo
	$(VENV)/bin/smpirun -n 4 --stats text examples/sparse_dnn.py

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -q

$(VENV)/.%: $(SOURCES)
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[$*]' && touch $@

.PHONY: demo test
