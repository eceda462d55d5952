"""Recipes: typed, strict, and the published ones with the published numbers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from transformers import get_scheduler

from softmask.config import SoftMaskConfig, from_mapping
from softmask.families.llada import LLADA
from softmask.training.config import Recipe, StageConfig, TrainConfig
from softmask.training.published_recipe import read_published_pair
from softmask.training.recipe import override, read_recipe, recipe_names
from softmask.training.schedule import GlobalBatch, TrainingSchedule
from softmask.training.sweep import parse_seeds, run_name, runs_of

# The published fine-tuning (paper, appendix; base_configs and datasets_* of its code).
PUBLISHED = {
    "adapter.r": 16,
    "adapter.alpha": 16,
    "adapter.dropout": 0,
    "adapter.bias": "none",
    "adapter.dora": True,
    "adapter.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "adapter.layers": None,
    "soft_mask.mode": "topk",
    "soft_mask.k": 1,
    "soft_mask.scale": 0,
    "soft_mask.offset": -0.75,
    "soft_mask.steepness": 6.66,
    "conversations.max_length": 2048,
    "conversations.min_response": 5,
    "conversations.max_samples": 300_000,
    "conversations.validation_samples": 500,
    "conversations.extra_padding": 50,
    "conversations.pad_multiple": 8,
    "conversations.drop_tool_calls": True,
    "noise.t_low": 0.2,
    "noise.t_high": 0.8,
    "noise.per_row": False,
    "noise.floor": 1e-3,
    "train.optimizer": "adamw",
    "train.weight_decay": 0,
    "train.beta2": 0.999,
    "train.learning_rate": 1e-5,
    "train.final_learning_rate": 0,
    "train.schedule": "cosine",
    "train.warmup": 0.03,
    "train.clip": 7.0,
    "train.epochs": 1,
    "train.steps": None,
    "train.batch_size": 1,
    "train.accumulation": 8,
    "train.precision": "bfloat16",
    "train.gradient_checkpointing": True,
    "train.eval_every": 100,
    "train.eval_at_start": True,
    "train.save_every": 100,
    "train.save_limit": 10,
    "train.keep_best": True,
    "train.soft_probability": 0.5,
    "train.soft_learning_rate": 1e-2,
    "train.soft_coin": "batch",
    "train.weighting": "published",
    "train.accumulate": "sum",
    "model.dtype": "bfloat16",
    "seed": 1231,
}


def at(recipe: Recipe, place: str):
    for name in place.split("."):
        recipe = getattr(recipe, name)
    return recipe


@pytest.mark.parametrize("name", ["mix", "coding"])
def test_the_published_recipes_hold_the_published_numbers(name) -> None:
    recipe = read_recipe(name)
    assert {place: at(recipe, place) for place in PUBLISHED} == PUBLISHED


def test_the_published_recipes_differ_in_base_and_data_alone() -> None:
    mix, coding = read_recipe("mix"), read_recipe("coding")
    assert mix.model.path == "Dream-org/Dream-v0-Instruct-7B"
    assert coding.model.path == "Dream-org/Dream-Coder-v0-Instruct-7B"
    sources = [(s.path, s.subset) for s in mix.conversations.sources]
    assert sources == [("allenai/tulu-3-sft-mixture", None), ("HuggingFaceTB/smoltalk", "all")]
    assert [s.path for s in coding.conversations.sources] == ["inclusionAI/Ling-Coder-SFT"]
    assert coding.train == mix.train
    assert coding.adapter == mix.adapter
    assert coding.noise == mix.noise
    assert coding.soft_mask == mix.soft_mask


def test_the_recipe_for_llada_has_the_settings_of_its_family() -> None:
    recipe = dataclasses.asdict(read_recipe("llada-sft"))
    for part, settings in LLADA.training.items():
        assert recipe[part].items() >= settings.items()
    # Behind a batch stands what its longest row asks for, and no more.
    assert recipe["conversations"]["extra_padding"] == recipe["conversations"]["pad_multiple"] == 1


@pytest.mark.parametrize("name", recipe_names())
def test_the_bundled_recipes_are_valid(name) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    stages = recipe.train.stages
    if stages:
        assert TrainingSchedule(recipe.train, 0).steps == sum(stage.steps for stage in stages)


def test_overrides_reach_every_depth_and_misspelt_ones_are_named() -> None:
    recipe = read_recipe(
        "default",
        ["corpus.puzzle_share=1", "train.stages.0.learning_rate=2e-5", "seed=3"],
    )
    assert recipe.corpus.puzzle_share == 1.0
    assert recipe.train.stages[0].learning_rate == 2e-5
    assert recipe.seed == 3
    assert read_recipe("mix", ["train.learning_rate=2e-5"]).train.learning_rate == 2e-5
    assert read_recipe("mix", ["adapter.layers=[0, 1]"]).adapter.layers == (0, 1)
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        read_recipe("default", ["train.stages.0.lerning_rate=1"])
    with pytest.raises(ValueError, match="no index"):
        read_recipe("default", ["train.stages.9.steps=1"])
    with pytest.raises(ValueError, match="must be int"):
        read_recipe("default", ["seed=one"])
    with pytest.raises(ValueError, match="did you mean 'soft_probability'"):
        read_recipe("mix", ["train.softprobability=1"])


def test_a_recipe_of_options_is_changed_like_one_of_a_file() -> None:
    changes = ["conversations.sources.1.revision=v2", "adapter.target_modules.0=q_proj", "seed=3"]
    recipe = override(read_recipe("mix"), changes)
    assert recipe == read_recipe("mix", changes)
    assert [source.revision for source in recipe.conversations.sources] == [None, "v2"]
    with pytest.raises(ValueError, match="'2' is no index below 2"):
        override(recipe, ["conversations.sources.2.revision=v2"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.learning_rate=0"], "learning_rate must be > 0"),
        (["train.soft_probability=1.5"], r"soft_probability must lie in \[0, 1\]"),
        (["noise.t_low=0.9"], "t_low <= t_high"),
        (["conversations.sources=[]"], "sources is empty"),
        (["train.save_every=150"], "multiple of eval_every"),
        (["corpus={text: [a]}"], "one of conversations and corpus"),
        (["model.path=null"], "dtype needs model.path"),
        (["model={}"], "an adapter needs model.path"),
        (["model={}", "adapter=null"], "conversations need model.path"),
        (["adapter=null", "model.load_in_4bit=true"], "cannot be trained"),
        (["train.weighting=fair"], "must be one of mean, row, elbo, published"),
        (["train.trajectory={stages: 0}"], "stages must be at least 1"),
        (["train.trajectory={stages: 9, forwards: 2}"], "must be a multiple of forwards"),
        (
            ["train.trajectory={reveal: surest}", "train.weighting=row"],
            "reveal must be one of confidence, random, not 'surest'",
        ),
        (["train.trajectory={}"], "masks no row at a time t: weighting must be mean or row"),
        (
            ["train.trajectory={}", "train.weighting=row", "train.feedback_passes=2"],
            "feedback_passes has no effect with trajectory",
        ),
        (
            ["train.trajectory={}", "train.weighting=row", "soft_mask.mode=temperature"],
            "would carry all logits for soft_mask.mode temperature",
        ),
        (["noise.t_low=0"], "divides by the time t, and noise.t_low is 0: give a smallest time"),
        (["adapter.bias=some"], "bias must be one of"),
        (["adapter.layers=[]"], "layers is empty: name layers, or null"),
        (["seed=-1"], r"seed must lie in \[0, 2\*\*32\)"),
        (["seed=99999999999999999999"], "seed is too large a number"),
        (["train.learning_rate=1e300"], "'learning_rate' must be a finite number"),
        (["train.learning_rate=.nan"], "'learning_rate' must be a finite number"),
        (["train.final_learning_rate=.nan"], "rate' must be a finite number"),
        (["train.warmup=.inf"], "'warmup' must be a finite number"),
        (["train.weight_decay=-1"], "weight_decay must be >= 0"),
        (["train.beta2=1"], r"beta2 must lie in \[0, 1\)"),
        (["train.stages=[{name: a, steps: 1, learning_rate: -1}]"], "learning_rate must be > 0"),
        (["model.dtype=float17"], "dtype must be one of float32"),
        (["model.shape.hidden_size=0"], "hidden_size must be at least 1"),
        (["model.shape.hidden_size=42"], "must be a multiple of twice the attention heads"),
        (["model.shape.num_key_value_heads=4"], "must be a multiple of num_key_value_heads"),
        (["model.shape.vocab_size=5"], "vocab_size must be at least 259"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_one_clear_sentence(overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe("mix", overrides)


def test_settings_of_a_checkpoint_need_one_and_a_shape_needs_none() -> None:
    for name, value in {"revision": "main", "family": "llada", "dtype": "bfloat16"}.items():
        with pytest.raises(ValueError, match=f"{name} needs model.path, the checkpoint"):
            read_recipe("tiny-text", [f"model.{name}={value}"])
    with pytest.raises(ValueError, match=r"shape is of a model made from nothing, and default has"):
        read_recipe("tiny-text", ["model.path=default"])
    assert read_recipe("tiny-text", ["model.path=default", "model.shape={}"]).model.path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"puzzle_share": 0.0}, "stage late has puzzle_share 0.0, and corpus.text is empty"),
        ({"puzzles": {"sudoku4x4": 1.0}}, "has no part 'sudoku4x4'; its parts are sudoku_4x4"),
        ({"puzzles": {"sudoku_4x4": 0.0}}, "and one must be positive"),
        ({"puzzles": {}}, "and one must be positive"),
    ],
)
def test_what_a_late_stage_cannot_draw_is_said_before_the_first_begins(changes, message) -> None:
    stages = [{"name": "early", "steps": 1}, {"name": "late", "steps": 1, **changes}]
    settings = {"name": "a", "corpus": {"puzzle_share": 1.0}, "train": {"stages": stages}}
    with pytest.raises(ValueError, match=message):
        from_mapping(Recipe, settings, "test")
    if "puzzles" in changes:
        with pytest.raises(ValueError, match=message):
            from_mapping(Recipe, settings | {"corpus": {"puzzle_share": 1.0, **changes}}, "test")


# The learning rate and the global batch


def test_the_learning_rate_warms_up_and_falls_by_the_cosine() -> None:
    schedule = TrainingSchedule(
        TrainConfig(learning_rate=1.0, final_learning_rate=0.2, warmup=0.1), 100
    )
    rates = [schedule.learning_rate(step) for step in range(100)]
    assert rates[:11] == pytest.approx([0.1 * i for i in range(11)])
    assert rates[55] == pytest.approx(0.6)
    assert 0.2 < rates[99] < 0.21
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("name", ["mix", "coding", "linear", "constant_with_warmup"])
def test_the_learning_rate_is_the_published_trainer_s_at_every_update(name) -> None:
    """transformers' own schedule, which the published trainer has; its first update has rate 0."""
    if name in recipe_names():
        settings, name = read_recipe(name).train, "cosine"
    else:
        kind = name.removesuffix("_with_warmup")
        settings = TrainConfig(learning_rate=1e-5, schedule=kind, warmup=0.03)
    steps = 1001
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    warmup = math.ceil(settings.warmup * steps)
    theirs = get_scheduler(name, optimizer, warmup, steps).lr_lambdas[0]
    schedule = TrainingSchedule(settings, steps)
    for step in range(steps):
        expected = settings.learning_rate * theirs(step)
        assert schedule.learning_rate(step) == pytest.approx(expected, abs=1e-18)
    assert schedule.learning_rate(0) == 0


def test_stages_follow_one_another_with_settings_of_their_own() -> None:
    stages = (StageConfig("a", 3, learning_rate=1.0), StageConfig("b", 4, soft_probability=0.9))
    config = TrainConfig(learning_rate=2.0, schedule="constant", warmup=0, stages=stages)
    schedule = TrainingSchedule(config, 0)
    assert schedule.steps == 7
    assert [schedule.at(step).name for step in (0, 2, 3, 6, 9)] == list("aabbb")
    assert [schedule.learning_rate(step) for step in (2, 3)] == [1.0, 2.0]
    assert [schedule.at(step).soft_probability for step in (2, 3)] == [0.5, 0.9]


def test_a_row_belongs_to_the_same_update_on_any_number_of_devices() -> None:
    one, two = GlobalBatch(1, 1, 8), GlobalBatch(1, 2, 4)
    for draw in range(40):
        assert one.update_of(draw) == two.update_of(draw)
    assert [two.forward_of(draw) for draw in range(5)] == [0, 0, 1, 1, 2]


# The published JSON pair

BASE = {
    "output_dir": "peft_adaptor_1",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "max_grad_norm": 7.0,
    "weight_decay": 0.0,
    "bf16": True,
    "gradient_checkpointing": True,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "eval_on_start": True,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 10,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "remove_unused_columns": False,
    "report_to": "tensorboard",
    "dataloader_num_workers": 2,
    "seed": 1231,
    "softmasking_prob": 0.5,
    "loss_calc": "model_weighted",
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_dora": True,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "modules_to_save": [],
    "layers_to_transform": None,
    "layers_pattern": None,
    "mixinputs_k": 1,
    "transparency_alg": "mixinputs_with_topk",
    "init_scale": 0.0,
    "init_centre": -0.75,
    "init_steep": 6.66,
}
DATASET = {
    "job_name": "softmasking---mix",
    "model_path": "<YOUR_HF_USERNAME>/Dream-v0-Instruct-7B-SM",
    "softmasking": True,
    "data_path": "mix",
    "is_messages": True,
    "max_length": 2048,
    "max_train_size": 300000,
    "min_prob": 0.2,
    "max_prob": 0.8,
}


@pytest.fixture
def pair(tmp_path):
    def write(base=None, dataset=None):
        paths = tmp_path / "base.json", tmp_path / "dataset.json"
        paths[0].write_text(json.dumps(BASE | (base or {})))
        paths[1].write_text(json.dumps(DATASET | (dataset or {})))
        return paths

    return write


def test_the_published_pair_is_the_mix_recipe(pair) -> None:
    recipe, notes = read_published_pair(*pair())
    mix = read_recipe("mix")
    train = dataclasses.replace(
        mix.train, report_to=("tensorboard",), arguments={"dataloader_num_workers": 2}
    )
    assert recipe == dataclasses.replace(mix, name="softmasking---mix", train=train)
    assert any(note.startswith("output_dir has no effect") for note in notes)


def test_the_published_pair_knows_the_plain_twin_and_other_data(pair) -> None:
    coding = {
        "softmasking": False,
        "data_path": "inclusionAI/Ling-Coder-SFT",
        "model_path": "me/Dream-Coder-v0-Instruct-7B-SM",
    }
    recipe, _ = read_published_pair(*pair(dataset=coding))
    assert recipe.soft_mask is None
    assert recipe.model.path == "me/Dream-Coder-v0-Instruct-7B-SM"
    assert [s.path for s in recipe.conversations.sources] == ["inclusionAI/Ling-Coder-SFT"]
    columns = {"is_messages": False, "prompt_column": "question", "response_column": "answer"}
    recipe, _ = read_published_pair(*pair(dataset={"data_path": "gsm8k"} | columns))
    assert recipe.conversations.sources[0].prompt_column == "question"


def test_a_byte_order_mark_at_the_start_of_a_recipe_is_no_part_of_it(pair, tmp_path) -> None:
    """As editors on Windows write one."""
    paths = pair()
    for path in paths:
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_published_pair(*paths).recipe.seed == 1231
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ncorpus: {puzzle_share: 1}\ntrain: {steps: 1}", "utf-8-sig")
    assert read_recipe(str(file)).name == "mine"


@pytest.mark.parametrize(
    ("base", "dataset", "message"),
    [
        ({"softmaskng_prob": 0.5}, {}, "did you mean 'softmasking_prob'"),
        ({"loss_calc": "diffullama"}, {}, "loss_calc must be"),
        ({}, {"no_adapter": True}, "no_adapter must be False"),
        ({}, {"is_messages": False}, "give prompt_column"),
        ({"transparency_alg": "mixinputs"}, {}, "transparency_alg must be one of"),
        ({"save_strategy": "epoch"}, {}, "save_strategy must be 'steps'"),
        ({"r": "16"}, {}, "r must be int"),
        ({}, {"model_path": None}, "model_path must be str, not None"),
        ({"max_steps": None}, {}, "max_steps must be int, not None"),
        ({"max_steps": "10"}, {}, "max_steps must be int, not '10'"),
        ({"report_to": 5}, {}, "report_to must be .*, not 5"),
        ({"transparency_alg": ["a"]}, {}, "transparency_alg must be str, not"),
        ({}, {"softmasking": "no"}, "softmasking must be bool, not 'no'"),
        ({"bf16": "yes"}, {}, "bf16 must be bool, not 'yes'"),
    ],
)
def test_a_published_pair_that_means_something_else_is_refused(
    pair, base, dataset, message
) -> None:
    with pytest.raises(ValueError, match=message):
        read_published_pair(*pair(base, dataset))


# Sweeps


def test_a_sweep_has_every_seed_and_its_twin() -> None:
    runs = runs_of(read_recipe("mix"), parse_seeds("1231-1235"), twins=True)
    assert [run_name(run) for run in runs] == [
        f"mix-seed{seed}{twin}" for seed in range(1231, 1236) for twin in ("", "-plain")
    ]
    assert [run.soft_mask is None for run in runs] == [False, True] * 5
    assert parse_seeds("3, 5-6,5") == [3, 5, 6]
    for wrong in ("1-", "a", "5-3", ""):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(wrong)
    with pytest.raises(ValueError, match="its own twin"):
        runs_of(read_recipe("mix").twin(), [1], twins=True)


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
