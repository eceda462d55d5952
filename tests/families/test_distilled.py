"""dParallel and d3LLM: the rules that they were trained for commit the tokens of their own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official import GOLDENS, official
from paths import ROOT

from softmask.config import SamplingConfig
from softmask.decoding.sampler import denoise
from softmask.families.registry import FAMILIES
from softmask.models import DreamModel

FOUND = {path.stem: json.loads(path.read_text()) for path in GOLDENS.glob("entropy_threshold/*")}
# d3LLM's early stop fills what is behind an end that is not yet sure, which softmask does not: it
# stops once everything before an end is decided.
CASES = [
    pytest.param(name, case, id=f"{name}-{number}")
    for name, found in FOUND.items()
    for number, case in enumerate(found["cases"])
    if not case["options"].get("early_stop") and not case["options"]["temperature"]
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
    for step in denoise(model_of(name), canvas, SamplingConfig(**sampling)):
        for column in step.committed_BL[0, prompt.shape[1] :].nonzero().flatten().tolist():
            steps[column] = step.index
    assert step.canvas_BL[0, prompt.shape[1] :].tolist() == case["tokens"][0]
    assert [steps] == case["step"]
    assert step.forwards == case["forwards"]


def test_every_golden_of_a_distilled_model_has_its_file() -> None:
    assert len(CASES) == 30
    assert {Path(name).name for name in FOUND} == {
        f"{kind}_{base}" for kind in ("dparallel", "d3llm") for base in ("dream", "llada")
    }
