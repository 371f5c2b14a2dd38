# Everything runs in .venv/, which the first target that needs it builds: Python 3.11 to 3.13 and make
# are all that has to be there. `make help` lists the targets.

PYTHON      ?= python3.11
WORKDIR     ?= runs/demo
CONFIG      ?= configs/demo.py
PYTEST_ARGS ?=
NOTEBOOK_ARGS ?=
TWO_WORKERS := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

BIN    := .venv/bin
STAMP  := .venv/.stamp
DEV    := .venv/.stamp-dev
LOWEST := .venv-lowest/.stamp

# The stamp holds the folder that it was made in, and is written last. An environment that was left
# half-made, moved, or whose Python is gone does not answer with this folder: it is made anew.
ifneq ($(shell $(BIN)/python -c 'print(open("$(STAMP)").read().strip())' 2>/dev/null),$(CURDIR))
$(shell rm -f $(STAMP) $(DEV))
endif

# Prints the first interpreter of the list that runs and is 3.11 to 3.13.
define find_python
for p in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
  if "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
    echo "$$p"; exit 0; \
  fi; \
done; \
echo "keras-metamix needs Python 3.11, 3.12 or 3.13; found: $$(python3 --version 2>&1 || true)." >&2; \
echo "Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
exit 1
endef

.PHONY: help demo test lint format typecheck wheel docs notebooks bench lowest dev clean distclean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

export TF_CPP_MIN_LOG_LEVEL ?= 3

demo: $(STAMP) ## train, search, export and report on real images; writes runs/demo/
	$(BIN)/metamix-train --config=$(CONFIG) --workdir=$(WORKDIR)

test: $(STAMP) ## the whole test suite (PYTEST_ARGS='-m "not slow"' for the quick part)
	$(BIN)/python -m pytest $(TWO_WORKERS) $(PYTEST_ARGS)

lint: $(DEV) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(DEV) ## pyright on both packages, and how much of what they export has a type
	$(BIN)/pyright
	$(BIN)/python scripts/type_completeness.py $(BIN)/pyright

wheel: $(DEV) ## build dist/*.whl
	rm -rf build dist
	$(BIN)/python -m build --wheel

docs: $(DEV) ## the site of docs/ into build/site/; a warning, such as a broken link, is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(DEV) ## run notebooks/ and write their outputs anew (NOTEBOOK_ARGS=--check writes nothing)
	$(BIN)/python scripts/run_notebooks.py $(NOTEBOOK_ARGS)

bench: $(STAMP) ## step times over a plain float step, first steps, memory; writes runs/step_time.json
	@mkdir -p runs
	$(BIN)/python benchmarks/step_time.py --alone --json runs/step_time.json

lowest: $(LOWEST) ## the quick tests with every dependency at its lower bound (Python 3.11)
	.venv-lowest/bin/python -m pytest $(TWO_WORKERS) -m "not slow" $(PYTEST_ARGS)

dev: $(DEV) ## the environment with the developers' tools

clean: ## remove build outputs and caches
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## also remove the environments and the runs
	rm -rf .venv .venv-lowest runs

# A complete environment is only updated when the dependencies change; any other starts empty.
$(STAMP): pyproject.toml setup.py
	@if [ -f $(STAMP) ]; then rm -f $(STAMP) $(DEV); else \
	  python=$$($(find_python)) && echo "making .venv with $$python" && "$$python" -m venv --clear .venv; fi
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing the packages; TensorFlow alone takes a minute or more"
	$(BIN)/python -m pip install --quiet --editable '.[test,baseline]'
	@echo '$(CURDIR)' > $@

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(LOWEST): pyproject.toml setup.py
	@python=$$($(find_python)) && "$$python" -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  x = p['optional-dependencies']; \
	  print(*(r.replace('>=', '==') for r in p['dependencies'] + x['test'] + x['baseline']), sep='\n')" \
	  > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt \
	  --editable '.[test,baseline]'
	@touch $@
