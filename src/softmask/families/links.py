"""Which part of a weight here is which part of one in the files of a family. No torch.

Most are the same under another name. Here experts of a layer lie in one tensor, as transformers'
modules have them, and queries, keys and values in three; a family's files may have it otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .family import Family, renamed

Part = tuple[int | slice, ...]
Shapes = Mapping[str, Sequence[int]]
# Tensors of all experts of a layer, and the layers of one that stand in them, row behind row.
_EXPERTS = ".experts."
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class Link(NamedTuple):
    """A weight in the files, `theirs`, and what it is of one here.

    Args:
        rows: which rows of theirs, from and to; None: all.
        expert: the number of the expert, where ours holds those of several.
        place: which rows of that expert in ours, from and to.
    """

    theirs: str
    ours: str
    rows: tuple[int, int] | None = None
    expert: int | None = None
    place: tuple[int, int] = (0, 0)

    @property
    def is_whole(self) -> bool:
        """Whether the two are the same tensor."""
        return self.rows is None and self.expert is None

    @property
    def part_of_theirs(self) -> Part | None:
        """Where it is in theirs; None: everywhere."""
        return None if self.rows is None else (slice(*self.rows),)

    @property
    def part_of_ours(self) -> Part | None:
        """Where it is in ours; None: everywhere."""
        return None if self.expert is None else (self.expert, slice(*self.place))


def links_of(family: Family, shapes: Shapes) -> tuple[Link, ...]:
    """The weights in a family's own files for those here, of these shapes."""
    return tuple(link for name in shapes for link in _links(family, name, shapes))


def their_shapes(links: Sequence[Link], shapes: Shapes) -> dict[str, list[int]]:
    """Shapes of the weights in the files, by those here."""
    found: dict[str, list[int]] = {}
    for link in links:
        if link.is_whole:
            found[link.theirs] = list(shapes[link.ours])
        elif link.expert is not None:
            first, end = link.place
            found[link.theirs] = [end - first, shapes[link.ours][-1]]
        else:
            assert link.rows is not None
            before = found.get(link.theirs, [0])[0]
            found[link.theirs] = [max(before, link.rows[1]), *shapes[link.ours][1:]]
    return found


def _links(family: Family, name: str, shapes: Shapes) -> list[Link]:
    layer, _, kind = name.rpartition(_EXPERTS)
    if layer and kind in _STACKED:
        parts, (experts, height, _) = _STACKED[kind], shapes[name]
        rows = height // len(parts)
        return [
            Link(
                family.original_name(f"{layer}{_EXPERTS}{expert}.{part}.weight"),
                name,
                expert=expert,
                place=(place * rows, (place + 1) * rows),
            )
            for expert in range(experts)
            for place, part in enumerate(parts)
        ]
    for theirs, parts in family.fused:
        for place, part in enumerate(parts):
            whole = renamed(name, ((part, theirs),))
            if whole != name:
                before = [renamed(whole, ((theirs, other),)) for other in parts[:place]]
                first = sum(shapes[other][0] for other in before)
                return [Link(whole, name, rows=(first, first + shapes[name][0]))]
    return [Link(family.original_name(name), name)]
