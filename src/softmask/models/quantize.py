"""The linear layers of a loaded model in 8 or 4 bits, for decoding.

    softmask generate "One day, Tom" --quantize int8

By bitsandbytes, which has kernels for CUDA and for CPUs and needs no compilation. Lossy: what it
costs and gains is in docs/LOG.md.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import DreamModel
from .checkpoint import first_not_finite, not_finite
from .linear import is_plain

KINDS = ("int8", "int4")
LAYERS = "model.layers."  # what stands before the name of a layer of the blocks
# What bitsandbytes says on its import and at every call, and where: that it would download kernels,
# and that it rounds by way of float16.
ADVICE = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
# nf4 has a scale for 64 weights of a row, and its kernel for CPUs takes 32 rows at once.
BLOCK = 64


def check_quantize(kind: str, device: torch.device) -> None:
    """Whether there is such a kind, here, on this device.

    Raises:
        ValueError: there is not.
    """
    if kind not in KINDS:
        raise ValueError(f"quantize must be {' or '.join(KINDS)}, not {kind!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("quantize needs bitsandbytes: pip install 'softmask[quant]'")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"quantize works on cpu and cuda, not on {device.type}: use --device cpu")


@dataclass(frozen=True)
class Quantizer:
    """Takes the linear layers of a model's blocks to this device in 8 or 4 bits, one by one.

    "int8": a scale for each row of weights and one for each token, whose activations pass through
    float16 and must stay below 65504 (in float32 on a CPU without units for 8 bits tokens are not
    rounded, `quantized_on_cpu.py`); "int4": nf4 with a scale for 64 weights. Every token is
    rounded by itself, so that a text does not depend on its batch.

    Weights come in the dtype that they are stored in, and one layer at a time is in `dtype`, that
    of the products: beside the result there is never more than one layer, and what lies in mapped
    files stays there until it is taken.
    """

    kind: str
    device: torch.device
    dtype: torch.dtype
    where: str = "the model"  # what it is called in errors

    def layer(self, name: str, linear: nn.Linear) -> nn.Module:
        """What a layer becomes; it is left without weights.

        Raises:
            ValueError: a width that 4 bits cannot have, or a weight that is not finite.
        """
        if self.kind == "int4":
            _check_widths(name, linear)
        linear.to(self.dtype)
        bad = first_not_finite(linear.named_parameters(prefix=name))
        if bad is not None:
            raise ValueError(f"{self.where}: {not_finite(bad, self.dtype)}")
        make = {"int8": _int8, "int4": _int4}[self.kind]
        quiet_bitsandbytes()
        quantised = make(linear).to(self.device)
        # Whoever still knows the layer does not keep its weights beside those of the next one.
        linear.weight.data = linear.weight.data.new_empty(0)
        return quantised

    def replace(self, blocks: nn.Module, name: str, inside: str = "") -> None:
        """Replaces one of the layers that `plain_layers` names; raises as `layer`.

        Args:
            inside: what stands before its name in the model.
        """
        linear = blocks.get_submodule(name)
        assert is_plain(linear)
        blocks.set_submodule(name, self.layer(f"{inside}{name}", linear))

    def pack(self, blocks: nn.Module, inside: str = "") -> None:
        """Replaces all of them, in place; raises as `layer`."""
        for name in plain_layers(blocks):
            self.replace(blocks, name, inside)

    def model(self, model: DreamModel) -> DreamModel:
        """The model, changed in place: every plain layer of its blocks, and all else in `dtype`.

        Raises:
            ValueError: as `layer`.
        """
        self.pack(model.model.layers, LAYERS)
        for parameter in model.parameters():
            if parameter.is_floating_point():  # buffers keep theirs: rotary frequencies in fp32
                parameter.data = parameter.data.to(self.dtype)
        model.config.dtype = self.dtype
        return seal(model, self.device)


def plain_layers(blocks: nn.Module) -> list[str]:
    """The names of the layers of a model's blocks that are quantised.

    Not the head: 8 bits there take the error of the bundled model's logits from 1.1 to 1.5 %, for
    7 % of Dream 7B's weights, and on a CPU 283 ms for 192 rows of a vocabulary of 152k, where the
    streamed fp32 head takes 202 and holds no logits. The embeddings are rows that soft-masking
    sums, and the head's own weights where the two are tied.
    """
    # Names alone: a list of the layers would hold them all.
    return [name for name, module in blocks.named_modules() if is_plain(module)]


def seal(model: DreamModel, device: torch.device) -> DreamModel:
    """The model whose layers were replaced, frozen, the rest of it moved to the device too."""
    model.requires_grad_(False)
    # transformers' name for it: CUDA graphs are not for such a model.
    setattr(model, "is_quantized", True)  # noqa: B010, nn.Module's types know no such attribute
    model.register_state_dict_pre_hook(_refuse_to_save)
    nn.Module.to(model, device)
    return model.eval()


def _int8(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Int8Params

    from .quantized_on_cpu import Linear8bit

    # No columns of outliers in 16 bits (a threshold above 0): one token that has any would change
    # the arithmetic of the whole batch.
    quantised = Linear8bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        has_fp16_weights=False,
        threshold=0.0,
        device="meta",
    )
    # Rounded when it moves to the device.
    quantised.weight = Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    quantised.bias = linear.bias
    return quantised


def _int4(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Params4bit

    from .quantized_on_cpu import LinearNF4

    settings: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    quantised = LinearNF4(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        device="meta",
        **settings,
    )
    quantised.weight = Params4bit(
        linear.weight.data, requires_grad=False, module=quantised, **settings
    )
    quantised.bias = linear.bias
    return quantised


def _check_widths(name: str, linear: nn.Linear) -> None:
    for width in linear.weight.shape:
        if width % BLOCK:
            raise ValueError(
                f"int4 needs widths that {BLOCK} divides, and {name} has {width}: use int8"
            )


def quiet_bitsandbytes() -> None:
    """Without its advice."""
    for logger in ADVICE:
        logging.getLogger(logger).addFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return not record.msg.startswith(ADVICE[record.name])


def _refuse_to_save(*_: Any) -> None:
    raise ValueError(
        "a model loaded with quantize is for decoding alone and is not saved: load it without"
    )
