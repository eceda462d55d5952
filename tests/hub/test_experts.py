"""Experts, one tensor a layer here, in the files of a family that has them apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import failed
from paths import ROOT
from safetensors.torch import load_file, save_file
from tiny import write_json, write_lora_adapter

import softmask
from softmask.hub import memory_check
from softmask.hub.export import export
from softmask.hub.folder import WEIGHT_INDEX, weight_files
from softmask.hub.weight_sizes import weight_sizes
from softmask.reporting import measure
from softmask.reporting.machine import Memory

ORIGINAL = ROOT / "tests" / "families" / "goldens" / "llada2" / "model"
IDS = torch.arange(40, 60)[None]


def logits_of(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    with torch.no_grad():
        return softmask.load(folder, adapter, device="cpu").model(IDS).logits


@pytest.fixture
def sharded(tmp_path) -> Path:
    """The original, the experts of a layer in two files."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    for path in ORIGINAL.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(ORIGINAL / "model.safetensors")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: shards[".experts.5." in name or "lm_head" in name] for name in weights}
    for shard in shards:
        save_file({n: weights[n] for n in weights if places[n] == shard}, folder / shard)
    write_json(folder / WEIGHT_INDEX, {"metadata": {"total_size": 0}, "weight_map": places})
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in weight_files(folder) for n, t in load_file(path).items()}


def test_experts_in_several_files_are_put_together_and_taken_apart_again(sharded, tmp_path) -> None:
    whole = logits_of(ORIGINAL)
    assert softmask.load(sharded, device="cpu").model.name_or_path == str(sharded)
    assert torch.equal(logits_of(sharded), whole)
    ours = export(tmp_path / "ours", sharded)
    assert torch.equal(logits_of(ours), whole)
    back = export(tmp_path / "back", ours, layout="original")
    here, there = load_file(ORIGINAL / "model.safetensors"), stored(back)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    for folder in (ours, back):
        index = json.loads((folder / WEIGHT_INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored(folder).values())
        assert index["weight_map"] == {
            name: path.name for path in weight_files(folder) for name in load_file(path)
        }


def test_an_adapter_is_merged_into_rows_of_the_family_s_own_weights(tmp_path) -> None:
    targets = ["k_proj", "o_proj", "down_proj"]  # of dense and shared ones, not of experts
    write_lora_adapter(tmp_path / "adapter", ORIGINAL, target_modules=targets)
    wanted = logits_of(ORIGINAL, tmp_path / "adapter")
    settings = {"layout": "original", "dtype": "float32"}
    out = export(tmp_path / "out", ORIGINAL, tmp_path / "adapter", **settings)
    torch.testing.assert_close(logits_of(out), wanted)
    assert not torch.allclose(logits_of(ORIGINAL), wanted, atol=0.1)
    theirs, before = stored(out), load_file(ORIGINAL / "model.safetensors")
    name = "model.layers.1.attention.query_key_value.weight"
    changed = (theirs[name] != before[name].float()).any(dim=1)
    assert changed.tolist() == [False] * 32 + [True] * 16 + [False] * 16  # the keys
    assert {n for n in theirs if "experts.3" in n} == {n for n in before if "experts.3" in n}


def test_what_is_not_for_experts_is_a_sentence(tmp_path, capsys) -> None:
    told = ["--model", str(ORIGINAL), "--device", "cpu"]
    pytest.importorskip("bitsandbytes", reason="pip install 'softmask[quant]'")
    said = failed(capsys, "generate", "x", *told, "--quantize", "int8")
    assert "has experts, and bitsandbytes rounds single layers alone" in said
    with pytest.raises(ValueError, match="has experts, which torch cannot compute in float64"):
        softmask.load(ORIGINAL, device="cpu", dtype=torch.float64)
    pytest.importorskip("gguf", reason="pip install 'softmask[gguf]'")
    file = str(tmp_path / "m.gguf")
    said = failed(capsys, "export", file, "--model", str(ORIGINAL), "--gguf", "bf16")
    assert "no architecture of llama.cpp for this network" in said
    assert "8 experts" in said


def test_the_memory_of_a_model_with_experts_is_said_for_what_can_be_asked_for(monkeypatch) -> None:
    sizes = weight_sizes(weight_files(ORIGINAL))
    assert list(sizes.ways()) == ["float32", "bfloat16"]
    model = softmask.load(ORIGINAL, device="cpu").model
    # A score's bias of each expert is in the files, and a buffer here.
    assert sizes.loaded("float32") == 4 * (model.num_parameters() + 2 * 8)
    need = sizes.loaded("float32")
    monkeypatch.setattr(memory_check, "memory", lambda: Memory(need - 1, need - 1))
    monkeypatch.setattr(measure, "slowness", lambda *_: 100.0)  # so that --dtype is no way out
    with pytest.raises(ValueError, match="take a smaller model"):
        softmask.load(ORIGINAL, device="cpu")


def test_a_weight_of_another_shape_is_named_as_in_the_files(sharded) -> None:
    path = weight_files(sharded)[0]
    weights = load_file(path)
    name = "model.layers.1.mlp.experts.0.gate_proj.weight"
    save_file(weights | {name: weights[name][1:].contiguous()}, path)
    with pytest.raises(ValueError, match=f"have the wrong shape for {name}"):
        softmask.load(sharded, device="cpu")
