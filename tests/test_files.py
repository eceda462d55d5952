"""Files that survive a kill and a full disk, and folders that one process works in at a time."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from processes import FSYNC

from softmask.files import append_line, locked, read_json_lines, sync_tree, write_atomically


@pytest.fixture
def small_disk():
    """No file of this process may grow beyond 4096 bytes: as on a full disk, a write fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_the_old_one_where_the_new_one_has_no_room(tmp_path, small_disk) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with pytest.raises(OSError, match=str(path)):
        write_atomically(path, "x" * 5000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(
    tmp_path, monkeypatch
) -> None:
    seen: list[tuple[set[str], bool]] = []

    def fsync(handle: int) -> None:
        FSYNC(handle)
        there = {path.name for path in tmp_path.iterdir()}
        seen.append((there, stat.S_ISDIR(os.fstat(handle).st_mode)))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a", "text")
    assert seen == [({"a.partial"}, False), ({"a"}, True)]
    append_line(tmp_path / "a", "line")
    assert seen[2:] == [({"a"}, False)]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("text")
    sync_tree(tmp_path)
    assert [is_folder for _, is_folder in seen[3:]] == [False, True, False, True]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "result.json")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "result.json").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_atomically(pipe, "through")
    assert reader.communicate()[0] == b"through"
    assert pipe.is_fifo()
    # As /dev/stdout is one, or what a shell makes of >(command).
    out, into = os.pipe()
    with open(out, "rb") as reading, open(into, "wb") as writing:
        write_atomically(Path(f"/dev/fd/{writing.fileno()}"), "no name")
        writing.close()
        assert reading.read() == b"no name"
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write_atomically(tmp_path, "x")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_that_is_written_anew_is_as_private_as_it_was(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o600)
    write_atomically(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_line_that_has_no_room_leaves_nothing_behind(tmp_path, small_disk) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, json.dumps({"step": 1}))
    with pytest.raises(OSError, match=str(path)):
        append_line(path, json.dumps({"step": 2, "text": "x" * 5000}))
    append_line(path, json.dumps({"step": 3}))
    assert read_json_lines(path) == [{"step": 1}, {"step": 3}]


def test_a_last_line_that_was_cut_is_left_out_and_another_one_is_named(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=f"{path}, line 2, is damaged"):
        read_json_lines(path)
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="line 1, is damaged"):
        read_json_lines(path)


HOLD = """
import sys
from pathlib import Path
from softmask.files import locked
with locked(Path(sys.argv[1]), "trains"):
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_for_one_process_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has it\n"
        with (
            pytest.raises(ValueError, match=r"another process evaluates in .*: wait for it"),
            locked(tmp_path, "evaluates"),
        ):
            pass
        holder.kill()
    with locked(tmp_path, "evaluates"):
        sync_tree(tmp_path)
