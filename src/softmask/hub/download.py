"""Repositories of the Hub on this machine: fetched into its cache, without torch.

`pull` says beforehand how much there is to fetch, and refuses what softmask does not read before
the weights come; `fetch` is what `find` calls when a name is no folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects, tqdm
from rich.console import Console
from rich.filesize import decimal

from ..config import BUNDLED
from ..families.registry import family_of, named
from ..files import expand_home
from ..reporting.progress import Step, progress
from .folder import ADAPTER_FILE, CONFIG_FILE, HUB_FILES, HUB_ID, NOT_HUB_FILES, read_mapping

# What a disk refuses, and not the Hub.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)

# The library's name of its bar of bytes on the disk.
BYTES = "huggingface_hub.snapshot_download"


def fetch(
    name: str, revision: str | None = None, *, local_only: bool = False, size: int = 0
) -> Path:
    """The folder in the cache with what softmask reads of a repository.

    Args:
        local_only: without a request.
        size: bytes that will come, where it is known; else the total grows file by file.

    Raises:
        ValueError: there is no such repository or revision, it may not be read, or the Hub cannot
            be reached and not all of it is in the cache.
    """
    absent = (
        f"{name} is not on this machine, and a dry run sends no request: fetch it first "
        f"(`softmask pull {name}`), or give a local folder"
        if local_only
        else f"{name} is not on this machine and the Hub cannot be reached: check the network, or "
        "give a local folder"
    )
    with (
        _explained(name, revision, absent),
        _Bytes(f"fetching {name.partition('/')[2]}", size) as bar,
    ):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=HUB_FILES,
                ignore_patterns=NOT_HUB_FILES,
                local_files_only=local_only,
                tqdm_class=bar.kind(),
            )
        )


def pull(
    name: str, revision: str | None, say: Callable[[str], None], family: str | None = None
) -> Path:
    """Brings a repository into the cache, or what is missing or cut off of it.

    Args:
        say: gets what is fetched and how large it is, before it comes.
        family: what the model is, where its config.json does not say.

    Raises:
        ValueError: as for `fetch`; or the repository holds nothing that softmask reads, or the
            disk has too little room.
    """
    if name == BUNDLED:
        raise ValueError("the bundled model is part of this package: there is nothing to fetch")
    if expand_home(name).exists():
        raise ValueError(f"{name} is on this machine: there is nothing to fetch")
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"{name} is no Hub id (owner/name)")
    absent = f"the Hub cannot be reached, which has {name}: check the network and HF_ENDPOINT"
    with progress(f"asking the Hub for {name}"), _explained(name, revision, absent):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = sorted(
            filter_repo_objects(files, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES)
        )
        assert info.sha is not None
        _check_kind(name, wanted, info.sha, family)
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / info.sha
    missing = [file for file in wanted if not _is_here(snapshot / file, files[file])]
    size = sum(files[file] for file in missing)
    if missing:
        say(f"fetching {name}: {decimal(size)} to {cache}")
        _check_room(cache, size)
    else:
        say(f"{name} is here already, as it is on the Hub")
    return fetch(name, revision, size=size)


def _check_kind(name: str, files: Sequence[str], commit: str, family: str | None) -> None:
    """Raises ValueError where these files are neither a known model's nor an adapter's."""
    config = next((file for file in (CONFIG_FILE, ADAPTER_FILE) if file in files), None)
    if config is None:
        raise ValueError(f"{name} has neither {CONFIG_FILE} nor {ADAPTER_FILE}: it is no model")
    if not any(file.endswith(".safetensors") for file in files):
        raise ValueError(f"{name} has no weights in safetensors, which is what softmask reads")
    path = Path(hf_hub_download(name, config, revision=commit, tqdm_class=_Hidden))
    if config == CONFIG_FILE:
        family_of(read_mapping(path), name, named(name, family))


class _Hidden(tqdm):
    """No bar, for files of a few lines."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.name = settings.get("name")
        super().__init__(*args, **settings | {"disable": True})


class _Bytes:
    """In place of the library's three bars, which write over other lines: one of ours.

    It comes with the first bytes, so not for what is here. Inside the block Ctrl-C ends a download
    with the next bytes; the library alone goes on until the files that have begun are whole.
    """

    def __init__(self, what: str, size: int) -> None:
        self._what, self._size = what, size
        self._begin, self._stop = threading.Lock(), threading.Event()
        self._shown = contextlib.ExitStack()
        self._step: Step | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, self._interrupt)
            self._shown.callback(signal.signal, signal.SIGINT, before)
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def kind(self) -> type[tqdm]:
        """The class of the library's bars, of which one counts the bytes."""
        add = self._add

        class Bar(_Hidden):
            def update(self, n: float | None = 1) -> bool | None:
                if self.name == BYTES and n:
                    add(n, self.total or 0)
                return None

        return Bar

    def _add(self, count: float, total: float) -> None:
        """So many bytes have come, of so many that are known to come; called by threads."""
        if self._stop.is_set():
            raise KeyboardInterrupt
        with self._begin:
            if self._step is None:
                self._step = self._shown.enter_context(progress(self._what, 0, "MB"))
        self._step.update(total=max(total, self._size) / 1e6)
        self._step.advance(count / 1e6)

    def _interrupt(self, *_: object) -> None:
        if self._stop.is_set():
            console = Console(stderr=True)
            console.show_cursor()
            console.print()
            os._exit(130)
        self._stop.set()
        if self._step is not None:
            self._step.update("stopping (again: at once)")
        raise KeyboardInterrupt


def _is_here(path: Path, size: int) -> bool:
    """Whether a file of the cache is whole by its size; removes one that is not.

    The Hub's library takes every file that is there for whole.
    """
    if not path.is_file():
        return False
    if path.stat().st_size == size:
        return True
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    return False


def _check_room(cache: Path, size: int) -> None:
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if size > free:
        raise ValueError(
            f"{decimal(size)} do not fit into {cache}, where {decimal(free)} are free: "
            "make room, or set HF_HOME to a folder on another disk"
        )


@contextlib.contextmanager
def _explained(name: str, revision: str | None, absent: str) -> Iterator[None]:
    """The refusals of the Hub and of its cache as one sentence each.

    Args:
        absent: the sentence where the Hub does not answer.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ValueError(f"HF_HUB_OFFLINE is set: unset it to fetch {name}") from error
    except GatedRepoError as error:
        raise ValueError(
            f"{name} is gated: accept its terms on its Hub page, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision!r}: check the branch or tag") from error
    except RepositoryNotFoundError as error:
        # A private one is answered as one that is not there.
        raise ValueError(
            f"the Hub has no repository {name} that you may read: check the spelling, or run "
            "`hf auth login` if it is private"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise
        raise ValueError(absent) from error
