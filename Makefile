# Everything runs from .venv. Python 3.11 or later and make are all that a machine must have.
.DEFAULT_GOAL := help
.PHONY: help install demo test lint format airflow lock clean mosquitto postgres

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LAKE := $(or $(PUMPLEDGER_LAKE),$(CURDIR)/lake)
WORKERS ?= 2
AIRFLOW_PORT ?= 8080
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

# The certificates that this machine trusts, a company's proxy included.
export UV_SYSTEM_CERTS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## .venv with everything, from the lock

# uv is quicker, pip does the same: it is used where uv cannot be.
$(STAMP): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which: make PYTHON=python3.12 install")'
	$(PYTHON) -m venv .venv
	@awk '/^[^ #]/ {on = /^uv==/} on' requirements-dev.txt > .venv/uv.txt
	@if $(BIN)/python -m pip install --quiet --require-hashes --no-deps -r .venv/uv.txt \
		&& $(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements-dev.txt \
		&& $(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .; then :; else \
		echo "uv does not work on this machine; installing with pip, which takes longer" \
		&& $(BIN)/python -m pip install --require-hashes -r requirements-dev.txt \
		&& $(BIN)/python -m pip install --no-deps --no-build-isolation --editable .; fi
	@touch $@

demo: $(STAMP) ## the main job on simulated pumps: from bytes to lines, in demo-out/
	$(BIN)/pumpledger demo --out demo-out

test: lint mosquitto postgres ## lint, then every test
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

lint: $(STAMP) ## ruff, mypy and the arrows between the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## what ruff can mend by itself
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

airflow: $(STAMP) ## Airflow with this project's DAGs on 127.0.0.1:8080 (AIRFLOW_PORT); prints the login at its first start
	mkdir -p airflow-home
	@echo "lake: $(LAKE)   login: airflow-home/simple_auth_manager_passwords.json.generated"
	env PATH="$(CURDIR)/$(BIN):$$PATH" PUMPLEDGER_LAKE="$(LAKE)" \
		AIRFLOW_HOME="$(CURDIR)/airflow-home" AIRFLOW__CORE__DAGS_FOLDER="$(CURDIR)/dags" AIRFLOW__CORE__LOAD_EXAMPLES=False \
		AIRFLOW__API__HOST=127.0.0.1 AIRFLOW__API__PORT=$(AIRFLOW_PORT) AIRFLOW__API__BASE_URL=http://127.0.0.1:$(AIRFLOW_PORT) \
		$(BIN)/airflow standalone

lock: $(STAMP) ## the locks anew from pyproject.toml; UPGRADE=1 takes the newest versions
	$(COMPILE) --extra airflow --group dev --output-file requirements-dev.txt
	$(COMPILE) --extra airflow --constraints requirements-dev.txt --output-file requirements-airflow.txt
	$(COMPILE) --constraints requirements-dev.txt --output-file requirements.txt

clean: ## what tests and demo leave; neither .venv nor a lake
	rm -rf demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Debian's packages, by who may install them; else the tests that need one say why they are skipped.
APT = if ! command -v apt-get > /dev/null; then able=no; \
	elif [ "$$(id -u)" = 0 ]; then as=; \
	elif sudo -n true 2> /dev/null; then as="sudo -n"; \
	else able=no; fi; \
	if [ "$$able" != no ] && $$as apt-get update -qq \
		&& $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGE) > /dev/null; then exit 0; fi; \
	echo "$(PACKAGE) is not on this machine and cannot be installed from here: the tests that need it are skipped"

mosquitto: PACKAGE = mosquitto
mosquitto:
	@if PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto > /dev/null; then exit 0; fi; $(APT)

postgres: PACKAGE = postgresql
postgres:
	@if command -v initdb > /dev/null || ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1; then exit 0; fi; $(APT)
