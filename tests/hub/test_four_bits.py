"""Weights in 4 bits from the start: fewer bytes wherever the option is; files that have them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    bytes_of,
    change_json,
    write_dora_adapter,
    write_dream_folder,
    write_lora_adapter,
)
from transformers import AutoModel, BitsAndBytesConfig

import softmask
from softmask.evaluation.config import ModelArgs
from softmask.hub.export import export
from softmask.models import DreamModel

SHAPE = {"hidden_size": 128, "intermediate_size": 192}
# Against fp32: an eighth, and a table of 16 and one of 256 values for each layer, which is much
# for layers as small as these.
SIZE = 0.2
QUANTISED = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "llm_int8_skip_modules": ["lm_head"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_dream_folder(tmp_path_factory.mktemp("model") / "dream", chat=True, **SHAPE)


@pytest.fixture(scope="module")
def whole(folder):
    return softmask.load(folder, device="cpu").model


@pytest.fixture(scope="module")
def stored(folder, tmp_path_factory) -> Path:
    """The checkpoint as transformers saves it in 4 bits."""
    path = shutil.copytree(folder, tmp_path_factory.mktemp("stored") / "nf4")
    softmask.load(folder, device="cpu", load_in_4bit=True).model.save_pretrained(path)
    return path


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(input_ids=torch.arange(96)[None]).logits.float()


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def loaded(folder: Path):
    return softmask.load(folder, device="cpu", load_in_4bit=True).model


def evaluated(folder: Path):
    args = ModelArgs(pretrained=str(folder), device="cpu", load_in_4bit=True)
    return softmask.load(**args.to_load).model


def by_transformers(folder: Path):
    config = BitsAndBytesConfig(**QUANTISED)
    return AutoModel.from_pretrained(folder, dtype=torch.float32, quantization_config=config)


@pytest.mark.parametrize("way", [loaded, evaluated, by_transformers])
def test_the_layers_take_an_eighth_of_the_bytes_and_the_logits_stay_close(
    folder, whole, way
) -> None:
    model = way(folder)
    assert bytes_of(model.model.layers) < SIZE * bytes_of(whole.model.layers)
    assert 0 < error_of(logits_of(model), logits_of(whole)) < 0.3
    for name in ("model.embed_tokens", "lm_head"):
        assert torch.equal(model.get_submodule(name).weight, whole.get_submodule(name).weight)


@pytest.mark.slow
def test_dream_7b_takes_5_5_gb_instead_of_15_2(tmp_path) -> None:
    """The figures of the guides: a block of its shape, measured, times 28, and the two tables."""
    shape = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 28, "num_key_value_heads": 4}
    folder = write_dream_folder(tmp_path / "dream")
    change_json(folder / "config.json", **shape)
    with torch.device("meta"):
        state = DreamModel(softmask.hub.checkpoints.read_config(folder)).state_dict()
    made = {n: torch.full(t.shape, 0.01, dtype=torch.bfloat16) for n, t in state.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    tables = 2 * 152064 * 3584 * 2
    for in_4_bits, expected in ((False, 15.2), (True, 5.5)):
        checkpoint = softmask.load(folder, device="cpu", dtype="bfloat16", load_in_4bit=in_4_bits)
        size = 28 * bytes_of(checkpoint.model.model.layers) + tables
        assert round(size / 1e9, 1) == expected


def test_files_in_4_bits_load_as_they_are(folder, stored, whole) -> None:
    for arguments in ({}, {"load_in_4bit": True}):
        model = softmask.load(stored, device="cpu", **arguments).model
        assert bytes_of(model.model.layers) < SIZE * bytes_of(whole.model.layers)
        assert torch.equal(logits_of(model), logits_of(loaded(folder)))
    done = softmask.generate(softmask.load(stored, device="cpu"), "Hello", max_new_tokens=4)
    assert len(done.token_ids) == 4


def test_with_an_adapter_files_in_4_bits_become_whole_and_nothing_is_rounded_again(
    stored, tmp_path
) -> None:
    targets = ["q_proj", "up_proj"]
    unmerged = write_lora_adapter(tmp_path / "adapter", stored, target_modules=targets)
    merged = softmask.load(adapter=tmp_path / "adapter", device="cpu").model
    plain = softmask.load(stored, device="cpu").model
    # bitsandbytes multiplies in bfloat16.
    assert error_of(logits_of(merged), logits_of(unmerged)) < 0.02
    assert error_of(logits_of(plain), logits_of(unmerged)) > 0.05


def test_it_says_nothing(folder, stored, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        for path, in_4_bits in ((folder, True), (stored, False)):
            logits_of(softmask.load(path, device="cpu", load_in_4bit=in_4_bits).model)
    assert caplog.records == []


def test_what_4_bits_do_not_allow_is_one_sentence(folder, stored, tmp_path) -> None:
    write_dora_adapter(tmp_path / "adapter", folder)
    with pytest.raises(ValueError, match="give quantize int4 in place of load_in_4bit"):
        softmask.load(folder, tmp_path / "adapter", device="cpu", load_in_4bit=True)
    with pytest.raises(ValueError, match="is in 4 bits already: leave out quantize"):
        softmask.load(stored, device="cpu", quantize="int8")
    with pytest.raises(ValueError, match="is in 4 bits, which are not exported"):
        export(tmp_path / "out", stored)


SETTINGS = {
    "another method": ({"quant_method": "gptq"}, "4 bits by bitsandbytes alone"),
    "a method that is none": ({"quant_method": 5}, "4 bits by bitsandbytes alone"),
    "8 bits": ({"load_in_4bit": False, "load_in_8bit": True}, "4 bits by bitsandbytes alone"),
    "a type": ({"bnb_4bit_quant_type": "nf3"}, "must be one of nf4, fp4, not 'nf3'"),
    "a dtype": ({"bnb_4bit_compute_dtype": "is_tensor"}, "compute_dtype must be one of"),
    "another store": ({"bnb_4bit_quant_storage": "int8"}, "quant_storage must be one of"),
    "no list": ({"llm_int8_skip_modules": 5}, "llm_int8_skip_modules must be"),
    "none skipped": ({"llm_int8_skip_modules": []}, "lm_head is not in 4 bits"),
    "others skipped": ({"llm_int8_skip_modules": ["q_proj"]}, "do not fit its config.json"),
    "something new": ({"scales": 3}, "unknown setting 'scales'"),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_odd_settings_of_files_in_4_bits_are_one_sentence(stored, tmp_path, fault) -> None:
    values, message = SETTINGS[fault]
    path = shutil.copytree(stored, tmp_path / "odd")
    own = json.loads((path / "config.json").read_text())["quantization_config"]
    change_json(path / "config.json", quantization_config=own | values)
    with pytest.raises(ValueError, match=message) as caught:
        softmask.load(path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [5, "nf4", [1], {}])
def test_quantization_that_is_no_mapping_is_one_sentence(stored, tmp_path, value) -> None:
    path = shutil.copytree(stored, tmp_path / "odd")
    change_json(path / "config.json", quantization_config=value)
    with pytest.raises(ValueError, match=r"config\.json: quantization_config: "):
        softmask.load(path, device="cpu")


@pytest.mark.parametrize("ending", ["absmax", "quant_state.bitsandbytes__nf4", "quant_map"])
def test_files_in_4_bits_that_lack_a_part_are_one_sentence(stored, tmp_path, ending) -> None:
    path = shutil.copytree(stored, tmp_path / "odd")
    tensors = load_file(path / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("weight." + ending))
    del tensors[name]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights do not fit its config\.json"):
        softmask.load(path, device="cpu")
