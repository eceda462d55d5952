"""Recorded forwards give what plain ones give; without a GPU, a stand-in replays them."""

from __future__ import annotations

import pytest
import torch
from test_sampler import SOFT, canvas_of, only_mask
from tiny import tiny_model

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding import batch
from softmask.decoding import cuda_graphs as graphs
from softmask.decoding.sampler import denoise
from softmask.models import packing

TEMPERATURE = SoftMaskConfig(mode="temperature", scale=0.8, offset=-3.0, steepness=1.0)
CONFIGS = (
    SamplingConfig(steps=12),
    SamplingConfig(steps=12, block_length=4, cache="dual"),
    SamplingConfig(steps=12, block_length=4, cache="prefix", threshold=1.0),
    SamplingConfig(steps=12, block_length=6, cache="dual", refresh_every=2, refresh_window=2),
)


@pytest.fixture
def recorded(monkeypatch):
    """The shapes that a stand-in for CUDA recorded: it replays into one output, as a graph does."""
    shapes = []

    def record(forward, pool):
        output = forward()
        shapes.append(tuple(output.shape))
        return lambda: output.copy_(forward())

    monkeypatch.setattr(graphs, "record_graph", record)
    monkeypatch.setattr(batch, "suits_graphs", lambda model: True)
    return shapes


def history(model, canvas, config, **kwargs):
    return [s.canvas_BL for s in denoise(model, canvas, config, rules=only_mask(model), **kwargs)]


@pytest.mark.parametrize("soft", [None, SOFT, TEMPERATURE], ids=["plain", "topk", "temperature"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_replayed_step_equals_an_eager_one(config, soft, recorded) -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [9, 4])
    settings = {"attention_mask_BL": attention, "soft_mask": soft}
    replayed = history(model, canvas, config, **settings)
    assert recorded
    eager = history(model, canvas, config, graphs=False, **settings)
    assert len(replayed) == len(eager)
    assert all(torch.equal(one, other) for one, other in zip(replayed, eager, strict=True))


def test_blocks_of_one_length_share_a_graph(recorded) -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [9], new=24)
    config = SamplingConfig(steps=24, block_length=6, cache="dual", threshold=1.0)
    history(model, canvas, config)
    # The whole text, which each of four blocks begins with, and the window of a block.
    assert sorted(recorded) == [(7, 32), (33, 32)]


def test_a_block_causal_model_records_where_it_is_asked_to_and_writes_the_same(recorded) -> None:
    model = tiny_model(block_size=6)
    canvas, _ = canvas_of(model, [9], new=15)
    config = SamplingConfig(steps=15, cache="exact")
    eager = history(model, canvas, config, soft_mask=SOFT)
    assert recorded == []
    replayed = history(model, canvas, config, soft_mask=SOFT, graphs=True)
    # The later steps of a block, of one shape each: a column before it, and its own.
    assert recorded == [(7, 32)] * 2
    assert all(torch.equal(one, other) for one, other in zip(replayed, eager, strict=True))


def test_a_shape_that_does_not_come_again_is_not_recorded(recorded) -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [9])
    history(model, canvas, SamplingConfig(steps=2))
    assert recorded == []


def test_no_more_graphs_are_kept_than_stated(recorded, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    model = tiny_model()
    keeper = graphs.Graphs(model)
    for length in (5, 6, 7, 5):
        canvas = torch.arange(1, length + 1)[None]
        columns = torch.arange(length)
        previous = (columns - 1).clamp_min(0)
        layout = packing.Layout(columns, columns, previous, [packing.Span(length, 0, length)])
        for _ in range(graphs.RECORD_AT):
            with torch.no_grad():
                hidden = keeper(canvas, layout)
                torch.testing.assert_close(hidden, model.hidden(canvas, layout))
        assert len(keeper) <= 2
    assert len(recorded) == 4


def test_graphs_without_a_cuda_device_are_refused() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [9])
    with pytest.raises(ValueError, match="one CUDA device"):
        denoise(model, canvas, SamplingConfig(steps=4), graphs=True)


@pytest.mark.gpu
@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_cuda_graph_equals_an_eager_step(config, soft) -> None:
    model = tiny_model().cuda()
    canvas, attention = (x.cuda() for x in canvas_of(model, [9, 4]))
    settings = {"attention_mask_BL": attention, "soft_mask": soft}
    replayed = history(model, canvas, config, graphs=True, **settings)
    eager = history(model, canvas, config, graphs=False, **settings)
    assert all(torch.equal(one, other) for one, other in zip(replayed, eager, strict=True))
