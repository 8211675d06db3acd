CACHE ?= $(or $(CHAPERONE_CACHE),$(HOME)/.cache/chaperone)
UV := $(CACHE)/bin/uv
RUN := $(UV) run --frozen --all-packages --all-extras

.PHONY: help setup lint test fuzz demo bench clean
help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: ## Install what is missing: uv, PostgreSQL, OPA, and a cluster built from its pinned parts
	tools/setup.sh cluster

lint: setup ## Format, lint, types, import contracts
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy evidence/src sidecar/src operator/src collector/src cli/src tools/src bench
	$(RUN) lint-imports

test: setup ## Everything that is tested here: lint, then all tests
	$(MAKE) lint
	$(RUN) chaperone-images build
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder

fuzz: setup ## Search what the tests do not try each time: properties, then codecs, classifiers, masks: MINUTES=60
	CHAPERONE_SEARCH=1 $(RUN) pytest -m hypothesis
	CHAPERONE_SEARCH=1 CHAPERONE_FUZZ_S=$$(( $(or $(MINUTES),1) * 60 )) $(RUN) pytest -s tests/sidecar/test_fuzz.py

demo: ## Show it all in a cluster, from nothing to `verify: OK`; CHAPERONE_PROVIDER says where
	tools/setup.sh cluster
	$(RUN) chaperone-demo

bench: setup ## Print direct : pgbouncer : Chaperone, statements and rows
	$(RUN) python bench/postgresql.py
	$(RUN) python bench/postgresql_rows.py

clean: ## Remove what builds leave in the checkout (the cache stays)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
