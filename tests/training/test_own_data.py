"""A run on somebody's own chats: from a file to an adapter, longer, stopped, begun wrongly."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import failed
from runs import log_of, recipe_of
from safetensors.torch import load_file
from tiny import tiny_model, weight_at

import softmask
from softmask.cli.eval_options import run_or_folder
from softmask.cli.main import main
from softmask.config import SoftMaskConfig
from softmask.training import run as run_module
from softmask.training import sources
from softmask.training.build import learnable
from softmask.training.run import train
from softmask.training.soft_mask_start import fitted_start, start_for

datasets = pytest.importorskip("datasets", reason="pip install 'softmask[train]'")

SILENT = {"report": lambda _line: None}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SOFTMASK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "support.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": answer},
            ]
        }
        for i in range(12)
        for answer in ["open it again"]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": []}]))
    return path


def words_for(base: Path, own: Path, out: Path, *more: str) -> list[str]:
    short = ["--set", "conversations.extra_padding=2", "--rank", "2", "--batch-size", "2"]
    given = ["--model", str(base), "--data", str(own), "--out", str(out), "--device", "cpu"]
    return ["train", *given, *short, *more]


def result_of(folder: Path) -> dict[str, torch.Tensor]:
    files = ("adapter_model.safetensors", "soft_mask.safetensors")
    return {k: v for name in files for k, v in load_file(folder / "adapter" / name).items()}


def test_a_dry_run_says_what_the_chats_are_and_loads_no_weights(
    base, own, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(run_module, "build", lambda *_: pytest.fail("a model was built"))
    assert main(words_for(base, own, tmp_path / "run", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert f"{own}: taken for conversations (a column messages)" in said
    assert re.search(r"1 left out \(incomplete 1\)", said)
    assert "<|im_start|>assistant\n[[open it again<|im_end|>" in said
    updates = r"\d+ updates of 2 rows, .* passes over \d+ rows"
    assert re.search(updates + r"; about \d+ s and 0\.\d GB", said)
    assert not (tmp_path / "run").exists()
    table = tmp_path / "plain.csv"
    table.write_text("text;place\nthe first one;1\nthe first two;2\n")
    words = words_for(base, table, tmp_path / "run", "--dry-run", "--iters", "1")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"\n\[\[the first (one|two)", said)  # no token is shown as a prompt
    assert "train, newly tokenised: 1 conversation, 0 left out" in said
    assert "1 update of 2 rows, 2 passes over 1 row;" in said
    assert "put a.csv, b.csv into a folder" in failed(capsys, "train", "--data", "a.csv", "b.csv")
    assert "`softmask train --data chats.jsonl --dry-run`" in failed(capsys, "train")


def test_several_processes_make_the_rows_of_an_update_together(
    base, own, tmp_path, capsys, monkeypatch
) -> None:
    assert main(words_for(base, own, tmp_path / "run", "--dry-run")) == 0
    alone = re.findall(r"\d+ updates of 2 rows", capsys.readouterr().out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words_for(base, own, tmp_path / "run", "--dry-run")) == 0
    assert re.findall(r"\d+ updates of 2 rows", capsys.readouterr().out) == alone
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = failed(capsys, *words_for(base, own, tmp_path / "run", "--dry-run"))
    assert "an update of 2 rows cannot be shared out among 3 processes: give --batch-size 3" in said


def test_the_estimate_counts_the_updates_of_stages(base, own, tmp_path, capsys) -> None:
    stages = "[{name: first, steps: 3}, {name: second, steps: 4}]"
    words = words_for(base, own, tmp_path / "run", "--dry-run", "--set", f"train.stages={stages}")
    assert main(words) == 0
    assert re.search(r"\b7 updates of 2 rows", capsys.readouterr().out)


def test_every_row_of_own_data_is_read_however_short_its_answer_is(
    base, tmp_path, capsys, monkeypatch
) -> None:
    path = tmp_path / "words.jsonl"
    rows = [{"prompt": f"Is {i} odd?", "response": "y" if i % 2 else "n"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ("--dry-run", "--set", "conversations.validation_samples=3")
    assert main(words_for(base, path, tmp_path / "run", *few)) == 0
    said = capsys.readouterr().out
    assert "train, newly tokenised: 57 conversations, 0 left out" in said
    assert "validation, newly tokenised: 3 conversations, 0 left out" in said


def test_one_command_trains_on_chats_and_its_card_says_how_to_use_the_adapter(
    base, own, tmp_path, capsys, monkeypatch
) -> None:
    out = tmp_path / "run"
    assert main(words_for(base, own, out, "--iters", "2", "--no-mask-prompt")) == 0
    said = capsys.readouterr().out
    start = json.loads((out / "soft_mask_start.json").read_text())
    assert "soft-masking begins with offset" in said
    assert start["soft_mask"]["offset"] == pytest.approx(-start["median"])
    assert log_of(out)[0]["step"] == 0
    card = (out / "adapter" / "README.md").read_text()
    (command,) = re.findall(r"^    softmask (.*)$", card, re.MULTILINE)
    monkeypatch.chdir(out / "adapter")
    words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
    assert main([*words, "--max-new-tokens", "4"]) == 0


def test_the_start_lets_half_of_the_scale_in_at_the_median_and_more_where_it_is_surer() -> None:
    entropy_N = torch.linspace(1.0, 7.0, 401)
    start = start_for(entropy_N, SoftMaskConfig(k=3, scale=0.6))
    mask = softmask.soft_mask.SoftMask(
        *(getattr(start.soft_mask, name) for name in ("scale", "offset", "steepness")),
        mode="topk",
        k=3,
        exact=True,
    )
    lambda_N = weight_at(mask, entropy_N)
    assert lambda_N[200].item() == pytest.approx(0.3, abs=1e-3)
    assert lambda_N[100].item() == pytest.approx(0.45, abs=1e-3)
    alike = start_for(torch.full((9,), 3.0), SoftMaskConfig(k=3, scale=0.6))
    assert alike.soft_mask.steepness == pytest.approx(6.66)


def test_the_start_is_fitted_to_the_rows_own_tokens_and_not_to_padding() -> None:
    model, padding = tiny_model(), 9
    config = SoftMaskConfig(k=3, scale=0.6)
    model.soft_mask = learnable(config, model)
    ids_BL = torch.tensor([[1, 2, 3, 4, *[padding] * 4], [5, padding, 6, 7, 8, *[padding] * 3]])
    masked_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    batch = {
        "ids_BL": ids_BL,
        "maskable_BL": masked_BL,
        "masked_BL": masked_BL,
        "noisy_BL": torch.full_like(ids_BL, model.mask_id),
    }
    start = fitted_start(model, model, [batch], config, padding)
    assert start.positions == 3 + 4  # the first of a row is predicted by none
    own_BL = masked_BL & (torch.arange(8) < torch.tensor([[4], [5]]))
    bounded = fitted_start(model, model, [batch | {"masked_BL": own_BL}], config, padding=-1)
    assert start == bounded


def test_a_finished_run_goes_on_to_what_a_longer_one_would_have_been(settings, tmp_path) -> None:
    constant = {"schedule": "constant", "warmup": 0.0}
    train(recipe_of(settings, steps=3, **constant), tmp_path / "run", **SILENT)
    said: list[str] = []
    longer = recipe_of(settings, steps=6, **constant)
    train(longer, tmp_path / "run", report=said.append)
    assert any("train.steps 3 -> 6" in line for line in said)
    train(longer, tmp_path / "whole", **SILENT)
    one, two = result_of(tmp_path / "run"), result_of(tmp_path / "whole")
    assert all(torch.equal(one[name], two[name]) for name in two)
    with pytest.raises(ValueError, match="has made 6 updates already, more than 4"):
        train(recipe_of(settings, steps=4, **constant), tmp_path / "run", **SILENT)
    assert (tmp_path / "run" / "done.json").is_file()


@pytest.mark.long  # three trainings
def test_a_longer_run_takes_the_rates_of_its_new_length(settings, tmp_path) -> None:
    train(recipe_of(settings, steps=3), tmp_path / "run", **SILENT)
    train(recipe_of(settings, steps=6), tmp_path / "run", **SILENT)
    train(recipe_of(settings, steps=6), tmp_path / "whole", **SILENT)

    def rates(run: str) -> dict[int, float]:
        log = log_of(tmp_path / run)
        return {line["step"]: line["learning_rate"] for line in log if "learning_rate" in line}

    assert {k: v for k, v in rates("run").items() if k > 3} == {
        k: v for k, v in rates("whole").items() if k > 3
    }


def test_ctrl_c_keeps_every_update_and_says_how_to_go_on(
    base, own, tmp_path, capsys, monkeypatch
) -> None:
    """The signal comes while the log of update 2 is written: twice, and once."""
    out = tmp_path / "run"
    words = words_for(base, own, out, "--iters", "4", "--set", "train.log_every=1")
    write = run_module.LogFile.on_log

    def interrupted(self, args, state, control, logs=None, **more):
        write(self, args, state, control, logs, **more)
        if state.global_step == 2 and "loss" in logs:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    times = 2
    with monkeypatch.context() as patched:
        patched.setattr(run_module.LogFile, "on_log", interrupted)
        assert main(words) == 130
    said = capsys.readouterr()
    assert "stopped before the first checkpoint: nothing is kept" in said.out
    times = 1
    with monkeypatch.context() as patched:
        patched.setattr(run_module.LogFile, "on_log", interrupted)
        # The command that is printed would else delete what has been kept.
        assert main([*words, "--overwrite"]) == 130
    said = capsys.readouterr()
    (kept,) = out.glob("checkpoint-*")
    number = kept.name.rpartition("-")[2]
    assert f"stopped; kept up to update {number}: {kept}\n" in said.out
    assert said.err.endswith(f"go on with: softmask {' '.join(words)}\n")
    assert main(words) == 0
    assert f"from update {number} of 4" in capsys.readouterr().out
    assert main(words_for(base, own, tmp_path / "whole", *words[-4:])) == 0
    one, two = result_of(out), result_of(tmp_path / "whole")
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_what_is_shown_before_a_run_goes_on_is_the_data_that_it_began_with(
    base, own, tmp_path, capsys, monkeypatch
) -> None:
    """The data set on the Hub moves on, and then the Hub is out of reach."""
    rows = [json.loads(line) for line in own.read_text().splitlines()[:12]]
    moved = json.loads(json.dumps(rows).replace("open it", "close it"))
    commits, asked = ["a" * 40], []

    def load(path, subset, *, revision, streaming):
        asked.append(revision)
        there = rows if revision == "a" * 40 else moved
        return datasets.DatasetDict(train=datasets.Dataset.from_list(there))

    def info(*_, **__):
        if not commits:
            raise OSError("no network")
        return SimpleNamespace(sha=commits[-1])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources.HfApi, "dataset_info", info)
    words = words_for(base, Path("owner/name"), tmp_path / "run")
    quick = ["--set", "train.eval_at_start=false", "--set", "train.fit_soft_mask=false"]
    assert main([*words, "--iters", "1", *quick]) == 0
    assert asked == ["a" * 40]  # and so the rows are tokenised once
    commits.append("b" * 40)
    for more in (["--iters", "2"], []):
        capsys.readouterr()
        assert main([*words, *more, *quick, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "[[open it again" in said
        assert f"{len(more) or 1} update" in said  # without --iters: as many as the run has
        commits.clear()
    assert asked == ["a" * 40]
    commits.append("b" * 40)
    assert main([*words, "--iters", "2", "--seed", "2", *quick, "--dry-run"]) == 0
    assert "[[close it again" in capsys.readouterr().out  # of another run nothing is known


def test_a_start_that_failed_does_not_block_the_corrected_one(base, own, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    wrong = words_for(base, own, out, "--iters", "1", "--set", "adapter.target_modules=[q_prj]")
    assert main(wrong) == 2
    assert "q_prj" in capsys.readouterr().err
    assert main(words_for(base, own, out, "--iters", "1")) == 0


def test_the_same_command_without_iters_says_that_the_run_is_finished(
    base, own, tmp_path, capsys
) -> None:
    out = tmp_path / "run"
    assert main(words_for(base, own, out, "--iters", "1")) == 0
    before = (out / "recipe.json").read_bytes()
    capsys.readouterr()
    assert main(words_for(base, own, out)) == 0
    said = capsys.readouterr().out
    command = f"`softmask generate --adapter {out}/adapter`"
    assert said.startswith(f"{out}/adapter is finished, after 1 update: {command} writes with it")
    assert "--iters N" in said
    assert (out / "recipe.json").read_bytes() == before

    # The same of a run without a result yet: it goes on to the length that it has.
    (out / "done.json").unlink()
    (out / "adapter").rename(tmp_path / "adapter")
    line = failed(capsys, "generate", "hi", "--adapter", f"{out}/adapter")
    assert f"the run in {out} is not finished; give {out}/checkpoint-1" in line
    assert main(words_for(base, own, out)) == 0
    assert "from update 1 of 1" in capsys.readouterr().out


def test_what_an_option_sets_is_named_as_it_was_typed(own, capsys) -> None:
    for option, value in [("--iters", "0"), ("--batch-size", "0"), ("--rank", "0")]:
        line = failed(capsys, "train", "--data", str(own), option, value)
        assert line == f"softmask: error: {option} must be at least 1, not 0"
    assert "error: --learning-rate must be > 0" in failed(
        capsys, "train", "--data", str(own), "--learning-rate", "-1"
    )
    assert "error: --seed must lie in" in failed(capsys, "train", "mix", "--seed", "-1")
    assert "error: --iters must be at least 1" in failed(capsys, "train", "mix", "--iters", "0")


def test_another_recipe_is_named_by_what_differs(settings, tmp_path) -> None:
    train(recipe_of(settings, steps=2), tmp_path / "run", **SILENT)
    other = recipe_of(settings | {"seed": 7}, steps=2, learning_rate=2e-3)
    with pytest.raises(ValueError, match=r"another recipe \(train.learning_rate 0.001 -> 0.002, s"):
        train(other, tmp_path / "run", **SILENT)


def test_an_evaluation_is_named_after_the_run(settings, tmp_path, monkeypatch) -> None:
    train(recipe_of(settings, steps=1), tmp_path / "mine-seed1", **SILENT)
    assert run_or_folder(tmp_path / "mine-seed1" / "adapter") == "mine-seed1"
    monkeypatch.chdir(tmp_path / "mine-seed1" / "adapter")
    assert run_or_folder(Path(".")) == "mine-seed1"
    assert run_or_folder(Path("Dream-org/Dream-v0-Instruct-7B")) == "Dream-v0-Instruct-7B"
