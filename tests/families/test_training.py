"""Fine-tuning of every family: its own loss, and from a folder in its own layout to an answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from official import FOLDERS, folder_of, official, read
from safetensors.torch import load_file, save_file
from tiny import change_json, write_lora_adapter

import softmask
from softmask.cli.main import main
from softmask.hub.adapters import PREFIX
from softmask.training import run as run_module
from softmask.training.build import build
from softmask.training.objective import masked_diffusion_loss
from softmask.training.own_data import recipe_for

pytest.importorskip("datasets", reason="pip install 'softmask[train]'")


def loss_of(name: str, noisy, ids, times, maskable, weighting: str, **config) -> tuple[float, dict]:
    """Ours on a model as it is trained, and the gradient's norm of each weight."""
    settings = {"model": str(folder_of(name)), "family": FOLDERS[name]}
    recipe = recipe_for("x.jsonl", **settings, bfloat16=False)
    recipe = dataclasses.replace(recipe, adapter=None, soft_mask=None)
    model = build(recipe, torch.device("cpu")).dream
    for key, value in config.items():
        setattr(model.config, key, value)
    noisy, ids, times = torch.tensor(noisy), torch.tensor(ids), torch.tensor(times)
    masked = noisy == model.mask_id
    loss = masked_diffusion_loss(
        model, noisy, ids, masked, times, maskable_BL=maskable, soft=False, weighting=weighting
    ).value
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, weights)
    found = {name: g.norm().item() for name, g in zip(names, gradients, strict=True)}
    return loss.item(), found


@pytest.mark.parametrize("kind", ["pretraining", "sft"])
def test_the_loss_and_its_gradient_are_those_of_llada_s_guidelines(kind) -> None:
    found = read("llada", "loss.json")
    case, ids = found[kind], found["input_ids"]
    behind = torch.arange(len(ids[0])) >= torch.tensor(found["prompt_lengths"])[:, None]
    weighting = {"pretraining": "elbo", "sft": "answer"}[kind]
    loss, gradients = loss_of("llada", case["noisy"], ids, case["p_mask"], behind, weighting)
    assert loss == pytest.approx(case["loss"], rel=1e-5)
    own_name = official("llada").family.own_name
    norms = {own_name(name): norm for name, norm in case["gradient_norms"].items()}
    assert gradients == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in FOLDERS if name.startswith("a2d")])
def test_the_loss_is_that_of_tiny_a2d_s_own_trainer_with_each_row_s_mean(name) -> None:
    found = read(name, "loss.json")
    (case,) = [c for c in found["cases"] if c["loss_norm_type"] == "sequence"]
    supervised = torch.tensor(found["labels"]) != -100
    # Its trainer counts blocks from the start of a row, its sampler from the end of the prompt,
    # as training does here.
    blocks = {"block_size": found.get("block_size"), "block_origin": "start"}
    batch = found["noised_ids"], found["input_ids"], found["t"], supervised
    loss, gradients = loss_of(name, *batch, "answer", **blocks)
    assert loss == pytest.approx(case["loss"], rel=1e-5)
    norms = {name: gradients[name] for name in case["grad_norms"]}
    assert norms == pytest.approx(case["grad_norms"], rel=1e-4)


@pytest.fixture
def chats(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_module, "draw_curves", lambda *_: None)  # as long as all the rest
    rows = [{"prompt": f"q{i}", "completion": f"the answer is {i * 7}"} for i in range(6)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# The others take as long, and differ in their files alone.
EACH = [pytest.param(n, marks=[] if n == "llada" else pytest.mark.slow) for n in FOLDERS]


@pytest.mark.parametrize("name", EACH)
def test_a_family_is_trained_on_chats_answers_and_is_exported(
    name, chats, tmp_path, capsys
) -> None:
    family = [] if FOLDERS[name] is None else ["--family", FOLDERS[name]]
    words = ["train", "--model", str(folder_of(name)), "--data", str(chats), "--device", "cpu"]
    words += ["--iters", "2", "--batch-size", "1", "--set", "train.eval_at_start=false", *family]
    assert main([*words, "--rank", "2", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    trained = shown.partition("[[")[2].partition("]]")[0].rstrip("\n")
    assert trained.startswith("the answer is ")
    ends = [official(name).tokenizer.decode([i]) for i in official(name).end_ids]
    assert sum(trained.count(end) for end in ends) == 1  # the last thing that is trained
    assert trained.endswith(tuple(ends))
    adapter = tmp_path / "run" / "adapter"
    command = ["generate", "q9", "--adapter", str(adapter), *family]
    assert f"`softmask {' '.join(['generate', *command[2:]])}`" in shown
    assert main([*command, "--max-new-tokens", "8", "--device", "cpu"]) == 0
    assert main(["export", str(tmp_path / "out"), "--adapter", str(adapter), *family]) == 0
    merged = softmask.load(folder_of(name), adapter, family=FOLDERS[name], device="cpu")
    exported = softmask.load(tmp_path / "out", device="cpu")
    assert exported.family is merged.family is official(name).family
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected, found = merged.model(ids).logits, exported.model(ids).logits
    # The weights of the folder are in bfloat16.
    torch.testing.assert_close(found, expected, atol=0.3, rtol=0.1)

    assert main([*words, "--set", "adapter=null", "--out", str(tmp_path / "full")]) == 0
    whole = softmask.load(tmp_path / "full" / "model", device="cpu")
    assert whole.family is official(name).family
    assert whole.sampling == official(name).sampling
    before, after = official(name).tokenizer, whole.tokenizer
    assert after.chat_template == before.chat_template
    weights = load_file(tmp_path / "full" / "model" / "model.safetensors")
    assert {*weights} | {"lm_head.weight"} == {*official(name).model.state_dict()} | {
        "lm_head.weight"
    }
    assert any(n.endswith("q_proj.bias") for n in weights) == whole.model.config.attention_bias


def test_the_options_of_a_run_on_chats_are_the_family_s_where_it_says_so() -> None:
    def settings(name: str, family: str | None = None):
        return recipe_for("x.jsonl", model=str(folder_of(name)), family=family, bfloat16=False)

    published, llada = recipe_for("x.jsonl", bfloat16=False), settings("llada")
    assert (llada.train.weighting, published.train.weighting) == ("answer", "published")
    assert (llada.noise.t_low, llada.noise.t_high, llada.noise.at_least_one) == (1e-3, 1.0, False)
    assert llada.train.learning_rate == published.train.learning_rate
    assert settings("a2d_qwen3_mdlm").train.weighting == "answer"
    opened = settings("opendcoder", "opendcoder")
    assert (opened.model.family, opened.train.weighting) == ("opendcoder", "mean")
    # Its files are those of Qwen2: only the user knows.
    assert settings("opendcoder").train.weighting == "published"


ADAPTED = ("q_proj", "attn_out", "ff_out")
# peft's own advice, where the head is adapted.
EMBEDDINGS = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")


@pytest.fixture
def as_published(tmp_path) -> tuple[Path, torch.Tensor]:
    """An adapter by the names of LLaDA's own code, and the logits of PEFT's own unmerged model."""
    settings = {"target_modules": ["q_proj", "o_proj", "down_proj", "lm_head"], "use_dora": True}
    unmerged = write_lora_adapter(tmp_path / "ours", folder_of("llada"), **settings)
    with torch.no_grad():
        expected = unmerged(input_ids=torch.arange(40)[None]).logits
    theirs = official("llada").family.original_name
    tensors = {
        PREFIX + theirs(name.removeprefix(PREFIX)): tensor
        for name, tensor in load_file(tmp_path / "ours" / "adapter_model.safetensors").items()
    }
    assert PREFIX + "model.transformer.blocks.0.attn_out.lora_A.weight" in tensors
    save_file(tensors, tmp_path / "ours" / "adapter_model.safetensors")
    # `ff_out` is the head there too.
    change_json(tmp_path / "ours" / "adapter_config.json", target_modules=list(ADAPTED))
    return tmp_path / "ours", expected


@EMBEDDINGS
def test_an_adapter_that_was_trained_by_the_family_s_own_code_is_merged(as_published) -> None:
    adapter, expected = as_published
    merged = softmask.load(folder_of("llada"), adapter, device="cpu").model
    with torch.no_grad():
        found = merged(torch.arange(40)[None]).logits
        plain = official("llada").model(torch.arange(40)[None]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=0.1)


@EMBEDDINGS
def test_settings_by_foreign_names_of_modules_are_refused(as_published) -> None:
    adapter, _ = as_published
    change_json(adapter / "adapter_config.json", rank_pattern={"attn_out": 4})
    with pytest.raises(ValueError, match="does not translate rank_pattern"):
        softmask.load(folder_of("llada"), adapter, device="cpu")
