"""What holds for every family: its files are read strictly, and every command takes its models."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from alone import run_alone
from browsing import serving
from commands import failed
from official import FOLDERS, folder_of, official
from safetensors import safe_open
from tiny import change_json, write_dream_folder, write_lora_adapter

import softmask
from softmask.cli.main import main
from softmask.config import SamplingConfig
from softmask.families.registry import FAMILIES, family_of, named, recognise
from softmask.hub.checkpoints import find
from softmask.hub.export import export
from softmask.hub.gguf_export import export_gguf
from softmask.hub.local import look_at
from softmask.training.weights import save_network

NAMES = list(FOLDERS)


def options(name: str) -> list[str]:
    """What a command is told of the model."""
    family = FOLDERS[name]
    return ["--model", str(folder_of(name)), *(["--family", family] if family else [])]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_weights_are_translated_there_and_back(name) -> None:
    found = official(name)
    with safe_open(folder_of(name) / "model.safetensors", framework="pt") as file:
        theirs = set(file.keys())
    ours = {link.ours for link in found.source.links}
    tied = {"lm_head.weight"} if found.model.config.tie_word_embeddings else set()
    assert ours | tied == set(found.model.state_dict())
    assert {link.theirs for link in found.source.links} == theirs
    for link in found.source.links:
        if link.is_whole:
            assert found.family.own_name(link.theirs) == link.ours


def test_a_family_is_known_by_its_architecture_before_its_model_type() -> None:
    dream = {"model_type": "Dream", "architectures": ["DreamModel"]}
    assert recognise(dream) is FAMILIES["dream"]
    assert recognise({"model_type": "Dream"}) is FAMILIES["dream"]
    assert recognise({"model_type": "llada", "architectures": ["LLaDAModelLM"]}).name == "llada"
    # LLaDA-MoE has LLaDA's model_type, and another network.
    found = recognise({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]})
    assert found.name == "lladamoe"
    assert recognise({"model_type": "sdar", "architectures": ["SDARMoeForCausalLM"]}) is None
    assert recognise({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}) is None


def test_a_model_of_no_known_family_gets_one_sentence_that_lists_them(tmp_path, capsys) -> None:
    folder = write_dream_folder(tmp_path / "mistral")
    change_json(folder / "config.json", architectures=["MistralForCausalLM"], model_type="mistral")
    said = failed(capsys, "generate", "x", "--model", str(folder))
    assert f"{folder} holds a model of the family 'MistralForCausalLM'" in said
    assert all(family.title in said for family in FAMILIES.values() if not family.explicit)
    assert "--family diffucoder, dparallel-dream" in said


def test_a_family_that_the_files_contradict_is_refused(tmp_path, capsys) -> None:
    said = failed(
        capsys, "generate", "x", "--model", str(folder_of("llada")), "--family", "opendcoder"
    )
    assert "holds a LLaDA model, not Open-dCoder" in said
    said = failed(capsys, "generate", "x", "--model", str(folder_of("llada")), "--family", "dram")
    assert "there is no family 'dram'" in said


def test_a_repository_that_is_known_by_its_id_has_the_rule_it_was_trained_for() -> None:
    given = {"architectures": ["DreamModel"], "model_type": "Dream"}
    assert (
        family_of(given, "x", named("Zigeng/dParallel_Dream_7B_Instruct")).sampling[
            "entropy_threshold"
        ]
        == 0.45
    )
    for family in FAMILIES.values():
        SamplingConfig(**family.sampling)  # none of them contradicts itself
        assert family.title
        assert not (family.explicit and family.mark)


def test_a_folder_that_is_known_by_its_hub_id_alone_is_listed_by_its_family() -> None:
    (name,) = FAMILIES["opendcoder"].hub
    assert look_at(folder_of("opendcoder"), name).what.startswith("Open-dCoder model")
    assert look_at(folder_of("opendcoder"), "me/a-qwen") is None


@pytest.mark.parametrize("key", ["alibi", "scale_logits", "include_bias"])
def test_a_value_that_makes_another_network_is_refused_by_its_name(tmp_path, key) -> None:
    folder = copied("llada", tmp_path)
    change_json(folder / "config.json", **{key: True})
    with pytest.raises(ValueError, match=f"says {key} True: softmask loads LLaDA with False"):
        find(folder)


def test_a_value_that_the_family_fixes_may_be_said_and_not_changed(tmp_path) -> None:
    folder = copied("llada2", tmp_path)
    change_json(folder / "config.json", block_size=32)
    assert find(folder).config.block_size == 32
    change_json(folder / "config.json", block_size=16)
    with pytest.raises(ValueError, match=r"says block_size 16: softmask loads LLaDA2\.0 with 32"):
        find(folder)


def test_a_family_can_be_said_of_a_folder_and_a_file_that_softmask_wrote(tmp_path, capsys) -> None:
    original, name = folder_of("a2d_qwen3_bd3lm"), "bd3lm-qwen3"
    ours, file = export(tmp_path / "ours", original), tmp_path / "ours.gguf"
    export_gguf(file, original, kind="f32")
    for place in (original, ours, file):
        assert find(place).config.block_size is None
        found = find(place, family=name).config
        assert (found.family, found.block_size, found.block_origin) == (name, 32, "prompt")
    said = export(tmp_path / "said", original, family=name)
    found = find(said, family="a2d-qwen3").config
    assert (found.family, found.block_size, found.block_origin) == ("a2d-qwen3", None, "start")
    llada = export(tmp_path / "llada", folder_of("llada"))
    assert find(llada, family="d3llm-llada").config.family == "d3llm-llada"
    for wrong in ("dream", "d3llm-dream", name):
        said = failed(capsys, "generate", "x", "--model", str(llada), "--family", wrong)
        assert "holds a LLaDA model, not" in said


def test_an_adapter_remembers_the_family_that_its_base_s_files_do_not_say(tmp_path) -> None:
    base, name = folder_of("a2d_qwen3_bd3lm"), "bd3lm-qwen3"
    write_lora_adapter(tmp_path, base, target_modules=["q_proj"])
    save_network(find(base, family=name).config, tmp_path)
    found = find(adapter=tmp_path).config
    assert (found.family, found.block_size, found.block_origin) == (name, 32, "prompt")
    assert find(adapter=tmp_path, family="a2d-qwen3").config.family == "a2d-qwen3"
    save_network(find(folder_of("llada"), family="d3llm-llada").config, tmp_path)
    found = find(folder_of("llada"), tmp_path).config
    assert (found.family, found.block_size) == ("d3llm-llada", None)


def test_a_mask_that_neither_config_nor_tokenizer_has_is_named(tmp_path) -> None:
    folder = copied("a2d_qwen3_mdlm", tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        if (folder / file).is_file():
            text = (folder / file).read_text().replace("<|mask|>", "<|other|>")
            (folder / file).write_text(text)
    with pytest.raises(ValueError, match=r"has the mask token <\|mask\|>"):
        find(folder)


def copied(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    for file in folder_of(name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """Every family's model in our own layout."""
    place = tmp_path_factory.mktemp("exported")
    return {name: export(place / name, folder_of(name), family=FOLDERS[name]) for name in NAMES}


IDS = torch.arange(40, 60)[None]


def logits_of(checkpoint) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.model(IDS).logits


@pytest.mark.parametrize("name", NAMES)
def test_an_export_keeps_logits_family_and_tokenizer(exported, name) -> None:
    here, there = official(name), softmask.load(exported[name], device="cpu", dtype="float32")
    torch.testing.assert_close(logits_of(there), logits_of(here), rtol=0, atol=0)
    assert there.family is here.family
    assert (there.end_ids, there.model.mask_id) == (here.end_ids, here.model.mask_id)
    assert dict(there.sampling) == dict(here.sampling)
    assert there.tokenizer("ab 12 the").input_ids == here.tokenizer("ab 12 the").input_ids


ALONE = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer

found = {}
for name, folder in json.load(sys.stdin).items():
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        logits = model(ids).logits
    written = model.diffusion_generate(ids, max_new_tokens=8, steps=8, alg="entropy")
    found[name] = [logits.tolist(), written.tolist()]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_exports_load_where_softmask_is_not_installed(exported, tmp_path) -> None:
    folders = {name: str(folder) for name, folder in exported.items()}
    for name, (logits, written) in run_alone(tmp_path, folders, ALONE).items():
        model = official(name).model
        wanted = logits_of(official(name))
        own = torch.tensor(logits)
        if model.config.logit_shift:  # plain calls are Dream's own there: one row behind
            wanted, own = wanted[:, 1:], own[:, :-1]
        torch.testing.assert_close(own, wanted, rtol=0, atol=5e-5)
        assert (
            written
            == model.diffusion_generate(IDS, max_new_tokens=8, steps=8, alg="entropy").tolist()
        )


# One of each kind before a merge.
COMMANDS = [
    pytest.param(name, marks=pytest.mark.long if name == "llada" else pytest.mark.slow)
    for name in NAMES
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_its_models(name, data, tmp_path, capsys) -> None:
    told = [*options(name), "--device", "cpu"]
    raw = "the first thing that"
    assert main(["generate", raw, "--raw", "--max-new-tokens", "8", *told, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["forwards"] <= 8
    soft = ["--feedback", "spherical", "--soft-mask-scale", "0.3", "--steps", "8"]
    assert main(["generate", raw, "--raw", "--max-new-tokens", "8", *told, *soft]) == 0
    out = tmp_path / "record"
    task = ["--tasks", "countdown_cd3_plain", "--data-dir", str(data), "--limit", "1"]
    few = ["--num-fewshot", "0", "--max-new-tokens", "8", "--out", str(out)]
    assert main(["eval", *task, *few, *told]) == 0
    assert json.loads((out / "results.json").read_text())["results"]
    timing = ["--steps", "4", "--repeat", "1", "--prompt-tokens", "4", "--max-new-tokens", "8"]
    assert main(["bench", *timing, *told, "--threads", "1", "--json"]) == 0
    capsys.readouterr()
    with serving(official(name)) as address:
        asked = {"prompt": raw, "max_tokens": 8, "softmask": {"steps": 4}}
        request = urllib.request.Request(
            f"{address}/v1/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            found = json.load(response)
    assert found["usage"]["completion_tokens"] <= 8
