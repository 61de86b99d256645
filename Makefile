# Every target sets up what it needs. CI and the README use the same targets.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
BIND ?= 127.0.0.1:8000
CODE := app.py wsgi.py gunicorn.conf.py rill tests bench examples

# The tests of the modules that do no I/O, which cover every branch of them.
PURE := $(patsubst %,tests/test_%.py,problems settings text_dialect sse_dialect anthropic_dialect openai_dialect \
	openai_tools responses ui_messages chat count_tokens features files relay sse_decoder)

# A soak runs the tests of properties with more examples, those of the page at each width in both colour schemes, and those
# of answers and faults without the relay.
PROPERTIES := $(patsubst %,tests/test_%.py,relay sse_decoder sse_dialect text_dialect anthropic_dialect openai_dialect offline) \
	tests/hostile/test_parsers.py
PAGE := $(wildcard tests/clients/test_page*.py)
ANSWERS := tests/test_stream.py tests/test_resume.py tests/test_resume_redis.py tests/faults tests/hostile

# Each test process rewrites the assertions of every test that it does not find in a cache.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test soak check format bench lock screenshots

run: .venv/.run  ## serve at BIND, with the offline model unless a key is in the environment
	@if [ -z "$$ANTHROPIC_API_KEY$$ANTHROPIC_AUTH_TOKEN" ]; then export RILL_OFFLINE=$${RILL_OFFLINE:-1}; fi; \
	echo "Starting Rill at http://$(BIND) (Ctrl-C stops it). Then open that page, or run:"; \
	echo "  curl -N 'http://$(BIND)/stream?q=hello'"; \
	exec $(BIN)/gunicorn --bind $(BIND) wsgi:app

test: .venv/.dev  ## every test, against real servers and clients; those that measure times alone
	@PATH="$$PATH:/usr/sbin" tests/packages.sh
	PATH="$$PATH:/usr/sbin" $(BIN)/pytest -n 6 --dist worksteal -m "not soak and not timing"
	$(BIN)/pytest -m "timing and not soak" --reruns 2 --only-rerun AssertionError $$(grep -rl pytest.mark.timing tests --include=test_*.py)

soak: .venv/.dev  ## the tests that take long
	$(BIN)/pytest -m soak
	SOAK=1 $(BIN)/pytest -n 2 --timeout=7200 -m "not server" $(PROPERTIES)
	SOAK=1 $(BIN)/pytest -n 2 -m "not soak and not timing" $(PAGE)
	GENERAL_PATH=1 $(BIN)/pytest -n 4 --dist worksteal -m "not soak and not timing" $(ANSWERS)

check: .venv/.dev  ## lint, types, the import rule, known vulnerabilities of pinned packages, coverage of the pure modules
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/audit.py
	$(BIN)/pytest -m "not server and not soak" --cov --cov-report=term $(PURE)

format: .venv/.dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: .venv/.run  ## Rill and a Go handler in one table; QUICK=1 takes a minute, BUSY=2 adds two busy loops
	$(BIN)/python bench/run.py $(if $(QUICK),--quick) $(if $(BUSY),--busy $(BUSY))

screenshots: .venv/.dev  ## those of docs/; the Chinese page needs a font such as that of Debian's fonts-noto-cjk
	$(BIN)/python tests/clients/screenshots.py

lock: .venv/.dev  ## renew both lock files from requirements.in and requirements-dev.in
	$(BIN)/uv pip compile $(LOCK) requirements.in -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) requirements-dev.in -o requirements-dev.txt

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rill needs Python 3.11 or newer: make PYTHON=...")'
	@echo "Creating a Python environment in .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.run: .venv/.made requirements.txt
	@echo "Installing the Python packages of requirements.txt into .venv"
	@$(PIP) -r requirements.txt
	@touch $@

.venv/.dev: .venv/.made requirements-dev.txt
	@echo "Installing the Python packages of requirements-dev.txt into .venv"
	@$(PIP) -r requirements-dev.txt
	@touch $@ .venv/.run
