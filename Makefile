PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
CODE := src tests bench examples tools

# Processes that the tests start would compile the whole package again, each of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test setup check docs bench battery-quick battery lock clean
.PHONY: js-client-test js-client-check js-client-messages
.PHONY: console console-test console-check browser

$(STAMP): requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

setup: $(STAMP) console

run: setup
	$(BIN)/trunkline demo

# The slowest files first, so that no core waits for the other at the end.
test: setup browser
	$(BIN)/python -m pytest tests/browser tests/e2e tests/fuzz tests -n auto --dist loadfile --no-loadscope-reorder
	@$(MAKE) --no-print-directory js-client-test console-test

# The proofs of tests/e2e and tests/fuzz at their full length; battery-quick takes at most half an hour, battery most of a day.
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
	@$(MAKE) --no-print-directory js-client-check console-check

docs: setup
	$(BIN)/python tools/docs.py
	@$(MAKE) --no-print-directory js-client-messages

bench: setup
	$(BIN)/python bench/run.py

lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev pyproject.toml -o requirements/dev.txt

clean:
	rm -rf $(VENV) build dist js/client/node_modules js/client/dist $(CONSOLE)/node_modules $(CONSOLE_BUILD)

# --- The JavaScript client (js/client): only where Node 20 or newer is ---

JS_CLIENT := js/client
JS_CLIENT_STAMP := $(JS_CLIENT)/node_modules/.stamp
JS_CLIENT_NODE := $(shell npm --version >/dev/null 2>&1 && node -p "process.versions.node.split('.')[0] >= 20" 2>/dev/null)

$(JS_CLIENT_STAMP): $(JS_CLIENT)/package-lock.json
	cd $(JS_CLIENT) && npm ci --no-audit --no-fund
	touch $@

ifeq ($(JS_CLIENT_NODE),true)
js-client-test: setup $(JS_CLIENT_STAMP)
	cd $(JS_CLIENT) && npm run --silent test

js-client-check: $(JS_CLIENT_STAMP)
	cd $(JS_CLIENT) && npm run --silent check

js-client-messages: $(JS_CLIENT_STAMP)
	cd $(JS_CLIENT) && npm run --silent messages
else
js-client-test js-client-check js-client-messages:
	@echo "The JavaScript client is left out: there is no Node 20 or newer here."
endif

# --- end of the JavaScript client ---

# --- The web console (js/console): built into the package, where Node 20 or newer is ---

CONSOLE := js/console
CONSOLE_BUILD := src/trunkline/http/console
CONSOLE_STAMP := $(CONSOLE)/node_modules/.stamp
CONSOLE_SOURCES := $(shell find $(CONSOLE)/src $(CONSOLE)/index.html $(CONSOLE)/vite.config.ts $(JS_CLIENT)/src -type f 2>/dev/null)

ifeq ($(JS_CLIENT_NODE),true)
console: $(CONSOLE_BUILD)/index.html

$(CONSOLE_STAMP): $(CONSOLE)/package-lock.json
	cd $(CONSOLE) && npm ci --no-audit --no-fund
	touch $@

$(CONSOLE_BUILD)/index.html: $(CONSOLE_STAMP) $(CONSOLE_SOURCES)
	cd $(CONSOLE) && npm run --silent build -- --logLevel warn
	touch $@

console-test: console
	cd $(CONSOLE) && npm run --silent test

console-check: $(CONSOLE_STAMP)
	cd $(CONSOLE) && npm run --silent check
else
console console-test console-check:
	@echo "The web console is left out: there is no Node 20 or newer here. The gateway runs without it."
endif

# The tests in tests/browser need a browser; without one they are skipped.
browser:
	@command -v chromium >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get install -y --no-install-recommends chromium || { apt-get update && apt-get install -y --no-install-recommends chromium; }; \
		fi; \
		command -v chromium >/dev/null || echo "The browser tests are left out: install Chromium as the command chromium (on Debian: apt-get install chromium)."; \
	}

# --- end of the web console ---
