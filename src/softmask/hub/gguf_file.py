"""The head of a GGUF file: its metadata, and where its tensors lie. No torch, no gguf package.

The package's own reader takes 18 s and 0.5 GB for a vocabulary of 152k tokens, as it makes arrays
of every string; this takes 0.4 s. It reads what may be damaged, so that nothing is believed: each
length is checked against what is left of the file.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import shown
from ..families import gguf as facts
from ..families.family import Family
from ..families.registry import FAMILIES
from ..files import expand_home

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Numbers of types in the format: scalars as `struct` reads them, texts, arrays.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
ALIGNMENT = 32  # of the tensors, where `general.alignment` does not say otherwise
MOST_AXES = 4  # of a tensor in ggml


@dataclass(frozen=True)
class TensorHead:
    """Where a tensor lies: `start` in bytes from the file's begin, `kind` as ggml counts types.

    The shape is as torch has it, the longest stride first.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GgufHead:
    """Everything in a file but what its tensors hold."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, TensorHead]

    @property
    def architecture(self) -> facts.Architecture:
        """What the model is.

        Raises:
            ValueError: none that softmask reads.
        """
        name = self.values.get(facts.ARCHITECTURE)
        found = facts.ARCHITECTURES.get(name) if isinstance(name, str) else None
        if found is None:
            known = ", ".join(facts.ARCHITECTURES)
            raise ValueError(
                f"{self.path} holds a model of the architecture {shown(name)}: softmask loads "
                f"{known} of GGUF"
            )
        return found

    def setting(self, key: str) -> Any:
        """A setting of the architecture; None: the file has none by this key."""
        return self.values.get(f"{self.architecture.name}.{key}")

    def own(self, key: str) -> dict[str, Any]:
        """A mapping that softmask wrote as JSON; of a file that it did not write an empty one.

        Raises:
            ValueError: it is damaged.
        """
        text = self.values.get(key, "{}")
        try:
            found = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"{self.path} is damaged ({key} is no JSON mapping): copy it again")
        return found


def gguf_path(name: object) -> Path | None:
    """The GGUF file that a user names as a model; None: it is none by its name, or not there."""
    path = expand_home(str(name))
    return path if path.suffix.lower() == facts.SUFFIX and path.is_file() else None


def read_head(path: Path) -> GgufHead:
    """Reads a file's metadata and the list of its tensors.

    Raises:
        ValueError: it is no GGUF file, a damaged one, or one of several parts.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no GGUF file: give one, or the folder of a model")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            head = _Cursor(path, data).head()
    parts = head.values.get(facts.PARTS, 1)
    if parts != 1:
        raise ValueError(
            f"{path} is one of {shown(parts)} parts: join them by `llama-gguf-split --merge`"
        )
    return head


def family_of_gguf(head: GgufHead, chosen: Family | None = None) -> Family | None:
    """The family of a file's model; None: it may be an ordinary model, so a user has to name it.

    Args:
        chosen: what a user says that it is.

    Raises:
        ValueError: no such architecture, or another than that of the family's models.
    """
    architecture = head.architecture
    said = head.own(facts.OWN_CONFIG).get("family")
    if chosen is None and isinstance(said, str):
        chosen = FAMILIES.get(said)
    sure = architecture.denoises or head.setting(facts.CAUSAL) is False
    found = chosen or (FAMILIES[architecture.family] if sure else None)
    if found is not None and not architecture.suits(found):
        raise ValueError(
            f"{head.path} holds a {architecture.name} model, which {found.title} is not: give "
            f"--family {', '.join(facts.families_of(architecture))}"
        )
    return found


class _Cursor:
    """Reads from the front on, and believes no length."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, len(MAGIC)

    def head(self) -> GgufHead:
        version = self.scalar("I")
        if version not in VERSIONS:
            raise ValueError(
                f"{self.path} is GGUF of version {version}, or of another order of bytes: convert "
                "the model anew"
            )
        tensors, pairs = self.scalar("Q"), self.scalar("Q")
        values: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.text()
            if key in values:
                self.damaged(f"{shown(key)} stands twice")
            values[key] = self.value(self.scalar("I"))
        found: dict[str, TensorHead] = {}
        for _ in range(tensors):
            name = self.text()
            if name in found:
                self.damaged(f"the tensor {shown(name)} stands twice")
            axes = self.scalar("I")
            if axes > MOST_AXES:
                self.damaged(f"{shown(name)} has {axes} axes")
            shape = tuple(reversed([self.scalar("Q") for _ in range(axes)]))
            found[name] = TensorHead(shape, self.scalar("I"), self.scalar("Q"))
        step = values.get("general.alignment", ALIGNMENT)
        if type(step) is not int or step < 1 or step & (step - 1):
            self.damaged(f"general.alignment is {shown(step)}")
        begin = -(-self.at // step) * step
        placed = {n: TensorHead(t.shape, t.kind, begin + t.start) for n, t in found.items()}
        return GgufHead(self.path, values, placed)

    def damaged(self, what: str) -> Any:
        raise ValueError(f"{self.path} is damaged ({what}): copy it again")

    def skip(self, count: int) -> int:
        """Moves on by so many bytes; returns where they begin."""
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            self.damaged("its head is cut off")
        return start

    def scalar(self, form: str) -> Any:
        return struct.unpack_from(f"<{form}", self.data, self.skip(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        size = self.scalar("Q")
        start = self.skip(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError:
            return str(self.damaged("a text in it is no UTF-8"))

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind != ARRAY:
            return self.damaged(f"there is no type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner == TEXT:
            return [self.text() for _ in range(count)]
        if inner not in SCALARS:
            return self.damaged(f"an array of the type {inner}")
        form = f"<{SCALARS[inner]}"
        width = struct.calcsize(form)
        start = self.skip(count * width)
        return [v for (v,) in struct.iter_unpack(form, self.data[start : start + count * width])]
