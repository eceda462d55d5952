"""How many tokens a step commits when confidence decides: the rules against their definitions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import SOFT, canvas_of, drain, holed_canvas, only_mask
from tiny import tiny_model

from softmask.config import SamplingConfig
from softmask.decoding.rule_views import statistics_of
from softmask.decoding.sampler import denoise
from softmask.decoding.unmask import Ragged, choose_likeliest
from softmask.logits import statistics
from softmask.rule_inputs import MaskedRows
from softmask.rules import find

PROPERTY = settings(max_examples=60, derandomize=True)
RULES = ({"threshold": 0.5}, {"factor": 1.0}, {"entropy_bound": 1.5})


def sure_model():
    """A random model that is sure of much of what it predicts."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model


def by_hand(chances, entropies, rule) -> set[int]:
    """What a rule commits of one text, from its definition."""
    order = sorted(range(len(chances)), key=lambda i: -chances[i])
    if "threshold" in rule:
        return {i for i in order if chances[i] > rule["threshold"]}
    if "factor" in rule:
        most = 0
        for n in range(1, len(order) + 1):
            if (n + 1) * (1 - chances[order[n - 1]]) < rule["factor"]:
                most = n
        return set(order[:most])
    taken, total = set(), 0.0
    for i in sorted(range(len(entropies)), key=lambda i: entropies[i]):
        if total > rule["entropy_bound"]:
            break
        taken.add(i)
        total += entropies[i]
    return taken


@PROPERTY
@given(
    seed=st.integers(0, 2**31 - 1),
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    name=st.sampled_from(["threshold", "factor", "entropy_bound"]),
    value=st.floats(0, 1),
)
def test_a_rule_commits_what_its_definition_says_text_by_text(seed, counts, name, value) -> None:
    generator, lengths = torch.Generator().manual_seed(seed), [n + 3 for n in counts]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    rows = torch.tensor(
        [start + 1 + i for start, n in zip(starts, counts, strict=True) for i in range(n)],
        dtype=torch.long,
    )
    total = sum(counts)
    # In double precision the definition and the code cannot differ by rounding at the limit.
    chances = torch.rand(total, generator=generator, dtype=torch.float64)
    entropies = torch.rand(total, generator=generator, dtype=torch.float64) * 2
    opened = torch.rand(total, generator=generator) < 0.8
    value = value if name == "threshold" else 4 * value
    texts = Ragged(counts, starts, lengths, rows)
    seen = {
        "probability_N": chances,
        "entropy_N": entropies,
        "open_N": opened,
        "masks_R": counts,
        "table": texts.table,
        "flat": texts.flat,
        "spread": lambda values_R: torch.tensor(values_R, dtype=torch.float64)[texts.sequence_N],
    }
    found = find("commit", name)(MaskedRows.of(**seen), **{name: value}) & opened
    at = 0
    for n in counts:
        own = [i for i in range(at, at + n) if opened[i]]
        hand = by_hand(
            [float(chances[i]) for i in own], [float(entropies[i]) for i in own], {name: value}
        )
        assert {i for i in range(at, at + n) if found[i]} == {own[i] for i in hand}
        at += n


@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_a_threshold_that_nothing_passes_commits_the_surest_token_of_each_step(alg, soft) -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [7, 3])
    config = SamplingConfig(steps=12, alg=alg, threshold=1.0)
    steps = list(
        denoise(
            model,
            canvas,
            config,
            attention_mask_BL=attention,
            soft_mask=soft,
            rules=only_mask(model),
        )
    )
    assert [step.left_B for step in steps] == [(n, n) for n in range(11, -1, -1)]
    if soft is None:  # sequential decoding by hand
        tokens = canvas[:1].clone()
        for step in steps:
            masked = (tokens[0] == model.config.mask_token_id).nonzero().squeeze(1)
            logits = model(tokens).logits[0, masked]
            logits[:, model.config.mask_token_id] = -torch.inf
            choice = choose_likeliest(statistics(logits, 2))
            best = find("commit", alg)(MaskedRows(statistics_of(choice))).argmax()
            tokens[0, masked[best]] = choice.tokens_N[best]
            assert torch.equal(step.canvas_BL[0], tokens[0])


@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rules_take_fewer_forwards_than_tokens_and_fill_everything(rule, soft) -> None:
    model = sure_model()
    canvas = holed_canvas(model)
    config = SamplingConfig(steps=20, **rule)
    last = drain(model, canvas, config, soft_mask=soft, rules=only_mask(model))
    assert last.left_B == (0, 0)
    assert last.forwards < 12
    assert not (last.canvas_BL == model.config.mask_token_id).any()


@pytest.mark.parametrize("rule", [*RULES, {"threshold": 0.9, "threshold_end": 0.1}], ids=str)
@pytest.mark.parametrize("blocks", [None, 4])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_rule_decides_for_each_row_alone(rule, blocks, temperature) -> None:
    model = sure_model()
    canvas = holed_canvas(model)
    config = SamplingConfig(
        steps=12, block_length=blocks, temperature=temperature, top_p=0.95, **rule
    )

    def run(rows, seeds):
        return drain(
            model,
            canvas[rows],
            config,
            soft_mask=SOFT,
            rules=only_mask(model),
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        )

    together = run(slice(0, 2), [1, 2])
    for row in range(2):
        alone = run(slice(row, row + 1), [row + 1])
        assert torch.equal(alone.canvas_BL[0], together.canvas_BL[row])
        assert alone.forwards == together.forwards_B[row]


@pytest.mark.parametrize("steps", [3, 4, 7])
@pytest.mark.parametrize("blocks", [None, 4])
def test_a_rule_is_done_after_the_given_steps_at_the_latest(steps, blocks) -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=steps, block_length=blocks, threshold=1.0)
    taken = list(denoise(model, canvas, config, rules=only_mask(model)))
    assert len(taken) == steps
    assert taken[-1].left_B == (0,)


def test_an_easier_block_hands_its_steps_on() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=12, block_length=4, threshold=0.0)  # everything passes
    taken = list(denoise(model, canvas, config, rules=only_mask(model)))
    assert [step.left_B for step in taken] == [(8,), (4,), (0,)]


def test_a_moving_threshold_lies_between_its_ends_by_the_share_left() -> None:
    for left, limit in ((10, 0.9), (4, 0.6), (1, 0.45)):
        limits: list[float] = []
        seen = {"left_R": [left], "masks_R": [10], "probability_N": torch.ones(1)}
        seen["spread"] = lambda values_R, limits=limits: limits.extend(values_R) or torch.zeros(1)
        find("commit", "threshold")(MaskedRows.of(**seen), threshold=0.9, threshold_end=0.4)
        assert limits == [pytest.approx(limit)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 0.9, "factor": 1.0}, "give one of them"),
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"threshold_end": 0.5}, "give threshold too"),
        ({"factor": -1.0}, "factor must be >= 0"),
        ({"entropy_bound": float("inf")}, "entropy_bound must be a finite number"),
        ({"threshold": 0.5, "alg": "origin"}, "by chance"),
        ({"threshold": 0.5, "alg_temp": 0.3}, "by chance"),
        ({"surest_anywhere": True}, "give entropy_threshold too"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**values)


def test_a_step_without_commits_still_moves_the_soft_state() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = dataclasses.replace(SamplingConfig(), steps=36)
    steps = list(denoise(model, canvas, config, soft_mask=SOFT, rules=only_mask(model)))
    idle = [i for i in range(1, 36) if steps[i].left_B == steps[i - 1].left_B]
    assert idle
    assert steps[-1].forwards == 36
    moved = [not torch.equal(steps[i].lambda_BL, steps[i - 1].lambda_BL) for i in idle[:3]]
    assert all(moved)
