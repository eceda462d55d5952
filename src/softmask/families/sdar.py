"""SDAR: Qwen3 made block-causal, blocks of 4 from the start of the text, no shift.

JetAstra/SDAR: `generate.py`, `training/model/SDAR-4B-Chat`.
"""

from .family import Family

SDAR = Family(
    name="sdar",
    title="SDAR",
    architectures=("SDARForCausalLM",),
    model_types=("sdar",),
    usual={"block_size": 4},
    fixed={"logit_shift": False, "attention_bias": False, "qk_norm": True},
    mask_token="<|MASK|>",
    sampling={"alg": "maskgit_plus", "step_schedule": "even", "threshold": 0.9},
    training={"noise": {"t_low": 1e-3, "t_high": 1.0}, "train": {"weighting": "answer"}},
)
