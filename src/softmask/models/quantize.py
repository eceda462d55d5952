"""The linear layers of a loaded model in 8 or 4 bits, for decoding.

    softmask generate "One day, Tom" --quantize int8

By bitsandbytes, which has kernels for CUDA and for CPUs and needs no compilation. Lossy: what it
costs and gains is in docs/LOG.md.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import nn

from . import DreamModel
from .linear import PLAIN

KINDS = ("int8", "int4")
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


def quantize_layers(model: DreamModel, kind: str, device: torch.device) -> DreamModel:
    """The model on this device, the linear layers of its blocks in 8 or 4 bits, frozen.

    "int8": a scale for each row of weights and one for each token, whose activations pass through
    float16 and must stay below 65504; "int4": nf4 with a scale for 64 weights. Every token is
    rounded by itself, so that a text does not depend on its batch.

    Args:
        model: whole, in its own dtype and on the CPU; it is changed in place, and only what it
            becomes is moved to the device.

    Raises:
        ValueError: a width that 4 bits cannot have.
    """
    pack(model.model.layers, kind, device)
    # transformers' name for it: CUDA graphs are not for such a model.
    setattr(model, "is_quantized", True)  # noqa: B010, nn.Module's types know no such attribute
    model.requires_grad_(False)
    model.register_state_dict_pre_hook(_refuse_to_save)
    nn.Module.to(model, device)
    return model.eval()


def pack(blocks: nn.Module, kind: str, device: torch.device) -> None:
    """The linear layers of these blocks in fewer bits, in place and on this device.

    Raises:
        ValueError: a width that 4 bits cannot have.
    """
    make = {"int8": _int8, "int4": _int4}[kind]
    # Not the head: 8 bits there take the error of the bundled model's logits from 1.1 to 1.5 %,
    # for 7 % of Dream 7B's weights, and on a CPU 283 ms for 192 rows of a vocabulary of 152k,
    # where the streamed fp32 head takes 202 and holds no logits. The embeddings are rows that
    # soft-masking sums, and the head's own weights where the two are tied.
    names = [name for name, module in blocks.named_modules() if type(module) in PLAIN]
    if kind == "int4":
        _check_widths(blocks, names)
    quiet_bitsandbytes()
    for name in names:
        linear: Any = blocks.get_submodule(name)
        blocks.set_submodule(name, make(linear).to(device))


def _int8(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    # No columns of outliers in 16 bits (a threshold above 0): one token that has any would change
    # the arithmetic of the whole batch.
    quantised = Linear8bitLt(
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
    from bitsandbytes.nn import Linear4bit, Params4bit

    settings: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    quantised = Linear4bit(
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


def _check_widths(blocks: nn.Module, names: list[str]) -> None:
    for name in names:
        linear = blocks.get_submodule(name)
        assert isinstance(linear, nn.Linear)
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
