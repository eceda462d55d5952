"""SDAR: Qwen3 made block-causal, blocks of 4 from the start of the text, no shift.

JetAstra/SDAR: `generate.py`, `training/model/SDAR-4B-Chat`.
"""

from .family import Family

SDAR = Family(
    name="sdar",
    title="SDAR",
    architectures=("SDARForCausalLM",),
    model_types=("sdar",),
    renamed={"block_size": "block_size"},
    usual={"block_size": 4},
    fixed={"logit_shift": False, "attention_bias": False, "qk_norm": True},
    mask_token="<|MASK|>",
    sampling={"alg": "maskgit_plus", "step_schedule": "even", "threshold": 0.9, "cache": "exact"},
)
