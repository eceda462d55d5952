"""Linear layers in 4 bits (bitsandbytes) from the start: made while loading, or stored as such.

For training an adapter on them (QLoRA). `models/quantize.py` does it after loading, for decoding.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import from_mapping, require, require_choice
from ..models import DreamConfig, DreamModel
from ..models.linear import use_faster_products
from ..models.quantize import quiet_bitsandbytes

TYPES = ("nf4", "fp4")
COMPUTES = ("float32", "bfloat16", "float16")
# Of the 8 bits, which are not read here, and the same thing said twice.
UNUSED = (
    *("_load_in_4bit", "_load_in_8bit", "load_in_8bit", "llm_int8_threshold"),
    *("llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight"),
)


@dataclass(frozen=True)
class FourBits:
    """`quantization_config` in config.json, by transformers' names and with its defaults."""

    quant_method: str = "bitsandbytes"
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str = "float32"
    bnb_4bit_quant_storage: str = "uint8"
    llm_int8_skip_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require(
            self.quant_method == "bitsandbytes" and self.load_in_4bit,
            "the weights are quantised, and of that softmask reads 4 bits by bitsandbytes alone: "
            "take the whole model, and give quantize",
        )
        require_choice("bnb_4bit_quant_type", self.bnb_4bit_quant_type, TYPES)
        require_choice("bnb_4bit_compute_dtype", self.bnb_4bit_compute_dtype, COMPUTES)
        require_choice("bnb_4bit_quant_storage", self.bnb_4bit_quant_storage, (*COMPUTES, "uint8"))


# QLoRA's setting: normal floats, the scales quantised too, products in bfloat16. The head stays
# whole, as its logits decide what is committed.
QLORA = FourBits(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="bfloat16",
    llm_int8_skip_modules=("lm_head",),
)


def is_stored_in_4_bits(config: DreamConfig) -> bool:
    """Whether the checkpoint's own files are quantised."""
    return getattr(config, "quantization_config", None) is not None


def read_four_bits(values: Any, where: str) -> FourBits:
    """Reads `quantization_config`; `where` names the file.

    Raises:
        ValueError: the weights are quantised in another way than by bitsandbytes in 4 bits, or by
            settings that make no sense.
    """
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in UNUSED}
        if values.get("quant_method", "bitsandbytes") != "bitsandbytes":
            values = {"quant_method": str(values["quant_method"])}
    return from_mapping(FourBits, values, f"{where}: quantization_config")


def settings_for(bits: FourBits) -> dict[str, Any]:
    """`quantization_config` as transformers reads it in a config.

    Raises:
        ValueError: a library is missing.
    """
    for library, extra in (("bitsandbytes", "quant"), ("accelerate", "train")):
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"weights in 4 bits need {library}: pip install 'softmask[{extra}]'")
    quiet_bitsandbytes()
    values = dataclasses.asdict(bits)
    if bits.llm_int8_skip_modules is not None:
        values["llm_int8_skip_modules"] = list(bits.llm_int8_skip_modules)
    return values


def finish(model: DreamModel, folder: Path) -> None:
    """Gives the layers that are not in 4 bits their faster products, and checks the others.

    Raises:
        ValueError: the files hold whole weights for a layer that should be in 4 bits.
    """
    from bitsandbytes.nn import Linear4bit

    quantised = [(n, m) for n, m in model.named_modules() if isinstance(m, Linear4bit)]
    # Where it finds no layer to replace, transformers says so in a warning alone.
    assert quantised, "no layer is in 4 bits"
    for name, module in quantised:
        if getattr(module.weight, "quant_state", None) is None:
            raise ValueError(
                f"{folder}: {name} is not in 4 bits, against config.json: name it in "
                "llm_int8_skip_modules"
            )
    use_faster_products(model)
