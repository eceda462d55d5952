"""`softmask bench --shape` and `bench growth`: cells, projections, exponents, what is skipped."""

from __future__ import annotations

import json

import pytest
import torch
from commands import failed

from softmask.bench import shapes
from softmask.bench.cells import Cell, Plan
from softmask.bench.growth import fit
from softmask.bench.roofline import machine
from softmask.bench.shape_bench import CALLS, Probed, _whole
from softmask.cli.main import main
from softmask.config import SamplingConfig
from softmask.decoding.grid import Grid
from softmask.decoding.schedule import StepSchedule
from softmask.models.packing import Layout
from softmask.reporting.measure import check_clock

CPU = torch.device("cpu")
SHAPE = shapes._shape("dream", 4, 2, 32, 64, 4, 2, 128)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """A tiny shape, and probes that take no time."""
    monkeypatch.setitem(shapes.SHAPES, "tiny", SHAPE)
    monkeypatch.setattr("softmask.bench.roofline.PRODUCT", {"cpu": 64})
    monkeypatch.setattr("softmask.bench.roofline.COPIED", 2**16)


SMALL = "--device cpu --threads 1 --block-length 8 --block-steps 4 --repeat 2 --json".split()


@pytest.mark.long  # times
def test_a_shape_is_timed_in_cells_projected_and_what_does_not_fit_is_said(
    tiny, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(
        "softmask.bench.shape_bench.is_emulated", lambda dtype, _device: dtype == torch.bfloat16
    )
    asked = "--shape tiny --tokens 32 --batch 1,2 --dtype float32,bfloat16".split()
    assert main(["bench", *asked, *SMALL, "--out", str(tmp_path / "r")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    said, result = "\n".join(lines), json.loads(last)
    assert "4 layers, projected from 1 and 2" in said
    assert len(result["rows"]) == 4 * 2 * 3  # caches, batches, modes
    assert {row["kind"] for row in result["rows"]} == {"projected"}
    by_cell = {(r["cache"], r["batch"], r["mode"]): r for r in result["rows"]}
    # What a step computes: the whole text, or its window, or the block before and itself.
    counts = {"none": (32, 32), "prefix": (32, 17), "dual": (32, 9), "exact": (16, 8)}
    for cache, (first, later) in counts.items():
        row = by_cell[cache, 2, "plain"]
        assert row["first"]["positions"] == 2 * first
        assert row["later"]["positions"] == 2 * later + (2 if cache == "exact" else 0)
        assert row["first"]["limit_ms"] > 0
    assert result["skipped"][0]["reason"] == "this cpu has no units for bfloat16 and emulates it"
    assert "emulates it" in (tmp_path / "r" / "table.txt").read_text()


def test_cells_without_room_are_skipped_with_the_reason(tiny, monkeypatch) -> None:
    monkeypatch.setattr(shapes, "memory_left", lambda _device: (1000, "the machine"))
    outline = shapes.outline(SHAPE, 2, 32, torch.float32)
    assert "GB are free" in str(shapes.refusal(outline, 32, 3, None, CPU))
    monkeypatch.setattr(shapes, "memory_left", lambda _device: (10**12, "the machine"))
    assert shapes.refusal(outline, 32, 3, None, CPU) is None


def test_a_limit_is_the_fastest_call_of_all_rounds() -> None:
    probed = Probed({"product": lambda: None}, {64: 10**9}, CPU, "wall")
    probed()
    assert len(probed.ms["product"]) == CALLS
    probed.ms = {"product": [9.0, 2.0, 5.0], "copy": [4.0, 8.0]}
    probed.ms |= {"rows 64 up": [3.0, 2.5], "rows 64 down": [7.0, 2.0]}
    rates = probed.rates()
    assert rates["flop_per_s_by_rows"] == {64: pytest.approx(5e11)}
    assert {key: rates[key] for key in ("flop_per_s", "bytes_per_s")} == machine(2.0, 4.0, CPU)
    assert rates["probe_ms"]["product"]["max"] == 9


def test_processor_time_says_nothing_of_a_gpu() -> None:
    with pytest.raises(ValueError, match="nothing of what cuda does"):
        check_clock("processor", torch.device("cuda"))


def test_a_projection_is_the_rest_and_as_many_layers() -> None:
    whole = _whole({1: [10.0, 12.0], 2: [13.0, 14.0]}, 28)
    assert whole["layer_ms"]["median"] == 2.5
    assert whole["rest_ms"]["min"] == 7
    assert whole["ms"]["max"] == 7 + 28 * 3


def test_a_part_has_the_weights_of_the_whole_and_leaves_it_as_it_is() -> None:
    model = shapes.random_model(SHAPE, 2, 64, torch.float32, CPU)
    ids = torch.arange(32)[None]
    whole = model(ids).logits
    first = shapes.part(model, 1, 8)
    assert first.model.layers[0] is model.model.layers[0]
    assert not torch.equal(first(ids).logits, whole)
    assert torch.equal(model(ids).logits, whole)
    assert model.config.block_size is None
    assert len(model.model.layers) == 2


@pytest.mark.parametrize("power", [0, 1, 2])
def test_an_exponent_is_that_of_the_upper_half(power) -> None:
    points = [(1, 50.0), (2, 50.0), *((x, 3.0 * x**power) for x in (4, 8, 16, 32))]
    found = fit(points)
    assert found.exponent == pytest.approx(power, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert fit(points[:2]).error is None


@pytest.mark.long  # times
def test_growth_is_a_table_a_plot_and_a_folder(tiny, capsys, monkeypatch, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("softmask.reporting.measure.peak_of", lambda _, words: len(words[-1]))
    asked = "growth --shape tiny --tokens 32,64,128 --batch 1,2 --batch-tokens 32"
    words = [*asked.split(), "--clock", "processor"]
    assert main(["bench", *words, *SMALL, "--out", str(tmp_path / "g")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert "processor" in "\n".join(lines)
    assert "batch, 32 tokens" in "\n".join(lines)
    assert set(result["exponents"]["tokens"]) == {"none", "prefix", "dual", "exact"}
    assert result["exponents"]["tokens"]["none"]["ms_per_token"]["error"] is not None
    assert (tmp_path / "g" / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shape dream-70b", "there is no shape dream-70b"),
        ("--shape dream-7b --layers 1", "two depths say what a layer costs"),
        ("--shape dream-7b --twin", "--twin does not go with --shape"),
        ("--shape dream-7b --tokens 64", "are too few for blocks of 32"),
        ("--shape dream-7b --dtype int2", "is no dtype"),
        ("--tokens 64", "need --shape"),
        ("--batch 1,4", "give one"),
        ("--clock processor", "--clock needs --shape"),
        ("growth --layers 3", "must lie between 1 and 2"),
        ("growth --block-steps 1", "--block-steps must be at least 2 with cache exact"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message) -> None:
    assert message in failed(capsys, "bench", *arguments.split())


def test_blocks_of_a_long_text_are_counted_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    masked = (torch.rand(500, generator=generator) < 0.7).numpy()
    schedule = StepSchedule(masked, SamplingConfig(steps=400, block_length=4))
    left = masked & (torch.rand(500, generator=generator) < 0.5).numpy()
    schedule.recount(left)
    assert schedule.left == [int(left[block].sum()) for block in schedule.blocks]
    assert schedule.total_left == left.sum()
    first = next(i for i, count in enumerate(schedule.left) if count)
    assert schedule._first == first
    schedule.take(first, schedule.left[first])
    assert schedule.left[schedule._first] > 0
    assert schedule.total_left == sum(schedule.left)


def test_windows_of_a_prompt_share_a_mask_that_says_the_same() -> None:
    grid = Grid(4, 0, 4096)
    spans = [span for _, span in grid.spans(0, 4096)]
    every = torch.arange(4096)
    layout = Layout(every, every, (every - 1).clamp_min(0), spans)
    assert len(layout.runs) == len(spans) == 8
    for run, span in zip(layout.runs, spans, strict=True):
        assert torch.equal(run.mask, span.mask(CPU))
    storages = {run.mask.untyped_storage().data_ptr(): run.mask for run in layout.runs}
    # A byte for each pair of a window and the text: not of two positions of the text.
    assert sum(mask.untyped_storage().nbytes() for mask in storages.values()) == 512 * 4096


def test_a_long_document_with_holes_never_has_logits_of_all_its_positions() -> None:
    length, vocabulary = 1024, 2048
    shape = shapes._shape("dream", 1, 1, 32, 64, 2, 1, vocabulary)
    model = shapes.random_model(shape, 1, length, torch.float32, CPU)
    batch = Plan(8, 4).batch(model, Cell("none", length, 1, "topk"))
    ids = batch.canvas_P.clone()
    ids[512:] = 5
    for start in (100, 500, 900):  # three holes in a text that is given
        ids[start : start + 20] = model.mask_id
    from softmask.decoding.sampler import denoise

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        soft = Plan(8, 4).soft_mask("topk")
        steps = list(denoise(model, ids[None], SamplingConfig(steps=2), soft_mask=soft))
    assert steps[-1].left_B == (0,)
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert 0 < largest < length * vocabulary * 4 / 4
