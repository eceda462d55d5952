"""Block-causal models: what is kept is exact, so nothing depends on whether it is."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from test_kv_cache import SOFTS
from test_sampler import SOFT, canvas_of, generators, only_mask
from tiny import EXPERTS, tiny_model

from softmask.config import SamplingConfig
from softmask.decoding.batch import Batch
from softmask.decoding.grid import grid_of
from softmask.decoding.sampler import denoise
from softmask.decoding.schedule import StepSchedule
from softmask.serving.engine import Engine, Request

GRIDS = {
    "start": {"logit_shift": False},
    "start, shifted": {"logit_shift": True},
    "prompt": {"logit_shift": False, "block_origin": "prompt"},
    "experts": {"logit_shift": False, **EXPERTS},
}
WAYS = {
    "scheduled": ("plain", {}),
    "scheduled, soft": ("topk", {}),
    "threshold": ("temperature", {"threshold": 0.1}),
    "parts": ("topk", {"block_length": 2, "step_schedule": "even"}),
    "drawn": ("topk", {"temperature": 0.7, "top_p": 0.9}),
    "guided": ("topk", {"guidance": 0.5}),
    "scored apart": ("topk", {"commit_from": "plain"}),
}


def block_model(**settings):
    return tiny_model(block_size=4, **settings)


def of(**settings) -> SamplingConfig:
    return SamplingConfig(**{"steps": 12, "cache": "exact", **settings})


# The remaining pairs are slow together, and say nothing that these do not.
PAIRS = [
    pytest.param(grid, *way, id=f"{name}, {on}", marks=[pytest.mark.slow] if (i + j) % 4 else [])
    for i, (on, grid) in enumerate(GRIDS.items())
    for j, (name, way) in enumerate(WAYS.items())
]


@pytest.mark.parametrize(("grid", "soft", "way"), PAIRS)
def test_what_is_kept_is_what_would_be_computed_anew(grid, soft, way) -> None:
    model, soft = block_model(**grid), SOFTS[soft]
    for lengths in ([8], [9, 4, 3]):  # on the grid, and not
        canvas, attention = canvas_of(model, lengths, new=9)
        runs = [
            denoise(
                model,
                canvas,
                of(cache=cache, **way),
                attention_mask_BL=attention,
                soft_mask=soft,
                generators=generators(*range(len(lengths))),
            )
            for cache in ("none", "exact")
        ]
        for one, other in zip(*runs, strict=True):
            assert torch.equal(one.canvas_BL, other.canvas_BL)
            assert one.forwards == other.forwards
            if one.lambda_BL is not None:
                torch.testing.assert_close(one.lambda_BL, other.lambda_BL)
        assert not one.canvas_BL.eq(model.mask_id).any()


@pytest.mark.parametrize(
    ("grid", "soft"),
    [
        pytest.param(GRIDS["start"], None, id="start, plain", marks=pytest.mark.slow),
        pytest.param(GRIDS["start, shifted"], SOFT, id="start, shifted"),
        pytest.param(GRIDS["prompt"], SOFT, id="prompt", marks=pytest.mark.slow),
    ],
)
def test_texts_at_different_blocks_are_decoded_as_if_alone(grid, soft) -> None:
    model = block_model(**grid)
    lengths, config = [9, 4, 11], of(threshold=0.1)
    canvas, attention = canvas_of(model, lengths, new=9)
    together = list(denoise(model, canvas, config, attention_mask_BL=attention, soft_mask=soft))[
        -1
    ].canvas_BL
    requests = []
    for row, length in enumerate(lengths):
        ids = canvas[row, 11 - length :]
        alone = list(denoise(model, ids[None], config, soft_mask=soft))[-1].canvas_BL[0]
        assert torch.equal(alone, together[row, 11 - length :])
        requests.append((Request(tuple(ids.tolist()), config, soft_mask=soft), alone.tolist()))
    engine = Engine(model, positions=128)
    handles = []
    for request, _ in requests:  # each enters while the others are at a later block
        handles.append(engine.submit(request))
        for _ in range(3):
            engine.run_once()
    while engine.run_once():
        pass
    for handle, (_, wanted) in zip(handles, requests, strict=True):
        assert list(handle.result().ids) == wanted


def test_a_text_sees_its_own_blocks_where_one_of_its_length_has_just_left() -> None:
    model = block_model(**GRIDS["prompt"])
    first, second = (canvas_of(model, [length], new=16 - length)[0][0] for length in (13, 12))
    requests = [Request(tuple(ids.tolist()), of(threshold=0.0)) for ids in (first, second)]

    def last_of(requests: list[Request]) -> tuple[int, ...]:
        engine = Engine(model, positions=32, prefix_cache_mb=0)
        for request in requests:
            handle = engine.submit(request)
            while engine.run_once():
                pass
        return handle.result().ids

    assert last_of(requests) == last_of(requests[1:])


@pytest.mark.parametrize("grid", [GRIDS["start"], GRIDS["start, shifted"]], ids=list(GRIDS)[:2])
def test_a_step_commits_what_a_dense_mask_over_the_whole_text_predicts(grid) -> None:
    model = block_model(**grid)
    canvas, attention = canvas_of(model, [9, 4], new=13)
    before = canvas
    for step in denoise(model, canvas, of(), attention_mask_BL=attention):
        with torch.no_grad():
            logits_BLV = model(before, attention_mask=attention).logits
        # The mask is never written.
        logits_BLV[..., model.mask_id] = -torch.inf
        committed = step.committed_BL
        assert torch.equal(step.canvas_BL[committed], logits_BLV.argmax(-1)[committed])
        before = step.canvas_BL
    assert not before.eq(model.mask_id).any()


def test_a_later_block_changes_nothing_before_it_in_either_forward() -> None:
    model = block_model()
    ids = torch.arange(12)[None] % 7
    other = ids.clone()
    other[:, 8:] += 1
    with torch.no_grad():
        # Position 8 is predicted by the row before it, and so by the first two blocks alone.
        one, two = (model(x).logits[:, :9] for x in (ids, other))
        assert torch.equal(one, two)
        assert not torch.equal(model(ids).logits[:, 9:], model(other).logits[:, 9:])
        # Behind padding the blocks begin at the first token.
        padded = torch.nn.functional.pad(ids, (3, 0))
        real = torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
        shifted = model(padded, attention_mask=real).logits[:, 3:]
        torch.testing.assert_close(shifted, model(ids).logits)


@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
def test_a_first_token_is_decided_before_its_block_where_logits_are_shifted(soft) -> None:
    model = block_model(logit_shift=True)
    canvas, _ = canvas_of(model, [8], new=8)
    for settings in ({"threshold": 0.0}, {"step_schedule": "even"}):
        run = denoise(model, canvas, of(steps=4, **settings), soft_mask=soft)
        steps = [step.committed_BL[0].nonzero().squeeze(1).tolist() for step in run]
        assert steps == [[8], [9, 10, 11], [12], [13, 14, 15]]


def test_steps_are_shared_out_by_the_masks_of_a_block() -> None:
    model = block_model(logit_shift=False)
    canvas, _ = canvas_of(model, [7], new=13)
    for steps, wanted in ((13, [1] * 13), (4, [1, 4, 4, 4])):
        run = denoise(model, canvas, of(steps=steps, step_schedule="even"))
        assert [int(step.committed_BL.sum()) for step in run] == wanted
    masked = canvas[0].eq(model.mask_id).numpy()
    for steps in range(4, 40):  # every block has a step, and none is left over
        config = of(steps=steps)
        ends = StepSchedule(masked, config, grid_of(model.config, masked, config)).ends
        assert all(one < other for one, other in pairwise([0, *ends]))
        assert ends[-1] == steps
    with pytest.raises(ValueError, match="3 steps cannot fill 4 blocks"):
        list(denoise(model, canvas, of(steps=3)))


REFUSED = {
    "dual": ({"cache": "dual", "block_length": 4}, "give cache exact or none, not dual"),
    "parts": ({"block_length": 3}, "block_length must divide that, not be 3"),
    "lookahead": ({"lookahead": 4, "block_length": 4}, "leave out lookahead"),
    "early": ({"next_block_at": 0.5, "block_length": 4}, "leave out next_block_at"),
}


@pytest.mark.parametrize(("settings", "why"), REFUSED.values(), ids=REFUSED)
def test_settings_that_do_not_suit_it_are_refused(settings, why) -> None:
    model = block_model()
    canvas, _ = canvas_of(model, [8])
    with pytest.raises(ValueError, match=why):
        list(denoise(model, canvas, of(**settings)))
    with pytest.raises(ValueError, match=why):
        Engine(model, positions=64).submit(Request(tuple(canvas[0].tolist()), of(**settings)))


def test_holes_before_given_text_hooks_and_exact_caches_of_other_models_are_refused() -> None:
    model = block_model()
    canvas, _ = canvas_of(model, [8])
    holed = canvas.clone()
    holed[0, 10] = 5  # in the block of the first mask: that one sees it
    list(denoise(model, holed, of(cache="none")))
    holed[0, 12] = 5
    with pytest.raises(ValueError, match="does not see what follows a hole"):
        list(denoise(model, holed, of()))
    for cache, why in (("none", "one block at a time"), ("exact", "leave out the cache")):
        with pytest.raises(ValueError, match=why):
            list(denoise(model, canvas, of(cache=cache), logits_hook=lambda i, x, logits: logits))
    with pytest.raises(ValueError, match="exact is for block-causal models"):
        list(denoise(tiny_model(), canvas, of()))


def test_a_model_without_blocks_is_bit_for_bit_what_it_was() -> None:
    plain, one_block = tiny_model(), tiny_model(block_size=64)
    canvas, attention = canvas_of(plain, [9, 4])
    config = SamplingConfig(steps=12)
    runs = [
        denoise(model, canvas, config, attention_mask_BL=attention, soft_mask=SOFT, rules=rules)
        for model, rules in ((plain, only_mask(plain)), (one_block, None))
    ]
    # A block that holds the whole text is full attention.
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.canvas_BL, other.canvas_BL)


def test_diffusion_generate_writes_blocks_too() -> None:
    model = block_model(logit_shift=False)
    canvas, _ = canvas_of(model, [8], new=8)
    settings = {"max_new_tokens": 8, "steps": 8, "alg": "entropy"}
    text = model.diffusion_generate(canvas[:, :8], **settings)
    config = dataclasses.replace(of(steps=8), alg="entropy")
    assert torch.equal(text, list(denoise(model, canvas, config))[-1].canvas_BL)


def test_a_step_that_is_taken_back_and_repeated_computes_what_it_had_not_kept() -> None:
    model = block_model()
    canvas, _ = canvas_of(model, [9], new=11)
    wanted = list(denoise(model, canvas, of(), soft_mask=SOFT))[-1].canvas_BL[0]
    batch = Batch(model, 20)
    sequence = batch.add(0, canvas[0], of(), soft_mask=SOFT)
    while not sequence.is_done:
        saved = batch.save()
        batch.step()
        batch.restore(saved)
        # As after a failure half-way through the layers.
        batch.store.update(
            0, torch.arange(sequence.kept, 20), *(torch.full((20 - sequence.kept, 2, 8), 9.0),) * 2
        )
        batch.step()
    assert torch.equal(batch.canvas_P, wanted)


def test_a_text_without_masks_stands_beside_one_with_some() -> None:
    model = block_model()
    canvas, _ = canvas_of(model, [8, 8], new=8)
    canvas[0].masked_fill_(canvas[0] == model.mask_id, 7)
    together = list(denoise(model, canvas, of()))[-1].canvas_BL
    assert torch.equal(together[0], canvas[0])
    assert torch.equal(together[1:], list(denoise(model, canvas[1:], of()))[-1].canvas_BL)
