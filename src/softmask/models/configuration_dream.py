"""Configuration of the network: Dream's (Qwen2.5 made bidirectional, logits shifted by one), and
what other families of masked diffusion models have in its place.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config
from transformers.utils.versions import require_version

# Older ones ignore is_causal=False and give a causal model without a word (measured on 5.0).
require_version("transformers>=5.17", "Dream needs a newer one: pip install -U transformers")


class DreamConfig(Qwen2Config):
    """Qwen2's configuration with what a masked diffusion model adds.

    Reads the original Dream-7B and Dream-Coder-7B `config.json` unchanged.

    Args:
        is_causal: False; transformers' mask functions then build bidirectional masks.
        use_sliding_window: False: every position sees all others, here as in Dream's own code.
        mask_token_id: the id of `<|mask|>`.
        logit_shift: whether row i of the transformer's output predicts position i + 1, as in the
            causal model Dream was initialised from. The model hides it: logits are aligned.
        attention_bias: whether queries, keys and values have biases, as Qwen2's.
        qk_norm: whether each head's queries and keys are normalised, as Qwen3's.
        expand_token_id: the id of `<|expand|>`, which becomes two masks; None: holes keep their
            length.
        block_size: None: every position sees all others. Else positions lie in blocks of this size,
            counted from the first, and see their own block and those before it.
        block_origin: where decoding has blocks begin: at the "start" of the text, or where the
            "prompt" ends, whose first block is then short.
        num_experts: of a layer's feed-forward, see `experts`; 0: each layer has one, dense.
        score_function: of their router, "sigmoid", or "softmax" without the last four of these.
        num_experts_per_tok: how many of them a token goes through,
        moe_intermediate_size: how wide each is.
        first_k_dense_replace: how many layers in front are dense all the same.
        n_shared_experts: how many more there are, which every token goes through.
        n_group: groups that the experts lie in, side by side,
        topk_group: of which a token's experts are chosen from this many.
        routed_scaling_factor: what the experts' sum is multiplied by.
        family: whose tokens and ways of decoding suit the model, see `families`.
        transparency_config: soft-mask parameters by their published names, which
            `diffusion_generate` takes where a call names none; an exported checkpoint has them.

    Raises:
        ValueError: causal attention or a sliding window, which no part of this code has.
    """

    model_type = "Dream"
    # transformers' modules of experts read it by this name.
    attribute_map = {"num_local_experts": "num_experts"}  # noqa: RUF012
    norm_topk_prob = True  # which `use_experts` decides by the score_function

    is_causal: bool = False
    use_cache: bool = False
    mask_token_id: int | None = 151666
    pad_token_id: int | None = 151643
    logit_shift: bool = True
    attention_bias: bool = True
    qk_norm: bool = False
    expand_token_id: int | None = None
    block_size: int | None = None
    block_origin: str = "start"
    num_experts: int = 0
    score_function: str = "sigmoid"
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 512
    first_k_dense_replace: int = 0
    n_shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    family: str = "dream"
    transparency_config: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.is_causal:
            raise ValueError("is_causal is true: Dream attends in both directions, set it to false")
        windowed = sorted(set(self.layer_types or ()) - {"full_attention"})
        if windowed or self.sliding_window is not None:
            what = windowed[0] if windowed else f"a sliding window of {self.sliding_window}"
            raise ValueError(
                f"the config asks for {what}: Dream attends to the whole text, set "
                "use_sliding_window to false and layer_types to null"
            )

    @property
    def rotates_in_part(self) -> bool:
        """Whether rotary embedding leaves the rear of each head as it is."""
        return (self.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1.0

    @property
    def feed_forward_widths(self) -> list[int]:
        """How wide each layer's feed-forward is for one token: its experts' widths together."""
        experts = self.num_experts_per_tok + self.n_shared_experts
        dense = self.first_k_dense_replace if self.num_experts else self.num_hidden_layers
        return [
            self.intermediate_size if layer < dense else experts * self.moe_intermediate_size
            for layer in range(self.num_hidden_layers)
        ]

    def to_dict(self) -> dict:
        """Also writes the flat `rope_theta`.

        transformers 5 writes `rope_parameters` alone, and the original code on transformers 4
        then falls back to 10000 without a word.
        """
        values = super().to_dict()
        if self.rope_parameters is not None:
            values["rope_theta"] = self.rope_parameters["rope_theta"]
        return values
