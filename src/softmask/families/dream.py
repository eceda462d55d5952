"""Dream and Dream-Coder (DreamLM/Dream): Qwen2.5 made bidirectional, its shift by one kept."""

from .family import END_TOKENS, Family

DREAM = Family(
    name="dream",
    title="Dream",
    architectures=("DreamModel",),
    model_types=("Dream",),
    # DiffuCoder's padding, which its own code cuts answers at.
    end_tokens=(*END_TOKENS, "<|dlm_pad|>"),
)
