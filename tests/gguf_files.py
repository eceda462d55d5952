"""GGUF files as llama.cpp's converter writes them, by the tables of its package alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

# Of a head's rows in a file, where the two of a rotated pair are neighbours.
PERMUTED = ("llada", "llama")


def write_as_llama_cpp(
    path: Path,
    folder: Path,
    architecture: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    pre: str,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **settings,
) -> Path:
    """Converts a folder in its family's own layout.

    Args:
        tokenizer: as the family's own code has it.
        pre: the name of how its tokenizer cuts texts.
        change: adds what the converter of the architecture adds.
        kind: of matrices.
        settings: of config.json by the names of Qwen2, where the family has others.
    """
    config = json.loads((folder / "config.json").read_text()) | settings
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim") is not None:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, folder, tokenizer, config["vocab_size"], pre)
    if change is not None:
        change(writer)
    _add_tensors(writer, folder, architecture, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(
    writer: gguf.GGUFWriter,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    size: int,
    pre: str,
) -> None:
    names = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = [
        gguf.TokenType.UNUSED
        if id_ not in names
        else gguf.TokenType.NORMAL
        if id_ not in added
        else gguf.TokenType.CONTROL
        if added[id_].special
        else gguf.TokenType.USER_DEFINED
        for id_ in range(size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([names.get(id_, f"[PAD{id_}]") for id_ in range(size)])
    writer.add_token_types(kinds)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    # Its own way of finding special tokens and the chat template in a folder.
    gguf.SpecialVocab(folder, n_vocab=size).add_to_gguf(writer, quiet=True)


def _add_tensors(
    writer: gguf.GGUFWriter,
    folder: Path,
    architecture: str,
    config: dict,
    kind: gguf.GGMLQuantizationType,
) -> None:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], config["num_hidden_layers"])
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        values = tensor.float()
        for key, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if architecture in PERMUTED and key in name:
                values = side_by_side(values, config[heads])
        data = values.numpy()
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        if data.ndim == 1:
            writer.add_tensor(theirs, data)
        else:
            writer.add_tensor(theirs, gguf.quantize(data, kind), raw_dtype=kind)


def side_by_side(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Row i of a head and row i of its second half become rows 2 i and 2 i + 1."""
    width = len(rows) // heads
    order = np.arange(width).reshape(2, width // 2).T.flatten()
    return torch.cat([head[order] for head in rows.split(width)])
