"""Fast-dLLM v2: Qwen2.5 made block-causal, blocks of 32 decided in parts of 8, with shift.

NVlabs/Fast-dLLM: `v2`. A block's first token is what the full block in front predicts.
"""

from .family import Family

FAST_DLLM_2 = Family(
    name="fastdllm2",
    title="Fast-dLLM v2",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    model_types=("Fast_dLLM_Qwen",),
    renamed={"bd_size": "block_size"},
    usual={"block_size": 32},
    mask_token="|<MASK>|",
    sampling={"alg": "maskgit_plus", "threshold": 0.9, "block_length": 8},
    # Its masks come in pairs, each the other's complement; here each row is masked once.
    training={"noise": {"t_low": 1e-3, "t_high": 1.0}, "train": {"weighting": "mean"}},
)
