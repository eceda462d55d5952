"""Soft-masking's own properties: what must hold whatever the logits are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, weight_at

from softmask.config import SoftMaskConfig
from softmask.logits import _first_of_equal, entropy, top_k
from softmask.soft_mask import Feedback, SoftMask, SoftTokens, feedback, rate

PROPERTY = settings(max_examples=60, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def random_logits(seed: int, rows: int, size: int, spread: float = 4.0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * spread


@PROPERTY
@given(
    seed=seeds,
    size=st.sampled_from([5, 127, 4095, 4096, 4097, 5000, 20_011]),
    k=st.integers(1, 5),
    cut=st.booleans(),
    ties=st.booleans(),
)
def test_top_k_is_the_front_of_a_stable_sort(seed, size, k, cut, ties) -> None:
    logits_NV = random_logits(seed, 3, size)
    if ties:
        logits_NV = logits_NV.round()
    if cut:  # suppressed columns, more than a block of them
        logits_NV[:, size // 2 :] = -torch.inf
    expected = torch.sort(logits_NV, dim=-1, descending=True, stable=True)
    for topk in (top_k, _first_of_equal):  # which a GPU takes whatever the logits are
        values_NK, ids_NK = topk(logits_NV, k)
        assert torch.equal(values_NK, expected.values[:, :k])
        assert torch.equal(ids_NK, expected.indices[:, :k])


@PROPERTY
@given(seed=seeds, spread=st.floats(0.01, 80), suppressed=st.integers(0, 40))
def test_entropy_equals_minus_sum_p_log_p(seed: int, spread: float, suppressed: int) -> None:
    logits_NV = random_logits(seed, 70, 50, spread)  # more rows than one chunk
    logits_NV[:, :suppressed] = -torch.inf
    p_NV = logits_NV.double().softmax(-1)
    expected_N = -torch.xlogy(p_NV, p_NV).sum(-1)
    torch.testing.assert_close(entropy(logits_NV), expected_N.float(), rtol=1e-4, atol=2e-5)


def test_statistics_of_bfloat16_logits_are_taken_in_fp32() -> None:
    logits_NV = random_logits(0, 4, 5000).bfloat16()
    assert torch.equal(entropy(logits_NV), entropy(logits_NV.float()))
    seen = feedback(logits_NV, torch.arange(4), 3, "topk")
    assert seen.entropy_N.dtype == seen.logits_NK.dtype == torch.float32


@PROPERTY
@given(
    scale=st.floats(0, 1),
    offset=st.floats(-20, 0),
    steepness=st.floats(0, 50),
    entropies=st.lists(st.floats(0, 12), min_size=2, max_size=20),
)
def test_lambda_lies_between_0_and_the_scale_and_falls_with_entropy(
    scale: float, offset: float, steepness: float, entropies: list[float]
) -> None:
    entropy_N = torch.tensor(sorted(entropies))
    lambda_N = weight_at(SoftMask(scale, offset, steepness, exact=True), entropy_N)
    assert lambda_N.min() >= 0
    assert lambda_N.max() <= torch.tensor(scale)
    assert (lambda_N.diff() <= 0).all()


@PROPERTY
@given(
    seed=seeds,
    mode=st.sampled_from(["topk", "temperature"]),
    k=st.integers(1, 6),
    scale=st.floats(0, 1),
    temperature=st.floats(0.1, 3),
)
def test_the_sparse_mixture_is_the_dense_product_with_the_embedding_table(
    seed: int, mode: str, k: int, scale: float, temperature: float
) -> None:
    vocabulary, mask_id = 40, 39
    table_VD = random_logits(seed + 1, vocabulary, 8, 1.0)
    ids_BL = torch.tensor([[3, mask_id, mask_id], [mask_id, 5, mask_id]])
    rows_N = (ids_BL.flatten() == mask_id).nonzero()[:, 0]
    logits_NV = random_logits(seed, len(rows_N), vocabulary)
    soft = SoftMask(scale, -1.0, 2.0, temperature, mode=mode, k=k, exact=True)
    tokens, lambda_N = soft(ids_BL, feedback(logits_NV, rows_N, k, mode), table_VD)

    if mode == "topk":
        kept = torch.full_like(logits_NV, -torch.inf)
        best = logits_NV.topk(k)
        p_NV = kept.scatter(1, best.indices, best.values).softmax(-1)
    else:
        p_NV = (logits_NV / temperature).softmax(-1)
    expected = table_VD[ids_BL].flatten(0, 1)
    own_ND = table_VD[mask_id].expand(len(rows_N), -1)
    expected[rows_N] = (1 - lambda_N[:, None]) * own_ND + lambda_N[:, None] * (p_NV @ table_VD)
    torch.testing.assert_close(tokens.embed(table_VD), expected.view(2, 3, 8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["topk", "temperature"])
def test_at_scale_0_the_model_cannot_tell_soft_tokens_from_plain_ones(mode: str) -> None:
    model = tiny_model()
    ids_BL = torch.tensor([[1, 63, 2, 63, 63]])
    plain_BLV = model(ids_BL).logits
    rows_N = torch.tensor([1, 3, 4])
    soft = SoftMask(0.0, mode=mode, k=2, exact=True)
    seen = feedback(plain_BLV[0, rows_N], rows_N, 2, mode)
    tokens, lambda_N = soft(ids_BL, seen, model.model.embed_tokens.weight)
    assert not lambda_N.any()
    assert torch.equal(model(soft_tokens=tokens).logits, plain_BLV)


def test_positions_without_feedback_keep_their_token_with_weight_1() -> None:
    ids_BL = torch.tensor([[7, 63, 8]])
    seen = feedback(random_logits(0, 1, 64), torch.tensor([1]), 2, "topk")
    tokens, _ = SoftMask(0.9, exact=True)(ids_BL, seen, torch.zeros(64, 4))
    assert tokens.ids_BLK[0, :, 0].tolist() == [7, 63, 8]
    assert tokens.weights_BLK[0, 0].tolist() == tokens.weights_BLK[0, 2].tolist() == [1, 0, 0]
    torch.testing.assert_close(tokens.weights_BLK.sum(-1), torch.ones(1, 3))


def test_a_step_that_commits_everything_feeds_nothing_back() -> None:
    none = torch.zeros(0, dtype=torch.long)
    seen = feedback(random_logits(0, 0, 64), none, 1, "topk")
    tokens, lambda_N = SoftMask(0.9, exact=True)(torch.tensor([[4, 5]]), seen, torch.zeros(64, 4))
    assert lambda_N.shape == (0,)
    assert isinstance(tokens, SoftTokens)
    assert tokens.weights_BLK[..., 0].tolist() == [[1, 1]]


@PROPERTY
@given(scale=st.floats(0.001, 0.999), offset=st.floats(-9, -0.01), steepness=st.floats(0.01, 20))
def test_learned_parameters_start_at_the_numbers_given(
    scale: float, offset: float, steepness: float
) -> None:
    learned = SoftMask(scale, offset, steepness)
    exact = SoftMask(scale, offset, steepness, exact=True)
    entropy_N = torch.linspace(0, 8, 9)
    torch.testing.assert_close(
        weight_at(learned, entropy_N), weight_at(exact, entropy_N), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("exact", [False, True])
def test_parameters_stay_in_fp32_whatever_the_model_around_them_is_cast_to(exact) -> None:
    model = tiny_model()
    model.soft_mask = SoftMask(0.3, exact=exact)

    def held():
        return [*model.soft_mask.parameters(), *model.soft_mask.buffers()]

    values = [value.item() for value in held()]
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        model.to(kind)
        assert next(model.model.parameters()).dtype == kind
        assert [value.dtype for value in held()] == [torch.float32] * 4
        assert [value.item() for value in held()] == values
    model.to("meta")
    assert [value.device.type for value in held()] == ["meta"] * 4


def test_gradients_reach_exactly_the_parameters_that_the_mode_uses() -> None:
    for mode, used in (("topk", False), ("temperature", True)):
        soft = SoftMask(0.5, -1.0, 2.0, mode=mode, k=2)
        seen = feedback(random_logits(0, 1, 30), torch.tensor([1]), 2, mode)
        table_VD = random_logits(1, 30, 4, 1.0)
        tokens, _ = soft(torch.tensor([[3, 29]]), seen, table_VD)
        tokens.embed(table_VD).square().sum().backward()
        got = {name: p.grad is not None and bool(p.grad) for name, p in soft.named_parameters()}
        assert got == {
            "raw_scale": True,
            "raw_offset": True,
            "raw_steepness": True,
            "raw_temperature": used,
        }


def test_the_rate_is_each_rows_own() -> None:
    left_B, start_B = torch.tensor([10, 5, 2, 0, 0]), torch.tensor([10, 10, 10, 10, 0])
    assert rate("none", left_B, start_B).tolist() == [1, 1, 1, 1, 1]
    linear = rate("linear", left_B, start_B)
    torch.testing.assert_close(linear, torch.tensor([1.0, 0.5, 0.2, 0.0, 1.0]))
    assert rate("stepwise", left_B, start_B).tolist() == [1, 0, 0, 0, 1]


def test_a_k_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"k is 65.*vocabulary has 64"):
        feedback(random_logits(0, 1, 64), torch.tensor([0]), 65, "topk")


@pytest.mark.parametrize(
    ("setting", "value"), [("scale", 7.0), ("scale", -0.1), ("k", 0), ("mode", "dense")]
)
def test_settings_out_of_range_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        SoftMaskConfig(**{setting: value})


def test_feedback_carries_no_gradient() -> None:
    logits_NV = random_logits(0, 2, 64).requires_grad_()
    seen = feedback(logits_NV, torch.tensor([0, 1]), 2, "topk")
    assert isinstance(seen, Feedback)
    assert not seen.logits_NK.requires_grad
    assert not seen.entropy_N.requires_grad
