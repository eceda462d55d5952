"""LLaDA-8B and LLaDA-1.5: a Llama shape under names of its own, full attention, no shift.

ML-GSAI/LLaDA: `configuration_llada.py`, `modeling_llada.py`, `generate.py`.
"""

from typing import Any

from .family import HEAD, LAYER, NORM, TABLE, Family

_THEIRS, _OURS = f"model.transformer.blocks.{LAYER}", f"model.layers.{LAYER}"
# Its GUIDELINES.md: t over all of (0, 1], the bound per token of an answer with its padding.
TRAINING: dict[str, dict[str, Any]] = {
    "noise": {"t_low": 1e-3, "t_high": 1.0, "at_least_one": False},
    "train": {"weighting": "answer"},
}

LLADA = Family(
    name="llada",
    title="LLaDA",
    architectures=("LLaDAModelLM",),
    model_types=("llada",),
    renamed={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "mlp_hidden_size": "intermediate_size",
        "embedding_size": "vocab_size",
        "max_sequence_length": "max_position_embeddings",
        "activation_type": "hidden_act",
        "init_std": "initializer_range",
        "weight_tying": "tie_word_embeddings",
    },
    fixed={"logit_shift": False, "attention_bias": False},
    required={
        "block_type": "llama",
        "layer_norm_type": "rms",
        "rope": True,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
    },
    # Where config.json does not say otherwise, its own code drops a tenth while it trains.
    further={"embedding_dropout": 0.0, "residual_dropout": 0.0},
    weights=(
        ("model.transformer.wte", TABLE),
        ("model.transformer.ln_f", NORM),
        ("model.transformer.ff_out", HEAD),
        (f"{_THEIRS}.attn_norm", f"{_OURS}.input_layernorm"),
        (f"{_THEIRS}.ff_norm", f"{_OURS}.post_attention_layernorm"),
        (f"{_THEIRS}.q_proj", f"{_OURS}.self_attn.q_proj"),
        (f"{_THEIRS}.k_proj", f"{_OURS}.self_attn.k_proj"),
        (f"{_THEIRS}.v_proj", f"{_OURS}.self_attn.v_proj"),
        (f"{_THEIRS}.attn_out", f"{_OURS}.self_attn.o_proj"),
        (f"{_THEIRS}.ff_proj", f"{_OURS}.mlp.gate_proj"),
        (f"{_THEIRS}.up_proj", f"{_OURS}.mlp.up_proj"),
        (f"{_THEIRS}.ff_out", f"{_OURS}.mlp.down_proj"),
    ),
    mask_token="<|mdm_mask|>",
    end_tokens=("<|endoftext|>", "<|eot_id|>"),
    answer_header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    sampling={"alg": "maskgit_plus", "step_schedule": "even", "raw_scores": True},
    training=TRAINING,
    trains_padding=True,
)
