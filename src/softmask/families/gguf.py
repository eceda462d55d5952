"""GGUF, llama.cpp's format: what its converter calls settings, weights and tokenizers. No torch.

Facts of ggml-org/llama.cpp: `conversion/` (dream.py, llada.py, qwen.py, llama.py, base.py),
`src/llama-vocab.cpp`, `src/models/`. Keys of an architecture stand behind its name, as in
`dream.block_count`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .family import HEAD, LAYER, NORM, TABLE, Family, renamed
from .registry import FAMILIES

SUFFIX = ".gguf"


@dataclass(frozen=True)
class Architecture:
    """One value of `general.architecture`, and what a model under it is.

    Args:
        name: as the file has it.
        family: of its models, where nothing else is said; of a causal architecture only where
            the file denies `attention.causal`.
        biases: whether queries, keys and values have biases.
        norms: whether each head's queries and keys are normalised.
        permuted: whether rows of queries and keys lie in llama.cpp's order of a head, in which
            the two halves of a rotated pair are neighbours.
        denoises: whether llama.cpp knows it as a diffusion model, and its CLI denoises.
        rope_factors: whether llama.cpp multiplies its frequencies by the tensor `rope_freqs`.
    """

    name: str
    family: str
    biases: bool = False
    norms: bool = False
    permuted: bool = False
    denoises: bool = False
    rope_factors: bool = False

    def suits(self, family: Family) -> bool:
        """Whether its networks are those of the family."""
        network = family.network
        biases, norms = network.get("attention_bias", True), network.get("qk_norm", False)
        return (self.biases, self.norms) == (biases, norms) and not network.get("num_experts")


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("dream", "dream", biases=True, denoises=True),
        Architecture("llada", "llada", permuted=True, denoises=True),
        Architecture("qwen2", "a2d-qwen2", biases=True),
        Architecture("qwen3", "a2d-qwen3", norms=True),
        Architecture("llama", "a2d-llama", permuted=True, rope_factors=True),
    )
}
_BLOCK, _OURS = f"blk.{LAYER}", f"model.layers.{LAYER}"
WEIGHTS = (
    ("token_embd", TABLE),
    ("output_norm", NORM),
    ("output", HEAD),
    (f"{_BLOCK}.attn_norm", f"{_OURS}.input_layernorm"),
    (f"{_BLOCK}.attn_q", f"{_OURS}.self_attn.q_proj"),
    (f"{_BLOCK}.attn_k", f"{_OURS}.self_attn.k_proj"),
    (f"{_BLOCK}.attn_v", f"{_OURS}.self_attn.v_proj"),
    (f"{_BLOCK}.attn_output", f"{_OURS}.self_attn.o_proj"),
    (f"{_BLOCK}.attn_q_norm", f"{_OURS}.self_attn.q_norm"),
    (f"{_BLOCK}.attn_k_norm", f"{_OURS}.self_attn.k_norm"),
    (f"{_BLOCK}.ffn_norm", f"{_OURS}.post_attention_layernorm"),
    (f"{_BLOCK}.ffn_gate", f"{_OURS}.mlp.gate_proj"),
    (f"{_BLOCK}.ffn_up", f"{_OURS}.mlp.up_proj"),
    (f"{_BLOCK}.ffn_down", f"{_OURS}.mlp.down_proj"),
)
ROPE_FACTORS = "rope_freqs.weight"
# Whose rows `permuted` is about.
ROTATED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")

# Keys of an architecture, by the names of `ConfigFile`.
SHAPE = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
ROPE = {
    "rope_theta": "rope.freq_base",
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
CAUSAL, VALUE_LENGTH = "attention.causal", "attention.value_length"
ROTATED_WIDTH, VOCABULARY = "rope.dimension_count", "vocab_size"
# Of all published Llama 3.1 and 3.2; the factors alone are in a file.
LLAMA_3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# Keys of the file as a whole.
ARCHITECTURE, SHIFT, PARTS = "general.architecture", "diffusion.shift_logits", "split.count"
# What only softmask says and reads: settings without a key of their own, as JSON.
OWN_CONFIG, OWN_SAMPLING = "softmask.config", "softmask.sampling"
OWN_KEYS = (
    *("family", "block_size", "block_origin", "expand_token_id", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "rope_parameters", "transparency_config"),
)

TOKENIZER = "tokenizer.ggml"
# Byte-level BPE, as GPT-2's.
TOKENIZER_MODEL = "gpt2"
# The whole tokenizer.json, which the format has a key for and llama.cpp does not write.
TOKENIZER_JSON, TEMPLATE = "tokenizer.huggingface.json", "tokenizer.chat_template"
# Of special tokens, with the fields of tokenizer_config.json.
NAMED_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelt so there
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
# Kinds of tokens.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class Cut:
    """How a tokenizer cuts a text before its merges: `tokenizer.ggml.pre`.

    Args:
        pattern: of the pieces; None: GPT-2's own, which is built into byte-level BPE.
        nfc: whether the original normalises the text first, which no key says.
        whole: whether a piece that is a token stays one, whatever the merges (`ignore_merges`).
        alike: further names of it.
    """

    pattern: str | None
    nfc: bool = False
    whole: bool = False
    alike: tuple[str, ...] = ()


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    "qwen2": Cut(rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}", nfc=True, alike=("deepseek-r1-qwen",)),
    "llama-bpe": Cut(
        rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", whole=True, alike=("llama3", "llama-v3")
    ),
    # Of Ling, which LLaDA-8B shares the size of its vocabulary with.
    "bailingmoe": Cut(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
        r"\s*[\r\n]|\s+(?!\S)|\s+",
        alike=("bailingmoe2", "llada-moe"),
    ),
    "gpt-2": Cut(None),
}


def own_name(name: str) -> str:
    """What a tensor of a file is called here; others keep their names."""
    return renamed(name, WEIGHTS)


def gguf_name(name: str) -> str:
    """The inverse of `own_name`."""
    return renamed(name, tuple((ours, theirs) for theirs, ours in WEIGHTS))


def cut_named(name: str) -> Cut | None:
    """How a tokenizer of this `tokenizer.ggml.pre` cuts; None: that is not known here."""
    found = [cut for key, cut in CUTS.items() if name in (key, *cut.alike)]
    return found[0] if found else None


def cut_of(pattern: str | None) -> str | None:
    """The name of the cut with this pattern; None: there is none."""
    return next((key for key, cut in CUTS.items() if cut.pattern == pattern), None)


def families_of(architecture: Architecture) -> list[str]:
    """The names of the families that a user may say a file of this architecture to be of."""
    return [name for name, family in FAMILIES.items() if architecture.suits(family)]


def architecture_for(
    *, biases: bool, norms: bool, rope_factors: bool, whole: bool
) -> Architecture | None:
    """The architecture that such a network is written under; None: llama.cpp has none.

    One whose models llama.cpp denoises, where there is one and it would do so rightly.

    Args:
        biases: as in `Architecture`.
        norms: as in `Architecture`.
        rope_factors: whether its frequencies are multiplied by factors.
        whole: whether every position sees all others, as llama.cpp has it.
    """
    fitting = [
        one
        for one in ARCHITECTURES.values()
        if (one.biases, one.norms) == (biases, norms) and (one.rope_factors or not rope_factors)
    ]
    fitting.sort(key=lambda one: one.denoises, reverse=whole)
    return fitting[0] if fitting else None
