"""load(quantize=...): lighter layers, close logits, everything else as it was, or one sentence."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import bitsandbytes
import pytest
import torch
from tiny import write_dora_adapter, write_dream_folder

import softmask
from softmask.cli.eval_options import read_model_args
from softmask.cli.evaluate import make_parser
from softmask.cli.main import main
from softmask.config import SoftMaskConfig
from softmask.evaluation.config import ModelArgs
from softmask.models.quantize import KINDS, Quantizer
from softmask.soft_mask import SoftTokens

# Every width is a multiple of 64, those of keys and values too.
SHAPE = {"hidden_size": 128, "intermediate_size": 192}
# Bound of the logits' relative error: 2.2 and 22 % were measured.
ERROR = {"int8": 0.05, "int4": 0.3}
# Bytes of the layers against fp32: a quarter, an eighth, and biases and norms.
SIZE = {"int8": 0.27, "int4": 0.14}
SOFT = SoftMaskConfig(scale=0.8, offset=-4.0, steepness=1.0, k=3)
PROMPTS = ["One", "Two words", "the third of them is longer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_dream_folder(tmp_path_factory.mktemp("model") / "dream", **SHAPE)


@pytest.fixture(scope="module")
def whole(folder):
    return softmask.load(folder, device="cpu")


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def quantised(folder, kind):
    return softmask.load(folder, device="cpu", quantize=kind)


@torch.no_grad()
def logits_of(checkpoint) -> torch.Tensor:
    return checkpoint.model(torch.arange(96)[None] % 260).logits.float()


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def bytes_of(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def test_the_logits_are_close_to_those_of_the_whole_model(quantised, whole, kind) -> None:
    assert 0 < error_of(logits_of(quantised), logits_of(whole)) < ERROR[kind]


def test_the_layers_are_smaller(quantised, whole, kind) -> None:
    # Before and after a forward, at which 4 bits are laid out anew for a CPU.
    sizes = [bytes_of(quantised.model.model.layers)]
    logits_of(quantised)
    sizes.append(bytes_of(quantised.model.model.layers))
    assert max(sizes) < SIZE[kind] * bytes_of(whole.model.model.layers)


def test_embeddings_and_head_stay_whole(quantised, whole) -> None:
    for name in ("model.embed_tokens", "lm_head"):
        own, expected = (c.model.get_submodule(name) for c in (quantised, whole))
        assert type(own) is type(expected)
        assert torch.equal(own.weight, expected.weight)


def test_a_tied_head_stays_tied(kind) -> None:
    model = softmask.load("default", device="cpu", quantize=kind).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_writes_text_in_either_dtype(folder, kind, dtype) -> None:
    checkpoint = softmask.load(folder, device="cpu", dtype=dtype, quantize=kind)
    done = softmask.generate(checkpoint, "Hello", max_new_tokens=8, soft_mask=SOFT)
    assert len(done.token_ids) == 8
    assert checkpoint.model.dtype == getattr(torch, dtype)


def test_soft_masking_at_scale_0_is_plain_bit_for_bit(quantised) -> None:
    nothing = SoftMaskConfig(scale=0.0, offset=-4.0, steepness=1.0, k=3)
    histories = []
    for soft in (None, nothing, SOFT):
        run = softmask.Generation(quantised, "Hello", max_new_tokens=12, soft_mask=soft)
        histories.append([step.canvas_BL.clone() for step in run])
    plain, zero, soft = (torch.stack(history) for history in histories)
    assert torch.equal(plain, zero)
    assert not torch.equal(plain, soft)


@torch.no_grad()
def test_soft_tokens_that_are_one_token_each_are_that_token_bit_for_bit(quantised) -> None:
    ids = torch.arange(20)[None, :, None].expand(1, 20, 4)
    weights = torch.tensor([1.0, 0, 0, 0]).expand(1, 20, 4)
    mixed = quantised.model(soft_tokens=SoftTokens(ids, weights)).logits
    assert torch.equal(mixed, quantised.model(torch.arange(20)[None]).logits)


def test_a_text_is_the_same_alone_and_in_a_batch(quantised) -> None:
    settings = {"max_new_tokens": 12, "soft_mask": SOFT}
    batch = softmask.generate(quantised, PROMPTS, **settings)
    for prompt, row in zip(PROMPTS, batch, strict=True):
        assert softmask.generate(quantised, prompt, **settings).token_ids == row.token_ids


def test_the_adapter_is_merged_before(folder, tmp_path, kind) -> None:
    wrapped = write_dora_adapter(tmp_path / "adapter", folder)
    ids = torch.arange(96)[None]
    merged = softmask.load(folder, tmp_path / "adapter", device="cpu").model
    own = softmask.load(folder, tmp_path / "adapter", device="cpu", quantize=kind).model
    with torch.no_grad():
        expected, found = wrapped(ids).logits, own(ids).logits
        quantizer = Quantizer(kind, torch.device("cpu"), torch.float32)
        after = quantizer.model(merged)(ids).logits
    assert error_of(found, expected) < ERROR[kind]
    assert torch.equal(found, after)


def test_it_says_nothing(folder, kind, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        logits_of(softmask.load(folder, device="cpu", quantize=kind))
    assert caplog.records == []


def test_it_can_be_neither_trained_nor_saved(quantised, tmp_path) -> None:
    assert quantised.model.is_quantized
    assert not any(parameter.requires_grad for parameter in quantised.model.parameters())
    with pytest.raises(ValueError, match="is not saved: load it without"):
        quantised.model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int3"}, "quantize must be int8 or int4, not 'int3'"),
        ({"quantize": ""}, "quantize must be int8 or int4"),
        ({"quantize": "int8", "load_in_4bit": True}, "either quantize or load_in_4bit"),
        ({"quantize": "int8", "device": None, "device_map": "auto"}, "quantize or device_map"),
        ({"quantize": "int8", "device": "meta"}, "no device meta"),
    ],
)
def test_what_cannot_be_is_one_clear_sentence(folder, arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        softmask.load(folder, **{"device": "cpu", **arguments})
    assert "\n" not in str(caught.value)


def test_narrow_layers_are_refused_in_4_bits_and_not_in_8(tmp_path) -> None:
    narrow = write_dream_folder(tmp_path / "dream")
    with pytest.raises(ValueError, match=r"0\.self_attn\.q_proj has 32: use int8"):
        softmask.load(narrow, device="cpu", quantize="int4")
    error = error_of(
        logits_of(softmask.load(narrow, device="cpu", quantize="int8")),
        logits_of(softmask.load(narrow, device="cpu")),
    )
    assert error < ERROR["int8"]


def test_without_the_library_the_extra_is_named(folder, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(ValueError, match=r"pip install 'softmask\[quant\]'"):
        softmask.load(folder, device="cpu", quantize="int8")


@pytest.fixture
def threads(monkeypatch) -> list[int]:
    """The numbers of threads that were set, without setting them."""
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    return counts


def test_the_command_line_hands_it_on(folder, kind, capsys, threads) -> None:
    options = "--device cpu --max-new-tokens 4 --threads 3 --quantize".split()
    assert main(["generate", "--model", str(folder), "Hello", *options, kind]) == 0
    assert capsys.readouterr().out
    assert threads == [3]
    assert main(["generate", "--model", str(folder), "Hello", *options, "int3"]) == 2
    assert "quantize must be int8 or int4" in capsys.readouterr().err


def test_evaluations_hand_it_on_and_record_it() -> None:
    args = make_parser().parse_args("--tasks t --model m --quantize int8".split())
    own = read_model_args(args)
    assert own == ModelArgs(pretrained="m", quantize="int8")
    assert own.to_load["quantize"] == "int8"


@pytest.mark.parametrize(
    "command", ["generate Hello", "chat", "eval --tasks t", "eval suite dream", "eval samples"]
)
def test_threads_are_counted_from_one(command, capsys, threads) -> None:
    assert main([*command.split(), "--threads", "0"]) == 2
    assert "--threads must lie between 1 and" in capsys.readouterr().err
    assert threads == []


@pytest.fixture
def layer(monkeypatch):
    """A layer in 8 bits, as on a CPU without units for them, and its weights as it holds them."""
    monkeypatch.setattr("softmask.models.quantized_on_cpu.HAS_INT8", False)
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96).requires_grad_(False)
    bias_N = linear.bias.clone()
    made = Quantizer("int8", torch.device("cpu"), torch.float32).layer("layer", linear)
    weight_NK = made.weight.data.double() * (made.weight.SCB.double() / 127)[:, None]
    return made, weight_NK, bias_N


@torch.no_grad()
def test_8_bits_of_weights_alone_round_no_token_and_stay_in_pieces(layer, monkeypatch) -> None:
    made, weight_NK, bias_N = layer
    x = torch.randn(2, 5, 64)
    expected = torch.nn.functional.linear(x.double(), weight_NK, bias_N.double()).float()
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("softmask.models.quantized_on_cpu.PIECE", 7 * 64)  # 7 of 96 outputs
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
    x[0, 0, 0] = 1e5  # float16 has none
    assert made(x).isfinite().all()


@torch.no_grad()
def test_products_of_8_bits_are_taken_where_the_cpu_has_them(layer, monkeypatch) -> None:
    made, *_ = layer
    x = torch.randn(5, 64)
    alone = made(x)
    monkeypatch.setattr("softmask.models.quantized_on_cpu.HAS_INT8", True)
    rounded = made(x)
    assert not torch.equal(rounded, alone)  # tokens are rounded too
    assert 0 < error_of(rounded, alone) < ERROR["int8"]


@torch.no_grad()
def test_4_bits_become_float32_in_pieces_as_bitsandbytes_makes_them_whole(monkeypatch) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 192).requires_grad_(False)
    bias_N = linear.bias.clone()
    made = Quantizer("int4", torch.device("cpu"), torch.float32).layer("layer", linear)
    monkeypatch.setattr(made, "support_avx512bf16_for_cpu", False)
    state = made.weight.quant_state
    weight_NK = bitsandbytes.functional.dequantize_4bit(made.weight.data, state)
    x = torch.randn(2, 5, 128)
    expected = torch.nn.functional.linear(x, weight_NK, bias_N)
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("softmask.models.quantized_on_cpu.PIECE", 7 * 128)  # 7 of 192 outputs
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)
