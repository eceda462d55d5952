"""Memory of a load: its peak, what is said before it, and what `softmask models` shows."""

from __future__ import annotations

import io
import json
import logging
import subprocess
from pathlib import Path

import load_memory
import pytest
import torch
from commands import failed
from processes import ENVIRONMENT, python
from rich.console import Console
from rich.filesize import decimal
from tiny import bytes_of, write_dream_folder

import softmask
from softmask.cli.main import main
from softmask.cli.models import _table
from softmask.hub import memory_check
from softmask.hub.folder import weight_files
from softmask.hub.gguf_export import export_gguf
from softmask.hub.local import Entry
from softmask.hub.weight_sizes import WeightSizes, weight_sizes
from softmask.reporting import measure
from softmask.reporting.machine import Memory, memory

SHAPE = {"hidden_size": 128, "intermediate_size": 192}
# 54 MB in bfloat16, in shards of 14: four times that would be held whole in float32.
LARGER = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
}
# Buffers of libraries; a layer in float32, and of an adapter its product, are 3 MB each.
SLACK = 10 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_dream_folder(tmp_path_factory.mktemp("model") / "dream", **SHAPE)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("sparse")
    model = load_memory.write_sparse(place / "model", LARGER)
    return model, load_memory.write_adapter(place / "adapter", model)


@pytest.mark.parametrize(
    "way", [pytest.param("bfloat16, adapter", marks=pytest.mark.long), "int8", "int4, adapter"]
)
def test_a_load_never_holds_more_than_the_result_and_a_shard(sparse, way: str) -> None:
    model, adapter = sparse
    script = Path(load_memory.__file__)
    start = f"import sys; sys.path.insert(0, {str(script.parent)!r}); "
    # Layers this small come from glibc's heap, which keeps what is freed; those of real models are
    # above its threshold (M_MMAP_THRESHOLD is -3) and go back to the system.
    start += "import ctypes; ctypes.CDLL(None).mallopt(-3, 2**18); "
    start += "import load_memory; load_memory.main()"
    command = [*python(ENVIRONMENT), "-c", start, "--child", str(model), way, str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    shard = max(file.stat().st_size for file in model.glob("*.safetensors"))
    assert found["private_peak"] <= found["final"] + shard + SLACK
    assert found["mapped_peak"] <= sum(f.stat().st_size for f in model.iterdir()) + SLACK


def test_the_size_that_is_said_is_that_of_the_loaded_model(folder) -> None:
    sizes = weight_sizes(weight_files(folder))
    for dtype in ("float64", "float32", "bfloat16"):
        model = softmask.load(folder, device="cpu", dtype=getattr(torch, dtype)).model
        assert sizes.loaded(dtype) == sum(p.nbytes for p in model.parameters())
    for kind in ("int8", "int4"):
        model = softmask.load(folder, device="cpu", quantize=kind).model
        # 16 bytes of each code table, of 14 layers, and the norms' rounding up.
        assert sizes.loaded("float32", kind) == pytest.approx(bytes_of(model), rel=0.05)


def test_a_head_that_is_the_table_again_counts_once(folder) -> None:
    whole, tied = (weight_sizes(weight_files(folder), tied=tied) for tied in (False, True))
    assert whole.others - tied.others == 272 * 128


def test_weights_beyond_all_memory_are_refused_before_they_are_read(
    folder, capsys, monkeypatch
) -> None:
    need = weight_sizes(weight_files(folder)).loaded("float32")
    monkeypatch.setattr(memory_check, "memory", lambda: Memory(need - 1, need // 2))
    monkeypatch.setattr("softmask.hub.load._read_model", None)
    said = failed(capsys, "generate", "One", "--model", str(folder), "--device", "cpu")
    assert "of memory in float32" in said
    assert "with a short generation" in said
    assert "are free: take a smaller model" in said  # a generation takes more than these weights


def test_a_gguf_file_is_refused_as_its_folder_would_be(folder, tmp_path, monkeypatch) -> None:
    pytest.importorskip("gguf", reason="pip install 'softmask[gguf]'")
    file = export_gguf(tmp_path / "m.gguf", folder, kind="q8_0")
    need = weight_sizes(weight_files(folder)).loaded("float32")
    monkeypatch.setattr(memory_check, "memory", lambda: Memory(need - 1, need // 2))
    with pytest.raises(ValueError, match="of memory in float32"):
        softmask.load(file, device="cpu")


def test_a_refusal_names_what_fits(monkeypatch) -> None:
    sizes = memory_check.WeightSizes(linear=6_500_000_000, rows=10**6, others=1_100_000_000)
    monkeypatch.setattr(memory_check, "memory", lambda: Memory(16 * 10**9, 10 * 10**9))
    plan = memory_check.Plan("dream", sizes, torch.device("cpu"), torch.float32, None, 10**9)
    for times, wanted in ((100.0, "(7.8 GB)"), (1.0, "(7.8 GB)")):
        monkeypatch.setattr(measure, "slowness", lambda *_, times=times: times)
        with pytest.raises(ValueError, match="GB of memory in float32, 31") as error:
            plan.check()
        assert wanted in str(error.value)
        # In bfloat16 the weights fit, and no generation beside them.
        assert "--dtype bfloat16" not in str(error.value)
    monkeypatch.setattr(memory_check, "memory", lambda: Memory(24 * 10**9, 10 * 10**9))
    with pytest.raises(ValueError, match="or --dtype bfloat16"):
        plan.check()


def test_too_little_free_memory_is_a_warning(folder, caplog, monkeypatch) -> None:
    monkeypatch.setattr(memory_check, "memory", lambda: Memory(10**12, 10))
    with caplog.at_level(logging.WARNING):
        softmask.load(folder, device="cpu")
    assert "10 bytes of 1.0 TB are free on this machine" in caplog.text


@pytest.mark.parametrize(("times", "warned"), [(100.0, True), (1.0, False)])
def test_bfloat16_that_is_emulated_is_said_and_never_the_default(
    folder, caplog, monkeypatch, times: float, warned: bool
) -> None:
    monkeypatch.setattr(measure, "slowness", lambda *_: times)
    with caplog.at_level(logging.WARNING):
        assert softmask.load(folder, device="cpu").model.dtype == torch.float32
        assert not caplog.text
        softmask.load(folder, device="cpu", dtype="bfloat16")
    assert ("100 times as long as in float32" in caplog.text) is warned


def test_how_slow_bfloat16_is_is_measured_on_this_cpu() -> None:
    assert 0 < measure.slowness(torch.bfloat16, torch.device("cpu")) < 10_000


def test_models_shows_what_a_model_takes_in_memory(folder, capsys) -> None:
    assert main(["models", str(folder), "--json"]) == 0
    entry = next(e for e in json.loads(capsys.readouterr().out) if e["folder"] == str(folder))
    assert entry["loaded"] == weight_sizes(weight_files(folder)).ways()
    assert main(["models", str(folder)]) == 0
    shown, notes = capsys.readouterr()
    assert ["files", "float32", "bfloat16", "int8", "int4"] in map(str.split, shown.splitlines())
    assert "are free" in notes


@pytest.mark.parametrize(("columns", "sizes"), [(80, 5), (60, 1)])
def test_names_and_what_models_are_can_be_read_in_a_terminal_of_few_columns(columns, sizes) -> None:
    loaded = WeightSizes(6_525_000_000, 1_500_000, 1_090_000_000).ways()
    names = {
        "Dream-org/Dream-v0-Instruct-7B": "Dream model for chat",
        "runs/m/model": "Dream model",
    }
    entries = [
        Entry("model", name, what, 15_200_000_000, "", "", None, loaded)
        for name, what in names.items()
    ]
    console = Console(width=columns, force_terminal=True, color_system=None, file=io.StringIO())
    console.print(_table(entries, columns, is_terminal=True))
    lines = console.file.getvalue().splitlines()
    for name, what in names.items():
        at = next(i for i, line in enumerate(lines) if line.startswith(name))
        assert lines[at].split()[1:] == loaded_words(loaded, sizes)
        assert lines[at + 1].strip() == what


def loaded_words(loaded: dict[str, int], sizes: int) -> list[str]:
    """That of the files, and those in memory."""
    return " ".join(decimal(size) for size in [15_200_000_000, *loaded.values()][:sizes]).split()


@pytest.mark.parametrize(
    ("membership", "files", "limited"),
    [
        ("0::/a\n", {"a/memory.max": "1000", "a/memory.current": "700"}, (1000, 300 + 200)),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "700"}, None),
        (
            "9:memory:/box\n",
            {
                "memory/box/memory.limit_in_bytes": "1000",
                "memory/box/memory.usage_in_bytes": "900",
            },
            (1000, 100 + 200),
        ),
    ],
)
def test_a_container_s_memory_is_read(tmp_path, membership, files, limited) -> None:
    for name, content in files.items():
        path: Path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")
        # Pages of files, which the group gives back.
        pages = {"active_file": 50, "inactive_file": 150}
        pages |= {f"total_{name}": size for name, size in pages.items()}
        lines = "".join(f"{name} {size}\n" for name, size in pages.items())
        path.with_name("memory.stat").write_text(lines, "ascii")
    found = memory(tmp_path, membership)
    if limited is None:
        assert found.total > found.available > 10**6
    else:
        assert (found.total, found.available) == limited
