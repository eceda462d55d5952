"""Every command that README, guides and the reference of evaluations show is run, or else parsed.

A page's blocks run in their order, in one folder. A comment in front of a block says how it is
tested (`<!-- test: ... -->`):

    (none)        run as it stands
    parse         needs a GPU, the Hub or minutes: only its options or its syntax are checked
    with WORDS    run with these words behind each softmask command
    slow [WORDS]  likewise, among the slow tests; else its options are checked
    alone         a program that runs in a process without this package

A block with a title is a file of that name. `Dream-org/Dream-v0-Instruct-7B` is a tiny model there.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import ROOT
from processes import ENVIRONMENT, python
from tiny import write_dream_folder

from softmask.cli.main import find_command, main
from softmask.evaluation.config import model_args
from softmask.evaluation.suites import SUITES
from softmask.training.recipe import read_recipe

PAGES = [ROOT / "README.md", ROOT / "docs" / "get-started.md"]
PAGES += sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES += sorted((ROOT / "docs" / "reference").glob("evaluation*.md"))
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^\n]*?) -->\n)?"
    r"```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    mark: str = ""
    title: str | None = None

    @property
    def how(self) -> str:
        return self.mark.partition(" ")[0] or "run"

    @property
    def more(self) -> list[str]:
        """Words behind each command."""
        return shlex.split(self.mark.partition(" ")[2])

    @property
    def lines(self) -> list[str]:
        """Commands, those over several lines joined."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in joined if line.strip() and not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["language"], m["text"], m["mark"] or "", m["title"]) for m in found]


def check(line: str) -> None:
    """A command's options are those that it has; other programs' commands are looked over."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        target = re.escape(words[1])
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[:2] == ["pip", "install"]:
        extras = {name for names in re.findall(r"\[([\w,]+)\]", line) for name in names.split(",")}
        assert extras <= EXTRAS, line
    if words[0] in ("torchrun", "accelerate"):
        words = words[words.index("-m") + 1 :]
    if words[0] == "softmask":
        check_softmask(*words[1:])


def check_softmask(name: str, *words: str) -> None:
    """The options of one of our commands, and what they name."""
    if name == "lm_eval":
        harness = words[words.index("--model_args") + 1]
        model_args(dict(piece.split("=") for piece in harness.split(",")))
        return
    command, rest = find_command([name, *words])
    args = command.make_parser().parse_args(rest)
    if name == "train" and args.recipe is not None and not args.recipe.endswith((".yaml", ".json")):
        read_recipe(args.recipe, args.set)
    if [name, *words][:2] == ["eval", "suite"] and args.tasks is not None:
        known = {part.task for part in SUITES[args.suite].parts}
        assert set(args.tasks.split(",")) <= known, sorted(known)


class Reader:
    """Somebody who types what a page shows into a shell, in a folder."""

    def __init__(self, folder: Path, monkeypatch, capsys) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.server: subprocess.Popen[str] | None = None
        self.address = ""

    def run(self, block: Block, *, slow: bool) -> None:
        if block.title is not None:
            (self.folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.run_program(block)
        elif block.language == "sh":
            waits = block.how == "slow" and not slow
            for line in block.lines:
                if block.how == "parse" or waits:
                    check(line)
                else:
                    self.run_line(line, block.more)

    def run_line(self, line: str, more: list[str]) -> None:
        text, pipe, command = line.partition(" | ")
        words = shlex.split(command if pipe else line, comments=True)
        if words[:2] == ["softmask", "serve"]:
            self.serve([*words, *more])
        elif words[0] == "softmask":
            said = self.shell(text) if pipe else ""
            self.monkeypatch.setattr(
                "sys.stdin", io.TextIOWrapper(io.BytesIO(said.encode()), encoding="utf-8")
            )
            assert main([*words[1:], *more]) == 0, f"{line}\n{self.capsys.readouterr().err}"
        else:
            self.shell(line.replace("http://127.0.0.1:8000", self.address))

    def run_program(self, block: Block) -> None:
        if block.how == "alone":
            environment = os.environ | {"HF_HOME": str(self.folder / "cache")}
            command = [sys.executable, "-c", block.text]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
            return
        text = block.text.replace("http://127.0.0.1:8000", self.address)
        program = compile(text, "the page", "exec")
        if block.how != "parse":
            exec(program, self.names)

    def shell(self, line: str) -> str:
        if line.startswith("curl") and shutil.which("curl") is None:
            return ""
        command = ["bash", "-euc", line.replace("curl -s", "curl -fsS")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done.stdout

    def serve(self, words: list[str]) -> None:
        """A real server, for the rest of the page."""
        command = [*python(), "-m", *words, "--port", "0"]
        self.server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
        )
        assert self.server.stdout is not None
        self.address = self.server.stdout.readline().split()[-1]

    def close(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(60)
            self.server.stdout.close()


@pytest.fixture
def reader(tmp_path, monkeypatch, capsys, data) -> Iterator[Reader]:
    write_dream_folder(
        tmp_path / "Dream-org" / "Dream-v0-Instruct-7B", chat=True, max_position_embeddings=1024
    )
    (tmp_path / "DATA").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reader = Reader(tmp_path, monkeypatch, capsys)
    yield reader
    reader.close()


# A newcomer opens the README first; the others run before a merge.
SHOWN = [
    pytest.param(page, id=page.stem, marks=[] if page.stem == "README" else [pytest.mark.long])
    for page in PAGES
]


@pytest.mark.parametrize("page", SHOWN)
def test_what_a_page_shows_runs(page: Path, reader: Reader, capsys) -> None:
    for block in blocks_of(page):
        reader.run(block, slow=False)
    if page.name == "README.md":  # the picture is what the command below it draws
        assert "the picture is sudoku.svg" in capsys.readouterr().out
        drawn = (reader.folder / "sudoku.svg").read_bytes()
        assert drawn == (ROOT / "docs" / "pictures" / "sudoku.svg").read_bytes()


SLOW = [page for page in PAGES if any(block.how == "slow" for block in blocks_of(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=lambda page: page.stem)
def test_what_takes_longer_runs_too(page: Path, reader: Reader) -> None:
    for block in blocks_of(page):
        if block.how == "slow" or block.title is not None:
            reader.run(block, slow=True)


def test_every_mark_is_one_that_is_known() -> None:
    known = {"run", "parse", "with", "slow", "alone"}
    assert {block.how for page in PAGES for block in blocks_of(page)} <= known


def test_every_fence_of_commands_is_seen() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^ *```(\w+)", text, re.MULTILINE)
        assert sorted(fences) == sorted(block.language for block in blocks_of(page)), page
        # A command in another language's fence, or in none, would be neither run nor checked.
        assert not {"bash", "shell", "console"} & set(fences), page
        assert not re.search(r"^    +(?:softmask|pip|make) ", BLOCK.sub("", text), re.MULTILINE)
