# The first run of any target installs into .venv; later runs use neither pip nor the network.
#   PYTHON=python3.12   the Python to make .venv with
#   ARGS="..."          passed on by demo, test and bench
#   JOBS=3              processes that share the tests, which wait for servers and processes half of the time
.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

BIN := .venv/bin
INSTALLED := .venv/.installed
JOBS ?= 3

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Run jobs through a private Redis and a worker, on any machine
	@$(BIN)/millrace demo $(ARGS)

# Whatever the environment says, Python keeps what it has compiled: the tests start some hundred processes.
test: $(INSTALLED) ## Run the tests
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(INSTALLED) ## Check format, lint, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(INSTALLED) ## Format, and fix what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## Measure this machine
	@$(BIN)/millrace bench $(ARGS)

clean: ## Remove .venv, caches and build output
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt infra/install.sh
	@PYTHON='$(PYTHON)' infra/install.sh
	@touch $@
