"""Weights put together of rows of others: as they are here, or in a family's own files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..families.links import Link, Shapes, their_shapes

# Gives a weight by its name.
Read = Callable[[str], Tensor]


class Part(NamedTuple):
    """Rows of a weight; None: all of it."""

    name: str
    rows: range | None = None


class Made(NamedTuple):
    """What a weight of this shape is made of, row behind row."""

    shape: Sequence[int]
    parts: Sequence[Part]

    def of(self, read: Read) -> Tensor:
        """The weight, of those that `read` gives; memory of its own, unless it is one of them."""
        if self.parts[0].rows is None and len(self.parts) == 1:
            return read(self.parts[0].name)
        found = [_rows(read(part.name), part.rows) for part in self.parts]
        return torch.cat(found).reshape(list(self.shape))


def as_it_is(shapes: Shapes) -> dict[str, Made]:
    """Each weight made of the one of its name."""
    return {name: Made(shape, [Part(name)]) for name, shape in shapes.items()}


def ours_of_theirs(links: Iterable[Link], shapes: Shapes) -> dict[str, Made]:
    """Weights here, of those in a family's own files.

    Args:
        shapes: of weights here.
    """
    found: dict[str, list[Part]] = {}
    for link in links:
        found.setdefault(link.ours, []).append(Part(link.theirs, link.rows))
    return {name: Made(shapes[name], parts) for name, parts in found.items()}


def theirs_of_ours(links: Sequence[Link], shapes: Shapes) -> dict[str, Made]:
    """Weights in a family's own files, of those here; arguments as `ours_of_theirs`."""
    found: dict[str, list[Part]] = {}
    for link in links:
        found.setdefault(link.theirs, []).append(Part(link.ours, link.place))
    theirs = their_shapes(links, shapes)
    return {name: Made(theirs[name], parts) for name, parts in found.items()}


class Later:
    """A weight that is put together when transformers takes it, as it does slices of a file."""

    def __init__(self, made: Made, read: Read) -> None:
        self.made, self.read = made, read

    def __getitem__(self, everything: object) -> Tensor:
        return self.made.of(self.read)


def later(made: Mapping[str, Made], read: Read) -> dict[str, Later]:
    """A state dictionary for `from_pretrained`, of which only what it takes is in the memory."""
    return {name: Later(one, read) for name, one in made.items()}


@contextlib.contextmanager
def reading(files: Iterable[Path]) -> Iterator[Read]:
    """Within: reads what several files hold."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
        place = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        yield lambda name: place[name].get_tensor(name)


def _rows(tensor: Tensor, rows: range | None) -> Tensor:
    """Of a matrix, or of the matrices of experts one after the other."""
    if rows is None:
        return tensor
    every = tensor.flatten(0, 1) if tensor.dim() == 3 else tensor
    return every[rows.start : rows.stop]
