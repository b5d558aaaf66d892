PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
CODE := src tests bench examples tools

.PHONY: run test setup check docs bench battery-quick battery lock clean

$(STAMP): requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

setup: $(STAMP)

run: setup
	$(BIN)/trunkline demo

test: setup
	$(BIN)/python -m pytest tests -n auto --dist loadfile

# The proofs of tests/e2e and tests/fuzz at their full length; battery-quick takes at most half an hour.
battery-quick: setup
	BATTERY=quick $(BIN)/python -m pytest tests/e2e tests/fuzz --timeout 1800

battery: setup
	BATTERY=full $(BIN)/python -m pytest tests/e2e tests/fuzz --timeout 14400

check: setup
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	MYPYPATH=tools $(BIN)/mypy tools examples
	$(BIN)/lint-imports
	$(BIN)/python tools/docs.py --check
	$(BIN)/python tools/audit.py

docs: setup
	$(BIN)/python tools/docs.py

bench: setup
	$(BIN)/python bench/run.py

lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev pyproject.toml -o requirements/dev.txt

clean:
	rm -rf $(VENV) build dist
