"""From a recipe to what is trained: the model, its adapter, its soft-mask parameters."""

from __future__ import annotations

import dataclasses
import random
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..config import SoftMaskConfig, sampling_mapping
from ..hub.adapters import quiet_peft, require_peft
from ..hub.checkpoints import local_place
from ..hub.gguf_file import read_head
from ..hub.load import load, own_sampling
from ..models import DreamConfig, DreamModel
from ..puzzles.puzzles import generate_puzzles, prompt_of
from ..soft_mask import FIXED, SoftMask, check_k
from .config import CorpusConfig, ModelShape, Recipe
from .corpus import read_documents, train_tokenizer


class Trainable(NamedTuple):
    """`model` is what the trainer calls, and `dream` the DreamModel inside it or `model` itself.

    `sampling` is what the base's sampling_config.json says, where it holds for the result too.
    """

    model: nn.Module
    dream: DreamModel
    tokenizer: PreTrainedTokenizerFast
    documents: list[str]
    sampling: dict[str, Any]


def build(recipe: Recipe, device: torch.device) -> Trainable:
    """The model of a recipe, ready to be trained.

    Raises:
        ValueError: what `load` refuses, a missing text, k beyond the vocabulary, or an adapter
            that fits nothing.
    """
    corpus = recipe.corpus
    documents = [] if corpus is None else read_documents(corpus.text)
    torch.manual_seed(recipe.seed)
    sampling: dict[str, Any] = {}
    if recipe.model.path is None:
        assert corpus is not None  # as a recipe without a model has one
        tokenizer = make_tokenizer(corpus, recipe.model.shape, documents, recipe.seed)
        dream = from_nothing(recipe.model.shape, tokenizer)
    else:
        dream, tokenizer, sampling = from_checkpoint(recipe, device)
    if recipe.model.block_size not in (None, dream.config.block_size):
        dream.config.block_size = recipe.model.block_size
        sampling = {}  # it may name another block_length, or a cache of a model that sees all
    attention = recipe.model.attention
    if attention is None and device.type == "cpu" and corpus is not None:
        # At short rows the fused kernel's backward is 38 % of a step: 0.31 s instead of 0.16
        # (bfloat16, 64 rows of 51 tokens, two cores).
        attention = "eager"
    if attention is not None:
        set_attention(dream, attention)
    model = dream if recipe.adapter is None else add_adapter(dream, recipe)
    dream.soft_mask = None if recipe.soft_mask is None else learnable(recipe.soft_mask, dream)
    return Trainable(model, dream, tokenizer, documents, sampling)


def set_attention(model: DreamModel, attention: str) -> None:
    """Chooses the attention kernel of an installed library; none is fetched from the Hub.

    Raises:
        ValueError: there is no such kernel, or its library is missing.
    """
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if attention not in known:
        raise ValueError(f"model.attention must be one of {', '.join(known)}, not {attention!r}")
    try:
        model.set_attn_implementation(attention)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.attention: {attention} cannot be had ({reason})") from error


def learnable(config: SoftMaskConfig, model: DreamModel) -> SoftMask:
    """Trainable soft-mask parameters with these initial values; in fp32 always."""
    check_k(config.k, model.config.vocab_size)
    values = (config.scale, config.offset, config.steepness, config.temperature)
    mask = SoftMask(*values, **{name: getattr(config, name) for name in FIXED})
    return mask.to(model.device)


def from_nothing(shape: ModelShape, tokenizer: PreTrainedTokenizerFast) -> DreamModel:
    """A randomly initialised model of this shape."""
    return DreamModel(
        DreamConfig(
            **dataclasses.asdict(shape),
            mask_token_id=tokenizer.mask_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            architectures=["DreamModel"],
        )
    )


def make_tokenizer(
    corpus: CorpusConfig, shape: ModelShape, documents: list[str], seed: int
) -> PreTrainedTokenizerFast:
    """The BPE of a pretraining recipe, trained on its text and some of its puzzles."""
    puzzles = generate_puzzles(random.Random(seed).getrandbits(60), corpus.puzzles)
    texts = [prompt_of(p) + p.output for p in islice(puzzles, 200)]
    return train_tokenizer(texts + documents[:4000], shape.vocab_size)


def from_checkpoint(
    recipe: Recipe, device: torch.device
) -> tuple[DreamModel, PreTrainedTokenizerFast, dict[str, Any]]:
    """The checkpoint that is fine-tuned, frozen where an adapter is to be trained.

    Returns:
        The model, its tokenizer, and what its sampling_config.json says.
    """
    settings = recipe.model
    dtype = settings.dtype or ("float32" if recipe.adapter is None else None)
    checkpoint = load(
        settings.path,
        device=device,
        dtype=dtype,
        revision=settings.revision,
        family=settings.family,
        load_in_4bit=settings.load_in_4bit,
    )
    if recipe.adapter is None and getattr(checkpoint.model, "is_quantized", False):
        raise ValueError(f"{settings.path} is in 4 bits, which cannot be trained: add an adapter")
    # The run has soft-mask parameters of its own, in place of an exported model's.
    checkpoint.model.config.transparency_config = None
    checkpoint.model.requires_grad_(recipe.adapter is None)
    if checkpoint.family.trains_padding:
        checkpoint.model.model.embed_tokens.padding_idx = None
    source = checkpoint.source
    assert source is not None  # as of all that is loaded
    head = read_head(source.folder) if source.is_gguf else None
    return checkpoint.model, checkpoint.tokenizer, sampling_mapping(*own_sampling(source, head))


def add_adapter(dream: DreamModel, recipe: Recipe) -> nn.Module:
    """A PeftModel around the model, its own parameters in fp32.

    Raises:
        ValueError: peft is missing, or a target module is in no layer.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model

    settings = recipe.adapter
    assert settings is not None
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float serves too
        lora_dropout=settings.dropout,
        bias=settings.bias,  # type: ignore[arg-type]  # one of BIASES
        use_dora=settings.dora,
        target_modules=list(settings.target_modules),
        layers_to_transform=None if settings.layers is None else list(settings.layers),
        revision=recipe.model.revision,
    )
    modules = dream.model.layers.named_modules()
    names = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    for target in settings.target_modules:
        if target not in names:  # experts are none: they lie in one tensor
            raise ValueError(
                f"target_modules: no layer has a linear module {target!r}: correct its name"
            )
    with quiet_peft():
        model = get_peft_model(dream, config)
    written = model.peft_config["default"]
    assert isinstance(written, LoraConfig)
    # The Hub id that others can load, not a folder in this machine's cache. A relative path of a
    # local base would hold in this folder alone.
    path = recipe.model.path
    here = None if path is None else local_place(path)
    written.base_model_name_or_path = path if here is None else str(here.resolve())
    # peft keeps a set, whose order in adapter_config.json would differ from process to process.
    written.target_modules = sorted(written.target_modules or ())
    return model


def describe(dream: DreamModel) -> dict[str, Any]:
    """How many parameters there are, and how many are trained."""
    return {
        "parameters": dream.num_parameters(),
        "trained": dream.num_parameters(only_trainable=True),
    }
