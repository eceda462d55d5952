"""The built wheel is complete: it works where nothing of the checkout can be seen."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

DATA_SUFFIXES = {".json", ".md", ".safetensors", ".txt", ".xz", ".yaml"}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command as a user far from the checkout and off the network would."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
        *("--outdir", out, ROOT),
        cwd=out,
    )
    (wheel,) = out.glob("softmask-*.whl")
    return wheel


def test_the_wheel_contains_the_bundled_model_the_recipes_and_the_demo_example(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    default = "softmask/default/"
    assert names >= {
        default + "model.safetensors",
        default + "config.json",
        default + "README.md",
        "softmask/puzzles/demo_example.json",
        "softmask/py.typed",
    }
    assert any(name.startswith(default + "tokenizer") for name in names)
    assert any(
        name.startswith("softmask/training/recipes/") and name.endswith(".yaml") for name in names
    )


def test_the_wheel_contains_every_data_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = ROOT / "src"
    data = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.suffix in DATA_SUFFIXES
    }
    assert data
    assert data <= names


@pytest.mark.slow
def test_the_installed_wheel_generates_text_from_its_bundled_model(
    wheel: Path, tmp_path: Path
) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python),
        *("install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=tmp_path,
    )
    # torch and its like come from the environment of the tests: a path line makes them
    # importable, but an editable softmask there stays out of sight, since path files are
    # read only in an environment's own site-packages, and the wheel comes first anyway.
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    ).strip()
    heavy = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    Path(site, "heavy_dependencies.pth").write_text("\n".join(heavy) + "\n", encoding="utf-8")

    found = run(python, "-c", "import softmask; print(softmask.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(tmp_path)

    text = run(
        scripts / "softmask", "generate", "--max-new-tokens", "8", "One day, Tom", cwd=tmp_path
    )
    assert text.strip()
