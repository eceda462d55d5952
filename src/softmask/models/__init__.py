"""The network: Dream on transformers' Qwen2 modules, its head, packed batches, fewer bits.
May import: config, logits, soft_mask.
Start with modeling_dream.py; checkpoint.py says what a checkpoint is.
"""

# A local registration wins over a checkpoint's `auto_map`, so the original repositories load
# through these classes, without `trust_remote_code`.
from transformers import AutoConfig, AutoModel

from .configuration_dream import DreamConfig
from .modeling_dream import DreamModel, MaskedDiffusionOutput

AutoConfig.register("Dream", DreamConfig)
AutoModel.register(DreamConfig, DreamModel)

__all__ = ["DreamConfig", "DreamModel", "MaskedDiffusionOutput"]
