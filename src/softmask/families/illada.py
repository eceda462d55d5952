"""iLLaDA-8B (arXiv 2606.25331): Llama's names and shape with shared keys and values, no shift.

Its remote code was read as a copy; no checkpoint has been loaded here.
"""

from .family import Family
from .llada import LLADA

ILLADA = Family(
    name="illada",
    title="iLLaDA",
    architectures=("ILLaDAForCausalLM",),
    model_types=("illada",),
    fixed={"logit_shift": False, "attention_bias": False},
    required={"mlp_bias": False},
    mask_token="<[MASK]>",
    sampling=LLADA.sampling,
    training=LLADA.training,
)
