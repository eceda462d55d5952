"""softmask.trace(): a run as arrays, equal to what generate writes and generate --trace records."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json

import numpy as np
import pytest

import softmask
from softmask.cli.main import main

PROMPT = "Sudoku\n0102\n4201\n0003\n2300\nSolution\n"
SETTINGS = {"max_new_tokens": 24, "seed": 3, "temperature": 0.0, "top_p": None, "steps": 8}


@pytest.fixture(scope="module")
def checkpoint():
    return softmask.load(device="cpu")


@pytest.fixture(scope="module")
def run(checkpoint):
    return softmask.trace(checkpoint, PROMPT, against_plain=True, candidates=3, **SETTINGS)


def test_its_arrays_tell_the_run_that_generate_does(checkpoint, run) -> None:
    done = softmask.generate(checkpoint, PROMPT, **SETTINGS)
    assert run.text == done.text == "3142\n4231\n1423\n2314"
    assert run.token_PS.shape == run.entropy_PS.shape == (24, run.steps)
    assert run.candidate_PSK.shape == run.share_PSK.shape == (24, run.steps, 3)
    assert run.token_PS[: len(done.token_ids), -1].tolist() == list(done.token_ids)
    assert (run.committed_P >= 0).all()
    for p, step in enumerate(run.committed_P):
        assert (run.token_PS[p] >= 0).tolist() == [s >= step for s in range(run.steps)]
        assert np.isnan(run.probability_PS[p, step + 1 :]).all()
        assert np.isnan(run.lambda_PS[p, step:]).all()
        assert (run.candidate_PSK[p, step:] == -1).all()
    waits = run.committed_P > 0
    assert ((run.lambda_PS[waits, 0] > 0) & (run.lambda_PS[waits, 0] <= 1)).all()
    assert (run.candidate_probability_PSK[waits, 0, 0] == run.probability_PS[waits, 0]).all()
    assert run.plain.text == softmask.generate(checkpoint, PROMPT, soft_mask=False, **SETTINGS).text
    assert not np.nan_to_num(run.plain.lambda_PS).any()
    assert run.plain.plain is None


def test_it_takes_the_arguments_of_generate() -> None:
    theirs, own = (
        {one.name: one.default for one in inspect.signature(function).parameters.values()}
        for function in (softmask.generate, softmask.trace)
    )
    assert theirs.items() <= own.items()
    assert own.keys() - theirs.keys() == {"against_plain", "candidates"}


def test_it_is_the_run_that_the_command_records(run, tmp_path, capsys) -> None:
    path = tmp_path / "trace.json"
    words = "--max-new-tokens 24 --seed 3 --temperature 0 --top-p 1 --steps 8 --device cpu"
    assert main(["generate", PROMPT, *words.split(), "--trace", str(path)]) == 0
    recorded = softmask.Trace.load(path)
    assert (recorded.token_PS == run.token_PS).all()
    assert np.array_equal(recorded.entropy_PS, run.entropy_PS, equal_nan=True)
    assert recorded.plain is None
    capsys.readouterr()


def test_it_is_saved_by_its_ending(run, tmp_path) -> None:
    for name in ("run.json", "run.html", "run.svg", "run.png"):
        run.save(tmp_path / name)
    again = softmask.Trace.load(tmp_path / "run.json")
    assert again.data == run.data
    assert np.array_equal(again.lambda_PS, run.lambda_PS, equal_nan=True)
    assert json.loads((tmp_path / "run.json").read_text())["format"] == "softmask-trace"
    assert "softmask-data" in (tmp_path / "run.html").read_text()
    assert (tmp_path / "run.svg").read_text().startswith("<svg")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_list_of_prompts_has_a_list_of_runs_each_as_it_is_alone(checkpoint) -> None:
    short = {"max_new_tokens": 4, "steps": 2, "temperature": 0.0, "top_p": None}
    both = softmask.trace(checkpoint, ["One day, Tom", "Once upon a time"], seed=[5, 6], **short)
    alone = softmask.trace(checkpoint, "Once upon a time", seed=6, **short)
    assert both[1].data["runs"][0]["start"]["tokens"] == alone.data["runs"][0]["start"]["tokens"]
    assert (both[1].token_PS == alone.token_PS).all()


def test_infillings_of_unequal_holes_are_traced_as_they_are_written(checkpoint) -> None:
    texts = ["One day,[[2]] went.", "One day,[[9]] to the park."]
    done = softmask.generate(checkpoint, texts, infill=True, seed=3)
    runs = softmask.trace(checkpoint, texts, infill=True, seed=3)
    assert [run.text for run in runs] == [one.text for one in done]
    assert [run.steps for run in runs] == [one.steps for one in done]


def test_a_text_of_a_form_ends_where_the_form_does(checkpoint) -> None:
    form = {"constraint": softmask.Constraint("regex", "[a-z]{4} [a-z]{4,}"), "max_new_tokens": 3}
    done = softmask.generate(checkpoint, "x", seed=3, **form)
    end = softmask.trace(checkpoint, "x", seed=3, **form).data["runs"][0]["end"]
    assert (end["text"], end["finish_reason"]) == (done.text, done.finish_reason)


@pytest.mark.parametrize(
    ("soft_mask", "temperature"),
    [
        ({"mode": "temperature", "temperature": 0.5, "token_temperature": 0.8}, 0.4),
        ({"mode": "temperature", "scale": 0.9}, 1.0),
    ],
)
@pytest.mark.parametrize("sampling", [{"temperature": 0.0, "top_p": None}, {"temperature": 0.7}])
def test_shares_of_feedback_of_all_tokens_are_their_softmax_at_its_temperature(
    checkpoint, soft_mask, temperature, sampling
) -> None:
    settings = {"max_new_tokens": 6, "steps": 3, "seed": 0, "soft_mask": soft_mask, **sampling}
    # At 0.4 nearly nothing is missing behind so many candidates; at 1 the shares are p itself.
    run = softmask.trace(checkpoint, "One day, Tom", candidates=400, **settings)
    seen = run.lambda_PS > 0
    assert seen.any()
    powers = run.candidate_probability_PSK[seen].astype(np.float64) ** (1 / temperature)
    expected = powers / (1 if temperature == 1 else powers.sum(1, keepdims=True))
    assert np.allclose(run.share_PSK[seen], expected, atol=2e-3)
    assert run.share_PSK[seen].sum(1).min() > 0.9


def test_shares_of_a_dense_rule_are_not_known(checkpoint) -> None:
    @softmask.feedback_rule("all_of_it", dense=True)
    def all_of_it(rows):
        return rows.probability_N, rows.logits_NV.softmax(-1)

    settings = {"max_new_tokens": 6, "steps": 3, "seed": 0}
    run = softmask.trace(checkpoint, "One day, Tom", soft_mask={"mode": all_of_it}, **settings)
    fed = run.lambda_PS > 0
    assert fed.any()
    assert np.isnan(run.share_PSK[fed]).all()


def test_a_run_without_its_parts_is_none(tmp_path) -> None:
    run = {"start": {}, "steps": [], "end": {}}
    (tmp_path / "t.json").write_text(
        json.dumps({"format": "softmask-trace", "version": 1, "runs": [run]})
    )
    with pytest.raises(ValueError, match="holds no whole run"):
        softmask.Trace.load(tmp_path / "t.json")


def lose_settings(run) -> None:
    del run["start"]["settings"]


def lose_masks(run) -> None:
    for token in run["start"]["tokens"]:
        token["masked"] = False


def lose_a_piece(run) -> None:
    run["end"]["pieces"].pop()


@pytest.mark.parametrize(
    "damage",
    [
        lose_settings,
        lose_masks,
        lose_a_piece,
        lambda run: run.update(steps=[{}]),
        lambda run: run.update(steps=[5]),
        lambda run: run["steps"][0].update(step="first"),
        lambda run: run["steps"][0]["masked"]["entropy"].pop(),
        lambda run: run["steps"][0]["masked"]["position"].__setitem__(0, 999),
        lambda run: run["steps"][-1]["committed"].update(id=[None]),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_run_is_one_sentence(run, tmp_path, damage, number) -> None:
    data = copy.deepcopy(run.data)
    damage(data["runs"][number])
    (tmp_path / "t.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"t\.json holds no whole run") as caught:
        softmask.Trace.load(tmp_path / "t.json")
    assert "\n" not in str(caught.value)


def test_a_table_has_a_row_for_each_position_and_step(run) -> None:
    pandas = pytest.importorskip("pandas")
    table = run.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 24 * run.steps
    assert table["committed"].sum() == 24
    first = table[(table["position"] == run.position_P[0]) & (table["step"] == run.step_S[0])]
    assert first["entropy"].item() == run.entropy_PS[0, 0]
    assert "candidate_2_share" in table


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, _c: run.save("run.gif"), "run.gif must end in one of .json, .html"),
        (lambda run, _c: run.save("no/such/folder/run.json"), "there is no folder for"),
        (lambda _r, _c: softmask.Trace.load("nothing.json"), "there is no file nothing.json"),
        (lambda _r, c: softmask.trace(c, "a", candidates=0), "candidates must be at least 1"),
        (lambda _r, c: softmask.trace(c, "a", stepz=1), "did you mean 'steps'"),
        (lambda _r, c: softmask.trace(c, "a", agaist_plain=True), "did you mean 'against_plain'"),
        (lambda _r, c: softmask.trace(c, "a", candidates=2.5), "a whole number, not 2.5"),
        (lambda _r, _c: softmask.Trace.load("a.svg"), "a .svg cannot be read again"),
        (
            lambda _r, c: softmask.trace(c, "a", soft_mask=False, against_plain=True),
            "this run is plain already: leave out against_plain",
        ),
    ],
)
def test_a_mistake_is_one_sentence(run, checkpoint, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(run, checkpoint)


def test_what_is_missing_is_said(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="to_pandas needs pandas: pip install pandas"):
        run.to_pandas()
    with pytest.raises(ValueError, match="plots need matplotlib: pip install"):
        run.save(tmp_path / "run.png")
    assert not list(tmp_path.iterdir())
