"""In place of a Mac or a Windows machine: `python foreign.py win32 FOLDER MODEL`.

What the other system lacks is taken away before anything of this package is imported: modules and
functions of `os` and `signal`. The libraries are still this system's, so they are imported first,
and only this package sees the other platform.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import Any

# Of the standard library; what Windows lacks, and what a Mac lacks.
MODULES: dict[str, tuple[str, ...]] = {
    "win32": ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"),
    "darwin": ("spwd", "ossaudiodev"),
}
FUNCTIONS = {
    "win32": {
        os: (
            *("fork", "geteuid", "getuid", "getgid", "getegid", "getpgid", "killpg", "setsid"),
            *("sched_getaffinity", "statvfs", "sysconf", "mkfifo", "posix_spawn", "uname", "wait4"),
            *("pread", "getloadavg"),
        ),
        signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGXCPU", "SIGSYS", "setitimer"),
    },
    "darwin": {os: ("sched_getaffinity", "memfd_create", "pidfd_open"), signal: ()},
}
# Scripts of processes beside a program that a model wrote: on Windows none of them is started.
# And Ray, whose own import starts what the other system has not.
SKIPPED = ("sandbox_", "__main__", "ray_serve")
LIBRARIES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "lm_eval.evaluator", "psutil"),
    *("uvicorn", "uvicorn.protocols.http.h11_impl", "fastapi", "prompt_toolkit", "asyncio"),
    *("multiprocessing", "subprocess", "tempfile", "filelock", "matplotlib.pyplot"),
    *("rich.console", "rich.live", "rich.progress", "rich.table"),
)


class Missing:
    """An importer that has none of these modules."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, *_: Any) -> None:
        """Raises ModuleNotFoundError for a module that is missing there."""
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} on {sys.platform}", name=name)


def become(platform: str) -> None:
    """From here on this process looks like one on that platform."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in MODULES[platform]:
        sys.modules.pop(name, None)
    # A process that was forked from one with this package imports it anew.
    for name in [name for name in sys.modules if name.partition(".")[0] == "softmask"]:
        del sys.modules[name]
    model_registry = importlib.import_module("lm_eval.api.registry").model_registry
    model_registry._objs.pop("softmask", None)  # where the forgotten package is known by its name
    sys.meta_path.insert(0, Missing(MODULES[platform]))  # type: ignore[arg-type]
    for module, names in FUNCTIONS[platform].items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = platform


def import_all() -> list[str]:
    """Every module of the package."""
    import softmask

    found = [module.name for module in pkgutil.walk_packages(softmask.__path__, "softmask.")]
    found = [name for name in found if not any(part in name for part in SKIPPED)]
    for name in found:
        importlib.import_module(name)
    return found


def main() -> None:
    """Does what a user of that machine does."""
    platform, folder, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    become(platform)
    print(f"modules: {len(import_all())}")
    from softmask.cli.chat_prompt import no_echo
    from softmask.cli.main import main as softmask
    from softmask.evaluation.sandbox import available
    from softmask.files import locked, sync_tree, write_atomically
    from softmask.serving.connections import room_for_connections

    words = ["generate", "One day", "--model", model, "--max-new-tokens", "4", "--device", "cpu"]
    for command in (["models"], words):
        code = softmask(command)
        assert code == 0, (command, code)
    with locked(folder / "run", "trains"):
        write_atomically(folder / "run" / "a.json", "ä\n")
        sync_tree(folder / "run")
        try:
            with locked(folder / "run", "trains"):
                raise AssertionError("locked twice")
        except ValueError as error:
            print(error)
    with no_echo():
        print(f"connections: {room_for_connections(8)}")
    try:
        print(f"sandbox: {available()}")
    except OSError as error:
        print(f"sandbox: {error}")


if __name__ == "__main__":
    main()
