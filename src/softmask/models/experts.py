"""Feed-forwards of experts in place of one: transformers' own modules, those of GLM-4.5.

A router's sigmoid and a bias of each expert choose groups of experts, and of these the experts of
a token; shared experts see all tokens. Each token is routed by itself, so that a text does not
depend on its batch. No auxiliary loss is added: the published code computes none.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Qwen2PreTrainedModel
from transformers import initialization as init
from transformers.models.glm4_moe.modeling_glm4_moe import (
    Glm4MoeExperts,
    Glm4MoeMoE,
    Glm4MoeTopkRouter,
)

from .configuration_dream import DreamConfig


class WithExperts(Qwen2PreTrainedModel):
    """What transformers asks of the class of a model that may have experts."""

    config: DreamConfig
    # Added to scores of about the same size, of which 8 bits of a mantissa would make many equal.
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]  # noqa: RUF012

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # So that a layer's experts are one grouped product. Else transformers looks into the text
        # of the class's own module, where the experts are not.
        return True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Glm4MoeTopkRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.e_score_correction_bias)
        elif isinstance(module, Glm4MoeExperts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)


def experts_of(layers: Any) -> list[Glm4MoeExperts]:
    """The experts of each layer that has any, without the shared ones."""
    return [layer.mlp.experts for layer in layers if isinstance(layer.mlp, Glm4MoeMoE)]


def use_experts(layers: Any, config: DreamConfig) -> None:
    """Gives every layer behind the first, dense ones its experts, in place."""
    make: Any = Glm4MoeMoE  # which reads nothing of GLM's own configuration
    for layer in layers[config.first_k_dense_replace :]:
        layer.mlp = make(config)
