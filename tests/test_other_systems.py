"""What can be said of macOS and Windows without such a machine: `foreign.py` takes their place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from processes import ENVIRONMENT, python

HERE = Path(__file__).parent
LACK = {
    "win32": "sandbox: Programs that a model wrote run confined on Linux and macOS alone",
    "darwin": "sandbox: ",
}


@pytest.mark.parametrize("platform", LACK)
def test_every_module_is_imported_and_a_text_written_without_what_the_system_lacks(
    platform: str, tmp_path: Path
) -> None:
    start = f"import sys; sys.path.insert(0, {str(HERE)!r}); import foreign; foreign.main()"
    command = [*python(ENVIRONMENT), "-c", start, platform, str(tmp_path), "default"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "another process trains in" in done.stdout
    assert "connections: 8" in done.stdout
    assert LACK[platform] in done.stdout
    assert (tmp_path / "run" / "a.json").read_text(encoding="utf-8") == "ä\n"
