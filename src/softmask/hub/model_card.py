"""README.md of an exported folder: what it is, what it comes from, how to use it."""

from __future__ import annotations

from .. import __version__
from ..config import SOFT_MASK_FILE, SoftMaskConfig, soft_mask_to_published
from ..families.family import Family
from ..families.registry import by_name
from ..models.checkpoint import Source
from .folder import ADAPTER_FILE, is_on_hub, read_mapping

# By this line an export is known again.
WRITTEN_BY = "Written by `softmask export`"
# The original layout has no place for soft-mask parameters.
PLAIN_ELSEWHERE = (
    f"its soft-mask parameters are in {SOFT_MASK_FILE}, which softmask reads; the family's own "
    "code does not, and decodes plainly"
)


def model_card(source: Source, title: str, original: bool) -> str:
    """README.md: what it is, what it comes from, how to use it."""
    base = base_model(source)
    # No pipeline_tag: no pipeline of transformers denoises.
    front = ["---", "library_name: transformers"]
    front += [f"base_model: {base}"] if base else []
    family = by_name(source.config.family)
    front += ["tags:", f"- {family.name}", "- diffusion", "- masked-diffusion"]
    front += ["- soft-masking"] if source.soft_mask is not None else []
    what = f"[{base}](https://huggingface.co/{base})" if base else f"a {family.title} model"
    merged = " with an adapter merged into its weights" if source.adapter is not None else ""
    about = f"A masked diffusion language model: {what}{merged}"
    weights = "the weights are under the licence of the model they come from."
    written = f"{WRITTEN_BY} (softmask {__version__})."
    if original:
        texts = _original_text(source, family, title, about)
        texts += [f"{written} It changed no code; {weights}"]
    else:
        texts = [
            f"{about}, with its modelling and generation code in this repository. It needs torch, "
            "and transformers 5.17 or later.",
            f"```python\n{_usage(source, title)}```",
            _soft_mask_text(source.soft_mask),
            f"{written} The code is under the Apache-2.0 licence; {weights}",
        ]
    parts = ["\n".join([*front, "---"]), f"# {title}", *texts]
    return "\n\n".join(parts) + "\n"


def _original_text(source: Source, family: Family, title: str, about: str) -> list[str]:
    command = f"softmask generate PROMPT --model {title}"
    command += f" --family {family.name}" if family.explicit else ""
    texts = [
        f"{about}, in the layout of {family.title}'s own files. Its own code and tools load it, "
        f"and so does softmask: `{command}`."
    ]
    if source.soft_mask is not None:
        texts.append(f"{PLAIN_ELSEWHERE[0].upper()}{PLAIN_ELSEWHERE[1:]}.")
    return texts


def base_model(source: Source) -> str | None:
    """The Hub id of the base model, where one is known."""
    names = [source.name]
    if source.adapter is not None:
        names.append(
            str(read_mapping(source.adapter / ADAPTER_FILE).get("base_model_name_or_path"))
        )
    return next(filter(is_on_hub, names), None)


def _usage(source: Source, title: str) -> str:
    prompt = 'inputs = tokenizer("One day,", return_tensors="pt")\n'
    if source.tokenizer.chat_template:
        prompt = (
            'messages = [{"role": "user", "content": "Write a haiku about masks."}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
            ")\n"
        )
    return (
        "from transformers import AutoModel, AutoTokenizer\n\n"
        f'name = "{title}"  # on the Hub, or a folder with these files\n'
        "tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)\n"
        'model = AutoModel.from_pretrained(name, trust_remote_code=True, dtype="auto").eval()\n'
        f"{prompt}"
        "ids = model.diffusion_generate(\n"
        "    inputs.input_ids, attention_mask=inputs.attention_mask,\n"
        '    max_new_tokens=64, steps=64, alg="entropy",\n'
        ")\n"
        "print(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))\n"
    )


def _soft_mask_text(soft_mask: SoftMaskConfig | None) -> str:
    if soft_mask is None:
        return (
            "It has no soft-mask parameters of its own: `diffusion_generate` soft-masks "
            "([arXiv 2510.17206](https://arxiv.org/abs/2510.17206)) where a call gives "
            "`transparency_alg` and the parameters."
        )
    rows = "\n".join(
        f"| `{key}` | {value} |" for key, value in soft_mask_to_published(soft_mask).items()
    )
    return (
        "It decodes with soft-masking ([arXiv 2510.17206](https://arxiv.org/abs/2510.17206)) by "
        'default; `transparency_alg="none"` turns that off. Its parameters:\n\n'
        f"| argument of `diffusion_generate` | value |\n|---|---|\n{rows}"
    )
