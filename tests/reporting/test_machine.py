"""What the machine and its containers leave to a process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from softmask.reporting import measure
from softmask.reporting.machine import memory

MACHINE = 8 * 2**30
NEW = {"memory.max": "4294967296", "memory.current": "3221225472"}
STAT = "anon 5\ninactive_file 1073741824\n"


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
        # What files take gives way.
        ("0::/\n", {**NEW, "memory.stat": STAT}, 2 * 2**30),
        ("0::/\n", {**NEW, "memory.stat": "anon 5\n"}, 2**30),
        # The group above leaves less.
        (
            "0::/a/b\n",
            {f"a/{name}": text for name, text in {**NEW, "memory.stat": STAT}.items()}
            | {"a/b/memory.max": "8589934592", "a/b/memory.current": "0", "a/b/memory.stat": ""},
            2 * 2**30,
        ),
        (
            "4:memory:/box\n3:cpu:/other\n",
            {
                "memory/box/memory.limit_in_bytes": "2147483648",
                "memory/box/memory.usage_in_bytes": "1610612736",
                "memory/box/memory.stat": "inactive_file 7\ntotal_inactive_file 536870912\n",
            },
            2**30,
        ),
        # A limit that version 1 has without one: more than the machine.
        (
            "4:memory:/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "1024",
                "memory/memory.stat": "",
            },
            None,
        ),
        # Fuller than its limit, which was lowered.
        ("0::/\n", {"memory.max": "10", "memory.current": "20", "memory.stat": ""}, 0),
    ],
)
def test_the_memory_that_is_left_is_the_least_of_machine_and_groups(
    tmp_path, monkeypatch, membership, files, left
) -> None:
    here = SimpleNamespace(total=99 * 2**30, available=MACHINE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: here)
    for name, content in files.items():
        path: Path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = memory(tmp_path / "groups", membership)
    wanted = (MACHINE, "the machine") if left is None else (left, "the container")
    assert (found.available, found.limited_by) == wanted


def test_this_machine_has_memory_left() -> None:
    assert 2**20 < memory().available < 2**50


def test_on_a_gpu_what_torch_keeps_of_tensors_that_are_gone_is_left_too(monkeypatch) -> None:
    says = {"mem_get_info": (70, 100), "memory_reserved": 25, "memory_allocated": 20}
    for name, value in says.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert measure.memory_left(torch.device("cuda:1")) == (75, "cuda:1")
