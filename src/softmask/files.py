"""Files that survive a kill and a full disk, and folders that one process works in at a time.

A result that is marked as whole must be on the disk before its mark is. So everything here is
synchronised (fsync) before it takes its final name, and a line is appended whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
# Of the file that a file is written to before it takes its name.
PARTIAL = ".partial"


def expand_home(path: str | Path) -> Path:
    """A path in which `~` and `~user` are home folders.

    Raises:
        ValueError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such user whose folder this would be") from error


def read_text(path: Path) -> str:
    """A file's text, without the byte order mark of some editors.

    Raises:
        ValueError: there is no such file, or it is not UTF-8.
    """
    if not path.exists() or path.is_dir():  # a pipe is read
        raise ValueError(f"there is no file {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def not_utf8(where: str | Path, error: UnicodeDecodeError) -> ValueError:
    """The error of what cannot be read as a text."""
    return ValueError(f"{where} is not UTF-8 (byte {error.start}): convert it first")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file: the new content is there (fsync), or the old one as it was.

    Args:
        path: its folder has to exist. A link's target is written; a device or a pipe, which cannot
            be replaced, is written to.
        data: text is written as UTF-8 with line feeds as they are.

    Raises:
        OSError: with the name of `path`; nothing is left beside it.
    """
    content = data.encode() if isinstance(data, str) else data
    with _named(path):
        # Of a pipe that `resolve` names there is no file.
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                file.write(content)
            return
        path = path.resolve()
        with replaced_atomically(path) as partial:
            partial.write_bytes(content)


@contextlib.contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """A file beside `path`, to be written within, that takes its place (fsync) or leaves no trace.

    Who may read and write a file that was there stays as it was.

    Raises:
        OSError: it cannot be synchronised or renamed; `path` is as it was.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        if path.is_file():
            shutil.copymode(path, partial)
        _sync(partial)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Appends a line (without its line feed) to a file: all of it (fsync), or none.

    Raises:
        OSError: with the name of `path`; what was written of the line is cut off again.
    """
    # Unbuffered: closing a buffered file would try once more to write what had no room.
    with _named(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        rest = memoryview(f"{line}\n".encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            # Where the disk is full, shortening a file still works.
            os.truncate(path, end)
            raise


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines.

    A last line without its line feed was cut off by a kill, and is left out.

    Raises:
        ValueError: another line is not valid JSON; with file and number of the line.
    """
    values = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"{path}, line {number}, is damaged ({reason}): mend or remove that line"
            ) from error
    return values


def drop_cut_off_line(path: Path) -> None:
    """Removes what a kill left of a last line, so that the next one begins on a line of its own."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk, where the system can synchronise folders."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    # Windows synchronises only what is open for writing.
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Has all files below a folder, and their names, on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(Path(place, name))
        sync_folder(Path(place))


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Has `folder` for this process alone; a process that dies leaves no lock behind.

    Args:
        folder: is made where it is missing. The file `.lock` stays in it.
        doing: what happens there, as in "trains".

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process {doing} in {folder}: wait for it, or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of a write carry no file name of their own (a full disk): say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename == str(path):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
