"""Statistics of logits that never exist equal those of logits that do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softmask.logits import FLOOR, statistics
from softmask.models import lm_head as readout
from softmask.models.lm_head import Blend, read_head

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def head_of(vocabulary: int, width: int, seed: int, spread: float = 0.5) -> torch.nn.Linear:
    torch.manual_seed(seed)
    head = torch.nn.Linear(width, vocabulary, bias=False)
    torch.nn.init.normal_(head.weight, std=spread)
    return head


def in_pieces(head, hidden, k, bias=None, piece=64, temperature=1.0, temperatures=()):
    """`read_head`, streamed in pieces of this many logits in all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readout, "PIECE_LOGITS", piece)
        more = {"temperature": temperature, "temperatures": temperatures}
        return read_head(head, hidden, head.out_features, k, bias, **more)


@PROPERTY
@given(
    seed=st.integers(0, 2**31 - 1),
    rows=st.integers(0, 20),
    vocabulary=st.sampled_from([5, 255, 256, 257, 700, 1300]),
    k=st.integers(1, 5),
    spread=st.sampled_from([0.01, 0.5, 8.0]),
    suppressed=st.sampled_from([0, 1, 300]),
    temperature=st.sampled_from([1.0, 0.4, 3.0]),
    temperatures=st.sampled_from([(), (2.0,), (0.5, 3.0)]),
)
def test_streamed_statistics_equal_those_of_whole_logits(
    seed, rows, vocabulary, k, spread, suppressed, temperature, temperatures
) -> None:
    head = head_of(vocabulary, 8, seed, spread)
    hidden = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))
    bias = torch.zeros(vocabulary)
    bias[: min(suppressed, vocabulary - k)] = FLOOR  # whole pieces of it
    found = in_pieces(head, hidden, k, bias, 64, temperature, temperatures)
    with torch.no_grad():
        logits = head(hidden) + bias
    whole = statistics(logits, k, temperature, temperatures)
    torch.testing.assert_close(found.tempered_N, whole.tempered_N, rtol=1e-3, atol=1e-3)
    p_NV = (logits / temperature).double().softmax(-1)
    direct_N = -torch.xlogy(p_NV, p_NV).sum(1).float()
    torch.testing.assert_close(whole.tempered_N, direct_N, rtol=1e-3, atol=1e-3)
    assert found.totals_NT.shape == whole.entropies_NT.shape == (rows, len(temperatures))
    for column, further in enumerate(temperatures):
        tempered = statistics(logits / further, k)
        for one in (found, whole):
            close = {"rtol": 1e-4, "atol": 1e-3}
            torch.testing.assert_close(one.totals_NT[:, column], tempered.total_N, **close)
            torch.testing.assert_close(one.entropies_NT[:, column], tempered.entropy_N, **close)
    # What nobody tempers costs no bit.
    for value, plain in zip(found[:4], in_pieces(head, hidden, k, bias)[:4], strict=True):
        assert torch.equal(value, plain)
    torch.testing.assert_close(found.logits_NK, whole.logits_NK, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.total_N, whole.total_N, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.entropy_N, whole.entropy_N, rtol=1e-3, atol=1e-3)
    # Ids by their logits: the order of almost equal ones is rounding.
    torch.testing.assert_close(
        logits.gather(1, found.ids_NK), whole.logits_NK, rtol=1e-4, atol=1e-4
    )
    assert all(len(set(row)) == k for row in found.ids_NK.tolist())


@PROPERTY
@given(
    seed=st.integers(0, 2**31 - 1),
    rows=st.integers(1, 20),
    vocabulary=st.sampled_from([5, 257, 1300]),
    spread=st.sampled_from([0.01, 0.5, 8.0]),
    suppressed=st.sampled_from([0, 300]),
    temperature=st.sampled_from([1.0, 0.4, 3.0]),
    temperatures=st.sampled_from([(), (3.0,), (0.5, 2.0)]),
    norms=st.booleans(),
    called=st.booleans(),
)
def test_what_all_tokens_blend_to_equals_a_softmax_times_the_table(
    seed, rows, vocabulary, spread, suppressed, temperature, temperatures, norms, called
) -> None:
    head = head_of(vocabulary, 8, seed, spread)
    generator = torch.Generator().manual_seed(seed)
    hidden, table = (torch.randn(n, 8, generator=generator) for n in (rows, vocabulary))
    bias = torch.zeros(vocabulary)
    bias[: min(suppressed, vocabulary - 1)] = FLOOR
    more = {"temperatures": temperatures, "blend": Blend(table, temperature, norms)}
    # Whole logits of a head that is called for chunks of rows, or pieces of the vocabulary.
    module = torch.nn.Sequential(head) if called else head
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readout, "PIECE_LOGITS", 64)
        found = read_head(module, hidden, vocabulary, 1, bias, **more)
    with torch.no_grad():
        chances = ((head(hidden) + bias) / temperature).double().softmax(-1)
    wanted = chances @ table.double()
    if norms:
        wanted = torch.cat([wanted, (chances @ table.double().norm(dim=1))[:, None]], dim=1)
    torch.testing.assert_close(found.blended_NX, wanted.float(), rtol=1e-3, atol=1e-4)
    without = read_head(module, hidden, vocabulary, 1, bias, temperatures=temperatures)
    torch.testing.assert_close(found.totals_NT, without.totals_NT)


def test_at_temperature_1_no_second_entropy_is_computed() -> None:
    head, hidden = head_of(300, 8, 0), torch.ones(2, 8)
    with torch.no_grad():
        for seen in (in_pieces(head, hidden, 2), statistics(head(hidden), 2)):
            assert seen.tempered_N is seen.entropy_N


def test_the_first_of_equal_logits_leads() -> None:
    head = torch.nn.Linear(2, 2000, bias=False)
    torch.nn.init.ones_(head.weight)
    found = in_pieces(head, torch.ones(3, 2), 1, piece=300)
    assert found.ids_NK.flatten().tolist() == [0, 0, 0]
    torch.testing.assert_close(found.entropy_N, torch.full((3,), 2000.0).log())


def test_nan_anywhere_in_a_row_shows_in_its_total_alone() -> None:
    head = head_of(900, 4, 0)
    hidden = torch.randn(3, 4)
    hidden[1, 2] = torch.nan
    found = in_pieces(head, hidden, 2)
    assert found.total_N.isnan().tolist() == [False, True, False]


def test_a_bfloat16_head_is_read_in_fp32() -> None:
    head, hidden = head_of(900, 16, 1).bfloat16(), torch.randn(12, 16).bfloat16()
    found = in_pieces(head, hidden, 2)
    assert {x.dtype for x in found[1:]} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(found.total_N, head(hidden).float().logsumexp(-1))


@pytest.mark.parametrize("kind", ["hooked", "biased", "module"])
def test_a_head_that_is_more_than_its_weight_is_called(kind) -> None:
    head, calls = head_of(900, 4, 2), []
    hidden = torch.randn(6, 4)
    with torch.no_grad():
        expected = head(hidden)
    if kind == "hooked":
        head.register_forward_hook(lambda *_: calls.append(1))
    elif kind == "biased":
        head.bias = torch.nn.Parameter(torch.linspace(0, 3, 900))
        expected = expected + head.bias.detach()
    else:
        head = torch.nn.Sequential(head)
    found = read_head(head, hidden, 900, 2)
    torch.testing.assert_close(found.total_N, expected.logsumexp(-1))
    assert bool(calls) == (kind == "hooked")
