"""Workflows, hooks and documents call targets that the Makefile has, on the versions we name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CALLERS = [*WORKFLOWS, ROOT / ".pre-commit-config.yaml", ROOT / ".ci" / "run"]
CALLERS += [ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", text, flags=re.MULTILINE))


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: path.name)
def test_every_target_that_is_called_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    called = set(re.findall(r"\bmake (?:--[a-z-]+ )*([a-z]+)\b", text))
    assert called
    assert called <= targets()


def test_every_phony_target_exists() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (named,) = re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert set(named.split()) == targets()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more_and_every_job_has_steps(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["steps"] for job in workflow["jobs"].values())


def test_the_tested_versions_of_python_are_those_that_are_promised() -> None:
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    tested = matrix["jobs"]["tests"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix + "3.")]
    assert tested == named
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert tested == [f"3.{minor}" for minor in range(int(low), int(high))]


def test_the_changelog_knows_the_version() -> None:
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
