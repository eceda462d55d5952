# `make demo` and `make test` do all the set-up themselves, once: the virtual environment in
# .venv is made when missing and brought up to date when pyproject.toml changes.

PYTHON ?= python3

# The pin keeps the install small and the same everywhere: a plain `torch` takes the newest
# release, whose Linux build draws gigabytes of CUDA packages even onto a machine without a GPU.
# With an NVIDIA GPU: make test TORCH=torch
TORCH ?= torch==2.13.0

# Where there is no NVIDIA GPU, torch itself is first looked for in PyTorch's index of CPU builds
# (2.13.0+cpu); where that cannot be reached, pip falls back to what it knows. torch alone, as pip
# asks an extra index about every package. Empty: never.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# More arguments for pip.
PIP_ARGS ?=

# Arguments for pytest, for example PYTEST_ARGS="-m slow" or PYTEST_ARGS="-n 0 -k harness".
PYTEST_ARGS ?=

BIN := .venv/bin

.PHONY: demo test coverage lint types format docs pictures build clean

demo: .venv/.installed
	$(BIN)/softmask demo

# Byte code is kept whatever the environment says: each worker, and each process that a test
# starts, would compile all sources again.
test coverage: export PYTHONDONTWRITEBYTECODE =

test: .venv/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

# Subprocesses are measured too; the figure is in CONTRIBUTING.md.
coverage: .venv/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --cov --cov-report= $(PYTEST_ARGS)
	$(BIN)/coverage report --skip-covered --sort=cover

lint: .venv/.installed types docs
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .

types: .venv/.installed
	$(BIN)/mypy --no-error-summary

# The site, into site/; a broken link or a missing page is an error.
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# README's and the documents' pictures, from today's model; needs Chromium.
pictures: .venv/.installed
	$(BIN)/python benchmarks/pictures.py

# What would go to PyPI, into dist/.
build: .venv/.installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

format: .venv/.installed
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

# torch is named again in the second command, so that nothing replaces it.
# After a change of PYTHON, TORCH or PIP_ARGS, `make clean` first.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
.venv/.installed: pyproject.toml
	@echo "Installing into .venv, once: 3 GB; two minutes, more where the network is slow."
	@echo "1/3 a virtual environment of $(PYTHON)"
	@$(PYTHON) -m venv .venv
	@if [ -n "$(CPU_INDEX)" ] && [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		echo "2/3 PyTorch for CPUs"; \
		$(PIP) $(PIP_ARGS) --no-deps --retries 0 --timeout 10 \
			--extra-index-url "$(CPU_INDEX)" "$(TORCH)"; \
	fi
	@echo "3/3 softmask, what else it needs, tests and tools: most of the time"
	@$(PIP) $(PIP_ARGS) "$(TORCH)" -e ".[dev]"
	@touch $@
	@echo "Installed: .venv/bin/softmask"

clean:
	rm -rf .venv build dist site .coverage* .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
