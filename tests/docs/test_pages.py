"""The documents' form: lines that fit a screen, and pages that begin with a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
MEASUREMENTS = ROOT / "benchmarks"
PAGES.append(MEASUREMENTS / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_have_at_most_a_hundred_characters(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    # An address cannot be broken.
    assert not [line for line in lines if len(line) > 100 and "://" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_begins_with_its_title_and_a_sentence(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    title, _, rest = text.partition("\n")
    assert title.startswith("# ")
    first = rest.strip().split("\n\n")[0]
    assert re.match(r"[A-Z`*\[]", first), first
    assert len(re.findall(r"\d+", first)) <= 6, f"{page} begins with numbers: {first}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(\s*([^)\s]+)\)", text) + re.findall(r"^\[\w+\]: (\S+)", text, re.M)
    here = [target.partition("#")[0] for target in targets if "://" not in target]
    # These are written when the site is built.
    generated = {"command-line.md", "settings.md", "http.md", "python.md"}
    lost = [t for t in here if t and not (page.parent / t).exists()]
    assert not [target for target in lost if Path(target).name not in generated]


def test_the_list_of_measurements_names_every_script_and_every_result() -> None:
    text = (MEASUREMENTS / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([^`]+)`", text)
    words = {word for name in named for word in name.split()}
    scripts = [file.name for file in MEASUREMENTS.glob("*.py")]
    scripts += [f"gpu/{file.name}" for file in MEASUREMENTS.glob("gpu/*.py")]
    scripts += [file.name for file in MEASUREMENTS.glob("evidence/*.py")]
    scripts += [f"{file.parent.name}/run.py" for file in MEASUREMENTS.glob("**/run.py")]
    results = {folder.name.partition("_")[2] for folder in MEASUREMENTS.glob("results/*")}
    assert not {*scripts, *results} - words
    known = {*scripts, *results, "results/"}
    gone = {word for word in words if re.fullmatch(r"[a-z_/]+\.py", word)} - known
    assert not gone
