"""LLaDA2.0 mini and flash: experts behind a sigmoid router in groups, blocks of 32, no shift.

inclusionAI/LLaDA2.X; ZHZisZZ/dllm carries the Hub's code: `dllm/pipelines/llada2/models`.
"""

from .family import LAYER, TABLE, Family

_LAYER = f"model.layers.{LAYER}"

LLADA2 = Family(
    name="llada2",
    title="LLaDA2.0",
    architectures=("LLaDA2MoeModelLM",),
    model_types=("llada2_moe",),
    renamed={"num_shared_experts": "n_shared_experts"},
    # Those of `LLaDA2MoeConfig`.
    usual={
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
    },
    # `generate` has the size of a block as an argument, with this default.
    fixed={"block_size": 32, "logit_shift": False, "attention_bias": False, "qk_norm": True},
    required={
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_bias": False,
        "norm_head": False,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
    },
    weights=(
        ("model.word_embeddings", TABLE),
        (f"{_LAYER}.attention.dense", f"{_LAYER}.self_attn.o_proj"),
        (f"{_LAYER}.attention.query_layernorm", f"{_LAYER}.self_attn.q_norm"),
        (f"{_LAYER}.attention.key_layernorm", f"{_LAYER}.self_attn.k_norm"),
        (f"{_LAYER}.mlp.gate.expert_bias", f"{_LAYER}.mlp.gate.e_score_correction_bias"),
    ),
    fused=(
        (
            f"{_LAYER}.attention.query_key_value",
            tuple(f"{_LAYER}.self_attn.{part}_proj" for part in "qkv"),
        ),
    ),
    mask_token="<|mask|>",
    end_tokens=("<|endoftext|>", "<|role_end|>"),
    sampling={"alg": "maskgit_plus", "step_schedule": "even", "threshold": 0.95},
)
