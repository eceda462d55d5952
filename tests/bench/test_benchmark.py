"""`softmask bench`: the slow twin, the counts of the floor, tables, folders, mistakes."""

from __future__ import annotations

import json

import goldens
import pytest
import torch
from commands import failed
from tiny import EXPERTS, tiny_model

from softmask.bench.benchmark import _model as benchmark_model
from softmask.bench.dense_twin import denoise_densely
from softmask.bench.roofline import counted, machine, parts
from softmask.cli.main import main
from softmask.config import SamplingConfig, SoftMaskConfig, soft_mask_from_published
from softmask.decoding.sampler import Rules, denoise
from softmask.reporting.measure import pair_ratios, peak_mb, peak_of

SOFT = {"scale": 0.8, "offset": -3.9, "steepness": 2.0}
RANDOM = (
    "--hidden 32 --layers 2 --heads 4 --intermediate 48 --vocabulary 64 --device cpu --threads 1 "
    "--prompt-tokens 4 --max-new-tokens 16 --steps 4 --repeat 2"
).split()


@pytest.fixture
def quick(monkeypatch) -> None:
    """Peaks without processes of their own, and probes that take no time."""
    monkeypatch.setattr(
        "softmask.reporting.measure.peak_of", lambda _module, _arguments: peak_mb("cpu")
    )
    monkeypatch.setattr("softmask.bench.roofline.PRODUCT", {"cpu": 64})
    monkeypatch.setattr("softmask.bench.roofline.COPIED", 2**16)


def bench(capsys, *arguments: str) -> tuple[str, dict]:
    """The tables and the last line."""
    assert main(["bench", *RANDOM, "--json", *arguments]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return "\n".join(lines), json.loads(last)


GOLDEN = [
    name
    for name, case in goldens.facts("generate").items()
    if case["group"] == "single" and case["schedule"] == "none"
]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_twin_gives_the_published_tokens_step_by_step(name) -> None:
    case, data = goldens.facts("generate")[name], goldens.tensors("generate")
    history_SBL = data[f"{name}.history"]
    canvas_BL = torch.full_like(history_SBL[0], goldens.MASK_ID)
    prompt_BL = data["single.input_ids"]
    canvas_BL[:, : prompt_BL.shape[1]] = prompt_BL
    soft = soft_mask_from_published(case["kwargs"], name)
    steps = denoise_densely(goldens.model(), canvas_BL, case["steps"], soft)
    assert torch.equal(torch.stack([step.canvas_BL for step in steps]), history_SBL)


@pytest.mark.parametrize("steps", [4, 12])
@pytest.mark.parametrize(
    "soft",
    [
        None,
        SoftMaskConfig(k=1, **SOFT),
        SoftMaskConfig(k=3, **SOFT),
        SoftMaskConfig(mode="temperature", temperature=0.7, **SOFT),
    ],
    ids=["plain", "k1", "k3", "temperature"],
)
def test_the_twin_gives_the_tokens_of_denoise(soft, steps) -> None:
    prompt_BL = torch.tensor([[7, 300, 12, 55, 401], [90, 3, 256, 31, 8]])
    canvas_BL = torch.nn.functional.pad(prompt_BL, (0, 12), value=goldens.MASK_ID)
    ours = denoise(goldens.model(), canvas_BL, SamplingConfig(steps=steps), soft_mask=soft)
    twin = denoise_densely(goldens.model(), canvas_BL, steps, soft)
    for one, other in zip(ours, twin, strict=True):
        assert torch.equal(one.canvas_BL, other.canvas_BL)
        assert one.left_B == other.left_B
    assert other.left_B == (0, 0)


def test_the_twin_refuses_what_the_published_code_cannot_do() -> None:
    model, canvas_BL = tiny_model(), torch.tensor([[1, 63], [63, 63]])
    with pytest.raises(ValueError, match="equally many masks"):
        next(denoise_densely(model, canvas_BL, 2))
    with pytest.raises(ValueError, match="schedule none"):
        next(denoise_densely(model, canvas_BL[1:], 2, SoftMaskConfig(schedule="linear")))


def test_positions_and_rows_of_a_run_are_counted() -> None:
    model = tiny_model()
    canvas_BL = torch.tensor([[5] * 4 + [63] * 16])
    blocks = SamplingConfig(steps=4, block_length=8, cache="dual")
    # The whole, four times; or the whole, then a block with the position before it, twice.
    for config, positions in ((SamplingConfig(steps=4), 4 * 20), (blocks, 2 * (20 + 9))):
        with counted(model) as work:
            steps = list(denoise(model, canvas_BL, config, rules=Rules(suppressed=(63,))))
        left = [16] + [step.left_B[0] for step in steps[:-1]]
        # Plain decoding reads the masks of the block at hand alone.
        rows = sum(left) if config is not blocks else sum(left) - 2 * 8
        assert (steps[-1].forwards, work.positions, work.rows) == (4, positions, rows)
    with counted(model) as work:
        pass
    list(denoise(model, canvas_BL, blocks))
    assert work.positions == 0


def test_the_floor_counts_products_and_weights() -> None:
    model = tiny_model()
    with counted(model) as work:
        model(torch.zeros(1, 10, dtype=torch.long))
    rates = machine(1.0, 1.0, model.device)
    found = parts(model, work, 10, rates)
    # Per layer: q and o 32 x 32, k and v 32 x 16, three of 32 x 48; scores and values 10 x 32.
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert found["transformer"].flop == 2 * 10 * (weights + 2 * 2 * 10 * 32)
    assert found["head"].flop == 2 * 10 * 32 * 64
    assert found["head"].bytes == 4 * 32 * 64
    slow = parts(model, work, 10, rates | {"bytes_per_s": 1.0})
    assert slow["head"].floor_ms == 1000 * found["head"].bytes


def test_the_floor_counts_the_experts_that_are_read() -> None:
    model, dense = tiny_model(**EXPERTS), tiny_model()
    with counted(model) as work:
        model(torch.arange(2)[None])
    assert 2 < work.experts <= 4  # of 8, two for each of two tokens
    rates = machine(1.0, 1.0, model.device)
    found, beside = (parts(m, work, 2, rates)["transformer"] for m in (model, dense))
    # Two experts and the shared one are together as wide as the dense one; a router's scores.
    assert found.flop - beside.flop == 2 * 2 * 8 * 32
    expert, router, biases = 3 * 32 * 16, 8 * 32, 8
    more = 4 * ((work.experts + 1) * expert - 3 * 32 * 48 + router + biases)
    assert found.bytes - beside.bytes == pytest.approx(more)


def test_ratios_are_those_of_pairs() -> None:
    assert pair_ratios([2, 9, 4], [1, 3, 4]) == {"min": 1, "median": 2, "max": 3}


def test_twin_blocks_and_cache_are_rows_with_ratios(capsys, quick) -> None:
    options = "--json --twin --block-length 8 --block-steps 2 --cache dual --refresh-every 2"
    table, result = bench(capsys, *options.split(), "--refresh-window", "0")
    ways = ("", "published_", "_blocks", "_dual")
    names = [way + mode if way.endswith("_") else mode + way for way in ways for mode in MODES]
    for name in names:
        assert name.replace("_", ", ") in table
        forwards = 4
        assert result[name]["forwards"] == forwards
        assert len(result[name]["ms_per_step"]) == 3
        assert result[name]["peak_mb"] > 0
        assert ("floor" in result[name]) == (not name.startswith("published"))
    assert set(result["ratios"]) == {
        "soft_over_plain",
        "published_plain_over_plain",
        "published_soft_over_soft",
        "plain_blocks_over_plain_dual",
        "soft_blocks_over_soft_dual",
        "plain_over_published_plain_peak",
        "soft_over_published_soft_peak",
    }
    for words in ("published, soft / soft", "soft, blocks / soft, dual", "peak memory", "GFLOP/s"):
        assert words in table
    assert result["plain_dual"]["floor"]["positions"] < result["plain"]["floor"]["positions"]
    assert result["machine"]["alone_ms"]["head"]["median"] > 0


MODES = ("plain", "soft")


def test_a_result_is_written_once(capsys, quick, tmp_path) -> None:
    folder = tmp_path / "new" / "result"
    _table, last = bench(capsys, "--out", str(folder))
    held = json.loads((folder / "result.json").read_text())
    assert held["command"].startswith("softmask bench --hidden 32")
    assert held["environment"]["torch"] == torch.__version__
    assert held["settings"]["vocabulary"] == 64
    assert len(held["raw_ms"]["soft"]) == len(held["raw_ms"]["product"]) == 2
    assert held["summary"]["plain"] == last["plain"]
    assert "soft / plain" in (folder / "table.txt").read_text()
    assert "holds a result already" in failed(capsys, "bench", *RANDOM, "--out", str(folder))
    (tmp_path / "file").write_text("")
    assert "is a file" in failed(capsys, "bench", *RANDOM, "--out", str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cache dual", "--cache needs --block-length"),
        ("--block-steps 4", "--block-steps needs --block-length"),
        ("--block-length 8 --refresh-every 2", "give cache too"),
        ("--block-length 8 --cache dual --refresh-window 2", "give that too"),
        ("--block-length 8 --cache half", "--cache"),
        ("--block-length 0", "--block-length must be at least 1"),
        ("--twin --alg topk_margin", "leave out other rules"),
        ("--twin --temperature 1", "leave out other rules"),
        ("--soft-mask-k 0", "--soft-mask-k must be at least 1"),
        ("--soft-mask-k 99", "lower k"),
        ("--hidden 36", "even number of times --heads"),
        ("--vocabulary 1", "--vocabulary must be at least 2"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message) -> None:
    assert message in failed(capsys, "bench", *RANDOM, *arguments.split())


def test_what_is_of_a_random_model_and_of_a_loaded_one_do_not_mix(capsys) -> None:
    assert "--layers is of a random model" in failed(capsys, "bench", "--layers", "30")
    assert "--vocabulary is of a random" in failed(capsys, "bench", "--vocabulary", "7")
    assert "leave out --model" in failed(capsys, "bench", "--hidden", "32", "--model", "x")


def test_a_process_that_fails_says_why_in_a_sentence(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"which failed: softmask: error: .*no command"):
        peak_of("softmask", ["no-such-command"])


@pytest.mark.gpu
def test_a_bench_runs_on_a_gpu(capsys) -> None:
    sizes = [word if word != "cpu" else "cuda" for word in RANDOM]
    options = "--twin --block-length 8 --cache dual --repeat 3"
    assert main(["bench", *sizes, *options.split()]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["soft_dual"]["peak_mb"] > 0


def test_without_a_number_of_rounds_the_clock_decides_and_no_json_is_printed(
    capsys, quick, monkeypatch
) -> None:
    monkeypatch.setattr("softmask.bench.benchmark.SECONDS", 0.0)
    assert RANDOM[-2] == "--repeat"
    assert main(["bench", *RANDOM[:-2]]) == 0
    said = capsys.readouterr().out
    assert "median of 3 rounds" in said
    assert "4 + 16 tokens, batch 1, 4 steps, entropy" in said
    assert "{" not in said


def test_the_networks_of_all_families_are_timed_those_of_blocks_with_their_caches(
    quick, capsys
) -> None:
    tables, result = bench(capsys, "--families")
    named = {name.removeprefix("family_") for name in result if name.startswith("family_")}
    assert {"llada", "a2d-qwen3", "a2d-qwen2", "sdar", "fastdllm2", "bd3lm-qwen3"} <= named
    assert "llada2" in named
    assert "family, sdar" in tables
    assert result["family_sdar"]["forwards"] > result["plain"]["forwards"]  # a block of 4 each
    assert result["ratios"]["family_llada_over_plain"]["median"] > 0


@pytest.mark.parametrize("only", ["plain", "family_llada"])
def test_where_a_peak_of_memory_is_read_no_other_network_lies(monkeypatch, capsys, only) -> None:
    built = []
    monkeypatch.setattr(
        "softmask.bench.benchmark._model",
        lambda *given: built.append(benchmark_model(*given)) or built[-1],
    )
    assert main(["bench", *RANDOM, "--families", "--only", only]) == 0
    assert json.loads(capsys.readouterr().out)["peak_mb"] > 0
    (model,) = built
    assert model.config.family == {"plain": "dream", "family_llada": "llada"}[only]
