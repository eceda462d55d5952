"""Numbers in settings: those that a model cannot compute with are refused at every door."""

from __future__ import annotations

import dataclasses
import json
import typing
from fractions import Fraction

import numpy as np
import pytest
import torch
from commands import failed
from tiny import tiny_model, write_dream_folder

from softmask.config import SamplingConfig, SoftMaskConfig, read_sampling_file, read_soft_mask_file
from softmask.decoding.sampler import denoise
from softmask.sampling import HOTTEST
from softmask.serving.config import ServeConfig
from softmask.settings import LARGEST_FLOAT, from_mapping
from softmask.training.config import Recipe

CLASSES = (SoftMaskConfig, SamplingConfig, ServeConfig)


def fields(cls: type, kind: type) -> list[str]:
    """The settings of a class that take a number of this kind."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return [name for name in names if kind in (hints[name], *typing.get_args(hints[name]))]


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in CLASSES for name in fields(cls, float)]
)
@pytest.mark.parametrize("value", [1e39, -1e39, float("inf"), float("nan"), 10**400, -(10**400)])
def test_a_number_that_overflows_in_float32_is_refused_by_name(cls, name, value) -> None:
    with pytest.raises(ValueError, match=name) as error:
        from_mapping(cls, {name: value}, "here")
    assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match=name):
        cls(**{name: value})


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in CLASSES for name in fields(cls, int)]
)
@pytest.mark.parametrize("value", [2**63, -(10**400)])
def test_a_whole_number_of_more_than_64_bits_is_refused_by_name(cls, name, value) -> None:
    with pytest.raises(ValueError, match=name) as error:
        from_mapping(cls, {name: value}, "here")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", [None, "1", True, [1]], ids=str)
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        *((SamplingConfig, name) for name in ("steps", "temperature", "eps", "end_penalty")),
        *((SoftMaskConfig, name) for name in ("k", "scale", "token_temperature")),
    ],
)
def test_a_setting_of_another_type_is_refused_wherever_it_is_given(cls, name, value) -> None:
    for make in (lambda: cls(**{name: value}), lambda: from_mapping(cls, {name: value}, "here")):
        with pytest.raises(ValueError, match=rf"{name} must be (int|float), not "):
            make()


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"steps": np.int64(3), "temperature": np.float32(0.5), "top_k": np.int32(2)}
    assert SamplingConfig(**given) == from_mapping(SamplingConfig, given, "here")
    for config in (SamplingConfig(**given), from_mapping(SamplingConfig, given, "here")):
        kinds = [type(getattr(config, name)) for name in given]
        assert kinds == [int, float, int]
    assert SamplingConfig(temperature=Fraction(1, 2)) == SamplingConfig(temperature=0.5)
    assert json.dumps(dataclasses.asdict(SoftMaskConfig(scale=np.float32(0.5), k=np.int64(2))))


def test_the_numbers_of_recipes_are_checked_to_any_depth() -> None:
    stage = {"name": "one", "steps": 10, "learning_rate": float("inf")}
    for train in ({"learning_rate": 1e39}, {"stages": [stage]}):
        with pytest.raises(ValueError, match=r"learning_rate.* must be a finite number"):
            from_mapping(Recipe, {"name": "run", "train": train}, "recipe.yaml")


def test_files_are_checked_as_well(tmp_path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"transparency_alg": "mixinputs_with_topk", "transparency_centre": -1e39}')
    with pytest.raises(ValueError, match=r"settings\.json: offset must be a finite number"):
        read_soft_mask_file(path)
    path.write_text('{"factor": 1e999}')
    with pytest.raises(ValueError, match=r"settings\.json: factor must be a finite number"):
        read_sampling_file(path)


def test_the_command_line_is_checked_as_well(capsys, tmp_path) -> None:
    folder = str(write_dream_folder(tmp_path / "model"))
    command = ["generate", "--model", folder, "Hello"]
    for option, value in (
        ("--soft-mask-offset", "-1e39"),
        ("--soft-mask-steepness", "1e39"),
        ("--factor", "1e39"),
        ("--entropy-bound", "nan"),
        ("--alg-temp", "1e-40"),
        ("--steps", str(2**70)),
    ):
        said = failed(capsys, *command, "--soft-mask-scale", "0.5", f"{option}={value}")
        assert option.removeprefix("--soft-mask-")[2:6].replace("-", "_") in said.replace("-", "_")


@pytest.mark.parametrize("value", [[[[]]] * 1000, "x" * 10**6, 7 * 10**4000])
def test_what_is_refused_is_not_repeated_at_length(value) -> None:
    with pytest.raises(ValueError, match="alg") as error:
        from_mapping(SamplingConfig, {"alg": value}, "here")
    assert len(str(error.value)) < 200


def test_what_is_nested_without_end_is_refused_too() -> None:
    nested = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(ValueError, match="must be float"):
        from_mapping(SoftMaskConfig, {"scale": nested}, "here")


@pytest.mark.parametrize(
    "soft_mask",
    [
        {"offset": -LARGEST_FLOAT, "steepness": LARGEST_FLOAT},
        {"offset": 0.0, "steepness": LARGEST_FLOAT},
        {"offset": -LARGEST_FLOAT, "steepness": 0.0},
        {"mode": "temperature", "temperature": HOTTEST},
        {"mode": "temperature", "temperature": 1e-6, "steepness": LARGEST_FLOAT},
    ],
)
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": HOTTEST},
        {"temperature": 1e-6, "top_p": 1e-300},
        {"alg_temp": 1e-6, "temperature": 0.5},
        {"alg_temp": LARGEST_FLOAT},
        {"factor": LARGEST_FLOAT},
        {"entropy_bound": LARGEST_FLOAT},
        {"entropy_threshold": LARGEST_FLOAT, "agreement": 2**62},
        {"score_temperature": 1e-6, "threshold": 0.5},
        {"score_temperature": HOTTEST, "top_k": 3, "commit_from": "plain"},
        {"threshold": 1e-300, "threshold_end": 1.0},
        {"eps": 1e-300},
        {"end_penalty": -1e6},
        {"block_length": 2**62},
        {"block_length": 3, "cache": "dual", "refresh_every": 2**62, "refresh_window": 2**62},
    ],
)
def test_the_largest_and_smallest_numbers_that_pass_decode(soft_mask, sampling) -> None:
    canvas_BL = torch.tensor([[1, 2, 3] + [63] * 6])
    soft = SoftMaskConfig(scale=1.0, **soft_mask)
    *_, last = denoise(tiny_model(), canvas_BL, SamplingConfig(steps=4, **sampling), soft_mask=soft)
    assert not (last.canvas_BL == 63).any()
