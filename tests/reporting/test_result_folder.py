"""A result's folder: what it says of its origin, and that it is whole or none."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from softmask.reporting import result_folder
from softmask.reporting.result_folder import RESULT, claim, provenance, write


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_change_in_any_room_is_told(tmp_path, monkeypatch) -> None:
    package = tmp_path / "src" / "softmask"
    for name in ("__init__.py", "decoding/sampler.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    somebody = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*somebody, "commit", "-qm", "all")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(result_folder, "PACKAGE", package)
    assert provenance()["changed_since"] == ""
    (package / "decoding" / "sampler.py").write_text("changed\n")
    assert provenance()["changed_since"].endswith("src/softmask/decoding/sampler.py")
    monkeypatch.setattr(result_folder, "PACKAGE", tmp_path.parent)
    assert provenance()["commit"] is None


def test_a_full_disk_leaves_no_half_result(tmp_path, monkeypatch) -> None:
    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:9])
        raise OSError(28, "No space left on device", str(path))

    folder = tmp_path / "r"
    claim(folder)
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write(folder, ["softmask"], {"raw": [1, 2]}, ["a table"])
    assert not list(folder.iterdir())
    claim(folder)
    write(folder, ["softmask", "x y"], {"raw": [1, 2]}, ["a table"])
    assert json.loads((folder / RESULT).read_text())["command"] == "softmask 'x y'"
    with pytest.raises(ValueError, match="holds a result already"):
        claim(folder)
