"""Feed-forwards of experts in place of one: transformers' own modules, GLM-4.5's and Qwen3's.

GLM-4.5's router chooses groups of experts by a sigmoid and a bias of each, and of these the experts
of a token; shared experts see all tokens. Qwen3's takes the best by a softmax. Each token is routed
by itself, so that a text does not depend on its batch. No auxiliary loss is added: the published
code computes none for its loss.
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
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeExperts,
    Qwen3MoeSparseMoeBlock,
    Qwen3MoeTopKRouter,
)

from .configuration_dream import DreamConfig

ROUTERS, EXPERTS = (Glm4MoeTopkRouter, Qwen3MoeTopKRouter), (Glm4MoeExperts, Qwen3MoeExperts)
LAYERS = {"sigmoid": Glm4MoeMoE, "softmax": Qwen3MoeSparseMoeBlock}


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
        if isinstance(module, (*ROUTERS, *EXPERTS)):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)
            for bias in module.buffers(recurse=False):
                init.zeros_(bias)


def in_full_precision(name: str) -> bool:
    """Whether the weight of this name keeps its dtype where others are written in a smaller one."""
    return any(part in name for part in WithExperts._keep_in_fp32_modules_strict)


def experts_of(layers: Any) -> list[nn.Module]:
    """The experts of each layer that has any, without the shared ones."""
    return [m for layer in layers for m in layer.mlp.modules() if isinstance(m, EXPERTS)]


def use_experts(layers: Any, config: DreamConfig) -> None:
    """Gives every layer behind the first, dense ones its experts, in place."""
    make: Any = LAYERS[config.score_function]  # which read our configuration for their own
    for layer in layers[config.first_k_dense_replace :]:
        layer.mlp = make(config)
        # A sigmoid's weights of a token's experts sum to the routed_scaling_factor.
        layer.mlp.gate.norm_topk_prob = config.score_function == "sigmoid"
