"""Training of block-causal models: a block is learned behind what decoding shows in front of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model

from softmask.decoding.grid import blocks_of
from softmask.decoding.kv_cache import KeyValueStore
from softmask.models.packing import Layout
from softmask.soft_mask import SoftMask, feedback
from softmask.training.noise import corrupt
from softmask.training.objective import masked_diffusion_loss

GRIDS = {
    "start": {"logit_shift": False},
    "start, shifted": {"logit_shift": True},
    "prompt": {"logit_shift": False, "block_origin": "prompt"},
    "prompt, shifted": {"logit_shift": True, "block_origin": "prompt"},
}
PROMPTS = torch.tensor([3, 6, 0])
MODES = (None, "topk", "temperature")


def block_model(mode: str | None = None, **settings):
    model = tiny_model(block_size=4, **settings)
    model.soft_mask = None if mode is None else SoftMask(0.6, -3.0, 1.0, mode=mode, k=3)
    return model


def batch_of(model, length: int = 14):
    """noisy_BL, ids_BL, masked_BL, times_B and maskable_BL of rows with different prompts."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 60, (3, length), generator=generator)
    maskable = torch.arange(length) >= PROMPTS[:, None]
    if model.config.logit_shift:
        maskable[:, 0] = False
    times = torch.tensor([0.4, 0.7, 1.0])
    noisy, masked, _ = corrupt(ids, maskable, times, model.mask_id, generator)
    return (noisy, ids, masked, times), maskable


def decoded(model, tokens, end: int, grid, rows: torch.Tensor) -> torch.Tensor:
    """(N, V) logits as a step of decoding computes them: packed, behind stored keys and values."""
    place = torch.arange(end)
    spans = [span for _, span in grid.spans(0, end)]
    layout = Layout(place, place, (place - 1).clamp_min(0), spans, KeyValueStore(end))
    hidden = model.hidden(tokens, layout)
    return model.lm_head(hidden[layout.sources(rows, shift=model.config.logit_shift)])


def losses_block_by_block(model, batch, maskable) -> torch.Tensor:
    """(N,) of all masked tokens: each block alone, behind true ones, as decoding comes to it."""
    found = []
    for noisy, ids, masked, able in zip(*batch[:3], maskable, strict=True):
        grid = blocks_of(model.config, int(able.nonzero()[0]), len(ids))
        start = 0
        while start < len(ids):
            end = grid.end(start)
            rows = start + masked[start:end].nonzero().squeeze(1)
            if len(rows):
                text = torch.cat([ids[:start], noisy[start:end]])[None]
                logits = decoded(model, text, end, grid, rows)
                if model.soft_mask is not None:
                    seen = feedback(logits, rows, 3, model.soft_mask.mode)
                    soft, _ = model.soft_mask(text, seen, model.model.embed_tokens.weight)
                    logits = decoded(model, soft, end, grid, rows)
                found.append(F.cross_entropy(logits, ids[rows], reduction="none"))
            start = end
    return torch.cat(found)


# Every third pair by default.
PAIRS = [
    pytest.param(grid, mode, id=f"{name}, {mode}", marks=[pytest.mark.slow] if (i + j) % 3 else [])
    for i, (name, grid) in enumerate(GRIDS.items())
    for j, mode in enumerate(MODES)
]


@pytest.mark.parametrize(("grid", "mode"), PAIRS)
@torch.no_grad()
def test_the_loss_of_a_row_is_that_of_its_blocks_as_decoding_computes_them(grid, mode) -> None:
    model = block_model(mode, **grid)
    batch, maskable = batch_of(model)
    losses = losses_block_by_block(model, batch, maskable)
    loss = masked_diffusion_loss(model, *batch, maskable_BL=maskable, soft=mode is not None)
    assert loss.total_T.sum() == len(losses) > 20
    torch.testing.assert_close(loss.value, losses.mean())


@pytest.mark.parametrize("grid", [GRIDS["start"], GRIDS["prompt, shifted"]])
@torch.no_grad()
def test_nothing_that_is_to_be_predicted_is_seen(grid) -> None:
    model = block_model(**grid)
    (noisy, ids, _, _), _ = batch_of(model)
    rows = torch.arange(28)[model.config.logit_shift :]
    prompts = PROMPTS[:2]

    def read(noisy, clean):
        given = {"clean_ids": clean[:2], "prompt_lengths": prompts}
        return model(noisy[:2], rows=rows, **given).logits

    before = read(noisy, ids)
    for row, place in ((0, 5), (0, 9), (1, 7)):
        missing = -int(prompts[row]) % 4 if model.config.block_origin == "prompt" else 0
        block = (torch.arange(14) + missing) // 4
        other = ids.clone()
        other[row, place] = (other[row, place] + 1) % 60
        changed = (read(noisy, other) != before).any(-1).nonzero().squeeze(1)
        # A true token is seen from later blocks alone, a noisy one from its own.
        later = (row * 14 + (block > block[place]).nonzero().squeeze(1)).tolist()
        assert sorted(rows[changed].tolist()) == later
        masked = noisy.clone()
        masked[row, place] = (masked[row, place] + 1) % 60
        changed = (read(masked, ids) != before).any(-1).nonzero().squeeze(1)
        own = row * 14 + (block == block[place]).nonzero().squeeze(1)
        # The first of a block is predicted by the block in front, where logits are shifted.
        assert sorted(rows[changed].tolist()) == own[model.config.logit_shift :].tolist()


def test_recomputed_activations_and_another_kernel_give_the_same_gradients() -> None:
    found = []
    for attention, recompute in (("sdpa", False), ("eager", True)):
        model = block_model("topk")
        model.set_attn_implementation(attention)
        batch, maskable = batch_of(model)
        if recompute:
            old = model.gradient_checkpointing_enable  # its name until transformers 5.24
            getattr(model, "activation_checkpointing_enable", old)()
            model.train()
        masked_diffusion_loss(model, *batch, maskable_BL=maskable, soft=True).value.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    assert found[0]["soft_mask.raw_offset"].abs() > 0


def test_true_tokens_are_taken_where_they_mean_something() -> None:
    ids, rows = torch.arange(8)[None], torch.tensor([5])
    with pytest.raises(ValueError, match="for block-causal models"):
        tiny_model()(ids, clean_ids=ids, rows=rows)
    with pytest.raises(ValueError, match="need rows"):
        block_model()(ids, clean_ids=ids)
