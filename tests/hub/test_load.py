"""load(): original folders load strictly; whatever is wrong is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import change_json, write_dora_adapter, write_dream_folder, write_json
from transformers import AutoConfig, AutoModel

import softmask
from softmask.config import SoftMaskConfig
from softmask.hub.export import export
from softmask.models import DreamModel
from softmask.models.checkpoint import first_not_finite
from softmask.training.result import save_model

PUBLISHED = {
    "transparency_alg": "mixinputs_with_topk",
    "transparency_scale": 0.25,
    "transparency_centre": -1.0,
    "transparency_steepness": 5.0,
    "mixinputs_k": 1,
    "mixture_temp": None,
    "transparency_scheduling": "none",
}


@pytest.mark.parametrize("shards", [1, 3])
def test_an_original_folder_loads_by_name_in_any_number_of_shards(tmp_path, shards) -> None:
    folder = write_dream_folder(tmp_path / "dream", shards=shards)
    checkpoint = softmask.load(folder, device="cpu")
    stored = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    own = checkpoint.model.state_dict()
    assert set(own) == set(stored)
    assert all(torch.equal(own[name], stored[name].float()) for name in stored)
    assert not checkpoint.model.training
    assert checkpoint.soft_mask is None


def test_the_tokenizer_is_the_original_one(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream", chat=True)
    checkpoint = softmask.load(folder, device="cpu")
    tokenizer = checkpoint.tokenizer
    vocabulary = json.loads((folder / "vocab.json").read_text())
    special = json.loads((folder / "added_tokens.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|mask|>") == special["<|mask|>"]
    assert tokenizer("the<|mask|>")["input_ids"] == [vocabulary["the"], special["<|mask|>"]]
    assert tokenizer.decode(tokenizer("Hi, 12 \u00e9\n")["input_ids"]) == "Hi, 12 \u00e9\n"
    assert checkpoint.end_ids == (special["<|endoftext|>"], special["<|im_end|>"])


def test_rotary_frequencies_are_right_after_loading(tmp_path) -> None:
    # transformers 5 leaves a non-persistent buffer of the original code uninitialised, silently.
    model = softmask.load(write_dream_folder(tmp_path / "dream"), device="cpu").model
    width = model.config.hidden_size // model.config.num_attention_heads
    expected = 1000000.0 ** (-torch.arange(0, width, 2) / width)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.float32),
        ("auto", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.float64, torch.float64),
    ],
)
def test_the_dtype_is_the_one_asked_for(tmp_path, dtype, expected) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    assert softmask.load(folder, device="cpu", dtype=dtype).model.dtype == expected


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_device_map_gives_the_same_text(tmp_path, device_map) -> None:
    folder = write_dream_folder(tmp_path / "dream", shards=2)
    soft = SoftMaskConfig(scale=0.8, offset=-4.0, steepness=1.0, k=3)
    texts = [
        softmask.generate(
            softmask.load(folder, **arguments), "Hello", max_new_tokens=12, soft_mask=soft
        ).text
        for arguments in ({"device": "cpu"}, {"device_map": device_map, "dtype": "float32"})
    ]
    assert texts[0] == texts[1]


def test_the_auto_classes_take_this_package_over_the_folders_remote_code(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    assert AutoConfig.from_pretrained(folder).mask_token_id == 263
    assert isinstance(AutoModel.from_pretrained(folder), DreamModel)


def test_a_saved_model_keeps_the_flat_rope_theta_that_older_code_reads(tmp_path) -> None:
    checkpoint = softmask.load(write_dream_folder(tmp_path / "dream"), device="cpu")
    checkpoint.model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["rope_theta"] == 1000000.0
    assert saved["model_type"] == "Dream"


def drop(name):
    return lambda folder: (folder / name).unlink()


def cut(name, size):
    def break_it(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return break_it


def change_config(**values):
    def break_it(folder):
        path = folder / "config.json"
        write_json(path, json.loads(path.read_text()) | values)

    return break_it


def change_weights(change):
    def break_it(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return break_it


def without_mask_token(folder):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["mask_token"]
    del settings["added_tokens_decoder"]["263"]
    write_json(path, settings)
    (folder / "added_tokens.json").unlink()
    (folder / "special_tokens_map.json").unlink()


FAULTS = {
    "no config": (drop("config.json"), "has no config.json"),
    "truncated config": (cut("config.json", 40), "config.json is damaged"),
    "another family": (
        change_config(architectures=["LlamaForCausalLM"], model_type="llama"),
        "family .LlamaForCausalLM.: softmask loads Dream",
    ),
    "mask id outside": (change_config(mask_token_id=5000), "mask_token_id 5000"),
    "no mask id": (change_config(mask_token_id=None), "mask_token_id None"),
    "other mask id": (change_config(mask_token_id=7), "no mask token at id 7"),
    "no weights": (drop("model.safetensors"), "has no weights"),
    "truncated weights": (cut("model.safetensors", 5000), "truncated or damaged"),
    "missing tensor": (
        change_weights(lambda t: t.pop("model.norm.weight")),
        "lack model.norm.weight",
    ),
    "unknown tensor": (
        change_weights(lambda t: t.update({"model.extra.weight": torch.zeros(3)})),
        "unknown model.extra.weight",
    ),
    "wrong shape": (
        change_weights(lambda t: t.update({"model.norm.weight": torch.zeros(5)})),
        "config.json",
    ),
    "NaN": (
        change_weights(lambda t: t["model.norm.weight"][:1].fill_(float("nan"))),
        r"model\.norm\.weight holds NaN or infinity",
    ),
    "infinity": (
        change_weights(lambda t: t["lm_head.weight"][-1, -1:].fill_(float("-inf"))),
        r"lm_head\.weight holds NaN or infinity",
    ),
    "no tokenizer": (drop("merges.txt"), "has no tokenizer"),
    "small table": (
        change_config(vocab_size=260, mask_token_id=259),
        "264 tokens but the model 260",
    ),
    "no mask token": (without_mask_token, "no mask token"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_one_clear_sentence(tmp_path, fault) -> None:
    break_it, message = FAULTS[fault]
    folder = write_dream_folder(tmp_path / "dream")
    break_it(folder)
    with pytest.raises(ValueError, match=message) as caught:
        softmask.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_that_the_dtype_cannot_hold_are_one_sentence(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    change_weights(lambda t: t["model.norm.weight"][:1].fill_(1e6))(folder)
    softmask.load(folder, device="cpu")
    with pytest.raises(ValueError, match=r"infinity in torch\.float16: .* do not fit this dtype"):
        softmask.load(folder, device="cpu", dtype="float16")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn]
)
def test_one_number_that_is_not_finite_is_found_in_every_dtype(dtype) -> None:
    good = [("numbers", torch.arange(9)), ("nothing", torch.zeros(0)), ("good", torch.ones(9, 9))]
    good = [(name, tensor.to(dtype) if name != "numbers" else tensor) for name, tensor in good]
    assert first_not_finite(good) is None
    for value in ("nan", "inf", "-inf"):
        bad = torch.ones(9, 9)
        bad[4, 4] = float(value)
        bad = bad.to(dtype)
        found = first_not_finite([*good, ("bad", bad), ("worse", bad)])
        # float8_e4m3fn has no infinity: the largest number stands for it.
        assert found == (None if torch.isfinite(bad.float()).all() else "bad")


def test_a_missing_shard_is_named(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00003"):
        softmask.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/place", "no folder"), ("just-a-word", "no folder"), (__file__, "is a file")],
)
def test_a_name_that_leads_nowhere_is_one_clear_sentence(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        softmask.load(name)


def test_a_hub_id_without_network_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="Hub cannot be reached"):
        softmask.load("Dream-org/not-on-this-machine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "toaster"}, "no device"),
        ({"dtype": "int3"}, "no dtype"),
        ({"dtype": torch.int8}, "no dtype"),
        ({"dtype": torch.float8_e4m3fn}, "no dtype"),
        ({"device_map": {}}, "device_map is empty"),
        ({"device_map": {"": "xpu:7"}}, "no device xpu:7"),
        ({"device": "cpu", "device_map": "auto"}, "either device or device_map"),
        ({"revision": "main"}, "local folder"),
    ],
)
def test_an_argument_that_cannot_be_met_is_one_clear_sentence(tmp_path, arguments, message) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    with pytest.raises(ValueError, match=message):
        softmask.load(folder, **arguments)


def test_a_head_that_is_not_the_table_is_the_model_s_whatever_its_config_says(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    whole = softmask.load(folder, device="cpu")
    change_json(folder / "config.json", tie_word_embeddings=True)
    found = softmask.load(folder, device="cpu")
    assert found.model.config.tie_word_embeddings is False
    save_model(found.model, found.model.state_dict(), found.tokenizer, tmp_path / "saved")
    ids_BL = torch.arange(9)[None]
    for again in (folder, tmp_path / "saved", export(tmp_path / "out", folder)):
        again = softmask.load(again, device="cpu").model
        assert torch.equal(again(ids_BL).logits, whole.model(ids_BL).logits)


def test_scaling_that_is_added_to_a_config_is_taken_as_transformers_does(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    change_json(
        folder / "config.json",
        rope_parameters={"rope_theta": 5e5, "rope_type": "default"},
        rope_scaling=scaling,
        rope_theta=None,
    )
    rope = softmask.load(folder, device="cpu").model.config.rope_parameters
    assert rope.items() >= {**scaling, "rope_theta": 5e5}.items()


def test_soft_mask_parameters_beside_the_model_are_read(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    write_json(folder / "transparency_config.json", PUBLISHED)
    soft = softmask.load(folder, device="cpu").soft_mask
    assert (soft.mode, soft.k, soft.scale, soft.offset) == ("topk", 1, 0.25, -1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transparency_scales": 0.5}, "did you mean 'transparency_scale'"),
        ({"os.system": "rm"}, "unknown setting 'os.system'"),
        ({"transparency_scale": 7}, "scale must lie in"),
        ({"transparency_scale": "0.5"}, "scale must be float"),
        ({"transparency_scale": True}, "scale must be float"),
        ({"transparency_scale": float("nan")}, "finite"),
        ({"mixinputs_k": 0}, "at least 1"),
        ({"mixinputs_k": 100000}, "lower k"),
        ({"transparency_alg": "mixinputs"}, "transparency_alg must be one of"),
        ({"transparency_alg": ["none"]}, "transparency_alg must be one of"),
        ({"transparency_centre": 1.0}, "offset must be <= 0"),
        ({"transparency_scheduling": "cosine"}, "schedule must be one of"),
    ],
)
def test_a_hostile_soft_mask_file_is_refused(tmp_path, change, message) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    write_json(folder / "transparency_config.json", PUBLISHED | change)
    with pytest.raises(ValueError, match=message):
        softmask.load(folder, device="cpu")


@pytest.mark.parametrize("text", ["[1, 2]", '{"transparency_alg": "mix', "\u00ff\u00fe", ""])
def test_a_soft_mask_file_that_is_no_mapping_is_refused(tmp_path, text) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    (folder / "transparency_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="transparency_config"):
        softmask.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"temprature": 1.0}', "did you mean 'temperature'"),
        ('{"top_k": "5"}', "top_k must be int"),
        ('{"block_length": 0}', "block_length"),
        ("[]", "mapping"),
        ('{"alg":', "sampling_config.json is damaged"),
        ('{"prompt_kind": []}', "did you mean 'prompt_kinds'"),
        ('{"prompt_kinds": {}}', "prompt_kinds must be a list"),
        ('{"prompt_kinds": [{"prompt_starts_with": []}]}', "give prompt_starts_with"),
        ('{"prompt_kinds": [{"prompt_starts_with": [""]}]}', "give prompt_starts_with"),
        ('{"prompt_kinds": [{"prompt_starts_with": ["a"], "alg": "x"}]}', "unknown setting 'alg'"),
        (
            '{"prompt_kinds": [{"prompt_starts_with": ["a"], "sampling": {"algo": "x"}}]}',
            "did you mean 'alg'",
        ),
    ],
)
def test_a_hostile_sampling_file_is_refused(tmp_path, text, message) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    (folder / "sampling_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        softmask.load(folder, device="cpu")


@pytest.fixture
def adapter(tmp_path):
    """A DoRA adapter with random weights, its folder and the unmerged model."""
    folder = write_dream_folder(tmp_path / "dream")
    return tmp_path / "adapter", folder, write_dora_adapter(tmp_path / "adapter", folder)


def test_an_adapter_is_merged_and_brings_its_soft_mask_parameters(adapter) -> None:
    folder, base, wrapped = adapter
    write_json(folder / "transparency_config.json", PUBLISHED)
    ids = torch.arange(12)[None]
    merged = softmask.load(base, folder, device="cpu")
    with torch.no_grad():
        expected, got = wrapped(ids).logits, merged.model(ids).logits
        plain = softmask.load(base, device="cpu").model(ids).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2)
    assert merged.soft_mask.scale == 0.25
    assert softmask.load(adapter=folder, device="cpu").soft_mask == merged.soft_mask


def test_an_adapter_for_another_base_is_one_clear_sentence(adapter, tmp_path) -> None:
    folder, _, _ = adapter
    other = write_dream_folder(tmp_path / "wider", hidden_size=64)
    with pytest.raises(ValueError, match="another base") as caught:
        softmask.load(other, folder, device="cpu")
    assert "\n" not in str(caught.value)
    fewer = write_dream_folder(tmp_path / "shallower", num_hidden_layers=1)
    with pytest.raises(ValueError, match="another base"):
        softmask.load(fewer, folder, device="cpu")


def test_a_damaged_adapter_is_one_clear_sentence(adapter) -> None:
    folder, base, _ = adapter
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200])
    with pytest.raises(ValueError, match="truncated or damaged"):
        softmask.load(base, folder, device="cpu")
    weights.unlink()
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors"):
        softmask.load(base, folder, device="cpu")
    Path(folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        softmask.load(base, folder, device="cpu")
