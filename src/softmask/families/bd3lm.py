"""Tiny-A2D's block-causal models: blocks of 32 that begin where the prompt ends, no shift.

ZHZisZZ/dllm: `dllm/core/samplers/bd3lm.py`. Nothing in config.json tells them from those with full
attention, so a user has to say it.
"""

import dataclasses

from .a2d import A2D_QWEN2, A2D_QWEN3
from .family import Family


def _block_causal(family: Family, name: str, title: str, hub: str) -> Family:
    return dataclasses.replace(
        family,
        name=name,
        title=title,
        explicit=True,
        hub=(f"dllm-hub/{hub}-diffusion-bd3lm-v0.1",),
        # A prompt is padded on its left to whole blocks there, and the padding is hidden.
        fixed={**family.fixed, "block_size": 32, "block_origin": "prompt"},
    )


BD3LM_QWEN3 = _block_causal(A2D_QWEN3, "bd3lm-qwen3", "Tiny-A2D bd3lm (Qwen3)", "Qwen3-0.6B")
BD3LM_QWEN2 = _block_causal(
    A2D_QWEN2, "bd3lm-qwen2", "Tiny-A2D bd3lm (Qwen2)", "Qwen2.5-Coder-0.5B-Instruct"
)
