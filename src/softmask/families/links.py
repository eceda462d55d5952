"""Which rows of a weight here are which of one in the files of a family. No torch.

Most weights are the same under another name. But the experts of a layer lie in one tensor here,
as transformers' modules have them, and queries, keys and values in three; a family's files may
have it otherwise. Rows of experts count on from expert to expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .family import Family, renamed

Shapes = Mapping[str, Sequence[int]]
# Tensors of all experts of a layer, and the layers of one that stand in them, row behind row.
EXPERTS = ".experts."
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class Link(NamedTuple):
    """A weight in the files, `theirs`, and one here, `ours`: the same, or some rows of either.

    Args:
        rows: those of theirs; None: all.
        place: the rows of ours that they are; None: all.
    """

    theirs: str
    ours: str
    rows: range | None = None
    place: range | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the two are the same tensor."""
        return self.rows is None and self.place is None


def same_names(names: Iterable[str]) -> tuple[Link, ...]:
    """Those of files that have our names."""
    return tuple(Link(name, name) for name in names)


def links_of(family: Family, shapes: Shapes) -> tuple[Link, ...]:
    """Those of a family's own files, for weights here of these shapes; rows in their order."""
    return tuple(link for name in shapes for link in _links(family, name, shapes))


def their_shapes(links: Iterable[Link], shapes: Shapes) -> dict[str, list[int]]:
    """Shapes of the weights in the files, by those here."""
    found: dict[str, list[int]] = {}
    for link in links:
        height, *rest = shapes[link.ours]
        if link.place is not None:
            height, rest = len(link.place), rest[1:]
        found[link.theirs] = [found.get(link.theirs, [0])[0] + height, *rest]
    return found


def _links(family: Family, name: str, shapes: Shapes) -> list[Link]:
    layer, _, kind = name.rpartition(EXPERTS)
    if layer and kind in _STACKED:
        layers, (experts, height, _) = _STACKED[kind], shapes[name]
        theirs = [f"{layer}{EXPERTS}{e}.{part}.weight" for e in range(experts) for part in layers]
        step = height // len(layers)
        return [
            Link(family.original_name(one), name, place=range(i * step, (i + 1) * step))
            for i, one in enumerate(theirs)
        ]
    for fused, parts in family.fused:
        for i, part in enumerate(parts):
            theirs_whole = renamed(name, ((part, fused),))
            if theirs_whole != name:
                before = [renamed(theirs_whole, ((fused, other),)) for other in parts[:i]]
                first = sum(shapes[other][0] for other in before)
                return [Link(theirs_whole, name, rows=range(first, first + shapes[name][0]))]
    return [Link(family.original_name(name), name)]
