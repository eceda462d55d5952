"""The reference says all that the code has: it is read off it when the site is built."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
from paths import ROOT

from softmask.cli.main import COMMANDS, SUBCOMMANDS, find_command
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.serving.config import ServeConfig
from softmask.serving.protocol import ChatRequest, CompletionRequest, DenoiseRequest
from softmask.training.config import Recipe, TrainConfig


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one."""
    return text.split(f"\n{title}\n")[1].split("\n#")[0]


def test_every_option_of_every_command_is_there(reference) -> None:
    page = reference.command_line()
    commands = [[name] for name in COMMANDS if name != "lm_eval"]
    commands += [[name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs]
    for words in commands:
        here = section(page, f"## softmask {' '.join(words)}")
        options = find_command(words)[0].make_parser()._option_string_actions
        assert not [
            name
            for name in set(options) - {"-h", "--help", "--help-all", "--only"}
            if name not in here
        ]


@pytest.mark.parametrize("cls", [SoftMaskConfig, SamplingConfig, TrainConfig, Recipe, ServeConfig])
def test_every_setting_is_there_with_its_default(reference, cls) -> None:
    here = section(reference.settings(), f"### {cls.__name__}")
    for field in dataclasses.fields(cls):
        (row,) = [line for line in here.splitlines() if line.startswith(f"| `{field.name}` |")]
        if type(field.default) in (int, float):
            assert f"`{field.default}`" in row


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("POST /v1/chat/completions", ChatRequest),
        ("POST /v1/completions", CompletionRequest),
        ("POST /v1/denoise", DenoiseRequest),
    ],
)
def test_every_field_of_a_request_is_there_with_a_meaning(reference, title, model) -> None:
    rows = section(reference.http(), f"## {title}").splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows if row.startswith("| `")]
    assert [name.strip("`") for name, *_ in cells] == list(model.model_fields)
    assert all(len(meaning) > 3 for *_, meaning in cells)
