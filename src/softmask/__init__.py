"""softmask: run, train, evaluate and serve soft-masked diffusion language models.

    import softmask
    checkpoint = softmask.load()                       # the bundled model; or a folder or Hub id
    print(softmask.generate(checkpoint, "One day, Tom").text)

Names are imported when first used: `import softmask` alone loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load": "hub.load",
    "Checkpoint": "models.checkpoint",
    "generate": "decoding.generation",
    "Generation": "decoding.generation",
    "Completion": "decoding.generation",
    "score": "decoding.score",
    "edit": "serving.edits",
    "Edit": "serving.edits",
    "Estimate": "decoding.likelihood",
    "trace": "tracing",
    "Trace": "tracing",
    "denoise": "decoding.sampler",
    "DenoiseStep": "decoding.sampler",
    "DreamConfig": "models",
    "DreamModel": "decoding.diffusion_generate",
    "SamplingConfig": "sampling",
    "SoftMaskConfig": "config",
    "Constraint": "constraints.constraint",
    "commit_rule": "rules",
    "feedback_rule": "rules",
    "stopping_rule": "rules",
    "MaskedRows": "rule_inputs",
    "TextSoFar": "rule_inputs",
}
__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:  # the same names once more, for what reads types and runs nothing
    from .config import SoftMaskConfig as SoftMaskConfig
    from .constraints.constraint import Constraint as Constraint
    from .decoding.diffusion_generate import DreamModel as DreamModel
    from .decoding.generation import Completion as Completion
    from .decoding.generation import Generation as Generation
    from .decoding.generation import generate as generate
    from .decoding.likelihood import Estimate as Estimate
    from .decoding.sampler import DenoiseStep as DenoiseStep
    from .decoding.sampler import denoise as denoise
    from .decoding.score import score as score
    from .hub.load import load as load
    from .models import DreamConfig as DreamConfig
    from .models.checkpoint import Checkpoint as Checkpoint
    from .rule_inputs import MaskedRows as MaskedRows
    from .rule_inputs import TextSoFar as TextSoFar
    from .rules import commit_rule as commit_rule
    from .rules import feedback_rule as feedback_rule
    from .rules import stopping_rule as stopping_rule
    from .sampling import SamplingConfig as SamplingConfig
    from .serving.edits import Edit as Edit
    from .serving.edits import edit as edit
    from .tracing import Trace as Trace
    from .tracing import trace as trace
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'softmask' has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
