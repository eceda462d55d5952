"""The faster product is the product: values, gradients, and where it is left to torch."""

from __future__ import annotations

import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import ENVIRONMENT, python
from torch import nn

from softmask.hub.adapters import quiet_peft
from softmask.models.linear import Linear, product, suits, torchs_own_products, use_faster_products

sizes = st.integers(1, 40)
# Two orders of summing up to 343 numbers of size 1 in fp32; a bfloat16 product is off by 4e-3.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}


def layers(inputs: int, outputs: int, bias: bool) -> tuple[nn.Linear, Linear]:
    """The same layer twice: torch's, and ours."""
    plain = nn.Linear(inputs, outputs, bias=bias)
    fast = nn.Linear(inputs, outputs, bias=bias)
    fast.load_state_dict(plain.state_dict())
    use_faster_products(fast)
    assert type(fast) is Linear
    return plain, fast


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 7), min_size=1, max_size=3), k=sizes, n=sizes, bias=st.booleans()
)
def test_values_and_gradients_are_torchs_own(rows: list[int], k: int, n: int, bias: bool) -> None:
    torch.manual_seed(1)
    plain, fast = layers(k, n, bias)
    inputs = [torch.randn(*rows, k).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    weights = torch.randn(*rows, n)
    outputs = [layer(x) for layer, x in zip((plain, fast), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], **TOLERANCE)
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **TOLERANCE)
    for own, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(fast(inputs[1]), outputs[0].detach(), **TOLERANCE)


def test_sums_are_as_exact_as_fp32_sums_are() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(64, 2688), torch.randn(512, 2688)
    exact = x.double() @ w.double().T
    error = (product(x, w).double() - exact).norm() / exact.norm()
    # bfloat16 or tf32 products would be at 1e-3.
    assert error < 2e-6


def test_what_comes_out_can_be_changed_in_place_while_gradients_are_recorded() -> None:
    _, fast = layers(8, 5, False)
    logits = fast(torch.randn(2, 3, 8))
    logits[:, :, 2] = -1e9
    logits[0, 0] = 0
    logits.sum().backward()
    assert fast.weight.grad[2].abs().sum() == 0


@pytest.mark.parametrize("strided", ["rows", "columns", "expanded"])
def test_strides_do_not_matter(strided: str) -> None:
    w = torch.randn(6, 10)
    x = {
        "rows": torch.randn(16, 10)[::2],
        "columns": torch.randn(10, 8).t(),
        "expanded": torch.randn(1, 10).expand(8, 10),
    }[strided]
    torch.testing.assert_close(product(x, w), x @ w.T)


def test_half_precision_autocast_and_the_switch_leave_it_to_torch() -> None:
    x, w = torch.randn(2, 4), torch.randn(3, 4)
    assert suits(x, w)
    assert not suits(x.bfloat16(), w.bfloat16())
    assert not suits(x.to("meta"), w)
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(x, w)
    with torchs_own_products():
        assert not suits(x, w)


def test_a_model_of_ours_takes_it_and_one_that_is_adapted_still_learns() -> None:
    from peft import LoraConfig, get_peft_model
    from tiny import tiny_model

    model = tiny_model()
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {Linear}
    with quiet_peft():
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], use_dora=True))
    adapted(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    learned = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    assert learned
    assert all(p.grad.abs().sum() > 0 for p in learned)


@pytest.mark.long
def test_products_of_many_shapes_do_not_pile_up_in_memory() -> None:
    script = (
        "import torch\n"
        "from softmask.models.linear import product\n"
        "from softmask.reporting.measure import peak_mb\n"
        "weight = torch.randn(704, 256)\n"
        "product(torch.randn(3, 256), weight)\n"
        "before = peak_mb('cpu')\n"
        "for rows in range(1, 400):\n"
        "    product(torch.randn(rows, 256), weight)\n"
        "print(peak_mb('cpu') - before)\n"
    )
    done = subprocess.run(
        [*python(), "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert float(done.stdout) < 80  # 230 where all are kept
