# Two commands are enough: `make chat` to talk to her, `make test` to see that all of it works.
# Each makes or mends .venv first (bootstrap.py); when that is up to date, it costs a fraction of a second.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=
# What no environment of ours installs beside the rest: a GPU's attention, and the two of `make gptq`.
APART = flash-attn==2.8.3 gptqmodel==7.6.0 optimum==2.3.0
EXTRAS = chat,dev,docs,pet,screen,train,transformers,voice
BIN = .venv/bin

# Two OpenMP threads on two busy cores were ten times slower than one.
test proof: export OMP_NUM_THREADS ?= 1
# So each core runs its own tests; a file stays on one.
test proof: export PYTEST_ADDOPTS ?= -n auto --dist loadfile --no-loadscope-reorder
# mkdocs-material advertises its successor at every build.
check docs: export NO_MKDOCS_2_WARNING = 1

.PHONY: help chat test proof check bench gptq docs constraints
.DEFAULT_GOAL := help

help: ## show this
	@echo '紫舒老师, Zishu-sensei. Start with: make chat'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Options for her go into ARGS:     make chat ARGS="--user 小明"'
	@echo 'Options for pytest, PYTEST_ARGS:  make test PYTEST_ARGS="-x tests/domain"'

chat: ## talk to her in this terminal
	@$(PYTHON) bootstrap.py chat && exec $(BIN)/zishu cli $(ARGS)

test: ## run all the tests that this machine can run, at most 20 minutes
	@$(PYTHON) bootstrap.py test && exec $(BIN)/python -m pytest $(PYTEST_ARGS)

proof: ## run them with the full counts, for hours
	@$(PYTHON) bootstrap.py test && exec $(BIN)/python -m tests.proof $(PYTEST_ARGS)

check: ## format, lint, types, layers, documentation
	@$(PYTHON) bootstrap.py test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/mkdocs build --strict --quiet

bench: ## measure speed and quality, and print the table
	@$(PYTHON) bootstrap.py test && exec $(BIN)/python -m tests.benchmarks $(ARGS)

# An environment of its own, because gptqmodel wants an older numpy; the CPU build of torch, because the tests need no more.
gptq: export OMP_NUM_THREADS ?= 1
gptq: ## test GPTQ and AWQ, in .venv-gptq
	@test -x .venv-gptq/bin/python || python3.11 -m venv .venv-gptq
	@.venv-gptq/bin/pip install --quiet torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
	@.venv-gptq/bin/pip install --quiet -e '.[gptq]' gguf hypothesis pytest pytest-asyncio xllamacpp
	@exec .venv-gptq/bin/python -m pytest -W default tests/adapters/test_quantise.py -k 'four_bits' $(PYTEST_ARGS)

docs: ## build the documentation into site/
	@$(PYTHON) bootstrap.py docs && exec $(BIN)/mkdocs build --strict

constraints: ## resolve all packages anew and write constraints.txt (needs Python 3.11 and torch's CPU build)
	@rm -rf build/resolve && python3.11 -m venv build/resolve
	@build/resolve/bin/pip install --quiet 'pip>=25.1' && build/resolve/bin/pip install --quiet -e '.[$(EXTRAS)]'
	@build/resolve/bin/pip check
	@{ grep '^#' constraints.txt; { build/resolve/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; \
		printf '%s\n' $(APART); } | sort -f; } > build/constraints.txt
	@! grep -E '^(nvidia|cuda|triton)' build/constraints.txt && mv build/constraints.txt constraints.txt && rm -rf build/resolve
