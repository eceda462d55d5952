"""What is exported in the original layout is what the family's own code reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import failed
from official import FOLDERS, folder_of, official
from safetensors.torch import load_file
from tiny import change_json, write_dream_folder, write_json, write_lora_adapter

import softmask
from softmask.cli.main import main
from softmask.hub.checkpoints import find
from softmask.hub.export import export
from softmask.hub.model_card import PLAIN_ELSEWHERE
from softmask.training.result import save_model

CODE = {"auto_map"}
SOFT = {"transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.3}
# One of each kind in the default run.
EACH = [
    pytest.param(name, marks=[] if name in ("llada", "fastdllm2") else [pytest.mark.slow])
    for name in FOLDERS
]


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    here, there = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return here.keys() == there.keys() and all(torch.equal(here[n], there[n]) for n in here)


@pytest.mark.parametrize("name", EACH)
def test_it_is_the_original_again_also_by_way_of_our_own_layout(name, tmp_path) -> None:
    first, family = folder_of(name), FOLDERS[name]
    again = export(tmp_path / "again", first, family=family, layout="original")
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert {k: v for k, v in config(first).items() if k not in CODE} == config(again)
    ours = export(tmp_path / "ours", first, family=family)
    back = export(tmp_path / "back", ours, layout="original")
    assert same_weights(first, back)
    before, after = config(first), config(back)
    assert {k: after[k] for k in ("architectures", "model_type")} == {
        k: before[k] for k in ("architectures", "model_type")
    }
    # What says nothing here is left out, and the ids that were read off the tokenizer are said.
    ids = {"mask_token_id", "pad_token_id", "mlp_bias", "bias_for_layer_norm"}
    assert {k: v for k, v in after.items() if before.get(k) != v}.keys() <= ids | {
        "embedding_dropout"
    }
    theirs, found = find(first, family=family).config, find(back, family=family).config
    assert found.to_dict() == theirs.to_dict()
    shown = (back / "README.md").read_text()
    assert official(name).family.title in shown
    assert ("--family" in shown) == (family is not None)


@pytest.mark.parametrize("name", EACH)
def test_what_training_writes_comes_out_as_the_same_network(name, tmp_path) -> None:
    family = FOLDERS[name]
    model = softmask.load(folder_of(name), family=family, device="cpu")
    save_model(model.model, model.model.state_dict(), model.tokenizer, tmp_path / "trained")
    out = export(tmp_path / "out", tmp_path / "trained", layout="original")
    assert ("num_experts" in config(out)) == bool(model.model.config.num_experts)
    assert_same_logits(out, tmp_path / "trained", family)


def of_other_blocks(name: str, size: int, tmp_path: Path) -> Path:
    """A model of this family, trained in blocks of another size."""
    model = softmask.load(folder_of(name), device="cpu")
    model.model.config.block_size = size
    save_model(model.model, model.model.state_dict(), model.tokenizer, tmp_path / "trained")
    return tmp_path / "trained"


@pytest.mark.parametrize(
    ("name", "key", "size"), [("sdar", "block_size", 8), ("fastdllm2", "bd_size", 16)]
)
def test_blocks_of_another_size_are_said_where_the_family_s_code_reads_it(
    name, key, size, tmp_path
) -> None:
    trained = of_other_blocks(name, size, tmp_path)
    out = export(tmp_path / "out", trained, layout="original")
    assert config(out)[key] == size
    assert_same_logits(out, trained)


def test_blocks_that_the_family_s_code_does_not_know_are_refused(tmp_path, capsys) -> None:
    trained = of_other_blocks("llada2", 16, tmp_path)
    command = ["export", str(tmp_path / "out"), "--model", str(trained), "--layout", "original"]
    assert "writes blocks of 16 tokens, and LLaDA2.0's own code knows 32 alone" in failed(
        capsys, *command
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["original", "softmask"])
def test_a_router_s_bias_keeps_its_precision_where_others_are_rounded(layout, tmp_path) -> None:
    out = export(tmp_path / "out", folder_of("llada2"), layout=layout, dtype="bfloat16")
    dtypes = {name: tensor.dtype for name, tensor in load_file(out / "model.safetensors").items()}
    biases = {name for name in dtypes if name.endswith("bias")}
    assert biases
    assert all((dtypes[name] == torch.float32) == (name in biases) for name in dtypes)
    models = [softmask.load(f, device="cpu", dtype="bfloat16") for f in (out, folder_of("llada2"))]
    one, other = (model.model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_heads_that_are_turned_whole_stay_so_where_the_family_turns_half(tmp_path) -> None:
    shutil.copytree(folder_of("llada2"), tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", partial_rotary_factor=1.0)
    ours = export(tmp_path / "ours", tmp_path / "model")
    out = export(tmp_path / "out", ours, layout="original")
    assert_same_logits(out, ours)


def assert_same_logits(one: Path, other: Path, family: str | None = None) -> None:
    ids_BL = torch.arange(9)[None] + 20
    found, wanted = (
        softmask.load(folder, family=name, device="cpu").model(ids_BL).logits
        for folder, name in ((one, family), (other, None))
    )
    torch.testing.assert_close(found, wanted)


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter of LLaDA with soft-mask parameters."""
    write_lora_adapter(tmp_path / "adapter", folder_of("llada"), target_modules=["q_proj"])
    write_json(tmp_path / "adapter" / "transparency_config.json", SOFT)
    return tmp_path / "adapter"


def test_an_adapter_is_merged_and_its_parameters_lie_beside(adapter, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = ["export", str(out), "--model", str(folder_of("llada")), "--adapter", str(adapter)]
    assert main([*command, "--layout", "original", "--dtype", "float32"]) == 0
    assert PLAIN_ELSEWHERE in capsys.readouterr().out
    assert PLAIN_ELSEWHERE[1:] in (out / "README.md").read_text()
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == load_file(folder_of("llada") / "model.safetensors").keys()
    assert config(out)["torch_dtype"] == "float32"
    assert "auto_map" not in config(out)
    assert not list(out.glob("*.py"))
    merged = softmask.load(folder_of("llada"), adapter, device="cpu", dtype="float32")
    found = softmask.load(out, device="cpu")
    assert found.soft_mask == merged.soft_mask is not None
    with torch.no_grad():
        ids = torch.arange(40)[None]
        torch.testing.assert_close(found.model(ids).logits, merged.model(ids).logits)
    assert main([*command, "--layout", "original", "--overwrite"]) == 0


def test_code_of_the_family_goes_along_or_is_named_where_it_lies(
    tmp_path, monkeypatch, capsys
) -> None:
    folder = tmp_path / "llada"
    shutil.copytree(folder_of("llada"), folder)
    (folder / "modeling_llada.py").write_text("from .configuration_llada import A\n")
    (folder / "configuration_llada.py").write_text("A = 1\n")
    (folder / "notes.py").write_text("secret\n")
    out = export(tmp_path / "out", folder, layout="original")
    assert {p.name for p in out.glob("*.py")} == {"modeling_llada.py", "configuration_llada.py"}
    assert config(out) == config(folder)
    export(out, folder, layout="original", overwrite=True)
    assert main(["push", "me/llada", str(out), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "modeling_llada.py" in shown
    assert "notes.py" not in shown

    (folder / "configuration_llada.py").unlink()
    with pytest.raises(ValueError, match=r"imports configuration_llada.py, which is not there"):
        export(tmp_path / "torn", folder, layout="original")
    assert not (tmp_path / "torn").exists()

    # As the Hub's cache has it, which holds no code.
    monkeypatch.setattr("softmask.hub.checkpoints.fetch", lambda *_, **__: folder_of("llada"))
    out = export(tmp_path / "from_hub", "GSAI-ML/LLaDA-8B-Base", layout="original")
    assert config(out)["auto_map"]["AutoModel"] == (
        "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM"
    )
    assert main(["push", "me/llada", str(out), "--dry-run"]) == 0


def test_push_takes_a_family_that_files_do_not_say_and_the_layout(tmp_path, capsys) -> None:
    told = ["--model", str(folder_of("opendcoder")), "--family", "opendcoder"]
    assert main(["push", "me/coder", *told, "--layout", "original", "--dry-run"]) == 0
    assert ".py" not in capsys.readouterr().out
    assert main(["push", "me/coder", *told, "--dry-run"]) == 0
    assert "modeling_dream.py" in capsys.readouterr().out
    said = failed(capsys, "push", "me/coder", str(tmp_path), "--layout", "original", "--dry-run")
    assert "in the layout that it is in" in said


def test_dream_s_own_files_come_out_without_our_code(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    own = {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
    change_json(folder / "tokenizer_config.json", tokenizer_class="DreamTokenizer", **own)
    ours = export(tmp_path / "ours", folder)
    back = export(tmp_path / "back", ours, layout="original")
    assert same_weights(folder, back)
    assert not list(back.glob("*.py"))
    assert "auto_map" not in config(back)
    out = export(tmp_path / "out", folder, layout="original")
    # A class whose code is nowhere could not be loaded.
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] != (
        "DreamTokenizer"
    )


def test_a_layout_that_there_is_not_is_a_sentence(tmp_path) -> None:
    with pytest.raises(ValueError, match="layout must be one of softmask, original"):
        export(tmp_path / "out", folder_of("llada"), layout="gguf")
