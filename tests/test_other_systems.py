"""What can be said of macOS and Windows without such a machine: `foreign.py` takes their place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import ENVIRONMENT, python
from tiny import tiny_model, write_dream_folder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import softmask
from softmask.decoding.batch import Batch
from softmask.decoding.rule_state import RuleState
from softmask.rules import Rule
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


class WithoutFloat64(TorchDispatchMode):
    """Makes "meta" a device that has no float64, as mps: such a tensor there is an error."""

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor) and one.is_meta and one.dtype == torch.float64:
                raise TypeError("this device has no float64")
        return found


def test_what_a_rule_writes_by_numpy_is_kept_where_the_device_has_no_float64() -> None:
    rule = Rule("commit", "numpys", lambda rows: None, "", dict, state={"seen": 0.0})
    device = torch.device("meta")
    with WithoutFloat64():
        state = RuleState(4, device)
        rows_N = torch.arange(2, device=device)
        assert state.at(rule, rows_N)["seen"].dtype == torch.float32
        state.put(rule, rows_N, {"seen": np.array([0.5, 0.25])})


def test_a_checkpoint_in_float64_is_refused_where_the_device_has_none(
    monkeypatch, tmp_path: Path
) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    monkeypatch.setattr("softmask.hub.load.choose_device", lambda _: torch.device("mps"))
    with pytest.raises(ValueError, match="mps has no float64: give dtype float32"):
        softmask.load(folder, device="mps", dtype=torch.float64)
