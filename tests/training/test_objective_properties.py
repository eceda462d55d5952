"""The objective: chunked losses, feedback inside the forward, wrappers, weightings and counts."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model, weight_at

from softmask.models import lm_head as readout
from softmask.models import modeling_dream
from softmask.soft_mask import SoftMask, feedback
from softmask.training.noise import corrupt
from softmask.training.objective import BUCKETS, inner, masked_diffusion_loss

MODES = ("topk", "temperature")


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Chunks of 5 rows of the tiny vocabulary, so that every batch has several."""
    monkeypatch.setattr(modeling_dream, "CHUNK_LOGITS", 5 * 64)
    monkeypatch.setattr(readout, "CHUNK_LOGITS", 5 * 64)
    monkeypatch.setattr(readout, "PIECE_LOGITS", 5 * 64)


def soft_model(mode: str = "topk", **shape):
    """A tiny model whose mixtures are strong enough to have gradients."""
    model = tiny_model(**shape)
    model.soft_mask = SoftMask(0.5, -3.0, 1.0, mode=mode, k=3)
    return model


def batch_of(model, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """noisy_BL, ids_BL, masked_BL, times_B of 4 rows with different times."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 60, (4, 10), generator=generator)
    times = torch.tensor([0.25, 0.5, 0.75, 1.0])
    maskable = torch.ones_like(ids, dtype=torch.bool)
    noisy, masked, _ = corrupt(ids, maskable, times, model.config.mask_token_id, generator)
    return noisy, ids, masked, times


def gradients(model, *batch, **settings) -> dict[str, torch.Tensor]:
    """Gradients of every parameter that has one, after a fresh backward pass."""
    model.zero_grad()
    masked_diffusion_loss(model, *batch, **settings).value.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.clone() for name, gradient in found.items()}


def assert_equal_gradients(one, other, rtol: float = 1e-5) -> None:
    """Each within rtol of its own largest entry."""
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        close = rtol * gradient.abs().max().item()
        torch.testing.assert_close(other[name], gradient, rtol=0, atol=close + 1e-9, msg=name)


def rows_and_labels(batch) -> dict[str, torch.Tensor]:
    rows = batch[2].flatten().nonzero().squeeze(1)
    return {"rows": rows, "labels": batch[1].flatten()[rows]}


def test_chunked_losses_and_predictions_equal_those_of_whole_logits(small_chunks) -> None:
    model = tiny_model()
    batch = batch_of(model)
    chosen = rows_and_labels(batch)
    output = model(batch[0], **chosen)
    logits = model(batch[0], rows=chosen["rows"]).logits
    expected = F.cross_entropy(logits, chosen["labels"], reduction="none")
    assert len(expected) > 15
    assert output.logits is None
    assert not output.predicted.requires_grad
    torch.testing.assert_close(output.losses, expected)
    assert torch.equal(output.predicted, logits.argmax(-1))


@pytest.mark.parametrize("tied", [False, True])
def test_chunked_gradients_equal_those_of_whole_logits(small_chunks, tied) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    batch = batch_of(model)
    chosen = rows_and_labels(batch)
    weights = torch.rand(len(chosen["rows"]), generator=torch.Generator().manual_seed(1))
    found = []
    for chunked in (True, False):
        model.zero_grad()
        if chunked:
            losses = model(batch[0], **chosen).losses
        else:
            logits = model(batch[0], rows=chosen["rows"]).logits
            losses = F.cross_entropy(logits, chosen["labels"], reduction="none")
        (losses * weights).sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert_equal_gradients(found[1], found[0])


@pytest.mark.parametrize("mode", MODES)
def test_feedback_of_a_forward_equals_that_of_its_logits(small_chunks, mode) -> None:
    model = soft_model(mode)
    noisy, _, masked, _ = batch_of(model)
    rows = masked.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        seen = model(noisy, rows=rows, observe=True).feedback
        expected = feedback(model(noisy, rows=rows).logits, rows, 3, mode)
    for name, value in expected._asdict().items():
        own = getattr(seen, name)
        if value is None or not value.is_floating_point():
            assert own is value is None or torch.equal(own, value)
        else:
            torch.testing.assert_close(own, value)


def test_the_first_pass_sees_only_a_chunk_of_logits_at_once(small_chunks) -> None:
    model = soft_model()
    sizes = []
    model.lm_head.register_forward_hook(lambda _, args, out: sizes.append(out.shape[0]))
    noisy, ids, masked, times = batch_of(model)
    masked_diffusion_loss(model, noisy, ids, masked, times, soft=True)
    assert len(sizes) > 8
    assert max(sizes) <= 5


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_without_masks_has_loss_zero_and_gradients_zero(mode, soft) -> None:
    model = soft_model(mode)
    noisy, ids, masked, times = batch_of(model)
    loss = masked_diffusion_loss(model, noisy, ids, masked & False, times, soft=soft)
    assert loss.value == loss.nats == 0
    assert loss.total_T.sum() == 0
    loss.value.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_without_rows_losses_are_empty_and_in_the_graph() -> None:
    model = tiny_model()
    none = torch.zeros(0, dtype=torch.long)
    output = model(torch.zeros(1, 4, dtype=torch.long), rows=none, labels=none)
    assert output.losses.shape == output.predicted.shape == (0,)
    output.losses.sum().backward()
    assert not model.lm_head.weight.grad.any()


def test_without_gradient_there_is_no_graph(small_chunks) -> None:
    model = soft_model()
    with torch.no_grad():
        loss = masked_diffusion_loss(model, *batch_of(model), soft=True)
    assert not loss.value.requires_grad


@pytest.mark.parametrize("soft", [False, True])
def test_mixed_precision_reads_logits_in_fp32_and_gradients_reach_all(small_chunks, soft) -> None:
    model = soft_model()
    batch = batch_of(model)
    exact = gradients(model, *batch, soft=soft)
    model.zero_grad()
    # Both passes share one autocast: what the pass without gradient casts must not be kept.
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_diffusion_loss(model, *batch, soft=soft)
        assert model(batch[0], **rows_and_labels(batch)).losses.dtype == torch.float32
    assert loss.value.dtype == torch.float32
    loss.value.backward()
    for name, expected in exact.items():
        difference = (model.get_parameter(name).grad - expected).norm()
        assert difference <= 0.15 * expected.norm() + 1e-9, name


def test_weights_in_bfloat16_give_losses_in_fp32(small_chunks) -> None:
    model = tiny_model().to(torch.bfloat16)
    batch = batch_of(model)
    chosen = rows_and_labels(batch)
    losses = model(batch[0], **chosen).losses
    logits = model(batch[0], rows=chosen["rows"]).logits
    expected = F.cross_entropy(logits.float(), chosen["labels"], reduction="none")
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("soft", [False, True])
def test_a_frozen_head_changes_no_other_gradient(small_chunks, soft) -> None:
    model = soft_model()
    batch = batch_of(model)
    free = gradients(model, *batch, soft=soft)
    model.lm_head.requires_grad_(False)
    frozen = gradients(model, *batch, soft=soft)
    del free["lm_head.weight"]
    assert_equal_gradients(free, frozen)


def test_a_head_that_is_no_linear_layer_is_called_as_a_module(small_chunks) -> None:
    class Halves(torch.nn.Module):  # as a quantised layer: no weight of shape (V, D)
        def __init__(self, weight) -> None:
            super().__init__()
            self.packed = torch.nn.Parameter(weight.detach().flatten() * 2, requires_grad=False)

        def forward(self, x):
            return x @ (self.packed / 2).view(64, -1).T

    model = soft_model()
    batch = batch_of(model)
    expected = gradients(model, *batch, soft=True)
    del expected["lm_head.weight"]
    model.lm_head = Halves(model.lm_head.weight)
    assert_equal_gradients(expected, gradients(model, *batch, soft=True))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_the_soft_mask_parameters_and_the_embedding(mode) -> None:
    model = soft_model(mode)
    found = gradients(model, *batch_of(model), soft=True)
    for name in ("scale", "offset", "steepness"):
        assert found[f"soft_mask.raw_{name}"].abs() > 0
    assert ("soft_mask.raw_temperature" in found) == (mode == "temperature")
    assert found["model.embed_tokens.weight"].abs().sum() > 0


@pytest.mark.parametrize("mode", MODES)
def test_soft_mask_parameters_change_no_plain_loss_and_get_gradient_zero(mode) -> None:
    plain, soft = tiny_model(), soft_model(mode)
    batch = batch_of(plain)
    one = masked_diffusion_loss(plain, *batch, soft=False)
    two = masked_diffusion_loss(soft, *batch, soft=False)
    assert torch.equal(one.value, two.value)
    expected, found = gradients(plain, *batch, soft=False), gradients(soft, *batch, soft=False)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient)
    added = found.keys() - expected.keys()
    assert len(added) == (4 if mode == "temperature" else 3)
    assert all(found[name].item() == 0 for name in added)


def test_the_two_pass_loss_at_scale_zero_equals_the_one_pass_loss(small_chunks) -> None:
    model = tiny_model()
    model.soft_mask = SoftMask(0.0, exact=True, k=3)
    batch = batch_of(model)
    one = masked_diffusion_loss(model, *batch, soft=False)
    two = masked_diffusion_loss(model, *batch, soft=True)
    assert one.value == two.value
    assert two.mixed == 0
    assert two.entropy > 0


@pytest.mark.parametrize("mode", MODES)
def test_the_reported_entropy_and_mixture_are_those_of_the_feedback(mode) -> None:
    model = soft_model(mode)
    noisy, ids, masked, times = batch_of(model)
    masked[:, 0] = False
    rows = masked.flatten().nonzero().squeeze(1)
    loss = masked_diffusion_loss(model, noisy, ids, masked, times, soft=True)
    with torch.no_grad():
        entropy = model.soft_mask.entropy(model(noisy, rows=rows, observe=True).feedback)
        mixed = weight_at(model.soft_mask, entropy).mean()
    assert loss.entropy.item() == pytest.approx(entropy.mean().item())
    assert loss.mixed.item() == pytest.approx(mixed.item())
    assert not loss.entropy.requires_grad
    assert not loss.mixed.requires_grad


def test_position_zero_never_counts_under_the_shift() -> None:
    model = tiny_model()
    noisy, ids, masked, times = batch_of(model)
    masked[:, 0] = True
    with torch.no_grad():
        before = masked_diffusion_loss(model, noisy, ids, masked, times, soft=False)
        ids[:, 0] = (ids[:, 0] + 1) % 60
        after = masked_diffusion_loss(model, noisy, ids, masked, times, soft=False)
    assert before.value == after.value
    assert before.total_T.sum() == masked[:, 1:].sum()
    assert masked[:, 0].all()  # the caller's tensor stays


def test_the_weightings_are_what_they_say() -> None:
    model = tiny_model()
    noisy, ids, masked, times = batch_of(model)
    masked[:, 0] = False
    answer = torch.arange(10) >= torch.tensor([[1], [3], [5], [0]])
    masked &= answer
    value = {
        name: masked_diffusion_loss(
            model, noisy, ids, masked, times, maskable_BL=answer, soft=False, weighting=name
        ).value.item()
        for name in ("mean", "published", "elbo", "answer")
    }
    with torch.no_grad():
        nats = F.cross_entropy(model(noisy).logits.mT, ids, reduction="none") * masked
    weighted = (nats / times[:, None]).sum().item()
    assert value["mean"] == pytest.approx(nats.sum().item() / masked.sum().item())
    assert value["published"] == pytest.approx(weighted / masked.sum().item())
    assert value["elbo"] == pytest.approx(weighted / ids.numel())
    # Position 0 of the last row counts in no length, as nothing precedes it.
    lengths = torch.tensor([9, 7, 5, 9])
    bounds = (nats / times[:, None]).sum(1) / lengths
    assert value["answer"] == pytest.approx(bounds.mean().item())


def test_with_one_time_for_all_the_published_weighting_is_the_mean_over_it() -> None:
    model = tiny_model()
    noisy, ids, masked, _ = batch_of(model)
    times = torch.full((4,), 0.3)
    loss = masked_diffusion_loss(
        model, noisy, ids, masked, times, soft=False, weighting="published"
    )
    assert loss.value.item() == pytest.approx(loss.nats.item() / 0.3)


def test_buckets_count_right_predictions_and_masked_tokens_by_time() -> None:
    model = tiny_model()
    noisy, ids, masked, times = batch_of(model)
    masked[:, 0] = False
    times = torch.tensor([0.0, 0.55, 0.58, 1.0])
    with torch.no_grad():
        ids = torch.where(masked, model(noisy).logits.argmax(-1), ids)
        ids[1] = (ids[1] + 1) % 60
        loss = masked_diffusion_loss(model, noisy, ids, masked, times, soft=False)
    count = masked.sum(1)
    assert loss.total_T.shape == loss.hits_T.shape == (BUCKETS,)
    assert loss.total_T.sum() == masked.sum()
    assert loss.total_T[[0, 5, 9]].tolist() == [count[0], count[1] + count[2], count[3]]
    assert loss.hits_T[[0, 5, 9]].tolist() == [count[0], count[2], count[3]]


@pytest.mark.parametrize("mode", MODES)
def test_gradient_checkpointing_changes_no_gradient(small_chunks, mode) -> None:
    model = soft_model(mode).train()
    batch = batch_of(model)
    expected = gradients(model, *batch, soft=True)
    old = model.gradient_checkpointing_enable  # its name until transformers 5.24
    getattr(model, "activation_checkpointing_enable", old)()
    assert model.model.layers[0].gradient_checkpointing
    assert_equal_gradients(expected, gradients(model, *batch, soft=True), rtol=1e-6)


@pytest.fixture
def with_adapters():
    """DoRA adapters on the attention; the soft mask is trained whole and saved with them."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        use_dora=True,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["soft_mask"],
        init_lora_weights=False,
    )

    def wrap(model):
        with warnings.catch_warnings():
            # peft asks transformers a question that transformers 5.24 calls deprecated.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return peft.get_peft_model(model, config)

    return wrap


@pytest.mark.parametrize("soft", [False, True])
def test_adapters_around_the_model_are_trained_and_the_base_is_not(
    small_chunks, with_adapters, soft
) -> None:
    wrapped = with_adapters(soft_model())
    found = gradients(wrapped, *batch_of(inner(wrapped)), soft=soft)
    kinds = ("lora_A", "lora_B", "lora_magnitude_vector", "soft_mask.modules_to_save")
    for kind in kinds:
        assert any(kind in name for name in found), kind
    assert all(any(kind in name for kind in kinds) for name in found)
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert trained == found.keys()  # so DistributedDataParallel need not look for unused ones
    scale = next(g for n, g in found.items() if n.endswith("raw_scale"))
    assert (scale.item() != 0) == soft
    assert all(g.abs().sum() > 0 for n, g in found.items() if "lora" in n)


def test_the_model_is_found_inside_its_wrappers(with_adapters) -> None:
    model = soft_model()
    assert inner(model) is model
    assert inner(torch.nn.Sequential(with_adapters(model))) is model
    with pytest.raises(ValueError, match="needs a DreamModel, and Linear holds none"):
        inner(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels must have shape"),
        ({"observe": True}, "give rows"),
        ({"rows": torch.arange(2), "labels": torch.zeros(3, dtype=torch.long)}, "2 rows need"),
        ({"rows": torch.arange(2), "observe": True}, "soft-mask parameters"),
    ],
)
def test_a_call_that_makes_no_sense_says_so(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(torch.zeros(1, 4, dtype=torch.long), **settings)


def test_settings_of_the_loss_are_checked() -> None:
    model = tiny_model()
    batch = batch_of(model)
    with pytest.raises(ValueError, match="weighting must be one of"):
        masked_diffusion_loss(model, *batch, soft=False, weighting="men")
    with pytest.raises(ValueError, match="needs maskable_BL"):
        masked_diffusion_loss(model, *batch, soft=False, weighting="answer")
    with pytest.raises(ValueError, match="soft-mask parameters"):
        masked_diffusion_loss(copy.deepcopy(model), *batch, soft=True)


@pytest.mark.parametrize("mode", MODES)
def test_more_passes_feed_back_what_a_model_says_with_feedback(mode) -> None:
    model = soft_model(mode)
    noisy, ids, masked, _ = batch = batch_of(model)
    masked[:, 0] = False
    rows = masked.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        seen = None
        for _ in range(3):
            seen = model(noisy, rows=rows, feedback=seen, observe=True).feedback
    output = model(noisy, rows=rows, feedback=seen, labels=ids.flatten()[rows])
    found = masked_diffusion_loss(model, *batch, soft=True, feedback_passes=3)
    torch.testing.assert_close(found.value, output.losses.mean())
    once = masked_diffusion_loss(model, *batch, soft=True)
    assert found.entropy != once.entropy  # of the feedback
    # None of the passes but the last one is in the graph.
    grads = gradients(model, *batch, soft=True, feedback_passes=3)
    model.zero_grad()
    output.losses.mean().backward()
    own = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_equal_gradients(own, grads)


@pytest.mark.parametrize("weighting", ["mean", "published", "elbo", "answer"])
def test_what_is_masked_but_not_scored_is_fed_back_and_counts_in_no_loss(weighting) -> None:
    model = soft_model()
    noisy, ids, masked, times = batch_of(model)
    masked[:, 0] = False
    scored = masked & (torch.arange(10) < 6)
    found = masked_diffusion_loss(
        model,
        noisy,
        ids,
        masked,
        times,
        scored_BL=scored,
        maskable_BL=torch.ones_like(masked),
        soft=True,
        weighting=weighting,
    )
    rows = masked.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        seen = model(noisy, rows=rows, observe=True).feedback
    losses = model(noisy, rows=rows, feedback=seen, labels=ids.flatten()[rows]).losses
    kept = scored.flatten()[rows]
    nats, time = losses[kept], times[rows // 10][kept]
    expected = {
        "mean": nats.mean(),
        "published": (nats / time).mean(),
        "elbo": (nats / time).sum() / ids.numel(),
        "answer": (nats / time).sum() / 9 / 4,
    }
    torch.testing.assert_close(found.value, expected[weighting])
    assert found.total_T.sum() == kept.sum() < len(rows)
