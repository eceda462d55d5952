"""LLaDA-MoE: experts behind a softmax router on Qwen3's shape, full attention, no shift.

inclusionAI/LLaDA-MoE-7B-A1B; ZHZisZZ/dllm carries the Hub's code, `dllm/pipelines/llada/models`;
it decodes as LLaDA does.
"""

from .family import Family
from .llada import LLADA

LLADA_MOE = Family(
    name="lladamoe",
    title="LLaDA-MoE",
    architectures=("LLaDAMoEModelLM",),
    renamed={
        "dense_intermediate_size": "intermediate_size",
        "expert_intermediate_size": "moe_intermediate_size",
    },
    # Those of the published models.
    usual={"num_experts": 64, "num_experts_per_tok": 8},
    fixed={
        "logit_shift": False,
        "attention_bias": False,
        "qk_norm": True,
        "score_function": "softmax",
        "n_shared_experts": 0,
    },
    required={
        "attention_bias": False,
        "qk_layernorm": True,
        "clip_qkv": None,
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "partial_rotary_factor": 1,
        "shared_expert_intermediate_size": None,
    },
    each_layer={"moe_layer_freq": 1},
    further={"model_type": "llada"},
    mask_token="<|mask|>",
    end_tokens=("<|endoftext|>", "<|role_end|>"),
    sampling=LLADA.sampling,
    training=LLADA.training,
)
