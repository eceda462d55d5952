"""dParallel and d3LLM: the rules that they were trained for commit the tokens of their own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official import GOLDENS, official
from paths import ROOT

from softmask.config import SamplingConfig
from softmask.decoding.sampler import Rules, denoise
from softmask.families.registry import FAMILIES
from softmask.models import DreamModel

FOUND = {path.stem: json.loads(path.read_text()) for path in GOLDENS.glob("entropy_threshold/*")}
# But for those in which d3LLM's early stop writes other tokens behind an end again.
CASES = [
    pytest.param(name, case, id=f"{name}-{number}")
    for name, found in FOUND.items()
    for number, case in enumerate(found["cases"])
    if case.get("only_eos_after_first", True) and not case["options"]["temperature"]
]


def model_of(name: str) -> DreamModel:
    if name.endswith("llada"):
        return official("llada").model
    folder = ROOT / "tests" / "parity" / "goldens" / "tiny_dream"
    return DreamModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_rule_commits_the_same_tokens_in_the_same_forwards(name, case) -> None:
    found, options = FOUND[name], case["options"]
    masks = options.get("gen_length") or options["max_new_tokens"]
    prompt = torch.tensor(found["prompts"][case["prompt"]])
    canvas = torch.cat([prompt, torch.full((1, masks), found["mask"])], dim=1)
    family = FAMILIES[name.replace("_", "-")]
    # The family's own rule at the thresholds and block sizes of the golden.
    sampling = dict(family.sampling) | {
        "steps": masks,
        "entropy_threshold": options["threshold"],
        "block_length": options.get("block_length") or options["block_size"],
    }
    if "block_add_threshold" in options:
        sampling["next_block_at"] = options["block_add_threshold"]
    steps: list[int | None] = [None] * masks
    early = options.get("early_stop", False)
    rules = Rules(end_ids=(found["eos"],), stop=True, fill_id=found["eos"]) if early else None
    for step in denoise(model_of(name), canvas, SamplingConfig(**sampling), rules=rules):
        for column in step.committed_BL[0, prompt.shape[1] :].nonzero().flatten().tolist():
            steps[column] = step.index
    tokens, wanted = step.canvas_BL[0, prompt.shape[1] :].tolist(), case["tokens"][0]
    # The round that only finds the end has no forward.
    assert step.forwards == case.get("model_calls", case["forwards"])
    if early:  # behind it what was committed stays here, and nobody reads it
        end = (*wanted, found["eos"]).index(found["eos"])
        assert tokens[: end + 1] == wanted[: end + 1]
    else:
        assert tokens == wanted
        assert [steps] == case["step"]


def test_every_golden_of_a_distilled_model_has_its_file() -> None:
    assert len(CASES) == 41
    assert {Path(name).name for name in FOUND} == {
        f"{kind}_{base}" for kind in ("dparallel", "d3llm") for base in ("dream", "llada")
    }
