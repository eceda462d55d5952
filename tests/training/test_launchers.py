"""The launcher configurations, and the GPU benchmark at a size that a CPU does in seconds."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from paths import ROOT

CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_launcher_configuration(path: Path) -> None:
    config = ClusterConfig.from_yaml_file(path)
    assert config.num_machines == 1
    deepspeed = config.deepspeed_config.get("deepspeed_config_file")
    if deepspeed is None:
        assert config.mixed_precision == "bf16"
    else:  # whose file has it, and accelerate wants it in one place
        values = json.loads((ROOT / deepspeed).read_text())
        assert values["zero_optimization"]["stage"] == 2
        assert "bf16" in values


def test_the_sharded_configuration_wraps_the_layers_of_the_model() -> None:
    config = ClusterConfig.from_yaml_file(ROOT / "configs" / "accelerate" / "fsdp2.yaml")
    known = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    settings = {key.removeprefix("fsdp_") for key in config.fsdp_config}
    # The plugin's own names, but for three that the launcher has others for.
    others = {"version", "offload_params", "transformer_layer_cls_to_wrap"}
    assert settings - others <= known
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "Qwen2DecoderLayer"


@pytest.mark.slow
def test_the_memory_benchmark_measures_both_steps_and_they_have_the_same_loss(tmp_path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks" / "gpu" / "train_memory.py"),
            *("--shape", "tiny", "--layers", "1", "--tokens", "64", "--steps", "1"),
            *("--device", "cpu", "--ways", "ours soft,published soft", "--out", tmp_path),
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "result.json").read_text())
    ours, published = result["raw"]
    assert ours["loss"] == pytest.approx(published["loss"], rel=0.02)
    assert all(run["peak"] > 0 and len(run["seconds"]) == 1 for run in result["raw"])


@pytest.mark.slow
def test_the_decoding_benchmark_times_every_way_and_ends_with_json(tmp_path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks" / "gpu" / "decoding.py"),
            *("--shape", "tiny", "--layers", "1", "--device", "cpu", "--repeat", "2"),
            *("--prompt", "16", "--new", "64", "--batches", "1,2", "--whole-batches", "1"),
            *("--per-forward", "1,4", "--out", tmp_path),
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "result.json").read_text())
    for row in (*result["whole"], *result["window"]):
        assert row["soft_over_plain"]["median"] > 0
    assert [row["tokens_per_forward"] for row in result["run"]] == [1, 4, 1, 4]
    # A whole text for each of two blocks, then windows: as many forwards as steps, soft-masked.
    assert [row["soft"]["forwards"] for row in result["run"]] == [64, 16, 64, 16]
    assert result["dense"][0]["soft"]["ms"]["median"] > 0
