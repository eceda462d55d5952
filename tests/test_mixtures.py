"""Mixtures and weights of the feedback: what each promises, whatever the vectors are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softmask.config import (
    FEEDBACK_MIXTURES,
    FEEDBACK_WEIGHTS,
    SoftMaskConfig,
    soft_mask_from_published,
    soft_mask_to_published,
)
from softmask.logits import entropy
from softmask.mixtures import MIXTURES, WEIGHTS, Ends
from softmask.soft_mask import SoftMask, SoftTokens, feedback
from softmask.training.config import Recipe

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
MASK, SIZE = 29, 30
seeds = st.integers(0, 2**31 - 1)
modes = st.sampled_from(["topk", "temperature"])


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixed(mask: SoftMask, logits_NV: torch.Tensor, table_VD: torch.Tensor):
    """(N, D) what masks become, and lambda."""
    rows_N = torch.arange(len(logits_NV))
    seen = feedback(logits_NV, rows_N, mask.k, mask.mode, mask.entropy_temperature)
    found = mask.mix(torch.full_like(rows_N, MASK), seen, table_VD)
    added = None if found.added_ND is None else found.added_ND[None]
    soft = SoftTokens(found.ids_NK[None], found.weights_NK[None], added)
    return soft.embed(table_VD)[0], found.lambda_N


def shares_of(logits_NV: torch.Tensor, k: int | None) -> torch.Tensor:
    """(N, V) the softmax of the k largest logits; None: of all."""
    if k is None:
        return logits_NV.softmax(-1)
    best = logits_NV.topk(k)
    kept = torch.full_like(logits_NV, -torch.inf).scatter(1, best.indices, best.values)
    return kept.softmax(-1)


def two(angle: float, length: float) -> torch.Tensor:
    """A table of two vectors at this angle: a mask of length 2, and a token."""
    token = length * torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    return torch.stack([torch.tensor([2.0, 0.0, 0.0]), token])


def between(name: str, table_VD: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """(D,) the mixture of the table's two vectors."""
    own = torch.zeros(1, dtype=torch.long)
    ends = Ends(own, own[:, None] + 1, torch.ones(1, 1), table_VD)
    of_mask_N, of_delta_N = MIXTURES[name](share, ends)
    return of_mask_N * table_VD[0] + of_delta_N * table_VD[1]


def test_the_settings_name_what_there_is() -> None:
    assert tuple(MIXTURES) == FEEDBACK_MIXTURES
    assert tuple(WEIGHTS) == FEEDBACK_WEIGHTS


@PROPERTY
@given(seed=seeds, k=st.integers(1, 4), mode=modes)
def test_a_mixture_is_the_dense_sum_of_its_formula(seed, k, mode) -> None:
    logits_NV, table_VD = 4 * random(seed, 6, SIZE), random(seed + 1, SIZE, 16)
    logits_NV[:, MASK] = -100.0  # as no model predicts it
    q_NV = shares_of(logits_NV / 1.3, None) if mode == "temperature" else shares_of(logits_NV, k)
    m_D, delta_ND = table_VD[MASK], q_NV @ table_VD
    for name in FEEDBACK_MIXTURES:
        mask = SoftMask(0.7, -2.0, 0.8, 1.3, mode=mode, k=k, mixture=name, exact=True)
        found_ND, lambda_N = mixed(mask, logits_NV, table_VD)
        share = lambda_N[:, None]
        line = (1 - share) * m_D + share * delta_ND
        if name == "norm_kept":
            parts = (1 - share) * m_D.norm() + share * (q_NV @ table_VD.norm(dim=1))[:, None]
            line = line / line.norm(dim=1, keepdim=True) * parts
        elif name == "spherical":
            d_ND = delta_ND / delta_ND.norm(dim=1, keepdim=True)
            angle = torch.acos(d_ND @ (m_D / m_D.norm()))[:, None]
            line = m_D * torch.sin((1 - share) * angle) + (
                m_D.norm() * d_ND * torch.sin(share * angle)
            )
            line = line / torch.sin(angle)
        elif name == "additive":
            line = m_D + share * delta_ND
        torch.testing.assert_close(found_ND, line, rtol=2e-4, atol=2e-5)


@PROPERTY
@given(
    angle=st.floats(0, math.pi),
    length=st.floats(0.01, 100),
    share=st.floats(0, 1),
)
def test_the_arc_keeps_the_masks_norm_from_the_mask_to_the_direction(angle, length, share) -> None:
    table_VD = two(angle, length)

    def arc(lambda_: float) -> torch.Tensor:
        return between("spherical", table_VD, torch.tensor([lambda_]))

    assert torch.equal(arc(0.0), table_VD[0])
    torch.testing.assert_close(arc(1.0), table_VD[1] / length * 2, rtol=1e-4, atol=1e-4)
    # Vectors that point opposite ways cancel half-way between: there is no direction to keep.
    if angle < math.pi - 0.011 or abs(share - 0.5) > 0.01:
        assert arc(share).norm().item() == pytest.approx(2, rel=1e-4)
    assert arc(share).norm() <= 2.001


@PROPERTY
@given(
    angle=st.sampled_from([0.0, 1e-4, 0.0099, 0.0101, 1.5, 3.1316, 3.1415, math.pi]),
    share=st.floats(0, 1),
    bits=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_gradients_through_any_mixture_are_finite_at_any_angle(angle, share, bits) -> None:
    for name in FEEDBACK_MIXTURES:
        table_VD = two(angle, 1.0).to(bits).requires_grad_()
        lambda_N = torch.tensor([share]).requires_grad_()
        between(name, table_VD, lambda_N).sum().backward()
        assert table_VD.grad.isfinite().all()
        assert lambda_N.grad.isfinite().all()
    # And where both are one and the same vector, or none.
    same = torch.ones(2, 3).requires_grad_()
    between("spherical", same, torch.tensor([share])).sum().backward()
    assert same.grad.isfinite().all()


@PROPERTY
@given(seed=seeds, mode=modes, temperature=st.sampled_from([1.0, 0.5, 2.0]))
def test_weights_follow_the_entropy_at_its_own_temperature(seed, mode, temperature) -> None:
    logits_NV, table_VD = 3 * random(seed, 5, SIZE), random(seed + 1, SIZE, 8)
    p_NV = (logits_NV.double() / temperature).softmax(-1)
    entropy_N = -torch.xlogy(p_NV, p_NV).sum(1).float()
    expected = {
        "sigmoid": torch.sigmoid(0.8 * (2 - entropy_N)),
        "constant": torch.ones(5),
        "entropy": entropy_N / math.log(SIZE),
    }
    for weight in FEEDBACK_WEIGHTS:
        mask = SoftMask(
            0.6,
            -2.0,
            0.8,
            mode=mode,
            k=2,
            weight=weight,
            entropy_temperature=temperature,
            exact=True,
        )
        _, lambda_N = mixed(mask, logits_NV, table_VD)
        torch.testing.assert_close(lambda_N, 0.6 * expected[weight], rtol=1e-4, atol=1e-5)


def test_what_is_mixed_in_has_a_temperature_of_its_own() -> None:
    logits_NV, table_VD = 3 * random(0, 5, SIZE), random(1, SIZE, 8)
    for mode, k in (("topk", 3), ("temperature", None)):
        mask = SoftMask(1.0, mode=mode, k=3, weight="constant", token_temperature=2.0, exact=True)
        found_ND, _ = mixed(mask, logits_NV, table_VD)
        torch.testing.assert_close(found_ND, shares_of(logits_NV / 2, k) @ table_VD)
        warmer = SoftMask(0.5, -1.0, 2.0, mode=mode, k=3, token_temperature=2.0, exact=True)
        plain = SoftMask(0.5, -1.0, 2.0, mode=mode, k=3, exact=True)
        assert torch.equal(
            mixed(warmer, logits_NV, table_VD)[1], mixed(plain, logits_NV, table_VD)[1]
        )


def test_equal_logits_have_the_whole_entropy_and_no_more() -> None:
    logits_NV = torch.zeros(3, SIZE)
    assert entropy(logits_NV).tolist() == pytest.approx([math.log(SIZE)] * 3)
    mask = SoftMask(1.0, mode="topk", weight="entropy", exact=True)
    _, lambda_N = mixed(mask, logits_NV, random(0, SIZE, 4))
    assert lambda_N.max() <= 1


def test_gradients_reach_exactly_the_parameters_that_mode_and_weight_use() -> None:
    for weight in FEEDBACK_WEIGHTS:
        for mode in ("topk", "temperature"):
            for mixture in FEEDBACK_MIXTURES:
                mask = SoftMask(0.5, -1.0, 2.0, mode=mode, k=2, mixture=mixture, weight=weight)
                table_VD = random(1, SIZE, 4)
                embedded_ND, _ = mixed(mask, random(0, 3, SIZE), table_VD)
                (embedded_ND * random(2, 3, 4)).sum().backward()
                got = {name for name, p in mask.named_parameters() if p.grad is not None}
                used = {"raw_scale"}
                used |= {"raw_offset", "raw_steepness"} if weight == "sigmoid" else set()
                used |= {"raw_temperature"} if mode == "temperature" else set()
                assert got == used
                assert got == {name for name, p in mask.named_parameters() if p.requires_grad}
                assert all(p.grad.abs() > 0 for p in mask.parameters() if p.requires_grad)


def test_the_published_file_names_what_is_ours_only_where_it_is_used() -> None:
    for ours in (
        {},
        {"mixture": "spherical", "weight": "constant"},
        {"weight": "entropy", "entropy_temperature": 2.0, "token_temperature": 0.5},
    ):
        config = SoftMaskConfig(k=2, scale=0.4, **ours)
        values = soft_mask_to_published(config)
        assert len(values) == 7 + len(ours)
        assert soft_mask_from_published(values, "here") == config


def test_a_file_of_before_there_were_other_mixtures_is_read() -> None:
    older = {"transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.4}
    for kept, mixture in ((True, "norm_kept"), (False, "linear"), (None, "linear")):
        read = soft_mask_from_published(older | {"mixture_norm": kept}, "here")
        assert read is not None
        assert read.mixture == mixture


def test_a_recipe_that_said_keep_norm_is_read_as_what_it_meant() -> None:
    base = {"name": "x", "train": {"steps": 1}, "corpus": {"puzzle_share": 1}}
    for kept, mixture in ((True, "norm_kept"), (False, "linear")):
        recipe = Recipe.of({**base, "soft_mask": {"k": 2, "keep_norm": kept}}, "here")
        assert recipe.soft_mask == SoftMaskConfig(k=2, mixture=mixture)
    train = {"steps": 1, "fit_soft_mask": True}
    fitted = {**base, "train": train, "soft_mask": {"weight": "constant"}}
    with pytest.raises(ValueError, match="fit_soft_mask finds offset and steepness"):
        Recipe.of(fitted, "here")
