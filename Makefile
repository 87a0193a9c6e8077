# Everything a newcomer or CI runs. Needs only make and a Python from 3.11 to 3.13.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-npu check format snapshots bench clean

BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.ready
export PATH := $(BIN):$(PATH)

# The first Python on PATH that the project supports.
FIND_PYTHON = for name in python3 python3.11 python3.12 python3.13 python; do \
	command -v $$name >/dev/null 2>&1 && \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && \
	{ echo $$name; break; }; done

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv as uv.lock says (fetches uv into .tools/ if it is missing)

$(STAMP): uv.lock pyproject.toml $(wildcard packages/*/pyproject.toml) .ci/bootstrap.py
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
		echo "Error: no Python from 3.11 to 3.13 on PATH (looked for python3, python3.11, python3.12, python3.13, python; python3 is: $$(python3 --version 2>&1))." >&2; \
		echo "Install one, for example: apt-get install python3" >&2; exit 1; \
	fi; \
	$$python .ci/bootstrap.py

quickstart: $(STAMP) ## text to tokens, training, evaluation and streamed text, in about 6 minutes
	@examples/quickstart.sh $(WORK)

test: check ## check, then every test that takes no special device
	$(BIN)/pytest -n 2

test-npu: $(STAMP) ## all layouts and operators on a fake NPU, under the real torch_npu (needs gcc)
	$(BIN)/pytest tests/npu -m "slow or not slow"

check: $(STAMP) ## format, lint, types, import contracts, command-line surface
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest tests/system/test_cli_help.py

format: $(STAMP) ## rewrite the sources as ruff format wants them, mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

snapshots: $(STAMP) ## rewrite tests/golden/cli from the commands as they are
	$(BIN)/python tests/support/cli_surface.py

bench: $(STAMP) ## run every benchmark; each prints ours, peer, ratio
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove what make made: .venv, .tools, caches, work
	rm -rf .venv .tools work .pytest_cache .ruff_cache .import_linter_cache
	find packages tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
