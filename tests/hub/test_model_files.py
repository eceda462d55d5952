"""The files of a model folder: what counts in them, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_dream_folder, write_json
from transformers import AutoTokenizer, Qwen2Tokenizer

import softmask
from softmask.hub.checkpoints import find
from softmask.hub.export import export
from softmask.hub.push import files_to_push

YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
CONFIG_FAULTS = [
    ({"expand_token_id": 260}, "do not agree on the id of <.expand.>"),
    ({"expand_token_id": 10**6}, "expand_token_id 1000000 is not in the vocabulary"),
    ({"architectures": ["DreamForVision"]}, "family .DreamForVision."),
    ({"block_size": 32}, "that model is block-causal"),
    ({"num_experts": 8}, "that model has experts"),
    ({"family": "llada2", "num_experts": 6}, "6 experts in 1 groups, of which 1 are taken"),
    ({"family": "llada2", "num_experts": 10**6}, r"num_experts must be in \[0, 65536\]"),
    ({"family": "llada2", "num_experts": 8, "moe_intermediate_size": 20}, "8 must divide"),
    ({"family": "lladamoe", "num_experts": 8, "score_function": "softmax"}, "no n_shared_experts"),
    ({"family": "sdar", "partial_rotary_factor": 0.3}, "of a head cannot turn in pairs"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is for heads with qk_norm"),
    ({"family": "sdar", "block_size": 0}, r"block_size must be in \[1, 65536\], not 0"),
    ({"family": "sdar", "block_origin": "end"}, "block_origin must be one of"),
    ({"is_causal": True}, "is_causal is true"),
    ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_att"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding_attention"),
    ({"layer_types": []}, "layer_types must be null"),
    ({"use_mrope": True}, "use_mrope"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "not 'dynamic'"),
    ({"rope_scaling": {"type": "su"}}, "rope_type must be one of"),
    ({"rope_scaling": {"type": "linear"}}, "linear needs factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be in"),
    ({"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}}, "unknown setting"),
    ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta is 1000000.0, and 10000.0"),
    ({"rope_theta": 0}, "rope_theta must be in"),
    ({"rope_scaling": []}, "must be a mapping"),
    ({"torch_dtype": "int8"}, "dtype must be one of"),
    ({"hidden_size": None}, "hidden_size must be int"),
    ({"hidden_size": 10**12}, "hidden_size must be in"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers must be in"),
    ({"num_hidden_layers": 1}, "have unknown model.layers.1"),
    ({"num_attention_heads": 3}, "cannot share"),
    ({"num_attention_heads": 32}, "rotary embedding needs pairs"),
    ({"vocab_size": -1}, "vocab_size must be in"),
    ({"vocab_size": 10**400}, "vocab_size is too large a number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be float"),
    ({"hidden_act": "xielu"}, "hidden_act must be one of"),
    ({"eos_token_id": [1, -7]}, "eos_token_id"),
    ({"pad_token_id": 10**6}, "pad_token_id 1000000 is not in"),
    ({"tie_word_embeddings": "yes"}, "must be bool"),
    ({"transparency_config": [1]}, "transparency_config must be"),
]
# Keys that would steer transformers, not the model: without a meaning here.
STEERING = {
    "attn_implementation": "kernels-community/flash-attn",
    "_attn_implementation": "someone/kernel",
    "experts_implementation": "someone/kernel",
    "num_labels": 10**12,
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "single_label_classification",
    "per_layer_config": 7,
    "to_dict": "x",
}


def change(path: Path, **values) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        find(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_dream_folder(tmp_path / "dream", chat=True)


@pytest.fixture
def newer(folder) -> Path:
    """The same model as transformers 5 saves its tokenizer: in one file."""
    Qwen2Tokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(("values", "message"), CONFIG_FAULTS)
def test_a_config_of_another_model_or_of_none_is_refused(folder, values, message) -> None:
    change(folder / "config.json", **values)
    refused(folder, message)


@pytest.mark.parametrize("dtype", ["torch.float16", "float16"])
def test_a_dtype_may_be_written_as_torch_prints_it(folder, dtype) -> None:
    change(folder / "config.json", torch_dtype=dtype)
    assert softmask.load(folder, device="cpu", dtype="auto").model.dtype == torch.float16
    out = export(folder.parent / "out", folder)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"


def test_keys_that_steer_transformers_have_no_effect_and_are_not_exported(folder) -> None:
    plain = softmask.load(folder, device="cpu").model
    change(folder / "config.json", **STEERING)
    loaded = softmask.load(folder, device="cpu").model
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids).logits, plain(ids).logits)
    assert loaded.config._attn_implementation == plain.config._attn_implementation
    out = export(folder.parent / "out", folder)
    assert json.loads((out / "config.json").read_text()).keys().isdisjoint(STEERING)


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
def test_a_rotary_embedding_that_depends_on_no_neighbour_is_read(folder, where) -> None:
    values = YARN | ({"rope_theta": 1e6} if where == "rope_parameters" else {})
    change(folder / "config.json", **{where: values})
    model = softmask.load(folder, device="cpu").model
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert model.config.rope_parameters["rope_theta"] == 1e6


# Tokenizers.


def test_how_tokenizer_json_cuts_a_text_is_what_counts(newer) -> None:
    path = newer / "tokenizer.json"
    values = json.loads(path.read_text())
    plain = find(newer).tokenizer("One day")["input_ids"]
    values["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    write_json(path, values)
    checkpoint = softmask.load(newer, device="cpu")
    space = checkpoint.tokenizer.get_vocab()["\u0120"]
    expected = [space, *plain]
    assert checkpoint.tokenizer("One day")["input_ids"][: len("One") + 1] == expected[:4]
    out = export(newer.parent / "out", newer)
    again = AutoTokenizer.from_pretrained(out)
    assert again("One day")["input_ids"] == checkpoint.tokenizer("One day")["input_ids"]


def test_one_file_gives_the_tokens_of_the_older_three(folder, request) -> None:
    text = "the One<|im_end|> day,\n \u00e9 <|mask|>"
    before = find(folder).tokenizer
    after = find(request.getfixturevalue("newer")).tokenizer
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.special_tokens_map == before.special_tokens_map
    assert after.chat_template == before.chat_template


def test_diffucoders_padding_ends_an_answer(folder) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    token = settings["added_tokens_decoder"]["263"] | {"content": "<|dlm_pad|>"}
    settings["added_tokens_decoder"]["264"] = token
    write_json(path, settings)
    assert 264 in softmask.load(folder, device="cpu").end_ids


def edit_tokens(**tokens: object):
    def break_it(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        values = json.loads(path.read_text())
        for number, token in tokens.items():
            values["added_tokens_decoder"][number.removeprefix("n")] = token
        write_json(path, values)

    return break_it


def settings(**values: object):
    return lambda folder: change(folder / "tokenizer_config.json", **values)


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def cut_line(name: str):
    def break_it(folder: Path) -> None:
        path = folder / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))

    return break_it


PLAIN = {"content": "<|expand|>", "special": True}
TOKENIZER_FAULTS = [
    (edit_tokens(n264=PLAIN), "DreamOn grows its canvas"),
    (edit_tokens(n270={"content": "<x>", "special": True}), "'<x>' is token 270 by one file"),
    (edit_tokens(n264={"content": 7}), "must be a token"),
    (edit_tokens(n264={"content": "a", "special": "yes"}), "must be a token"),
    (edit_tokens(nx="a"), "'x' is no token id"),
    (settings(added_tokens_decoder=[1]), "added_tokens_decoder must be a mapping"),
    (settings(mask_token=5), "mask_token must be a token"),
    (settings(split_special_tokens=True), "control tokens would be text"),
    (settings(padding_side="up"), "left or right"),
    (settings(model_max_length="x"), "model_max_length"),
    (settings(chat_template={"a": "b"}), "chat_template must be a text"),
    (settings(extra_special_tokens=3), "extra_special_tokens must be a list"),
    (text("tokenizer_config.json", "[]"), "no mapping"),
    (text("vocab.json", '{"a": 1, "b": 1}'), "an id of its own"),
    (text("vocab.json", '{"a": "b"}'), "an id of its own"),
    (text("vocab.json", '{"a": 5000000000}'), "an id of its own below 272"),
    (text("merges.txt", "a\n"), "line 1, joins no two tokens"),
    (text("merges.txt", "t h\nt h\n"), "line 2, joins no two tokens"),
    (cut_line("merges.txt"), "has no line that makes 'on'"),
]


@pytest.mark.parametrize(("break_it", "message"), TOKENIZER_FAULTS)
def test_a_damaged_tokenizer_is_refused(folder, break_it, message) -> None:
    break_it(folder)
    refused(folder, message)


def edited(**values: object):
    def break_it(folder: Path) -> None:
        path = folder / "tokenizer.json"
        read = json.loads(path.read_text())
        read["model"] |= {k: v for k, v in values.items() if k in read["model"]}
        write_json(path, read | {k: v for k, v in values.items() if k not in read["model"]})

    return break_it


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (edited(decoder={"type": "Fuse"}), "no byte-level BPE"),
        (edited(dropout=0.5), "no byte-level BPE"),
        (edited(pre_tokenizer={"type": "Whitespace"}), "loses parts of a text"),
        (edited(vocab=[]), "is damaged"),
        (edited(merges=[["t", "zzz"]]), "is damaged"),
        (edited(pre_tokenizer={"type": "x"}), "is damaged"),
        (text("tokenizer.json", "{"), "is damaged"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(newer, break_it, message) -> None:
    break_it(newer)
    refused(newer, message)


# Weights.


@pytest.fixture
def sharded(tmp_path) -> Path:
    return write_dream_folder(tmp_path / "shards", shards=2)


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_map": {"model.norm.weight": "../other/model.safetensors"}}, "must lie beside"),
        ({"weight_map": {"model.norm.weight": "/etc/passwd"}}, "must lie beside it"),
        ({"weight_map": {"model.norm.weight": 7}}, "must lie beside it"),
        ({"weight_map": {"model.norm.weight": SHARD}}, f"not the index of {SHARD}"),
        ({"weight_map": [1]}, "no weight_map"),
        ({"weight_map": {}}, "has no weights"),
        ({"metadata": 7}, "no metadata"),
    ],
)
def test_an_index_that_is_not_of_its_folder_is_refused(sharded, values, message) -> None:
    change(sharded / "model.safetensors.index.json", **values)
    refused(sharded, message)


def test_weights_twice_are_refused(sharded) -> None:
    save_file(load_file(sharded / SHARD), sharded / "model.safetensors")
    refused(sharded, "remove that which is not of this model")


def test_weights_in_a_dtype_of_their_own_are_refused(folder) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, path, metadata={"format": "pt"})
    refused(folder, "model.norm.weight has the dtype F8_E4M3")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_weights_are_refused(folder, share) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(folder, "truncated or damaged")


# Links.


@pytest.mark.parametrize("name", ["transparency_config.json", "LICENSE", "tokenizer_config.json"])
def test_a_name_that_leads_to_no_file_is_refused(folder, name) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("nothing")
    refused(folder, f"{name} is a folder, or a link to nothing")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} is a folder, or a link to nothing")


def test_what_a_link_leads_to_outside_of_the_folder_is_not_published(folder, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    out = export(tmp_path / "out", folder)
    for place in (folder, out):
        (place / "LICENSE").symlink_to(secret)
    with pytest.raises(ValueError, match=r"LICENSE is a link to .*secret"):
        export(tmp_path / "again", folder)
    assert not (tmp_path / "again").exists()
    with pytest.raises(ValueError, match=r"LICENSE is a link to .*secret"):
        files_to_push(out)
    (folder / "LICENSE").unlink()
    (folder / "NOTICE").write_text("free")
    (folder / "LICENSE").symlink_to("NOTICE")
    assert (export(tmp_path / "again", folder) / "LICENSE").read_text() == "free"
