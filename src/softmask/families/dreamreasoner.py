"""DreamReasoner: Qwen3's shape under Dream's model_type, block-causal in blocks of 32, no shift.

DreamLM/DreamReasoner. Its remote code was not within reach, only what serves it; no checkpoint has
been loaded here.
"""

from .family import Family

DREAM_REASONER = Family(
    name="dreamreasoner",
    title="DreamReasoner",
    # Dream's own is DreamModel.
    architectures=("DreamForCausalLM",),
    usual={"block_size": 32},
    fixed={"logit_shift": False, "attention_bias": False, "qk_norm": True},
    further={"model_type": "Dream"},
    mask_token="<|mask|>",
    sampling={"alg": "maskgit_plus", "threshold": 0.95},
)
