"""Fixtures that several files share: a tiny soft-masked chat model, and evaluation data."""

from __future__ import annotations

import gc
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # One processor for each worker, and for each process that its tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from evaluation_files import SOFT, write_evaluation_files
from hypothesis import settings
from processes import start_fork_server
from tiny import write_dream_folder, write_json

from softmask import rules
from softmask.config import soft_mask_to_published

# What is killed here is a process, never the machine: nothing has to reach the disk, for which each
# file would wait 2 ms.
os.fsync = lambda _: None

# How long an example takes says something of the machine, not of the property. The same examples
# every time, so that a change is not blamed for what another draw had found; others, and more of
# properties without a number of their own: --hypothesis-profile many.
settings.register_profile("softmask", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("many", deadline=None, max_examples=400)
settings.load_profile("softmask")

# The first eight lines of a file are its shots.
LINES = 8 + 5


@pytest.fixture(autouse=True)
def own_rules(monkeypatch):
    """Rules of decoding that a test registers are gone after it."""
    for kind, known in rules._rules.items():
        monkeypatch.setitem(rules._rules, kind, dict(known))


def pytest_configure(config: pytest.Config) -> None:
    # Coverage is measured from the start of an interpreter.
    is_measured = bool(config.getoption("cov_source", None))
    if "PYTEST_XDIST_WORKER" not in os.environ and not is_measured:
        start_fork_server()


# Nothing that is imported or collected is ever freed: 800,000 objects, through which each full
# collection of garbage would look in 0.4 s. A training run ends with one.


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    path = write_dream_folder(
        tmp_path_factory.mktemp("model") / "m", chat=True, max_position_embeddings=1024
    )
    write_json(path / "transparency_config.json", soft_mask_to_published(SOFT))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Evaluation data as files."""
    return write_evaluation_files(tmp_path_factory.mktemp("data"), puzzle_lines=LINES)
