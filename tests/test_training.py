"""Corruption, the objective, and a training run that stops and goes on."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import softmask
from softmask.config import (
    DataConfig,
    ModelShape,
    SoftMaskConfig,
    StageConfig,
    TrainConfig,
    from_mapping,
)
from softmask.data import PretrainingData, held_out_digest, read_held_out, train_tokenizer
from softmask.noise import WINDOW, corrupt, sample_times
from softmask.objective import masked_diffusion_loss
from softmask.puzzles import generate_puzzles, read_puzzles
from softmask.recipe import read_recipe, recipe_names
from softmask.soft_mask import SoftMask, feedback
from softmask.trainer import Run, build_model, make_optimizers, plan, train

SHARED = Path(__file__).parents[2] / "shared" / "data" / "planning"
STORIES = [
    f"Once upon a time there was a cat number {i}. It sat on a mat. The end." for i in range(9)
]


@pytest.fixture
def recipe(tmp_path) -> TrainConfig:
    text = tmp_path / "stories.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES))
    shape = ModelShape(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        vocab_size=300,
    )
    return TrainConfig(
        name="tiny",
        model=shape,
        data=DataConfig(text=(str(text),), puzzle_batch=4, story_batch=3, story_length=24),
        stages=(
            StageConfig("plain", 4, 1e-3, warmup_steps=2),
            StageConfig("soft", 4, 1e-3, warmup_steps=0, soft_probability=1.0),
        ),
        eval_every=3,
        log_every=1,
    )


def test_every_row_has_a_mask_and_none_outside_what_may_be_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (200, 12), generator=generator)
    maskable = torch.rand(200, 12, generator=generator) < 0.6
    maskable[0] = False
    times = sample_times(200, 0.0, 1.0, generator)
    noisy, masked = corrupt(ids, maskable, times, 63, generator)
    assert not (masked & ~maskable).any()
    assert masked.any(1)[maskable.any(1)].all()
    assert not masked[0].any()
    assert torch.equal(noisy == 63, masked)
    assert torch.equal(noisy[~masked], ids[~masked])
    share = (masked & maskable).sum(1) / maskable.sum(1).clamp_min(1)
    assert abs(share[times > 0.9].mean() - 0.95) < 0.06
    assert share[times < 0.1].mean() < 0.3


def test_left_to_right_rows_are_whole_in_front_and_masked_behind_a_window() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(400, 60, dtype=torch.long)
    maskable = torch.arange(60).expand(400, -1) >= 10
    times = sample_times(400, 0.0, 1.0, generator)
    _, masked = corrupt(ids, maskable, times, 63, generator, left_to_right=1.0)
    assert masked.any(1).all()
    assert not masked[:, :10].any()
    first = masked.int().argmax(1)
    # Behind the last token that is there, all is masked; it stands at most a window behind the
    # first mask.
    last_kept = 59 - (~masked).int().flip(1).argmax(1)
    assert (last_kept - first < WINDOW).all()
    assert first.float().std() > 10
    _, mixed = corrupt(ids, maskable, times, 63, generator, left_to_right=0.5)
    shares = mixed[:, 10:].float().mean(1)
    assert 0.35 < shares.mean() < 0.65


def test_times_are_stratified_between_their_bounds() -> None:
    times = sample_times(50, 0.2, 0.8, torch.Generator().manual_seed(0)).sort().values
    slices = ((times - 0.2) / 0.6 * 50).floor()
    assert torch.equal(slices, torch.arange(50.0))


def batch_of(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 60, (4, 10), generator=generator)
    times = torch.full((4,), 0.5)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    noisy, masked = corrupt(ids, maskable, times, model.config.mask_token_id, generator)
    return noisy, ids, masked, times


def test_position_zero_never_counts_under_the_shift() -> None:
    model = tiny_model()
    noisy, ids, masked, times = batch_of(model)
    masked[:, 0] = True
    with torch.no_grad():
        before = masked_diffusion_loss(model, noisy, ids, masked, times, soft=False)
        ids[:, 0] = (ids[:, 0] + 1) % 60
        after = masked_diffusion_loss(model, noisy, ids, masked, times, soft=False)
    assert before.value == after.value


def test_the_two_pass_loss_at_scale_zero_equals_the_one_pass_loss() -> None:
    model = tiny_model()
    model.soft_mask = SoftMask(0.0, exact=True, k=3)
    noisy, ids, masked, times = batch_of(model)
    one = masked_diffusion_loss(model, noisy, ids, masked, times, soft=False)
    two = masked_diffusion_loss(model, noisy, ids, masked, times, soft=True)
    assert one.value == two.value
    assert two.mixed == 0


@pytest.mark.parametrize("mode", ["topk", "temperature"])
def test_gradients_reach_the_soft_mask_parameters_and_the_embedding(mode) -> None:
    model = tiny_model()
    model.soft_mask = SoftMask(0.5, -3.0, 1.0, mode=mode, k=3)
    noisy, ids, masked, times = batch_of(model)
    masked_diffusion_loss(model, noisy, ids, masked, times, soft=True).value.backward()
    for name in ("scale", "offset", "steepness"):
        assert getattr(model.soft_mask, f"raw_{name}").grad.abs() > 0
    assert (model.soft_mask.raw_temperature.grad is None) == (mode == "topk")
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["topk", "temperature"])
def test_mixed_precision_does_not_round_the_mixture(mode) -> None:
    mask, table = SoftMask(0.5, -3.0, 1.0, mode=mode, k=3), tiny_model().model.embed_tokens.weight
    ids = torch.full((1, 6), 63)
    rows = torch.arange(6)
    logits = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    seen = feedback(logits, rows, 3, mode)
    with torch.no_grad():
        exact = mask(ids, seen)[0].embed(table)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = mask(ids, seen)[0].embed(table)
    assert torch.equal(exact, mixed)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_just_one_optimizer_and_decay_acts_on_matrices(
    recipe, optimizer
) -> None:
    recipe = dataclasses.replace(recipe, optimizer=optimizer, weight_decay=0.3)
    model = build_model(recipe, train_tokenizer(STORIES, 300))
    groups = [g for o in make_optimizers(model, recipe) for g in o.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert {p.dim() == 2 for p in group["params"]} == {group["weight_decay"] == 0.3}
    assert {id(p) for p in groups[-1]["params"]} <= {id(p) for p in model.soft_mask.parameters()}


def test_the_weightings_are_what_they_say() -> None:
    model = tiny_model()
    noisy, ids, masked, times = batch_of(model)
    masked[:, 0] = False
    times = torch.tensor([0.25, 0.5, 0.5, 1.0])
    losses = {
        name: masked_diffusion_loss(model, noisy, ids, masked, times, soft=False, weighting=name)
        for name in ("mean", "published", "elbo")
    }
    with torch.no_grad():
        logits = model(noisy).logits
        nats = torch.nn.functional.cross_entropy(logits.mT, ids, reduction="none") * masked
    assert losses["mean"].value.item() == pytest.approx(nats.sum().item() / masked.sum().item())
    assert losses["published"].value.item() == pytest.approx(4 * losses["mean"].value.item())
    elbo = (nats / times[:, None]).sum().item() / ids.numel()
    assert losses["elbo"].value.item() == pytest.approx(elbo, rel=1e-5)


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("optimizer", "precision"), [("adamw", "float32"), ("muon", "float32"), ("muon", "bfloat16")]
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    recipe, tmp_path, monkeypatch, optimizer, precision
) -> None:
    recipe = dataclasses.replace(recipe, optimizer=optimizer, precision=precision)
    whole = train(recipe, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop_at_5(self, stage, inner):
        if self.step == 5:
            raise Stop
        return train_step(self, stage, inner)

    train_step = Run.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", stop_at_5)
        with pytest.raises(Stop):
            train(recipe, tmp_path / "stopped")
    resumed = train(recipe, tmp_path / "stopped")
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")
    first, second = (softmask.load(folder, device="cpu") for folder in (whole, resumed))
    assert first.soft_mask == second.soft_mask
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_was_trained_can_be_loaded_and_generates(recipe, tmp_path) -> None:
    checkpoint = softmask.load(train(recipe, tmp_path / "run"), device="cpu")
    assert checkpoint.soft_mask.k == recipe.soft_mask.k
    assert softmask.generate(checkpoint, "Once", max_new_tokens=6).forwards <= 6
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(8))
    assert all("lambda" in line for line in log[4:])
    assert {"puzzles_plain", "puzzles_soft", "text_plain", "text_soft"} <= set(log[-1])


def test_a_folder_with_another_recipes_run_is_refused(recipe, tmp_path) -> None:
    train(recipe, tmp_path / "run")
    with pytest.raises(ValueError, match="another recipe"):
        train(dataclasses.replace(recipe, seed=2), tmp_path / "run")


def test_a_missing_text_is_one_clear_sentence(recipe, tmp_path) -> None:
    data = dataclasses.replace(recipe.data, text=("nowhere.txt",))
    with pytest.raises(ValueError, match=r"nowhere\.txt"):
        train(dataclasses.replace(recipe, data=data), tmp_path / "run")


def test_batches_derive_from_seed_and_step_alone(recipe) -> None:
    tokenizer = train_tokenizer(STORIES, 300)
    stage = recipe.stages[0]
    a, b = (PretrainingData(recipe.data, STORIES, tokenizer) for _ in range(2))
    for step in (7, 3, 7):
        assert torch.equal(a.batch(1, step, stage).ids_BL, b.batch(1, step, stage).ids_BL)
    assert not torch.equal(
        a.puzzle_batch(random.Random(1)).ids_BL[:, :8],
        a.puzzle_batch(random.Random(2)).ids_BL[:, :8],
    )


def test_no_training_puzzle_is_an_evaluation_puzzle(recipe) -> None:
    tokenizer = train_tokenizer(STORIES, 300)
    data = PretrainingData(recipe.data, STORIES, tokenizer)
    held_out = read_held_out()
    mixture = {"sudoku_4x4": 1.0, "countdown_3": 1.0}
    seed = random.Random(3).getrandbits(60)
    plain = generate_puzzles(seed, mixture)
    met = [held_out_digest(p.kind, p.input) in held_out for p in islice(plain, 6000)]
    assert any(met)  # the evaluation's puzzles do come up, and are left out:
    drawn = data.puzzles(random.Random(3), 6000, mixture)
    assert not any(held_out_digest(p.kind, p.input) in held_out for p in drawn)


@pytest.mark.skipif(not SHARED.is_dir(), reason="Dream's evaluation files are not beside us")
def test_the_held_out_list_covers_the_evaluation_files() -> None:
    held_out = read_held_out()
    for path in SHARED.glob("*.jsonl"):
        kind = "sudoku" if path.name.startswith("sudoku") else "countdown"
        assert all(held_out_digest(kind, p.input) in held_out for p in read_puzzles(path, kind))


@pytest.mark.parametrize("name", recipe_names())
def test_the_bundled_recipes_are_valid(name) -> None:
    config = read_recipe(name)
    assert config.name == name
    assert sum(1 for _ in plan(config)) == sum(stage.steps for stage in config.stages)


def test_overrides_reach_every_depth_and_misspelt_ones_are_named() -> None:
    config = read_recipe(
        "default", ["data.puzzle_share=1", "stages.0.learning_rate=2e-5", "seed=3"]
    )
    assert config.data.puzzle_share == 1.0
    assert config.stages[0].learning_rate == 2e-5
    assert config.seed == 3
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        read_recipe("default", ["stages.0.lerning_rate=1"])
    with pytest.raises(ValueError, match="no index"):
        read_recipe("default", ["stages.9.steps=1"])
    with pytest.raises(ValueError, match="must be int"):
        read_recipe("default", ["seed=one"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scael": 0.5}, "did you mean 'scale'"),
        ({"scale": "0.5"}, "must be float"),
        ({"k": 1.5}, "must be int"),
        ([], "expected a mapping"),
    ],
)
def test_settings_are_parsed_strictly(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping(SoftMaskConfig, values, "test")
