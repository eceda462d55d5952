"""What a model's weights take up in memory, read off its files' heads without torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..families.links import EXPERTS

# Bytes of a weight in each dtype.
DTYPES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of a weight of a linear layer (bitsandbytes): int8 has a scale for each row beside them;
# nf4 a scale of 8 bits for 64 weights, and one in float32 for 256 of those.
QUANTISED = {"int8": 1.0, "int4": 0.5 + 1 / 64 + 4 / (64 * 256)}
# A matrix with a layer's number in its name is a linear layer of a block, in every family.
IN_A_BLOCK = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class WeightSizes:
    """Numbers of weights: those of the blocks' linear layers, their rows, and all others.

    `fixed`: bytes of files that are in 4 bits already, which stay as they are; else None.
    `experts`: whether there are any, among the others: such a model is not quantised.
    """

    linear: int
    rows: int
    others: int
    fixed: int | None = None
    experts: bool = False

    def loaded(self, dtype: str, quantize: str | None = None) -> int:
        """Bytes of the loaded model.

        Args:
            dtype: "float64", "float32", "bfloat16" or "float16".
            quantize: "int8", "int4" or None.
        """
        size = DTYPES[dtype]
        if self.fixed is not None:
            return self.fixed
        if quantize is None:
            return size * (self.linear + self.others)
        scales = 4 * self.rows if quantize == "int8" else 0
        return round(QUANTISED[quantize] * self.linear) + scales + size * self.others

    def ways(self) -> dict[str, int]:
        """Bytes by what is typed for them: dtypes, and bits with all else in float32."""
        if self.fixed is not None:
            return {"int4": self.fixed}
        dtypes = {name: self.loaded(name) for name in ("float32", "bfloat16")}
        kinds = () if self.experts else QUANTISED
        return dtypes | {kind: self.loaded("float32", kind) for kind in kinds}


def weight_sizes(
    weights: Iterable[Path], *, tied: bool = False, in_4_bits: bool = False
) -> WeightSizes:
    """Those of a checkpoint, from the heads of its files.

    Args:
        tied: the head is the table of embeddings, whether or not the files have it twice.
        in_4_bits: the files are quantised.

    Raises:
        ValueError: a file's head is damaged.
    """
    files = tuple(weights)
    if in_4_bits:
        return WeightSizes(0, 0, 0, sum(file.stat().st_size for file in files))
    return sizes_of(_shapes(files), tied=tied)


def sizes_of(shapes: Iterable[tuple[str, Sequence[int]]], *, tied: bool = False) -> WeightSizes:
    """Those of weights of these names and shapes; `tied` as for `weight_sizes`."""
    linear = rows = others = 0
    experts = False
    for name, shape in shapes:
        if name == "lm_head.weight" and tied:
            continue  # the table once more
        experts = experts or EXPERTS in name
        if len(shape) == 2 and IN_A_BLOCK.search(name) and EXPERTS not in name:
            linear, rows = linear + math.prod(shape), rows + shape[0]
        else:
            others += math.prod(shape)
    return WeightSizes(linear, rows, others, experts=experts)


def _shapes(files: Iterable[Path]) -> Iterable[tuple[str, list[int]]]:
    """Names and shapes in safetensors files: 8 bytes of a length, then JSON."""
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = file.read(min(length, path.stat().st_size))
        try:
            values = json.loads(head)
            found = [(k, list(map(int, v["shape"]))) for k, v in values.items() if k[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is truncated or damaged: copy it again") from error
        yield from found
