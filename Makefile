# Everything a reader or author does with this repository. Start with `make` alone.

PYTHON  ?= python3
# What the notebooks do when the book is built: draw from records (published) or also train
# what the records lack (paper).
PROFILE ?= published
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help book test test-federation federation lab results claims check-book bench tidy pins clean

help:  ## list what can be made
	@echo "FedProx, Run and Checked. You can say:"
	@sed -n 's/^\([a-z-]*\):.*##/  make \1:/p' $(firstword $(MAKEFILE_LIST)) | \
		awk -F: '{ printf "%-18s %s\n", $$1, $$2 }'

# Reinstalled only when the declared dependencies or the tested versions change.
$(READY): pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "This project needs Python 3.11 or newer, and '$(PYTHON)' is not:" \
			"$$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "Python could not make $(VENV). On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@# torch first: where pip is offered a CPU build, everything after it keeps that one.
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[notebooks,build,flower,dev]'
	@touch $@

book: $(READY)  ## run every notebook, build the book into _build/html, check it
	$(BIN)/python -m tools.build_book --profile $(PROFILE)

test: $(READY)  ## lint, types, unit tests, doctests, an installation, every notebook in profile smoke
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# The notebooks run beside the other tests: two cores are kept busy, and neither waits for the other.
	@mkdir -p _build; export FEDPROX_PROFILE=smoke OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}; \
	$(BIN)/python -m pytest -p no:cacheprovider --nbmake notebooks --nbmake-timeout=120 --nbmake-kernel=python3 \
		>_build/test-notebooks.log 2>&1 & notebooks=$$!; trap "kill $$notebooks" INT TERM; \
	$(BIN)/python -m pytest tests fedprox_lib fedprox_book --doctest-modules --durations=5 -m "not federation"; \
	others=$$?; wait $$notebooks; status=$$?; echo "The notebooks:"; cat _build/test-notebooks.log; \
	test $$others = 0 && test $$status = 0

federation: $(READY)  ## run the app on a SuperLink and four SuperNodes here, compare it with one process
	$(BIN)/python -m tools.federation

test-federation: $(READY)  ## the same in tests, with nodes and a server that are killed (25 minutes)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m federation tests --durations=10

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

results: $(READY)  ## train what the records lack (resumable, hours), or ONLY=paper for its own experiments
	$(BIN)/python -m fedprox_book.make $(if $(ONLY),--only $(ONLY))
	$(if $(filter book,$(ONLY)),,$(BIN)/python -m fedprox_book.paper.theory)
	$(if $(ONLY),,$(BIN)/python -m tools.build_book --profile paper --execute-only)

claims: $(READY)  ## print every claim of the paper with its interval and verdict, or part by part with ID=C3
	$(BIN)/python -m fedprox_book.paper.claims $(ID)

check-book: $(READY)  ## open every built page in headless Chromium, without a network
	$(BIN)/python -m tools.check_book

bench: $(READY)  ## time our training beside other simulators (their environments first; an hour)
	$(BIN)/python -m benchmarks --threads 1,2 --passes 2 --repeats 3 --save
	$(BIN)/python -m benchmarks.growth --save
	$(BIN)/python -m benchmarks.federation --save

tidy: $(READY)  ## format the code; empty the notebooks' outputs
	$(BIN)/python -m tools.tidy_notebooks
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

pins: $(READY)  ## write constraints.txt from what is installed
	$(BIN)/python -m tools.pin_versions

clean:  ## remove what was built (the virtual environment and the records stay)
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache benchmarks/.work .federation
