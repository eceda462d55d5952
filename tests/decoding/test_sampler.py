"""The loop: rows are independent, counts add up, what `generate` adds does what it says."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

import softmask
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.sampler import Rules, denoise

SOFT = SoftMaskConfig(k=3, scale=0.8, offset=-3.0, steepness=1.0)
# Each mixture, weight and temperature that is not published, in one of the modes.
OTHERS = (
    SoftMaskConfig(k=2, scale=0.6, mixture="spherical", weight="constant", token_temperature=2.0),
    SoftMaskConfig(
        mode="temperature", scale=0.9, mixture="spherical", weight="entropy", temperature=0.8
    ),
    SoftMaskConfig(k=3, scale=0.9, mixture="additive", weight="entropy", entropy_temperature=2.0),
    SoftMaskConfig(k=3, scale=0.8, mixture="norm_kept", offset=-3.0, steepness=1.0),
)
TWO_STEPS = SamplingConfig(steps=2)
ALGS = ("origin", "maskgit_plus", "topk_margin", "entropy")


def drain(model, canvas, config, **kwargs):
    return list(denoise(model, canvas, config, **kwargs))[-1]


def canvas_of(model, lengths, new=12):
    """Left-padded random prompts with masks behind, and their attention mask."""
    generator = torch.Generator().manual_seed(5)
    mask_id, longest = model.config.mask_token_id, max(lengths)
    canvas = torch.randint(0, mask_id - 1, (len(lengths), longest + new), generator=generator)
    canvas[:, longest:] = mask_id
    attention = torch.arange(longest + new) >= longest - torch.tensor(lengths)[:, None]
    return canvas.masked_fill(~attention, 0), attention.long()


def holed_canvas(model):
    """Two rows whose masks lie in three and in two stretches, of unequal number."""
    generator = torch.Generator().manual_seed(3)
    mask_id = model.config.mask_token_id
    canvas = torch.randint(0, mask_id - 1, (2, 30), generator=generator)
    canvas[0, 2:8] = canvas[0, 14:16] = canvas[0, 25:29] = mask_id
    canvas[1, 1:4] = canvas[1, 20:26] = mask_id
    return canvas


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def only_mask(model):
    return Rules(suppressed=(model.config.mask_token_id,))


@pytest.mark.parametrize("mixture", ["linear", "norm_kept", "spherical", "additive"])
@pytest.mark.parametrize(("offset", "fed"), [(-0.5, "none"), (-1.4, "some"), (-6.0, "all")])
def test_all_tokens_are_mixed_in_alike_whether_logits_are_kept_or_not(mixture, offset, fed) -> None:
    model = tiny_model()
    canvas, config = holed_canvas(model)[:1], SamplingConfig(steps=8, alg="entropy")
    soft = SoftMaskConfig(
        mode="temperature",
        scale=0.8,
        offset=offset,
        steepness=40.0,
        temperature=0.1,
        token_temperature=1.5,
        mixture=mixture,
    )
    # A hook is shown whole logits.
    same = {"logits_hook": lambda step, canvas, logits: logits}
    streamed, whole = (
        list(denoise(model, canvas, config, soft_mask=soft, **more)) for more in ({}, same)
    )
    fed_back = []
    for step, other in zip(streamed[:-1], whole[:-1], strict=True):  # the last one leaves no mask
        assert torch.equal(step.canvas_BL, other.canvas_BL)
        torch.testing.assert_close(step.lambda_BL, other.lambda_BL, rtol=1e-3, atol=1e-6)
        fed_back += (step.lambda_BL > 1e-6)[step.canvas_BL == model.mask_id].tolist()
    assert {"none": not any(fed_back), "all": all(fed_back)}.get(fed, sum(fed_back) > 0)
    assert fed != "some" or not all(fed_back)


@pytest.mark.parametrize(
    ("soft", "alg"),
    [
        *((soft, alg) for soft in (None, SOFT) for alg in ALGS),
        *((soft, "entropy") for soft in OTHERS),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "mixture", "plain"),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_gives_the_same_tokens_alone_and_in_a_batch(alg, soft, temperature) -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [9, 4, 6])
    config = SamplingConfig(steps=7, alg=alg, temperature=temperature, top_p=0.95)
    settings = {"soft_mask": soft, "rules": only_mask(model)}
    batch = drain(
        model,
        canvas,
        config,
        attention_mask_BL=attention,
        generators=generators(1, 2, 3),
        **settings,
    )
    for row, length in enumerate([9, 4, 6]):
        alone = drain(
            model,
            canvas[row : row + 1, 9 - length :],
            config,
            generators=generators(row + 1),
            **settings,
        )
        assert torch.equal(alone.canvas_BL[0], batch.canvas_BL[row, 9 - length :])


def test_alg_temp_draws_the_same_positions_alone_and_in_a_batch() -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [9, 4])
    config = SamplingConfig(steps=5, alg="entropy", alg_temp=0.5)
    batch = drain(model, canvas, config, attention_mask_BL=attention, generators=generators(1, 2))
    alone = drain(model, canvas[1:, 5:], config, generators=generators(2))
    assert torch.equal(alone.canvas_BL[0], batch.canvas_BL[1, 5:])


@pytest.mark.parametrize("steps", [1, 3, 12, 40])
@pytest.mark.parametrize("alg", ALGS)
def test_every_mask_is_filled_whatever_the_number_of_steps(alg, steps) -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=steps, alg=alg)
    last = drain(model, canvas, config, soft_mask=SOFT, rules=only_mask(model))
    assert last.left_B == (0,)
    assert not (last.canvas_BL == model.config.mask_token_id).any()


def test_rows_with_unequal_mask_counts_end_complete_and_keep_what_was_given() -> None:
    model = tiny_model()
    mask_id = model.config.mask_token_id
    canvas = torch.randint(0, mask_id - 1, (3, 14), generator=torch.Generator().manual_seed(2))
    given = canvas.clone()
    canvas[0, 3:5] = mask_id
    canvas[1, 2:13] = mask_id
    canvas[2, [1, 6, 9]] = mask_id
    last = drain(model, canvas, SamplingConfig(steps=4), soft_mask=SOFT, rules=only_mask(model))
    assert last.left_B == (0, 0, 0)
    kept = canvas != mask_id
    assert torch.equal(last.canvas_BL[kept], given[kept])


def test_a_plain_greedy_step_that_commits_nothing_costs_no_forward() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=36)
    plain = drain(model, canvas, config, rules=only_mask(model))
    assert plain.forwards <= 12
    hooked = drain(model, canvas, config, logits_hook=lambda step, x, logits: logits)
    assert hooked.forwards == 36
    assert torch.equal(plain.canvas_BL, hooked.canvas_BL)


def test_scale_zero_equals_plain_bit_for_bit() -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [8, 3])
    config = SamplingConfig(steps=6)
    zero = SoftMaskConfig(k=3, scale=0.0)
    a = [s.canvas_BL for s in denoise(model, canvas, config, attention_mask_BL=attention)]
    b = [
        s.canvas_BL
        for s in denoise(model, canvas, config, attention_mask_BL=attention, soft_mask=zero)
    ]
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_soft_masking_changes_the_text_and_reports_its_weights() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [8])
    steps = list(denoise(model, canvas, SamplingConfig(steps=6), soft_mask=SOFT))
    masked = steps[0].canvas_BL == model.config.mask_token_id
    assert (steps[0].lambda_BL[masked] > 0).all()
    assert (steps[0].lambda_BL[~masked] == 0).all()
    assert steps[-1].lambda_BL is None  # no mixture behind the last step
    plain = drain(model, canvas, SamplingConfig(steps=6))
    assert not torch.equal(plain.canvas_BL, steps[-1].canvas_BL)


def test_blocks_are_filled_from_left_to_right() -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [9, 4])
    config = SamplingConfig(steps=9, block_length=4)
    mask_id = model.config.mask_token_id
    for soft in (None, SOFT):
        for step in denoise(
            model,
            canvas,
            config,
            attention_mask_BL=attention,
            soft_mask=soft,
            rules=only_mask(model),
        ):
            new = step.canvas_BL[:, 9:] == mask_id
            blocks = new.unflatten(1, (3, 4)).any(-1)
            opened = ~new.unflatten(1, (3, 4)).all(-1)
            # A block is touched only once the one before it holds no mask.
            assert not (opened[:, 1:] & blocks[:, :-1]).any()
        assert step.left_B == (0, 0)


def test_blocks_count_masks_so_that_text_between_two_holes_takes_no_step() -> None:
    model = tiny_model()
    canvas = torch.arange(1, 41)[None]
    mask_id = model.config.mask_token_id
    canvas[0, 5:7] = canvas[0, 33:35] = mask_id
    config = SamplingConfig(steps=4, block_length=2)
    steps = list(denoise(model, canvas, config, rules=only_mask(model)))
    # Two steps a block, as with four masks in a row: the published schedule commits 0, then 2.
    assert [step.left_B for step in steps] == [(4,), (2,), (2,), (0,)]
    assert not (steps[1].canvas_BL[0, 5:7] == mask_id).any()
    assert (steps[1].canvas_BL[0, 33:35] == mask_id).all()


@pytest.mark.parametrize("block_length", [None, 2])
def test_a_row_without_masks_stands_beside_others_under_hooks_and_rules(block_length) -> None:
    @softmask.commit_rule("test-of-places")
    def of_places(rows):
        return -rows.block_position_N.float()

    model = tiny_model()
    canvas = holed_canvas(model)
    canvas[0] = canvas[0].masked_fill(canvas[0] == model.mask_id, 7)
    config = SamplingConfig(steps=9, alg=of_places, block_length=block_length)
    settings = {"rules": only_mask(model), "tokens_hook": lambda step, ids, logits: ids}
    together = drain(model, canvas, config, **settings)
    assert torch.equal(together.canvas_BL[0], canvas[0])
    assert torch.equal(together.canvas_BL[1:], drain(model, canvas[1:], config).canvas_BL)
    assert torch.equal(drain(model, canvas[:1], config, **settings).canvas_BL, canvas[:1])


def test_a_mask_that_a_hook_writes_into_a_row_without_any_is_filled() -> None:
    model = tiny_model()
    canvas = torch.arange(8)[None]

    def hook(step, ids, logits):
        return ids.index_fill(1, torch.tensor([2]), model.mask_id) if step == 0 else ids

    first, *_, last = denoise(
        model, canvas, SamplingConfig(steps=3), rules=only_mask(model), tokens_hook=hook
    )
    assert first.canvas_BL[0, 2] == model.mask_id
    assert last.left_B == (0,)
    assert model.mask_id not in last.canvas_BL


CANVAS = r"a tokens hook must return the canvas, token ids of the shape \(1, 8\), not "
LOGITS = r"a logits hook must return logits, numbers of the shape \(1, 8, 64\), not "


@pytest.mark.parametrize("step", [None, 0])
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda ids: None, CANVAS + "None"),
        (lambda ids: ids[:, 1:], CANVAS + r"int64 of the shape \(1, 7\)"),
        (lambda ids: ids.float(), CANVAS + r"float32 of the shape \(1, 8\)"),
        (lambda ids: ids + 10**6, "a token id outside of the model's vocabulary of 64"),
        (lambda ids: ids - 5, "a token id outside of the model's vocabulary of 64"),
    ],
)
def test_what_a_tokens_hook_returns_is_looked_at(step, returned, message) -> None:
    def hook(at, ids, logits):
        return returned(ids) if at == step else ids

    with pytest.raises(ValueError, match=message):
        drain(tiny_model(), torch.tensor([[1, 2, *[63] * 6]]), TWO_STEPS, tokens_hook=hook)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda logits: None, LOGITS + "None"),
        (lambda logits: logits[..., 1:], LOGITS + r"float32 of the shape \(1, 8, 63\)"),
        (lambda logits: logits.long(), LOGITS + r"int64 of the shape \(1, 8, 64\)"),
    ],
)
def test_what_a_logits_hook_returns_is_looked_at(returned, message) -> None:
    def hook(at, ids, logits):
        return returned(logits)

    with pytest.raises(ValueError, match=message):
        drain(tiny_model(), torch.tensor([[1, 2, *[63] * 6]]), TWO_STEPS, logits_hook=hook)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_a_tokens_hook_may_return_whole_numbers_of_any_width(kind) -> None:
    model, canvas = tiny_model(), torch.tensor([[1, 2, *[63] * 6]])
    narrow = drain(model, canvas, TWO_STEPS, tokens_hook=lambda step, ids, logits: ids.to(kind))
    assert torch.equal(narrow.canvas_BL, drain(model, canvas, TWO_STEPS).canvas_BL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"steps": 4}}, "config must be a SamplingConfig, not {'steps': 4}"),
        ({"soft_mask": True}, "soft_mask must be a SoftMaskConfig or None here, not True"),
        ({"soft_mask": "rcd"}, "soft_mask must be a SoftMaskConfig or None here, not 'rcd'"),
        ({"generators": [3]}, "generators must hold a torch.Generator for each row, not 3"),
        (
            {"generators": torch.Generator()},
            "generators must have an entry for each row of the canvas, 1 in all, not <torch",
        ),
        ({"steps_B": 4}, "steps_B must have an entry for each row of the canvas, 1 in all, not 4"),
        ({"steps_B": [2.5]}, "an entry of steps_B must be a whole number, not 2.5"),
    ],
)
def test_an_argument_of_another_type_is_refused_before_anything_runs(arguments, message) -> None:
    given = {"canvas_BL": torch.tensor([[1, 2, *[63] * 6]]), "config": TWO_STEPS} | arguments
    with pytest.raises(ValueError, match=message):
        denoise(tiny_model(), **given)


def test_a_block_the_size_of_the_canvas_is_no_block() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6])
    whole = drain(model, canvas, SamplingConfig(steps=5, block_length=12), soft_mask=SOFT)
    free = drain(model, canvas, SamplingConfig(steps=5), soft_mask=SOFT)
    assert torch.equal(whole.canvas_BL, free.canvas_BL)


def test_too_few_steps_for_the_blocks_is_refused() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6])
    with pytest.raises(ValueError, match="3 blocks"):
        drain(model, canvas, SamplingConfig(steps=2, block_length=4))


def test_a_suppressed_id_is_never_written_nor_mixed_in() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6])
    free = drain(model, canvas, SamplingConfig(steps=6), rules=only_mask(model))
    banned = tuple({*free.canvas_BL[0, 6:].tolist(), model.config.mask_token_id})
    rules = Rules(suppressed=banned)
    for step in denoise(model, canvas, SamplingConfig(steps=6), soft_mask=SOFT, rules=rules):
        written = step.canvas_BL[0, 6:]
        masked = written == model.config.mask_token_id
        assert not set(written[~masked].tolist()) & set(banned)
        assert not set(step.candidate_BL[0, 6:][masked].tolist()) & set(banned)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_in_float64_writes_what_it_writes_in_float32(temperature) -> None:
    model, wide = tiny_model(), tiny_model().double()
    canvas, attention = canvas_of(model, [6, 3])
    config = SamplingConfig(steps=6, temperature=temperature, suppress_eos=True)
    rules = Rules(suppressed=(model.mask_id,), end_ids=(0, 1), eos_id=0)
    runs = [
        denoise(
            one,
            canvas,
            config,
            attention_mask_BL=attention,
            soft_mask=SOFT,
            rules=rules,
            generators=generators(1, 2),
        )
        for one in (model, wide)
    ]
    for narrow_step, wide_step in zip(*runs, strict=True):
        assert torch.equal(narrow_step.canvas_BL, wide_step.canvas_BL)


def test_a_row_stops_once_an_end_token_stands_and_all_before_it_is_decided() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6], new=16)
    config = SamplingConfig(steps=16, alg="maskgit_plus")
    free = [s.canvas_BL for s in denoise(model, canvas, config, rules=only_mask(model))]
    end = int(free[-1][0, 6])  # the first new token of the text plays the end token
    rules = Rules(suppressed=(model.config.mask_token_id,), end_ids=(end,), stop=True, fill_id=end)
    steps = list(denoise(model, canvas, config, rules=rules))
    last = steps[-1].canvas_BL[0, 6:].tolist()
    assert last[last.index(end)] == end
    assert steps[-1].forwards < 16
    assert steps[-1].left_B == (0,)
    shown = free[-1][0, 6:].tolist()
    assert last[: last.index(end)] == shown[: last.index(end)]


def test_an_end_penalty_keeps_the_end_away() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6])
    free = drain(model, canvas, SamplingConfig(steps=6), rules=only_mask(model))
    end = int(free.canvas_BL[0, 7])
    rules = Rules(suppressed=(model.config.mask_token_id,), end_ids=(end,))
    far = drain(model, canvas, SamplingConfig(steps=6, end_penalty=1e4), rules=rules)
    assert end not in far.canvas_BL[0, 6:]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("penalty", [-1e6, -7e4, 7e4, 1e6])
def test_an_end_penalty_beyond_what_float16_holds_is_as_good_as_infinite(
    penalty, temperature
) -> None:
    model = tiny_model().half()
    canvas, _ = canvas_of(model, [6])
    config = SamplingConfig(steps=3, end_penalty=penalty, temperature=temperature)
    rules = Rules(suppressed=(model.mask_id,), end_ids=(7,))
    end = drain(model, canvas, config, rules=rules, soft_mask=SOFT)
    is_end = end.canvas_BL[0, 6:] == 7
    assert is_end.all() if penalty < 0 else not is_end.any()
    assert end.left_B == (0,)


@pytest.mark.parametrize("mode", ["topk", "temperature"])
@pytest.mark.parametrize("schedule", ["none", "linear", "stepwise"])
def test_every_mode_and_schedule_runs_to_the_end(mode, schedule) -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [6, 3])
    soft = SoftMaskConfig(mode=mode, k=2, scale=1.0, offset=-3.0, steepness=1.0, schedule=schedule)
    steps = list(
        denoise(
            model,
            canvas,
            SamplingConfig(steps=6),
            attention_mask_BL=attention,
            soft_mask=soft,
            rules=only_mask(model),
        )
    )
    assert steps[-1].left_B == (0, 0)
    late = steps[-2].lambda_BL
    if schedule == "stepwise":
        assert late.max() == 0


def test_nan_logits_are_refused_with_the_step_named() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6])
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN at step 0"):
        drain(model, canvas, SamplingConfig(steps=4))


def test_a_canvas_beyond_the_context_is_refused() -> None:
    model = tiny_model()
    canvas = torch.zeros(1, model.config.max_position_embeddings + 1, dtype=torch.long)
    with pytest.raises(ValueError, match="context"):
        denoise(model, canvas, SamplingConfig(steps=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda canvas: {"attention_mask_BL": torch.ones(2, 17)},
            r"shape \(2, 18\), not \(2, 17\)",
        ),
        (
            lambda canvas: {"attention_mask_BL": torch.ones(1, 18)},
            r"shape \(2, 18\), not \(1, 18\)",
        ),
        (lambda canvas: {"attention_mask_BL": torch.ones(18)}, r"shape \(2, 18\), not \(18,\)"),
        (
            lambda canvas: {"generators": generators(0)},
            "generators .* each row of the canvas, 2 in all, not 1",
        ),
        (
            lambda canvas: {"steps_B": [4, 4, 4]},
            "steps_B .* each row of the canvas, 2 in all, not 3",
        ),
        (lambda canvas: {"holes_B": [None]}, "holes_B .* each row of the canvas, 2 in all, not 1"),
        (
            lambda canvas: {"constraint": [None]},
            "constraint .* each row of the canvas, 2 in all, not 1",
        ),
        (lambda canvas: {"room_B": []}, "room_B .* each row of the canvas, 2 in all, not 0"),
        (lambda canvas: {"canvas_BL": canvas + 1}, "outside of the model's vocabulary of 64"),
        (lambda canvas: {"canvas_BL": canvas - 64}, "outside of the model's vocabulary of 64"),
        (lambda canvas: {"canvas_BL": canvas.float()}, "token ids, whole numbers, not float32"),
        (lambda canvas: {"canvas_BL": canvas[0]}, r"\(batch, length\), not \(18,\)"),
        (lambda canvas: {"rules": Rules(suppressed=(64,))}, "vocabulary of 64"),
    ],
)
def test_what_does_not_fit_the_canvas_is_refused_before_anything_runs(change, message) -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6, 6])
    arguments = {"canvas_BL": canvas, "config": SamplingConfig(steps=4), **change(canvas)}
    with pytest.raises(ValueError, match=message):
        denoise(model, **arguments)


def test_k_beyond_the_vocabulary_is_refused() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6])
    with pytest.raises(ValueError, match="lower k"):
        denoise(model, canvas, SamplingConfig(steps=4), soft_mask=SoftMaskConfig(k=1000, scale=0.5))


def test_a_step_that_was_handed_out_does_not_change_any_more() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [6])
    names = ("canvas_BL", "committed_BL", "lambda_BL", "candidate_BL")
    kept, copies = [], []
    for step in denoise(model, canvas, SamplingConfig(steps=6), soft_mask=SOFT):
        kept.append(step)
        values = [getattr(step, name) for name in names]
        copies.append([None if value is None else value.clone() for value in values])
    for step, copy in zip(kept, copies, strict=True):
        for name, value in zip(names, copy, strict=True):
            assert value is None or torch.equal(getattr(step, name), value), name


@pytest.mark.parametrize("config", [{}, {"block_length": 6, "cache": "dual"}], ids=str)
def test_rows_of_like_length_are_attended_in_one_call_wherever_they_stand(
    config, monkeypatch
) -> None:
    model = tiny_model()
    lengths = [9, 4, 9, 4, 9]
    canvas, attention = canvas_of(model, lengths)
    sampling = SamplingConfig(steps=12, **config)
    settings = {"rules": only_mask(model), "graphs": False}
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, *rest, **kwargs: calls.append(len(q)) or attend(q, *rest, **kwargs),
    )
    together = drain(model, canvas, sampling, attention_mask_BL=attention, **settings)
    layers = together.forwards * model.config.num_hidden_layers
    # Lines of a store are read with strides: the long rows and the short ones stand equally apart.
    assert sorted(calls) == [2] * layers + [3] * layers
    for row, length in enumerate(lengths):
        alone = drain(model, canvas[row : row + 1, 9 - length :], sampling, **settings)
        assert torch.equal(alone.canvas_BL[0], together.canvas_BL[row, 9 - length :])
