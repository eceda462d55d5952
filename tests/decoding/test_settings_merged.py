"""What is given wins over what a model brings, also over a rule that contradicts it."""

from __future__ import annotations

import itertools

import pytest

from softmask.config import SamplingConfig, from_mapping
from softmask.families.registry import FAMILIES
from softmask.sampling import merged

WAYS = [
    {"threshold": 0.9, "threshold_end": 0.5},
    {"factor": 2.0},
    {"entropy_bound": 0.1},
    {"entropy_threshold": 0.4, "surest_anywhere": True},
    {"alg": "origin"},
    {"alg": "random"},
    {"alg": "maskgit_plus", "alg_temp": 0.5},
    {"alg_temp": 0.2},
    {"alg": "topk_margin"},
]


@pytest.mark.parametrize(("defaults", "given"), [*itertools.product(WAYS, WAYS)])
def test_every_way_of_committing_can_be_given_in_place_of_every_other(defaults, given) -> None:
    found = from_mapping(SamplingConfig, merged(defaults, given), "sampling")
    assert {name: getattr(found, name) for name in given} == given


def test_what_does_not_contradict_stays() -> None:
    usual = {"threshold": 0.9, "threshold_end": 0.5, "alg": "maskgit_plus", "block_length": 32}
    assert merged(usual, {"threshold": 0.8}) == usual | {"threshold": 0.8}
    assert merged(usual, {"alg": "topk_margin"}) == usual | {"alg": "topk_margin"}
    assert merged(usual, {"factor": 1.0}) == {
        "alg": "maskgit_plus",
        "block_length": 32,
        "factor": 1.0,
    }
    assert merged(usual, {"threshold": None, "threshold_end": None})["alg"] == "maskgit_plus"


D3LLM = FAMILIES["d3llm-llada"].sampling


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"alg": "origin"}, {"next_block_at", "entropy_threshold", "surest_anywhere"}),
        ({"entropy_threshold": None}, {"surest_anywhere"}),
        ({"block_length": None}, {"next_block_at"}),
    ],
)
def test_what_a_single_setting_makes_meaningless_goes_with_it(given, gone) -> None:
    found = merged(D3LLM, given)
    assert D3LLM.keys() - found.keys() == gone
    assert from_mapping(SamplingConfig, found, "sampling").stop_rule == "first_end"


def test_a_cache_that_is_switched_off_takes_its_refreshes_along() -> None:
    usual = {"cache": "dual", "block_length": 8, "refresh_every": 4, "refresh_window": 16}
    assert merged(usual, {"cache": "none"}) == {"cache": "none", "block_length": 8}
    assert merged(usual, {"cache": "prefix"}) == usual | {"cache": "prefix"}
    assert merged(usual, {"refresh_every": None}).keys() == usual.keys() - {"refresh_window"}


def test_options_go_with_their_rule() -> None:
    usual = {"alg": "entropy", "alg_options": {"a": 1}, "stop_rule": "x", "stop_options": {"b": 2}}
    assert merged(usual, {"alg": "topk_margin"}) == {
        "alg": "topk_margin",
        "stop_rule": "x",
        "stop_options": {"b": 2},
    }
    assert "stop_options" not in merged(usual, {"stop_rule": "never"})
    assert merged(usual, {"alg": "entropy"}) == usual
