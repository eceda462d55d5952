"""Training runs: real files, real processes, real kills."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from accelerate import Accelerator
from packaging.version import Version
from processes import ranks
from runs import (
    ENVIRONMENT,
    command,
    equal_tensors,
    kill_at,
    log_of,
    pretraining,
    recipe_of,
    write_recipe,
)
from safetensors.torch import load_file
from tiny import bytes_of, change_json, write_dream_folder

import softmask
from softmask.cli.main import main
from softmask.hub.export import export
from softmask.hub.gguf_export import export_gguf
from softmask.hub.push import files_to_push
from softmask.reporting import measure
from softmask.training.build import build, describe
from softmask.training.config import Recipe
from softmask.training.run import train
from softmask.training.sweep import runs_of, sweep

RESULT = ("adapter_model.safetensors", "soft_mask.safetensors")


# From a real file to an adapter that generates


def test_a_dream_is_fine_tuned_reloaded_merged_and_generates(
    settings, base, tmp_path, drawn
) -> None:
    result = train(recipe_of(settings, steps=20, learning_rate=5e-3), tmp_path / "run")
    assert result == tmp_path / "run" / "adapter"
    log = log_of(tmp_path / "run")
    evaluations = [line for line in log if "eval_loss" in line]
    assert evaluations[0]["step"] == 0
    assert evaluations[-1]["step"] == 20
    assert evaluations[-1]["eval_plain"] < evaluations[0]["eval_plain"] - 0.05
    lines = [line for line in log if "loss" in line]
    assert {"nats", "grad_norm", "soft_share", "accuracy", "tokens"} <= set(lines[0])
    for name in ("scale", "offset", "steepness", "temperature"):
        assert name in lines[0]
    assert any("lambda" in line for line in lines)
    assert any(key.startswith("accuracy_t") for key in lines[0])
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    checkpoint = softmask.load(base, adapter=result, device="cpu")
    plain = softmask.load(base, device="cpu")
    published = json.loads((result / "transparency_config.json").read_text())
    assert published["transparency_alg"] == "mixinputs_with_topk"
    assert checkpoint.soft_mask.scale == published["transparency_scale"]
    assert checkpoint.soft_mask.scale != pytest.approx(0.3, abs=1e-6)
    completion = softmask.generate(checkpoint, "What is 2 + 3?", max_new_tokens=8)
    assert completion.forwards == 8
    name = "model.layers.0.self_attn.q_proj.weight"
    merged = checkpoint.model.get_parameter(name)
    assert not torch.equal(merged, plain.model.get_parameter(name))


def test_an_adapter_names_its_base_and_needs_no_other_argument(settings, base, tmp_path) -> None:
    result = train(recipe_of(settings, steps=2), str(tmp_path / "run"))
    assert result == tmp_path / "run" / "adapter"
    assert json.loads((result / "adapter_config.json").read_text())["use_dora"] is True
    checkpoint = softmask.load(adapter=result, device="cpu")
    assert checkpoint.name == str(base)


@pytest.mark.parametrize("name", ["base", "me/base"])
def test_an_adapter_on_a_local_base_finds_it_from_elsewhere_and_its_card_names_none(
    settings, base, tmp_path, monkeypatch, name
) -> None:
    """Whatever the name of the folder looks like: the Hub takes cards that name bases there."""
    copied = Path(shutil.copytree(base, tmp_path / name))
    monkeypatch.chdir(tmp_path)
    settings["model"]["path"] = name
    result = train(recipe_of(settings, steps=1, eval_at_start=False), tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert softmask.load(adapter=result, device="cpu").name == str(copied)
    assert "base_model" not in (result / "README.md").read_text()


def test_an_adapter_on_a_base_of_the_hub_says_its_id(settings, base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("softmask.hub.download.snapshot_download", lambda *_, **__: str(base))
    settings["model"]["path"] = "me/base"
    result = train(recipe_of(settings, steps=1, eval_at_start=False), tmp_path / "run")
    written = json.loads((result / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "me/base"
    assert "\nbase_model: me/base\n" in (result / "README.md").read_text()


def test_what_is_no_recipe_is_refused_before_there_is_a_folder(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"train takes a Recipe, .*, not 'tiny-puzzles'"):
        train("tiny-puzzles", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plain_twin_is_decoded_plainly_whatever_its_base_is(
    settings, base, tmp_path, capsys
) -> None:
    soft_base = shutil.copytree(base, tmp_path / "base")
    soft = {"transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.5}
    (soft_base / "transparency_config.json").write_text(json.dumps(soft))
    settings["model"]["path"] = str(soft_base)
    result = train(recipe_of(settings, steps=1).twin(), tmp_path / "run")
    assert not any("scale" in line or "eval_soft" in line for line in log_of(tmp_path / "run"))
    assert "trained without soft-masking" in (result / "README.md").read_text()
    merged = export(tmp_path / "merged", adapter=result)
    for model in (result, tmp_path / "run" / "checkpoint-1", merged):
        assert softmask.load(model, device="cpu").soft_mask is None
    assert "transparency_config.json" in files_to_push(result)
    capsys.readouterr()
    assert main(["models", "--json", str(tmp_path / "run")]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries[str(result)]["what"] == f"adapter of {soft_base}"
    # Adapters of others do not say: those on a soft-masked base have its parameters.
    (result / "transparency_config.json").unlink()
    assert softmask.load(result, device="cpu").soft_mask.scale == 0.5


def test_every_weight_can_be_trained_instead_of_an_adapter_and_a_model_become_block_causal(
    settings, tmp_path
) -> None:
    settings = settings | {"adapter": None, "prompt_kinds": [{"prompt_starts_with": ["Q"]}]}
    settings["model"] |= {"block_size": 4}
    result = train(recipe_of(settings, steps=2, gradient_checkpointing=True), tmp_path / "run")
    assert result.name == "model"
    checkpoint = softmask.load(result, device="cpu")
    assert checkpoint.soft_mask is not None
    assert checkpoint.tokenizer.chat_template is not None
    assert checkpoint.model.config.block_size == 4
    assert checkpoint.sampling == checkpoint.kind_of("Q").sampling == {"cache": "exact"}
    found, without = (
        softmask.generate(checkpoint, "What is 2 + 3?", max_new_tokens=8, **settings)
        for settings in ({}, {"cache": "none"})
    )
    assert found.text == without.text
    assert "eval_soft" in log_of(tmp_path / "run")[0]


def test_a_trained_model_keeps_its_bases_sampling_where_the_recipe_says_none(
    settings, base, tmp_path
) -> None:
    own = shutil.copytree(base, tmp_path / "base")
    kind = {"prompt_starts_with": ["Q"], "sampling": {"alg": "topk_margin"}, "max_new_tokens": 9}
    chosen = {"temperature": 0.8, "block_length": 16, "prompt_kinds": [kind]}
    (own / "sampling_config.json").write_text(json.dumps(chosen))
    settings["model"]["path"] = str(own)
    values = settings | {"adapter": None}
    result = train(recipe_of(values, steps=1, eval_at_start=False), tmp_path / "run")
    assert json.loads((result / "sampling_config.json").read_text()) == chosen
    settings["model"]["path"] = str(export_gguf(tmp_path / "base.gguf", own, kind="f32"))
    made = build(recipe_of(values), torch.device("cpu"))
    assert made.sampling == chosen
    settings["model"] |= {"block_size": 4}  # which blocks of 16 do not fit
    assert build(recipe_of(values), torch.device("cpu")).sampling == {}


def test_an_adapter_makes_its_base_block_causal_and_merges_into_such_a_model(
    settings, base, tmp_path
) -> None:
    settings["model"] |= {"block_size": 4}
    result = train(recipe_of(settings, steps=2, learning_rate=1e-2), tmp_path / "run")
    assert softmask.load(base, device="cpu").model.config.block_size is None
    checkpoint = softmask.load(adapter=result, device="cpu")
    export(tmp_path / "merged", adapter=result)
    merged = softmask.load(tmp_path / "merged", device="cpu")
    kept = softmask.load(adapter=tmp_path / "run" / "checkpoint-2", device="cpu")
    texts = []
    for one in (checkpoint, merged, kept):
        assert one.model.config.block_size == 4
        assert one.sampling == {"cache": "exact"}
        texts.append(softmask.generate(one, "What is 2 + 3?", max_new_tokens=8).text)
    whole = softmask.generate(checkpoint, "What is 2 + 3?", max_new_tokens=8, cache="none")
    assert texts == [whole.text] * 3
    with pytest.raises(ValueError, match=r"was made block-causal.*without --layout original"):
        export(tmp_path / "original", adapter=result, layout="original")
    assert not (tmp_path / "original").exists()
    (result / "network_config.json").write_text('{"block_size": 0}')
    with pytest.raises(
        ValueError, match=r"network_config.json: block_size must be in \[1, 65536\]"
    ):
        softmask.load(adapter=result, device="cpu")


@pytest.mark.long  # 6 million parameters
def test_the_bundled_model_can_be_trained_on(tmp_path) -> None:
    """From its own checkpoint, by an adapter, on puzzles; the adapter finds it again by name."""
    settings = pretraining(tmp_path) | {"model": {"path": "default"}, "adapter": {"r": 2}}
    result = train(recipe_of(settings), tmp_path / "run")
    assert softmask.load(adapter=result, device="cpu").name == "default"


@pytest.mark.long  # trains, merges
def test_a_base_in_4_bits_is_trained_and_the_adapter_merges_into_the_whole_one(
    settings, tmp_path
) -> None:
    """nf4 wants rows of 64 weights and more."""
    shape = {"hidden_size": 128, "intermediate_size": 192}
    base = write_dream_folder(tmp_path / "base", chat=True, **shape)
    sizes = {}
    for small in (False, True):
        settings["model"] = {"path": str(base), "dtype": "float32", "load_in_4bit": small}
        made = build(recipe_of(settings), torch.device("cpu"))
        sizes[small] = bytes_of(made.dream.model.layers)
        counts = describe(made.dream)
        assert counts == sizes.setdefault("counts", counts)
    # An eighth, the tables of small layers, and the adapter.
    assert sizes[True] < 0.3 * sizes[False]
    settings["train"] |= {"gradient_checkpointing": True, "learning_rate": 1e-2}
    result = train(recipe_of(settings), tmp_path / "run")
    values = [line["eval_plain"] for line in log_of(tmp_path / "run") if "eval_plain" in line]
    assert values[-1] < values[0] - 0.01
    checkpoint = softmask.load(base, adapter=result, device="cpu")
    assert softmask.generate(checkpoint, "Hello", max_new_tokens=4).forwards <= 4


def test_files_in_4_bits_are_trained_by_an_adapter_alone(settings, tmp_path) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 192}
    base = write_dream_folder(tmp_path / "base", chat=True, **shape)
    stored = shutil.copytree(base, tmp_path / "nf4")
    softmask.load(base, device="cpu", load_in_4bit=True).model.save_pretrained(stored)
    settings["model"] = {"path": str(stored), "dtype": "float32"}
    build(recipe_of(settings), torch.device("cpu"))
    settings["adapter"] = None
    with pytest.raises(ValueError, match="is in 4 bits, which cannot be trained: add an adapter"):
        build(recipe_of(settings), torch.device("cpu"))


def test_other_logs_are_written_on_request(settings, tmp_path) -> None:
    train(recipe_of(settings, steps=1, report_to=["tensorboard"]), tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


# The loss is what the recipe says


def test_accumulation_divides_the_loss_or_sums_it_as_published(settings, tmp_path) -> None:
    """The gradient norm of the first update is twice as large with 2 forwards summed."""
    logs = {}
    for accumulate in ("mean", "sum"):
        recipe = recipe_of(settings, steps=1, accumulate=accumulate, clip=1e6)
        train(recipe, tmp_path / accumulate)
        logs[accumulate] = next(line for line in log_of(tmp_path / accumulate) if "loss" in line)
    assert logs["sum"]["grad_norm"] == pytest.approx(2 * logs["mean"]["grad_norm"], rel=1e-4)
    assert logs["sum"]["loss"] == pytest.approx(logs["mean"]["loss"], rel=1e-5)
    for accumulate, line in logs.items():
        last = (tmp_path / accumulate / "log.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["train_loss"] == pytest.approx(line["loss"], rel=1e-3)


def test_the_precision_is_the_recipes_whatever_a_launcher_is_configured_to(
    settings, tmp_path, monkeypatch
) -> None:
    """accelerate's launcher hands its own on in this variable."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    seen = []
    autocast = Accelerator.autocast

    def watched(self, *args, **kwargs):
        seen.append(self.mixed_precision)
        return autocast(self, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "autocast", watched)
    train(recipe_of(settings, steps=1, precision="float32"), tmp_path / "run")
    assert set(seen) == {"no"}


@pytest.mark.long  # two trainings
def test_the_log_counts_passes_over_the_conversations_and_none_over_an_endless_corpus(
    settings, tmp_path
) -> None:
    """36 rows for training, two an update: 45 updates are two and a half passes."""
    settings["conversations"]["validation_samples"] = 4
    settings["train"].pop("steps")
    changes = {"epochs": 2.5, "eval_every": 100, "save_every": 100, "log_every": 9}
    train(recipe_of(settings, **changes), tmp_path / "chats")
    lines = [line for line in log_of(tmp_path / "chats") if "loss" in line]
    assert [line["epoch"] for line in lines] == pytest.approx([1 / 18, 0.5, 1.0, 1.5, 2.0, 2.5])
    train(recipe_of(pretraining(tmp_path)), tmp_path / "corpus")
    assert not any("epoch" in line for line in log_of(tmp_path / "corpus"))


def test_updates_without_a_soft_batch_leave_the_soft_mask_alone(settings, tmp_path) -> None:
    recipe = recipe_of(settings, soft_coin="step", steps=12, soft_probability=0.4)
    train(recipe, tmp_path / "run")
    lines = [line for line in log_of(tmp_path / "run") if "loss" in line]
    pairs = list(itertools.pairwise(lines))
    moved = [after["scale"] != before["scale"] for before, after in pairs]
    assert moved == [after["soft_share"] == 1 for _, after in pairs]
    assert 0 < sum(moved) < len(moved)


def test_gradient_checkpointing_changes_no_number(settings, tmp_path) -> None:
    train(recipe_of(settings, steps=3), tmp_path / "plain")
    train(recipe_of(settings, steps=3, gradient_checkpointing=True), tmp_path / "recomputed")
    for one, two in zip(log_of(tmp_path / "plain"), log_of(tmp_path / "recomputed"), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)


def test_a_moving_average_is_what_is_evaluated_and_kept(settings, tmp_path) -> None:
    """With a decay near 1 it hardly leaves the start, while the weights themselves do."""
    result = train(recipe_of(settings, ema=0.9999, learning_rate=1e-2), tmp_path / "run")
    values = [line["eval_plain"] for line in log_of(tmp_path / "run") if "eval_plain" in line]
    assert max(values) - min(values) < 1e-3
    last = load_file(tmp_path / "run" / "checkpoint-8" / "adapter_model.safetensors")
    kept = load_file(result / "adapter_model.safetensors")
    name = next(name for name in kept if "lora_B" in name)
    assert kept[name].abs().max() < 0.05 * last[name].abs().max()


# Going on


@pytest.mark.parametrize(
    "kind", [pytest.param("fine-tuning", marks=pytest.mark.long), "pretraining"]
)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(settings, tmp_path, kind) -> None:
    """A real SIGKILL in the middle; every later line of the log, and the result, are the same."""
    values = settings if kind == "fine-tuning" else pretraining(tmp_path)
    values["train"] |= {"ema": 0.9}
    if kind == "pretraining":  # on two streams
        values["train"] |= {"optimizer": "muon", "keep_best": True}
        values["model"] |= {"block_size": 4}
    path = write_recipe(values, tmp_path / "recipe.yaml")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = command("train", path, "--out", whole, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kill_at(5, path, killed)
    assert not (killed / "done.json").exists()
    again = command("train", path, "--out", killed, "--device", "cpu", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "from update" in again.stdout
    assert log_of(killed) == log_of(whole)
    files = [p.relative_to(whole) for p in whole.rglob("*.safetensors")]
    assert len(files) > 3
    assert all(equal_tensors(whole / file, killed / file) for file in files)
    settings_of = [path.relative_to(whole) for path in whole.rglob("*config.json")]
    assert settings_of
    assert all((whole / file).read_bytes() == (killed / file).read_bytes() for file in settings_of)


def test_what_is_finished_is_not_run_again(settings, tmp_path) -> None:
    result = train(recipe_of(settings, steps=2), tmp_path / "run")
    before = (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns
    said = []
    assert train(recipe_of(settings, steps=2), tmp_path / "run", report=said.append) == result
    assert (tmp_path / "run" / "log.jsonl").stat().st_mtime_ns == before
    assert "finished" in said[0]


@pytest.mark.parametrize(
    ("start", "noted"),
    [({"scale": 0.0, "offset": -0.75, "steepness": 6.66}, True), ({"offset": -7.0}, False)],
    ids=["published", "open"],
)
def test_a_run_whose_feedback_was_hardly_let_in_says_so(settings, start, noted, tmp_path) -> None:
    settings["soft_mask"] |= start
    said = []
    recipe = recipe_of(settings, steps=2, soft_probability=1.0)
    train(recipe, tmp_path / "run", report=said.append)
    # Random weights over 60 tokens know nothing: the entropy is about ln 60.
    hint = [line for line in said if "hardly let in. Begin with train.fit_soft_mask" in line]
    assert bool(hint) is noted
    assert not noted or "soft_mask.offset near -" in hint[0]


def test_a_run_in_bfloat16_that_the_cpu_emulates_says_so(
    settings, tmp_path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(measure, "slowness", lambda *_: 100.0)
    monkeypatch.setattr("softmask.training.run.build", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(recipe_of(settings, precision="bfloat16"), tmp_path / "run", device="cpu")
    assert "begin with --set train.precision=float32" in caplog.text


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(settings, tmp_path) -> None:
    runs = runs_of(recipe_of(settings, steps=2, eval_at_start=False), [1, 2], twins=True)
    begun = []

    def once(recipe: Recipe, folder: Path) -> Path:
        begun.append(folder.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return train(recipe, folder, report=lambda _line: None)

    with pytest.raises(KeyboardInterrupt):
        sweep(runs, tmp_path, once)
    results = sweep(runs, tmp_path, lambda recipe, folder: train(recipe, folder))
    assert [result.parent.name for result in results] == [
        "tiny-seed1",
        "tiny-seed1-plain",
        "tiny-seed2",
        "tiny-seed2-plain",
    ]
    assert all((result / "adapter_model.safetensors").is_file() for result in results)
    assert softmask.load(results[0], device="cpu").soft_mask is not None
    assert softmask.load(results[1], device="cpu").soft_mask is None


# Several processes


TWO_PROCESSES = [
    "ddp",
    *(pytest.param(w, marks=pytest.mark.slow) for w in ("fsdp2", "rows", "blocks", "fsdp2 blocks")),
]


@pytest.mark.parametrize("way", TWO_PROCESSES)
def test_two_processes_train_as_one_does_and_go_on(settings, base, tmp_path, way) -> None:
    """The same global batch: the same losses, and an adapter that loads.

    Then the last checkpoint is lost, and the run goes on from the one before, again to the same
    (with sharded weights, the harder way: every start of two processes costs ten seconds). With
    "ddp" the losses of an update are summed, as published. With "rows", under DDP, rows stay for
    several forwards, two of them an update; with "blocks" the model is block-causal. "ddp" starts
    its ranks as forks, the others by torchrun.
    """
    if "blocks" in way:
        base = write_dream_folder(tmp_path / "base", chat=True, block_size=4, family="dream")
        settings["model"] |= {"path": str(base)}
    settings["train"] |= {"soft_coin": "step", "steps": 6}
    if way == "rows":
        trajectory = {"stages": 4, "forwards": 2}
        settings["train"] |= {"trajectory": trajectory, "weighting": "row"}
    if way == "ddp":
        settings["train"] |= {"accumulate": "sum", "clip": 1e6}
    train(recipe_of(settings), tmp_path / "alone")
    settings["train"] |= {"accumulation": 1}
    path = write_recipe(settings, tmp_path / "recipe.yaml")
    script = "fsdp_on_cpu.py" if "fsdp2" in way else "nothing_left.py"
    entry = Path(__file__).parent / script
    words = ["train", str(path), "--out", "together", "--device", "cpu"]

    def together() -> None:
        if way == "ddp":
            for rank in ranks("-c", entry.read_text(), *words, cwd=tmp_path):
                assert rank.returncode == 0, rank.stderr
            return
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
                *("--standalone", str(entry), *words),  # which finds a free port
            ],
            cwd=tmp_path,
            env=ENVIRONMENT | {"PYTHONWARNINGS": "default"},
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert done.returncode == 0, done.stderr

    together()
    one, two = log_of(tmp_path / "alone"), log_of(tmp_path / "together")
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=2e-4, abs=1e-5)
    coins = {line["soft_share"] for line in one if "soft_share" in line}
    assert coins == {0.0, 1.0} if way != "rows" else max(coins) > 0
    adapter = tmp_path / "together" / "adapter"
    checkpoint = softmask.load(base, adapter=adapter, device="cpu")
    assert softmask.generate(checkpoint, "Hello", max_new_tokens=4).forwards <= 4
    if "fsdp2" not in way or Version(transformers.__version__) < Version("5.24"):
        return  # 5.17 (none between was tried) resumes on GPUs only: it loads onto "cpu:0"
    weights = {name: load_file(adapter / name) for name in RESULT}
    (tmp_path / "together" / "done.json").unlink()
    shutil.rmtree(tmp_path / "together" / "checkpoint-6")
    together()
    assert log_of(tmp_path / "together") == two
    for name, before in weights.items():
        after = load_file(adapter / name)
        assert all(torch.equal(before[key], after[key]) for key in before)


# Bad input


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(
    settings, tmp_path, monkeypatch
) -> None:
    from softmask.training import trainer

    def broken(*args, **kwargs):
        loss = objective(*args, **kwargs)
        return loss._replace(value=loss.value * float("nan"))

    objective = trainer.masked_diffusion_loss
    monkeypatch.setattr(trainer, "masked_diffusion_loss", broken)
    with pytest.raises(ValueError, match=r"the loss of update 1 is nan.*gsm8k\.jsonl"):
        train(recipe_of(settings, eval_at_start=False), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert report["step"] == 0
    assert "gsm8k.jsonl" in report["row_ids"][0]
    assert len(report["input_ids"]) == len(report["row_ids"])
    assert not (tmp_path / "run" / "done.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"target_modules": ["q_proj", "qproj"]}}, "linear module 'qproj'"),
        ({"adapter": {"target_modules": ["mlp"]}}, "linear module 'mlp'"),
        ({"soft_mask": {"k": 5000}}, "soft-mask k is 5000"),
        ({"conversations": {"min_response": 5000}}, "no conversation is left"),
        ({"train": {"arguments": {"dataloader_workers": 2}}}, "no training argument"),
        ({"train": {"arguments": {"learning_rate": 2.0}}}, "set by a setting of the recipe"),
        ({"train": {"arguments": {"weight_decay": 0.1}}}, "no effect here: use train.weight_decay"),
        ({"train": {"arguments": {"save_only_model": True}}}, "keep the run from going on exactly"),
        ({"train": {"arguments": {"dataloader_num_workers": "x"}}}, "refused by transformers"),
        ({"model": {"attention": "owner/kernel"}}, "model.attention must be one of eager"),
        ({"train": {"report_to": ["wandb"]}}, "wandb is not installed: pip install wandb"),
        ({"model": {"path": "nowhere/at/all"}}, "there is no folder nowhere"),
        (
            {"sampling": {"temperature": 0.5}},
            "sampling and prompt_kinds are written beside a whole",
        ),
        (
            {"model": {"block_size": 4}, "adapter": None, "sampling": {"block_length": 3}},
            "blocks of 4 tokens: sampling.block_length must divide that, not be 3",
        ),
        (
            {
                "model": {"block_size": 4},
                "train": {"trajectory": {}, "weighting": "row"},
            },
            "a block-causal model decides block by block: leave it out",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_clear_sentence(settings, tmp_path, changes, message) -> None:
    for part, values in changes.items():
        settings[part] = values if values is None else settings.get(part, {}) | values
    with pytest.raises(ValueError, match=message) as caught:
        train(recipe_of(settings), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_no_row_is_longer_than_the_models_context(settings, tmp_path) -> None:
    base = write_dream_folder(tmp_path / "base", chat=True, max_position_embeddings=90)
    settings["model"]["path"] = str(base)
    with pytest.raises(ValueError, match=r"no conversation is left .*too long 2"):
        train(recipe_of(settings, steps=1), tmp_path / "run")
    short = pretraining(tmp_path)
    short["corpus"]["story_length"] = 200
    with pytest.raises(ValueError, match="story_length is 200, but the model's context is 128"):
        train(recipe_of(short), tmp_path / "corpus")


def test_a_base_without_a_pad_token_is_padded_with_its_end(settings, tmp_path) -> None:
    base = write_dream_folder(tmp_path / "base", chat=True, max_position_embeddings=1024)
    change_json(base / "tokenizer_config.json", pad_token=None)
    change_json(base / "special_tokens_map.json", pad_token=None)
    settings["model"]["path"] = str(base)
    train(recipe_of(settings, steps=1), tmp_path / "run")
    change_json(base / "tokenizer_config.json", eos_token=None)
    change_json(base / "special_tokens_map.json", eos_token=None)
    change_json(base / "config.json", pad_token_id=None, eos_token_id=None)
    with pytest.raises(ValueError, match="has neither a pad nor an end token"):
        train(recipe_of(settings, steps=1), tmp_path / "other")


def test_the_command_line_says_what_is_wrong(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ((), "give one of --data with your chats, a recipe"),
        (("mix", "--rank", "4"), "--rank is for --data"),
        (("mixx",), "there is no recipe 'mixx'"),
        (("mix", "--seed", "1", "--seeds", "1-2"), "not both"),
        (("tiny-text", "--set", "train.ema=2"), "ema must lie"),
        (("tiny-text", "--device", "tpu"), "not on 'tpu'"),
        (("--published", "a.json", "b.json"), "there is no file a.json"),
    ):
        assert main(["train", *words]) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert message in error
