# Two commands on a fresh machine, which make and share a virtual environment:
#   make demo   fit, evaluate, reject, draw
#   make test   lint, types, tests
# And before a release: make release-check, see docs/releasing.md.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What the demo needs, which takes half of the time to install.
DEMO_INSTALLED := $(VENV)/.installed-demo
# pip would compile 18,000 modules, of which a part is imported: Python compiles those then, and
# keeps them even where the environment says otherwise. Many tests start processes, and to import
# torch takes three times as long where it has to be compiled.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL := $(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt
# medmnist brings torchvision, which has no build for every torch; only its table of data sets is
# needed here, and that works without.
INSTALL_MEDMNIST := $(PIP_INSTALL) --quiet --no-deps medmnist

.PHONY: demo test lint docs docs-links clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[test]"
	$(INSTALL_MEDMNIST)
	touch $@ $(DEMO_INSTALLED)

$(DEMO_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[plot]"
	$(INSTALL_MEDMNIST)
	touch $@

demo: $(DEMO_INSTALLED)
	$(BIN)/python examples/demo.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests of one file share what was fitted, compiled and started: they run in one process. A process
# that dies fails its test and is not replaced: with a new one xdist 3.8 can wait for ever.
test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --max-worker-restart 0

DOCS_INSTALLED := $(VENV)/.installed-docs

$(DOCS_INSTALLED): $(INSTALLED)
	$(PIP_INSTALL) --quiet -e ".[docs]"
	touch $@

# Runs the examples of examples/gallery that have changed; needs no network.
docs: $(DOCS_INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# What needs a network: references into other packages, and links.
docs-links: $(DOCS_INSTALLED)
	SKLEARN_MSF_DOCS_ONLINE=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/online
	$(BIN)/python -m sphinx -b linkcheck docs docs/_build/linkcheck

clean:
	rm -rf $(VENV) docs/_build docs/api docs/gallery build/release

include tools/release.mk
