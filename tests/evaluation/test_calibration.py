"""Calibration: passes and decoding against slow computations, errors against arithmetic by hand."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from tiny import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.sampler import Rules, denoise
from softmask.evaluation.calibration import (
    Canvas,
    decode,
    puzzle_canvases,
    read_again,
    text_canvases,
)
from softmask.evaluation.calibration_scores import Measured, Sums, calibration_of, found_of
from softmask.evaluation.measure_config import CalibrationConfig
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.puzzles import generate_sudoku_9x9
from softmask.soft_mask import feedback, make_mixer

MODEL = tiny_model()
MASK = MODEL.config.mask_token_id
RULES = Rules(suppressed=(MASK,))
TABLE = MODEL.get_input_embeddings().weight.detach()
GENERATOR = torch.Generator().manual_seed(3)
WINDOWS = [torch.randint(0, 60, (n,), generator=GENERATOR).tolist() for n in (12, 9, 12)]
CANVASES = text_canvases(WINDOWS, 0.6, 0)
EVERY = torch.arange(len(CANVASES))
MASKS = torch.tensor([float(canvas.masked_L.sum()) for canvas in CANVASES])
TOP_K = SoftMaskConfig(scale=0.7, offset=-3.0, steepness=1.0, k=3)
WHOLE = dataclasses.replace(TOP_K, mode="temperature", temperature=0.4)
PASSES, STEPS = 3, 4


def measured(soft: SoftMaskConfig | None, **settings) -> Measured:
    """Both measures of all texts."""
    into = Measured(len(CANVASES), PASSES, STEPS)
    configs = [SamplingConfig(steps=STEPS, **settings)] * len(CANVASES)
    read_again(MODEL, CANVASES, RULES, soft, into.read, EVERY)
    decode(MODEL, CANVASES, configs, RULES, soft, into, EVERY, [0] * len(CANVASES))
    return into


def noisy(canvas: Canvas) -> torch.Tensor:
    return canvas.true_L.masked_fill(canvas.masked_L, MASK)[None]


def angle(mixed_ND: torch.Tensor) -> torch.Tensor:
    """Degrees between these and the mask's embedding."""
    return torch.cosine_similarity(mixed_ND, TABLE[MASK][None]).acos() * 180 / math.pi


@torch.no_grad()
def slowly(canvas: Canvas, soft: SoftMaskConfig) -> list[dict[str, torch.Tensor]]:
    """What each pass says of a text's masks, one forward at a time, by the model's own."""
    mixer, ids, rows = make_mixer(soft, MODEL.device), noisy(canvas), canvas.masked_L
    found: list[dict[str, torch.Tensor]] = []
    inputs, before = {"input_ids": ids}, None
    lambda_N, norm_N, angle_N = torch.zeros(3, int(rows.sum()))
    norm_N, angle_N = norm_N + 1, angle_N * torch.nan
    for _ in range(PASSES):
        logits = MODEL(**inputs).logits[0, rows]
        logits[:, MASK] = torch.finfo(torch.float32).min
        chances = logits.softmax(-1)
        known = chances[torch.arange(len(chances)), canvas.true_L[rows]]
        said = {
            "confidence": chances.amax(-1),
            "right": (chances.argmax(-1) == canvas.true_L[rows]).double(),
            "nats": -known.log(),
            "lambda": lambda_N,
            "norm": norm_N,
            "angle": angle_N,
        }
        if before is not None:
            ratio = (chances / before).log().masked_fill(chances == 0, 0)
            said["kl"] = (chances * ratio).sum(-1)
            said["flips"] = (chances.argmax(-1) != before.argmax(-1)).double()
        found.append(said)
        before = chances
        seen = feedback(logits, rows.nonzero().squeeze(1), soft.k, soft.mode)
        tokens, lambda_N = mixer(ids, seen, TABLE)
        inputs = {"soft_tokens": tokens}
        norm_N = tokens.embed(TABLE)[0, rows].norm(dim=-1) / TABLE[MASK].norm()
        best = logits.topk(soft.k)
        mixed = (best.values.softmax(-1)[..., None] * TABLE[best.indices]).sum(1)
        if soft.mode == "temperature":
            mixed = (logits / soft.temperature).softmax(-1) @ TABLE
        angle_N = angle(mixed)
    return found


@pytest.mark.parametrize("soft", [TOP_K, WHOLE], ids=lambda soft: soft.mode)
def test_each_pass_reads_the_feedback_of_the_one_before(soft) -> None:
    read = measured(soft).read
    assert read.bins_WRB3[..., 0].sum(2).tolist() == [[masks] * PASSES for masks in MASKS]
    for w, canvas in enumerate(CANVASES):
        for index, said in enumerate(slowly(canvas, soft)):
            _, sure, right = read.bins_WRB3[w, index].sum(0).tolist()
            assert sure == pytest.approx(said.pop("confidence").sum().item(), rel=1e-4)
            assert right == said.pop("right").sum().item()
            for name, value_N in said.items():
                total, count = read.values[name][:, w, index].tolist()
                assert total == pytest.approx(value_N.nansum().item(), rel=1e-3, abs=1e-4), name
                assert count == (~value_N.isnan()).sum(), name
    # Something moves: else this would say nothing.
    assert read.values["kl"][0, :, 1].sum() > 1e-3


def test_without_feedback_every_pass_is_the_first() -> None:
    for off in (None, dataclasses.replace(TOP_K, scale=0.0)):
        read = measured(off).read
        for index in range(1, PASSES):
            assert torch.equal(read.bins_WRB3[:, index], read.bins_WRB3[:, 0])
            assert torch.equal(read.values["nats"][:, :, index], read.values["nats"][:, :, 0])
        assert read.values["kl"][0].abs().max() < 1e-6
        assert not read.values["flips"][0].any()
        assert not read.values["lambda"][0].any()
        assert not read.values["angle"][1].any()


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.3}, {"block_length": 3, "cache": "dual"}])
@pytest.mark.parametrize("soft", [TOP_K, None], ids=["on", "off"])
def test_steps_commit_what_the_sampler_commits(soft, settings) -> None:
    into, config = measured(soft, **settings), SamplingConfig(steps=STEPS, **settings)
    commits_WR, _, good_WR = into.committed.bins_WRB3.sum(2).unbind(2)
    assert commits_WR.sum(1).tolist() == MASKS.tolist()
    for w, canvas in enumerate(CANVASES):
        steps = list(denoise(MODEL, noisy(canvas), config, soft_mask=soft, rules=RULES))
        wrong, counts = [0] * STEPS, [0] * STEPS
        for index, step in enumerate(steps):
            counts[index] = int(step.committed_BL.sum())
            wrong[index] = int((step.committed_BL[0] & (step.canvas_BL[0] != canvas.true_L)).sum())
        assert commits_WR[w].tolist() == counts
        assert (commits_WR - good_WR)[w].tolist() == wrong
        assert into.exact_W[w] == (sum(wrong) == 0)
        assert into.forwards_W[w] == steps[-1].forwards_B[0]


@torch.no_grad()
def test_confidence_and_lambda_are_those_of_the_step() -> None:
    into, canvas = measured(TOP_K), CANVASES[0]
    logits: list[torch.Tensor] = []

    def look(_step, _canvas, logits_BLV):
        logits.append(logits_BLV[0].clone())
        return logits_BLV

    steps = denoise(
        *(MODEL, noisy(canvas), SamplingConfig(steps=STEPS)),
        soft_mask=TOP_K,
        rules=RULES,
        logits_hook=look,
    )
    lambda_L = torch.zeros(len(canvas.true_L))
    for index, step in enumerate(steps):
        logits[index][:, MASK] = -torch.inf
        chance_LV, done = logits[index].softmax(-1), step.committed_BL[0]
        left = step.canvas_BL[0] == MASK
        own = chance_LV.gather(1, step.canvas_BL[0][:, None]).squeeze(1)
        for sums, rows, sure in (
            (into.committed, done, own[done]),
            (into.waiting, left, chance_LV[left].amax(-1)),
        ):
            count, confidence, _ = sums.bins_WRB3[0, index].sum(0).tolist()
            assert count == rows.sum()
            assert confidence == pytest.approx(sure.sum().item(), rel=1e-4)
            mixed = sums.values["lambda"][0, 0, index].item()
            assert mixed == pytest.approx(lambda_L[rows].sum().item(), rel=1e-4, abs=1e-6)
        lambda_L = torch.zeros_like(lambda_L) if step.lambda_BL is None else step.lambda_BL[0]


def test_means_errors_and_the_verdict_are_of_the_sums() -> None:
    found = found_of(MASKS, {"on": measured(TOP_K), "off": measured(None)})
    assert (found.texts, found.masks) == (3, MASKS.sum())
    on, off = found.ways["on"], found.ways["off"]
    assert on.passes[0].seen == off.passes[0].seen
    for way in (on, off):
        assert way.decoding.wrong.value == pytest.approx(1 - way.decoding.committed.right.value)
        per_step = [part.committed.tokens for part in way.decoding.by_step if part.committed]
        assert sum(per_step) == MASKS.sum()
    change = found.on_minus_off["wrong"].value
    assert change == pytest.approx(on.decoding.wrong.value - off.decoding.wrong.value)
    gap = on.passes[-1].seen.gap
    assert gap.value == pytest.approx(
        on.passes[-1].seen.confidence.value - on.passes[-1].seen.right.value
    )
    assert f"After {PASSES} passes with feedback it is" in found.verdict
    assert f"{100 * abs(gap.value):.1f} points" in found.verdict


def test_the_calibration_error_and_its_jackknife_by_hand() -> None:
    sums = Sums(2, 1)
    sure, right = torch.tensor([0.9, 0.9, 0.2]), torch.tensor([True, False, True])
    sums.add(0, torch.tensor([0, 0, 1]), sure, right, {"x": torch.tensor([1.0, torch.nan, 3.0])})
    found = calibration_of(sums.bins_WRB3[:, 0])
    # 2/3 |0.9 - 1/2| + 1/3 |0.2 - 1|; without either text 0.8 and 0.4.
    assert (found.ece.value, found.ece.error) == pytest.approx((1.6 / 3, 0.2))
    assert found.gap.value == pytest.approx(0, abs=1e-6)
    assert sums.mean("x", slice(None)).value == 2
    assert [own.tokens for own in sums.reliability(slice(None))] == [1, 2]
    assert calibration_of(sums.bins_WRB3[:1, 0]).ece.error is None


def test_masks_are_of_the_share_and_never_the_first_token() -> None:
    for window, canvas in zip(WINDOWS, CANVASES, strict=True):
        assert canvas.true_L.tolist() == window
        assert canvas.masked_L.sum() == round(0.6 * (len(window) - 1))
        assert not canvas.masked_L[0]
    again, other = (text_canvases(WINDOWS, 0.6, seed) for seed in (0, 1))
    assert all(torch.equal(a.masked_L, b.masked_L) for a, b in zip(CANVASES, again, strict=True))
    assert any(
        not torch.equal(a.masked_L, b.masked_L) for a, b in zip(CANVASES, other, strict=True)
    )
    assert text_canvases([[1, 2]], 0.01, 0)[0].masked_L.tolist() == [False, True]


def test_a_tokenizer_without_a_token_for_each_digit_is_refused() -> None:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    puzzle = generate_sudoku_9x9(random.Random(0), 40)
    inner.train_from_iterator([puzzle.output] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="<|mask|>")
    model = tiny_model(vocab_size=len(tokenizer))
    assert tokenizer.mask_token_id == model.mask_id
    with pytest.raises(ValueError, match="no token for each digit"):
        puzzle_canvases(Checkpoint(model, tokenizer, None, "words"), [puzzle])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"passes": 0}, "passes must be at least 1"),
        ({"share": 0.0}, "share must lie in"),
        ({"length": 1}, "length must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        CalibrationConfig(**values)
