"""Ranges of code points as the bytes of UTF-8, and nothing that is not valid UTF-8."""

import functools
from collections.abc import Iterator

# The bytes that may come next, and what may follow each; () behind the last byte.
Tree = tuple[tuple[int, int, "Tree"], ...]

_LAST_OF_LENGTH = (0x7F, 0x7FF, 0xFFFF)


@functools.lru_cache(maxsize=1024)
def byte_tree(ranges: tuple[tuple[int, int], ...]) -> Tree:
    """The tree of bytes of one character of these ranges (sorted, disjoint, no surrogates).

    Siblings are disjoint, so that the tree is deterministic; equal subtrees are equal tuples.
    """
    return _grouped([found for low, high in ranges for found in _byte_ranges(low, high)])


@functools.lru_cache(maxsize=1024)
def inner_nodes(ranges: tuple[tuple[int, int], ...]) -> int:
    """How many different nodes the tree has between its root and its leaves."""
    seen: set[Tree] = set()

    def visit(tree: Tree) -> None:
        for _, _, below in tree:
            if below and below not in seen:
                seen.add(below)
                visit(below)

    visit(byte_tree(ranges))
    return len(seen)


def _byte_ranges(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """A range of code points as products of ranges of bytes."""
    for last in _LAST_OF_LENGTH:
        if low <= last < high:
            yield from _byte_ranges(low, last)
            yield from _byte_ranges(last + 1, high)
            return
    length = len(chr(low).encode())
    for tail in range(1, length):
        mask = (1 << 6 * tail) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from _byte_ranges(low, low | mask)
                yield from _byte_ranges((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _byte_ranges(low, (high & ~mask) - 1)
                yield from _byte_ranges(high & ~mask, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


def _grouped(products: list[tuple[tuple[int, int], ...]]) -> Tree:
    below: dict[tuple[int, int], list[tuple[tuple[int, int], ...]]] = {}
    for first, *rest in products:
        below.setdefault(first, []).append(tuple(rest))
    tree: list[tuple[int, int, Tree]] = []
    for (low, high), rests in sorted(below.items()):
        child = _grouped(rests) if rests[0] else ()
        if tree and tree[-1][1] + 1 == low and tree[-1][2] == child:
            tree[-1] = (tree[-1][0], high, child)
        else:
            tree.append((low, high, child))
    return tuple(tree)
