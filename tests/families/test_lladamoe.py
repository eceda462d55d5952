"""LLaDA-MoE: logits of its own code, and tokens of LLaDA's `generate.py` on it."""

from __future__ import annotations

import pytest
import torch
from official import decode, official, read, tensors
from test_families import copied
from tiny import change_json

from softmask.hub.checkpoints import find

NAME = "lladamoe"


def test_the_logits_are_those_of_its_own_code() -> None:
    ids_BL = torch.tensor(read(NAME, "forward.json")["input_ids"])
    with torch.no_grad():
        logits_BLV = official(NAME).model(ids_BL).logits
    torch.testing.assert_close(logits_BLV, tensors(NAME)["logits"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", read(NAME, "generate.json")["cases"], ids=lambda c: c["name"])
def test_it_writes_the_tokens_of_llada_s_own_sampler(case) -> None:
    given = case["options"]
    sampling = {**official(NAME).sampling, "steps": given["steps"]}
    sampling["block_length"] = given["block_length"]
    found = decode(NAME, [case["prompt"]], given["gen_length"], sampling)
    assert (found.tokens[0], found.forwards) == (case["tokens"], case["forwards"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_layer_freq": [0, 1, 1]}, r"moe_layer_freq \[0, 1, 1\]"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"shared_expert_intermediate_size": 16}, "shared_expert_intermediate_size 16"),
    ],
)
def test_what_would_be_another_network_is_refused(tmp_path, changes, message) -> None:
    folder = copied(NAME, tmp_path)
    change_json(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        find(folder)
