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

.PHONY: demo test lint format clean

demo: .venv/.installed
	$(BIN)/softmask demo

test: .venv/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

lint: .venv/.installed
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .

format: .venv/.installed
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

# torch is named again in the second command, so that nothing replaces it.
# After a change of PYTHON, TORCH or PIP_ARGS, `make clean` first.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@if [ -n "$(CPU_INDEX)" ] && [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) $(PIP_ARGS) --no-deps --retries 0 --timeout 10 \
			--extra-index-url "$(CPU_INDEX)" "$(TORCH)"; \
	fi
	$(PIP) $(PIP_ARGS) "$(TORCH)" -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
