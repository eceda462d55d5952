"""Weights of files put together, or cut, as they are here or in a family's own files.

Each tensor that is wanted is made of the parts that links name, in whichever files these lie.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..families.links import Link, Part

# Gives a part of a weight, or all of it, by its name.
Read = Callable[[str, Part | None], Tensor]


def read_weights(files: Sequence[Path], links: Iterable[Link]) -> dict[str, Tensor]:
    """The weights of files in a family's own layout as they are here, on the CPU."""
    with reading(files) as read:
        return {name: our_tensor(parts, read) for name, parts in by_our_name(links).items()}


@contextlib.contextmanager
def reading(files: Sequence[Path]) -> Iterator[Read]:
    """Within: reads what several files hold."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
        place = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

        def read(name: str, part: Part | None) -> Tensor:
            if part is None:
                return place[name].get_tensor(name)
            return place[name].get_slice(name)[part]

        yield read


def by_our_name(links: Iterable[Link]) -> dict[str, list[Link]]:
    """What each weight here is made of."""
    found: dict[str, list[Link]] = {}
    for link in links:
        found.setdefault(link.ours, []).append(link)
    return found


def by_their_name(links: Iterable[Link]) -> dict[str, list[Link]]:
    """What each weight in a family's own files is made of."""
    found: dict[str, list[Link]] = {}
    for link in links:
        found.setdefault(link.theirs, []).append(link)
    return found


def our_tensor(parts: Sequence[Link], read: Read) -> Tensor:
    """A weight as it is here, of those that `read` gives by their names."""
    found = [read(part.theirs, part.part_of_theirs) for part in parts]
    if parts[0].expert is None:
        return found[0].contiguous()
    experts = 1 + max(part.expert for part in parts if part.expert is not None)
    rows = max(part.place[1] for part in parts)
    whole = found[0].new_empty((experts, rows, *found[0].shape[1:]))
    for part, tensor in zip(parts, found, strict=True):
        whole[part.part_of_ours] = tensor
    return whole


def their_tensor(parts: Sequence[Link], read: Read) -> Tensor:
    """A weight as it is in a family's own files, of those that `read` gives by our names."""
    found = [read(part.ours, part.part_of_ours) for part in parts]
    return torch.cat(found) if len(found) > 1 else found[0].contiguous()
