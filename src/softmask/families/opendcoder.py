"""Open-dCoder 0.5B: Qwen2.5-Coder under its own class, called without a causal mask, with shift.

pengzhangzhi/Open-dLLM. Nothing in its files tells it from Qwen2, so a user has to say it.
"""

from .family import Family

OPEN_DCODER = Family(
    name="opendcoder",
    title="Open-dCoder",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    explicit=True,
    hub=("fredzzp/open-dcoder-0.5B",),
    mask_token="<M>",
    bos=True,
    training={"noise": {"t_low": 1e-3, "t_high": 1.0}, "train": {"weighting": "mean"}},
)
