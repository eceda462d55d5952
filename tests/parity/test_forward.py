"""The forward pass equals the original code's, with the shift undone."""

from __future__ import annotations

import goldens
import torch

from softmask.models.modeling_dream import positions_from_mask
from softmask.soft_mask import SoftTokens

CLOSE = {"atol": 1e-4, "rtol": 0.0}


def test_logits_of_a_full_canvas_equal_the_original_ones_aligned() -> None:
    data = goldens.tensors("forward")
    with torch.no_grad():
        logits = goldens.model()(data["full.input_ids"]).logits
    torch.testing.assert_close(logits, goldens.shifted(data["full.logits"]), **CLOSE)


def test_logits_behind_left_padding_equal_the_original_ones_aligned() -> None:
    data = goldens.tensors("forward")
    attention = data["padded.attention_mask"]
    with torch.no_grad():
        output = goldens.model()(
            data["padded.input_ids"], attention_mask=attention, output_hidden_states=True
        )
    real = attention.bool()
    # The first real token is read off its own row; the original reads a padding row there.
    behind = real & real.roll(1, dims=1)
    behind[:, 0] = real[:, 0]
    aligned = goldens.shifted(data["padded.logits"])
    torch.testing.assert_close(output.logits[behind], aligned[behind], **CLOSE)
    first = real & ~behind
    own = data["padded.logits"][first]
    torch.testing.assert_close(output.logits[first], own, **CLOSE)
    hidden = data["padded.last_hidden_state"]
    torch.testing.assert_close(output.last_hidden_state[real], hidden[real], **CLOSE)
    for layer in (0, 1):
        expected = data[f"padded.hidden_states.{layer}"][real]
        torch.testing.assert_close(output.hidden_states[layer][real], expected, **CLOSE)


def test_positions_count_from_the_first_real_token() -> None:
    data = goldens.tensors("forward")
    positions = positions_from_mask(data["padded.attention_mask"])
    assert torch.equal(positions, data["padded.position_ids"])


def test_input_embeddings_and_explicit_positions_equal_the_original() -> None:
    data = goldens.tensors("forward")
    embeds = data["embeds.inputs_embeds"]
    with torch.no_grad():
        plain = goldens.model()(inputs_embeds=embeds).logits
        moved = goldens.model()(
            inputs_embeds=embeds, position_ids=data["embeds_pos.position_ids"]
        ).logits
    torch.testing.assert_close(plain, goldens.shifted(data["embeds.logits"]), **CLOSE)
    torch.testing.assert_close(moved, goldens.shifted(data["embeds_pos.logits"]), **CLOSE)


def test_soft_tokens_of_weight_one_are_the_tokens() -> None:
    ids = goldens.tensors("forward")["full.input_ids"]
    weights = torch.tensor([1.0, 0.0]).expand(*ids.shape, 2)
    soft = SoftTokens(torch.stack([ids, ids.flip(1)], -1), weights)
    with torch.no_grad():
        assert torch.equal(goldens.model()(soft_tokens=soft).logits, goldens.model()(ids).logits)


def test_logits_of_chosen_rows_are_the_full_ones_there() -> None:
    data = goldens.tensors("forward")
    inputs = {"attention_mask": data["padded.attention_mask"]}
    rows = torch.tensor([0, 5, 12, 27, 28, 40, 83])
    with torch.no_grad():
        full = goldens.model()(data["padded.input_ids"], **inputs).logits
        chosen = goldens.model()(data["padded.input_ids"], rows=rows, **inputs).logits
    torch.testing.assert_close(chosen, full.flatten(0, 1)[rows], atol=1e-5, rtol=0)


def test_rotary_values_are_right_after_from_pretrained() -> None:
    # transformers 5 leaves the original code's non-persistent inv_freq uninitialised, silently.
    data = goldens.tensors("rotary")
    rotary = goldens.model().model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq, data["inv_freq"])
    cos, sin = rotary(torch.zeros(1, 5, 16), data["position_ids"])
    torch.testing.assert_close(cos, data["cos"])
    torch.testing.assert_close(sin, data["sin"])
