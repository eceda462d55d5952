"""Tiny random models, and folders in the layout of the original Dream repositories."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from softmask.hub.adapters import quiet_peft
from softmask.hub.load import load
from softmask.models import DreamConfig, DreamModel
from softmask.soft_mask import SoftMask, confidence

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# The second layer's feed-forward as LLaDA2.0 has it.
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


TOOL_TOKENS = ["<tool_call>", "</tool_call>"]
# As Qwen2.5's and Dream's, in fewer words.
TOOL_TEMPLATE = """{% if tools %}<|im_start|>system
<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
<tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.tool_calls %}<|im_start|>assistant{% if m.content %}{{ '\n' + m.content }}{% endif %}
{%- for call in m.tool_calls %}{{ '\n<tool_call>\n{"name": "' + call.function.name }}
{{- '", "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tiny_model(seed: int = 0, **shape) -> DreamModel:
    """A random model in fp32 whose last id is the mask."""
    torch.manual_seed(seed)
    values = {"vocab_size": 64, **SHAPE, **shape}
    config = DreamConfig(
        **values, mask_token_id=values["vocab_size"] - 1, pad_token_id=None, eos_token_id=0
    )
    model = DreamModel(config).eval()
    with torch.no_grad():  # wider than the usual 0.02, so that predictions differ
        for parameter in model.parameters():
            parameter.normal_(0, 0.25)
    return model


def write_dream_folder(
    path: Path, *, shards: int = 1, seed: int = 0, chat: bool = False, tools: bool = False, **shape
) -> Path:
    """Writes a random checkpoint as Dream's authors did: shards, auto_map, vocab and merges.

    With `tools` its chat template knows tools, and calls have control tokens.
    """
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = ["t h", "th e", "o n"]
    for merge in merges:
        vocabulary[merge.replace(" ", "")] = len(vocabulary)
    added = [*SPECIAL, *(TOOL_TOKENS if tools else ())]
    special = {token: len(vocabulary) + i for i, token in enumerate(added)}
    config = {
        "architectures": ["DreamModel"],
        "auto_map": {
            "AutoConfig": "configuration_dream.DreamConfig",
            "AutoModel": "modeling_dream.DreamModel",
        },
        "model_type": "Dream",
        **SHAPE,
        # Like the original, the table has more rows than the tokenizer has tokens.
        "vocab_size": 272,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|endoftext|>"],
        "pad_token_id": special["<|endoftext|>"],
        "mask_token_id": special["<|mask|>"],
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_window_layers": 2,
        "sliding_window": None,
        "use_sliding_window": False,
        "use_cache": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        **shape,
    }
    write_json(path / "config.json", config)
    sizes = {key: config[key] for key in ("vocab_size", *SHAPE)}
    model = tiny_model(seed, **sizes)
    tensors = {k: v.contiguous() for k, v in model.to(torch.bfloat16).state_dict().items()}
    _write_weights(path, tensors, shards)
    write_json(path / "vocab.json", vocabulary)
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_json(path / "added_tokens.json", special)
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in SPECIAL,
            }
            for token, i in special.items()
        },
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "unk_token": None,
        "model_max_length": 131072,
    }
    if chat or tools:
        settings["chat_template"] = TOOL_TEMPLATE if tools else CHAT_TEMPLATE
    write_json(path / "tokenizer_config.json", settings)
    names = ("bos_token", "eos_token", "pad_token", "mask_token")
    write_json(path / "special_tokens_map.json", {name: settings[name] for name in names})
    return path


def write_dora_adapter(path: Path, base: Path):
    """A DoRA adapter with random weights for the checkpoint in `base`; returns it unmerged."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return write_lora_adapter(path, base, use_dora=True, target_modules=targets)


def write_lora_adapter(path: Path, base: Path, **settings):
    """An adapter by peft's settings; whatever it trains is random. Returns it unmerged."""
    import peft

    model = load(base, device="cpu").model
    config = peft.LoraConfig(r=4, lora_alpha=4, **settings)
    with quiet_peft():
        wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(path)
    change_json(path / "adapter_config.json", base_model_name_or_path=str(base))
    return wrapped.eval()


def change_json(path: Path, **values) -> None:
    """Sets keys of a JSON file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def bytes_of(module) -> int:
    """Bytes of its parameters and buffers, the scales of bitsandbytes' 4 bits included."""
    tensors = [*module.parameters(), *module.buffers()]
    states = [state for t in tensors if (state := getattr(t, "quant_state", None)) is not None]
    while states:
        state = states.pop()
        tensors += [t for t in vars(state).values() if isinstance(t, torch.Tensor)]
        states += [state.state2] if state.nested else []
    return sum(tensor.nbytes for tensor in tensors)


def write_json(path: Path, values) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def _write_weights(path: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def weight_at(mask: SoftMask, entropy_N: torch.Tensor) -> torch.Tensor:
    """(N,) the published weight of the feedback where the entropy is this."""
    return mask.scale * confidence(entropy_N, mask.offset, mask.steepness)
