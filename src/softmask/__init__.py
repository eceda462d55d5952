"""softmask: run, train, evaluate and serve soft-masked diffusion language models.

    import softmask
    checkpoint = softmask.load()                       # the bundled model; or a folder or Hub id
    print(softmask.generate(checkpoint, "One day, Tom").text)

Names are imported when first used: `import softmask` alone loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'softmask' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
