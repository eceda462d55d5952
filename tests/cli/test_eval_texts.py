"""softmask eval ppl and samples, as a user types them."""

from __future__ import annotations

import importlib.util
import json
import statistics

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import softmask
from softmask.cli.main import main
from softmask.decoding.prompts import encode
from softmask.evaluation.text_quality import unigram_entropy

TEXT = "on and on and then there was nothing more to be said about the other one " * 6


def result(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A tiny causal model, and its tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("scorer")
    words = {word: i for i, word in enumerate(["<s>", "?", *sorted(set(TEXT.split()))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="?").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "vocab_size": len(words), "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    return folder


def test_perplexity_compares_plain_and_soft_on_the_same_masks(model, tmp_path, capsys) -> None:
    data = tmp_path / "held.txt"
    data.write_text(TEXT)
    out = tmp_path / "ppl"
    words = ["eval", "ppl", "--data", str(data), "--model", str(model), "--device", "cpu"]
    words += ["--length", "32", "--times", "4", "--steps", "8", "--out", str(out)]
    assert main([*words, "--batch-size", "auto"]) == 0
    table = capsys.readouterr().out
    assert all(way in table for way in ("plain", "fresh", "stale"))
    found = result(out)
    whole = found["whole"]
    gain = whole["fresh"]["nats"] - whole["plain"]["nats"]
    assert whole["fresh_minus_plain"]["nats"] == pytest.approx(gain)
    assert gain != 0
    run = json.loads((out / "run.json").read_text())
    assert run["soft_mask"]["mixinputs_k"] == 2
    assert run["ppl"]["held_out"]["times"] == 4
    least, most = run["batching"]["rows"]
    assert least == most > 1
    assert set(run["batching"]) == {"memory_mb", "of", "rows", "limited_by", "out_of_memory"}
    assert "batching" not in found
    assert main([*words, "--overwrite", "--no-soft-mask"]) == 0
    assert result(out)["whole"]["plain"] == whole["plain"]
    assert result(out)["whole"]["fresh"] is None


def test_a_bound_that_could_not_be_measured_leaves_its_folder_to_the_corrected_command(
    model, tmp_path, capsys
) -> None:
    data = tmp_path / "held.txt"
    data.write_text(TEXT * 16)
    words = ["eval", "ppl", "--data", str(data), "--model", str(model), "--device", "cpu"]
    words += ["--times", "1", "--no-soft-mask", "--out", str(tmp_path / "ppl"), "--length"]
    assert main([*words, "5000"]) == 2
    assert "lower the length" in capsys.readouterr().err
    assert main([*words, "32"]) == 0
    assert main([*words, "64"]) == 2
    assert "holds an evaluation with another ppl" in capsys.readouterr().err


def test_samples_are_written_kept_and_measured(model, scorer, tmp_path, capsys) -> None:
    out = tmp_path / "samples"
    words = ["eval", "samples", "--model", str(model), "--device", "cpu", "--count", "5"]
    words += ["--prompt", "on and", "--max-new-tokens", "12", "--batch-size", "2"]
    words += ["--scorer", str(scorer), "--out", str(out)]
    assert main(words) == 0
    assert "generative perplexity" in capsys.readouterr().out
    found = result(out)
    assert len(set(found["texts"])) == 5
    assert all(text.startswith("on and") for text in found["texts"])
    assert found["generative_perplexity"] > 1
    assert found["samples"] == 5
    kept = (out / "responses.0.jsonl").read_text().splitlines()
    assert len(kept) == 5
    # What was given is no part of what is judged.
    written = [text.removeprefix("on and") for text in found["texts"]]
    entropies = [unigram_entropy(encode(softmask.load(model, device="cpu"), t)) for t in written]
    assert found["unigram_entropy"] == pytest.approx(statistics.fmean(entropies))
    # A stop between the texts and their measures costs none of the texts.
    (out / "results.json").unlink()
    assert main(words) == 0
    assert result(out) == found
    assert (out / "responses.0.jsonl").read_text().splitlines() == kept


def test_given_texts_are_measured_as_they_are(model, tmp_path) -> None:
    texts = tmp_path / "texts.jsonl"
    # With a byte order mark, and a character in a text that some take for the end of a line.
    texts.write_text('\ufeff{"text": "on on on on on on"}\n{"text": "then there\u2028was"}\n')
    out = tmp_path / "samples"
    words = ["eval", "samples", "--texts", str(texts), "--model", str(model), "--device", "cpu"]
    assert main([*words, "--out", str(out)]) == 0
    found = result(out)
    assert found["texts"] == ["on on on on on on", "then there\u2028was"]
    assert found["repetition_4"] > 0
    assert found["generative_perplexity"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppl", "--data", "no.txt"], "there is no file no.txt"),
        (["ppl", "--data", "{tmp}/bad.jsonl"], 'line 2: expected {"text": "..."}'),
        (["ppl", "--data", "{tmp}/number.jsonl"], "line 1: `text` is no text"),
        (["ppl", "--data", "{tmp}/bad.bin"], "is not UTF-8"),
        (["ppl", "--data", "{tmp}/one.txt"], "no two tokens in a row"),
        (["ppl", "--data", "{tmp}/ok.txt", "--times", "0"], "times must be at least 1"),
        (["ppl", "--data", "{tmp}/ok.txt", "--limit", "0"], "--limit must be at least 1"),
        (["ppl", "--data", "{tmp}/ok.txt", "--length", "5000"], "model's own is 1024"),
        (["samples", "--count", "0"], "--count must be at least 1"),
        (["samples", "--texts", "{tmp}/ok.txt", "--count", "3"], "leave out --count"),
        (["samples", "--texts", "{tmp}/ok.txt", "--prompt", "x"], "leave out --prompt"),
        (["samples", "--references", "{tmp}/ok.txt"], "needs --scorer"),
        (
            ["samples", "--count", "1", "--max-new-tokens", "4", "--scorer", "{tmp}"],
            "cannot score texts",
        ),
        (["samples", "--references", "{tmp}/none.txt", "--scorer", "{tmp}"], "empty reference"),
    ],
)
def test_bad_input_is_one_sentence(model, tmp_path, words, message, capsys) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "bad.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "ok.txt").write_text(TEXT * 40)
    words = [word.format(tmp=tmp_path) for word in words]
    place = ["--model", str(model), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["eval", *words, *place]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("softmask: error: ")
    assert message in error
    if words[0] == "samples":  # nothing is written before all is known to be there
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--tasks", "countdown_cd3_plain"],
        ["eval", "--tasks", "countdown_cd3_plain", "--gen-kwargs", "max_gen_toks=3"],
        ["eval", "suite", "puzzles"],
        ["eval", "samples", "--count", "1"],
        ["lm_eval", "--tasks", "gsm8k"],
    ],
)
def test_without_the_harness_it_says_what_to_install(words, tmp_path, capsys, monkeypatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "lm_eval" else find_spec(name)
    )
    assert main(words) == 2
    assert "pip install 'softmask[eval]'" in capsys.readouterr().err
    assert list(tmp_path.glob("evals/*/results.json")) == []
