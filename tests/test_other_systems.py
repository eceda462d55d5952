"""What can be said of macOS and Windows without such a machine: `foreign.py` takes their place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from processes import ENVIRONMENT, python
from tiny import tiny_model

from softmask.decoding.batch import Batch
from softmask.sampling import SamplingConfig

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


def test_noise_in_float64_is_refused_where_the_device_has_none() -> None:
    model = tiny_model()
    batch = Batch(model, 8)
    batch.device = torch.device("mps")
    ids_L = torch.full((8,), model.mask_id)
    with pytest.raises(ValueError, match="mps has no float64: leave out noise"):
        batch.add(0, ids_L, SamplingConfig(noise="float64", temperature=0.5))
