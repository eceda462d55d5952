"""DreamModel as transformers' users call it: keywords, labels, tuples, offloaded weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model, write_dream_folder

import softmask
from softmask.models import DreamConfig

IDS = torch.arange(2, 14).view(2, 6)
SOFT = {
    "transparency_alg": "mixinputs_with_topk",
    "transparency_scale": 0.8,
    "transparency_centre": -4.0,
    "transparency_steepness": 1.0,
    "mixinputs_k": 3,
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_what_says_that_there_is_no_cache_changes_nothing(model) -> None:
    plain = model(IDS).logits
    assert torch.equal(model(IDS, use_cache=False).logits, plain)
    assert torch.equal(model(IDS, attention_mask="full").logits, plain)


def test_return_dict_false_gives_a_tuple_in_the_order_of_transformers(model) -> None:
    output = model(IDS, labels=IDS, output_hidden_states=True)
    loss, logits, hidden, states = model(
        IDS, labels=IDS, output_hidden_states=True, return_dict=False
    )
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert torch.equal(hidden, output.last_hidden_state)
    assert len(states) == len(output.hidden_states) == 3


def test_labels_of_all_positions_give_the_mean_loss_of_those_that_count(model) -> None:
    labels = IDS.clone()
    labels[:, ::2] = -100
    logits = model(IDS).logits
    expected = F.cross_entropy(logits[:, 1::2].flatten(0, 1), IDS[:, 1::2].flatten())
    output = model(IDS, labels=labels)
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(output.logits, logits)
    halved = model(IDS, labels=labels, num_items_in_batch=12).loss
    torch.testing.assert_close(halved, expected / 2)
    assert model(IDS, labels=torch.full_like(IDS, -100)).loss == 0.0
    output.loss.backward()
    model.zero_grad()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_cache": True}, "no cache"),
        ({"labels": IDS[:, :3]}, r"labels must have shape \(2, 6\)"),
        ({"attention_mask": "causal"}, "a tensor or 'full'"),
        ({"attention_mask": IDS[0]}, "must have shape"),
    ],
)
def test_what_the_model_cannot_do_is_refused(model, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        model(IDS, **arguments)


@pytest.mark.parametrize(
    ("inputs", "arguments", "message"),
    [
        (IDS, {"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, not 2.5"),
        (IDS, {"max_new_tokens": "3"}, "max_new_tokens must be a whole number"),
        (IDS, {"max_new_tokens": 2, "num_return_sequences": 1.5}, "num_return_sequences must be"),
        *(
            (IDS, {"max_new_tokens": 2, name: None}, f"{name} must be (int|float), not None")
            for name in ("steps", "temperature", "eps")
        ),
        (IDS.tolist(), {"max_new_tokens": 2}, "a tensor of shape"),
        (IDS + 999, {"max_new_tokens": 2}, "a token id lies outside of the model's vocab"),
        (IDS, {"max_new_tokens": 2, "attention_mask": [[1]]}, "attention_mask must be a tensor"),
        (IDS, {"max_new_tokens": 2, "attention_mask": 0 * IDS}, "leaves out all of a prompt"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_a_sentence(
    model, inputs, arguments, message
) -> None:
    with pytest.raises(ValueError, match=message):
        model.diffusion_generate(inputs, **arguments)


def test_an_unknown_keyword_is_refused(model) -> None:
    with pytest.raises(TypeError, match="atention_mask"):
        model(IDS, atention_mask=torch.ones_like(IDS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_causal": True}, "is_causal is true"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "sliding"),
        ({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "sliding_attention"),
    ],
)
def test_attention_that_no_path_has_is_refused_where_the_config_is_made(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        DreamConfig(vocab_size=64, **change)


def test_a_models_own_generation_settings_hold_where_a_call_says_nothing_else(tmp_path) -> None:
    model = softmask.load(write_dream_folder(tmp_path / "dream"), device="cpu").model
    own = model.generation_config
    assert (own.mask_token_id, own.steps, own.max_length) == (263, 512, 20)
    expected = model.diffusion_generate(IDS, max_new_tokens=4, steps=4, alg="entropy")
    own.max_new_tokens, own.steps, own.alg = 4, 4, "entropy"
    assert torch.equal(model.diffusion_generate(IDS), expected)
    assert model.diffusion_generate(IDS, max_new_tokens=2).shape == (2, 8)


@pytest.mark.parametrize("where", ["embed_tokens", "everything"])
@pytest.mark.parametrize("kind", ["topk", "temp"])
def test_weights_on_disk_give_the_same_tokens(tmp_path, where, kind) -> None:
    folder = write_dream_folder(tmp_path / "dream", shards=2)
    parts = ("model.layers", "model.norm", "model.rotary_emb", "lm_head")
    places = {"": "disk"}
    if where == "embed_tokens":
        places = {"model.embed_tokens": "disk", **dict.fromkeys(parts, "cpu")}
    how = {"max_new_tokens": 4, "steps": 4, "alg": "entropy", **SOFT}
    how |= {"transparency_alg": f"mixinputs_with_{kind}", "mixture_temp": 0.7}
    here = softmask.load(folder, device="cpu").model
    there = softmask.load(folder, device_map=places, dtype="float32").model
    assert there.device == here.device
    assert torch.equal(here.diffusion_generate(IDS, **how), there.diffusion_generate(IDS, **how))
