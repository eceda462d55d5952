"""How the threads of a command wait, and how many there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from softmask.cli import threads


@pytest.mark.parametrize(
    ("membership", "files", "allowed"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/../host\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/box\n",
            {
                "cpu,cpuacct/box/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_a_container_s_share_of_processors_is_read(tmp_path, membership, files, allowed) -> None:
    for name, content in files.items():
        path: Path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    assert threads.processors_of_container(tmp_path, membership) == allowed


def test_what_the_user_says_of_threads_is_left_alone(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "processors_of_container", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    given = {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "1000"}
    threads.prepare(given)
    assert given == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "1000"}
    unset: dict[str, str] = {}
    threads.prepare(unset)
    assert unset == {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def test_a_command_decides_before_torch_is_there_and_an_import_of_the_package_does_not() -> None:
    program = (
        "import os, sys, softmask\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ\n"
        "from softmask.cli.main import main\n"
        "main([])\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.endswith("\npassive\n"), done.stderr
