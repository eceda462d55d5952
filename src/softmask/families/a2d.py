"""Tiny-A2D: small Qwen and Llama models adapted to masked diffusion, full attention, no shift.

ZHZisZZ/dllm: `dllm/pipelines/a2d`. The source model's names and shape, and `<|mask|>` added.
"""

from functools import partial

from .family import Family
from .llada import TRAINING

_make = partial(
    Family,
    mask_token="<|mask|>",
    sampling={"alg": "maskgit_plus", "step_schedule": "rounded", "raw_scores": True},
    # Its own code averages over the answers of a forward together, which is the same for one row.
    training=TRAINING,
)

A2D_QWEN3 = _make(
    name="a2d-qwen3",
    title="Tiny-A2D (Qwen3)",
    architectures=("A2DQwen3LMHeadModel",),
    model_types=("a2d-qwen3",),
    fixed={"logit_shift": False, "attention_bias": False, "qk_norm": True},
    chat={"enable_thinking": False},
)
A2D_QWEN2 = _make(
    name="a2d-qwen2",
    title="Tiny-A2D (Qwen2)",
    architectures=("A2DQwen2LMHeadModel",),
    model_types=("a2d-qwen2",),
    fixed={"logit_shift": False},
)
A2D_LLAMA = _make(
    name="a2d-llama",
    title="Tiny-A2D (Llama)",
    architectures=("A2DLlamaLMHeadModel",),
    model_types=("a2d-llama",),
    fixed={"logit_shift": False, "attention_bias": False},
    required={"mlp_bias": False},
    bos=True,
)
