# Every target does its own set-up; CI and the README call the same ones.
PYTHON ?= python3
BIN := .venv/bin

LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: run test check format bench lock

run: .venv/.run  ## serve on 127.0.0.1:8000; offline unless a key is in the environment
	@if [ -z "$$ANTHROPIC_API_KEY$$ANTHROPIC_AUTH_TOKEN$$RILL_OFFLINE" ]; then export RILL_OFFLINE=1; fi; \
	exec $(BIN)/gunicorn wsgi:app

.venv/.made:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.run: .venv/.made requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.dev: .venv/.made requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/.run

lock: .venv/.dev  ## make the locks anew
	$(BIN)/uv pip compile $(LOCK) requirements.in -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) requirements-dev.in -o requirements-dev.txt
