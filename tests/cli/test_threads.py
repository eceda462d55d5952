"""How the threads of a command wait, and how many there are."""

from __future__ import annotations

import subprocess
import sys
import time
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


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes what the system says of its load."""

    def say(text: str) -> Path:
        (tmp_path / "loadavg").write_text(text, encoding="utf-8")
        return tmp_path / "loadavg"

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "LOAD", say("0.00 0.00 0.00 1/90 4509\n"))
    return say


def test_what_the_user_says_of_threads_is_left_alone(monkeypatch, load) -> None:
    monkeypatch.setattr(threads, "processors_of_container", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    given = {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "1000"}
    threads.prepare(environment=given)
    assert given == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "1000"}
    unset: dict[str, str] = {}
    threads.prepare(environment=unset)
    assert unset == {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": threads.LOOKS}


@pytest.mark.parametrize(
    ("said", "lasting", "waiting"),
    [
        ("0.90 1.56 1.84 1/90 4509\n", False, {"GOMP_SPINCOUNT": "10000"}),
        ("0.00 0.00 0.00 2/90 4509\n", False, {"OMP_WAIT_POLICY": "passive"}),
        ("0.00 0.00 0.00 1/90 4509\n", True, {"OMP_WAIT_POLICY": "passive"}),
        ("nonsense\n", False, {"OMP_WAIT_POLICY": "passive"}),
    ],
)
def test_threads_sleep_at_once_where_others_compute_and_in_a_server(
    load, said, lasting, waiting
) -> None:
    load(said)
    environment: dict[str, str] = {"OMP_NUM_THREADS": "2"}
    threads.prepare(lasting, environment)
    assert environment == {"OMP_NUM_THREADS": "2"} | waiting


def test_a_system_that_does_not_say_what_runs_counts_as_busy(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(threads, "LOAD", tmp_path / "nothing")
    assert not threads.is_quiet()


def test_a_process_that_computes_is_seen() -> None:
    if not threads.LOAD.is_file():
        pytest.skip("this system does not say what runs")
    burning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        assert not threads.is_quiet()
    finally:
        burning.kill()
        burning.wait()


def test_a_command_decides_before_torch_is_there_and_an_import_of_the_package_does_not() -> None:
    program = (
        "import os, sys, softmask\n"
        "ways = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'\n"
        "assert not any(way in os.environ for way in ways)\n"
        "from softmask.cli.main import main\n"
        "main([])\n"
        "assert 'torch' not in sys.modules\n"
        "print(sum(way in os.environ for way in ways))"
    )
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.endswith("\n1\n"), done.stderr
