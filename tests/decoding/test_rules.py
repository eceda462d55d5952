"""Rules of one's own by the door of the shipped ones: in Python, commands, files and over HTTP."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from commands import failed
from test_sampler import SOFT, canvas_of, drain, only_mask
from tiny import tiny_model

import softmask
from softmask import rules
from softmask.bench.frontier_cells import choose_cells
from softmask.cli.main import main
from softmask.config import (
    SamplingConfig,
    SoftMaskConfig,
    sampling_to_file,
    soft_mask_from_published,
    soft_mask_to_published,
)
from softmask.decoding.sampler import denoise
from softmask.hub.export import export
from softmask.serving import page
from softmask.serving.engine import Engine, Request
from softmask.shipped_rules import UNMASK_RULES
from softmask.soft_mask import SoftMask
from softmask.training.objective import masked_diffusion_loss

SOURCE = '''
import softmask

@softmask.commit_rule("patient", returns="rows", state={"token": -1, "since": 0})
def patient(rows, *, patience: int = 1):
    """Commits a token that has led for some steps."""
    since_N = (rows.state["since"] + 1) * (rows.tokens_N == rows.state["token"])
    rows.state.update(token=rows.tokens_N, since=since_N)
    return since_N >= patience

@softmask.feedback_rule("trust", state={"steps": 0.0})
def trust(rows, *, rate: float = 0.3):
    """More with every step."""
    rows.state["steps"] = rows.state["steps"] + rate * rows.probability_N
    return rows.state["steps"].clamp(max=1), rows.top_probability_NK

@softmask.stopping_rule("enough")
def enough(text, *, tokens: int = 4):
    """Once so many tokens are written and some steps are over."""
    text.state["steps"] = text.state.get("steps", 0) + 1
    written = text.masks - text.left
    return int(text.generated_L.nonzero()[0][0]) if written >= tokens else None
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module with a rule of each kind, which nothing has imported yet; its name."""
    name = "rules_of_a_test"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def imported(name: str) -> rules.Rule:
    return rules.import_rule(f"{name}:patient")


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_a_rule_that_says_what_a_shipped_one_says_writes_the_same(alg) -> None:
    values = {"maskgit_plus": "probability_N", "topk_margin": "margin_N", "entropy": "entropy_N"}

    @softmask.commit_rule("same")
    def same(rows):
        return (-1 if alg == "entropy" else 1) * getattr(rows, values[alg])

    model = tiny_model()
    canvas, attention = canvas_of(model, [7, 3])
    settings = {"soft_mask": SOFT, "rules": only_mask(model), "attention_mask_BL": attention}
    for more in ({}, {"block_length": 4}):
        own = SamplingConfig(steps=6, alg=same, **more)
        theirs = dataclasses.replace(own, alg=alg)
        assert own.alg == "same"
        one, other = (drain(model, canvas, config, **settings) for config in (own, theirs))
        assert torch.equal(one.canvas_BL, other.canvas_BL)


def test_a_rule_that_draws_follows_from_the_seed_of_its_request() -> None:
    @softmask.commit_rule("lot", draws=True)
    def lot(rows):
        return rows.uniform_N

    assert SamplingConfig(alg="random").is_random
    assert not SamplingConfig(alg="entropy").is_random
    model = tiny_model()
    sampling = SamplingConfig(steps=8, alg=lot)
    ids = (*range(1, 5), *[model.mask_id] * 8)
    request = Request(ids, sampling, rules=only_mask(model), seed=7)
    with Engine(model, positions=64) as engine:
        one, other = (engine.submit(request).result().ids for _ in range(2))
        third = engine.submit(dataclasses.replace(request, seed=8)).result().ids
    assert one == other
    assert one != third


def test_a_feedback_rule_of_the_published_formula_feeds_back_the_same() -> None:
    @softmask.feedback_rule("same")
    def same(rows):
        shares = torch.softmax(rows.top_logits_NK[:, : SOFT.k], dim=-1)
        return torch.sigmoid(rows.steepness * (-rows.entropy_N - rows.offset)), shares

    model = tiny_model()
    canvas, attention = canvas_of(model, [7, 3])
    config = SamplingConfig(steps=6)
    own = dataclasses.replace(SOFT, mode=same)
    settings = {"rules": only_mask(model), "attention_mask_BL": attention}
    runs = [
        list(denoise(model, canvas, config, soft_mask=soft, **settings)) for soft in (own, SOFT)
    ]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.canvas_BL, other.canvas_BL)
        assert other.lambda_BL is None or torch.allclose(one.lambda_BL, other.lambda_BL)


@pytest.mark.parametrize("batched", [False, True])
def test_a_dense_feedback_rule_has_nothing_to_say_where_a_block_is_full(batched) -> None:
    @softmask.feedback_rule("all-of-it", dense=True, batched=batched)
    def all_of_it(rows):
        return rows.probability_N, rows.logits_NV.float().softmax(-1)

    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=12, block_length=4, cache="dual")
    soft = SoftMaskConfig(mode="all-of-it", scale=0.5)
    end = drain(model, canvas, config, rules=only_mask(model), soft_mask=soft)
    assert end.left_B == (0,)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_rules_keep_follows_texts_that_enter_and_leave_a_batch(mine, temperature) -> None:
    imported(mine)
    model = tiny_model()
    mask = model.config.mask_token_id
    config = SamplingConfig(
        steps=9, alg="patient", alg_options={"patience": 2}, temperature=temperature
    )
    soft = SoftMaskConfig(mode="trust", scale=0.6, k=2, options={"rate": 0.2})
    requests = [
        Request(
            (*range(1, 3 + n), *[mask] * (5 + n)),
            config,
            soft_mask=soft,
            rules=only_mask(model),
            seed=n,
        )
        for n in range(4)
    ]

    def run(engine, some):
        handles = [engine.submit(request) for request in some]
        while engine.run_once():
            pass
        results = [handle.result() for handle in handles]
        assert not any(result.error for result in results)
        return [(result.ids, result.forwards) for result in results]

    def fresh():
        return Engine(model, positions=24, k=2)  # room for two at a time

    together = run(fresh(), requests)
    assert together == [run(fresh(), [request])[0] for request in requests]
    assert max(forwards for _, forwards in together) < 9


def test_a_stopping_rule_gives_up_what_is_left(mine) -> None:
    imported(mine)
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=12, stop_rule="enough", stop_options={"tokens": 3})
    steps = list(denoise(model, canvas, config, rules=only_mask(model)))
    # The published schedule commits none in its first step.
    assert [step.left_B[0] for step in steps[:4]] == [12, 11, 10, 0]


def test_a_rule_of_chances_is_done_after_its_steps() -> None:
    @softmask.commit_rule("never", returns="chances")
    def never(rows):
        return torch.zeros(len(rows.position_N))

    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    steps = list(denoise(model, canvas, SamplingConfig(steps=3, alg=never), rules=only_mask(model)))
    assert [step.left_B for step in steps] == [(12,), (12,), (0,)]


@pytest.mark.parametrize("alg_temp", [None, 0.5, 1e-6])
def test_what_a_rule_scores_with_minus_infinity_comes_last_and_comes(alg_temp) -> None:
    @softmask.commit_rule("avoid")
    def avoid(rows):
        return rows.probability_N.masked_fill(rows.position_N % 3 == 0, -torch.inf)

    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=12, alg=avoid, alg_temp=alg_temp, step_schedule="even")
    steps = list(denoise(model, canvas, config, rules=only_mask(model)))
    avoided = [int(step.committed_BL[0].nonzero()) % 3 == 0 for step in steps]
    assert avoided == [False] * 8 + [True] * 4


def test_a_rule_reads_where_a_position_is_and_how_far_its_text() -> None:
    seen = []

    @softmask.commit_rule("look")
    def look(rows):
        names = ("position_N", "block_position_N", "step_N", "left_N", "lambda_N", "commits_N")
        seen.append([getattr(rows, name).tolist() for name in names])
        return -rows.position_N.float()

    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=12, alg=look, block_length=6, eps=1e-3)
    drain(model, canvas, config, rules=only_mask(model), soft_mask=SOFT)
    first, last = seen[0], seen[-1]
    assert first[:4] == [[*range(5, 11)], [*range(6)], [0] * 6, [1.0] * 6]
    assert first[4] == [0.0] * 6
    assert last[0][-1] == 16
    assert last[3][0] < 0.2
    assert all(0 < weight < 1 for weight in last[4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingConfig(alg="patence"), "alg must be one of origin, .*, patient, not"),
        (lambda: SamplingConfig(alg="threshold"), "threshold is a setting of its own"),
        (lambda: SamplingConfig(alg_options={"x": 1}), "the commit rule entropy takes none"),
        (
            lambda: SamplingConfig(alg="patient", alg_options={"patence": 1}),
            "unknown setting 'patence'; did you mean 'patience'",
        ),
        (
            lambda: SamplingConfig(alg="patient", alg_options={"patience": "2"}),
            "patience must be int, not '2'",
        ),
        (lambda: SamplingConfig(alg="patient", factor=1.0), "different rules: give one of them"),
        (lambda: SamplingConfig(alg="patient", alg_temp=0.5), "by chance"),
        (
            lambda: SamplingConfig(stop_rule="patient"),
            "stop_rule must be one of end, first_end, enough.*, which is a commit rule, for alg",
        ),
        (lambda: SamplingConfig(alg="trust"), "is a feedback rule, for soft-mask mode"),
        (lambda: SamplingConfig(alg=rules.find("feedback", "trust")), "trust is a feedback rule"),
        (lambda: SamplingConfig(alg="gone"), "not 'gone': .* --rules MODULE or as MODULE:NAME"),
        (lambda: SoftMaskConfig(mode="thrust"), "soft-mask mode must be one of topk"),
        (lambda: SoftMask(0.5, mode="trust"), "trust needs the steps of one text"),
        (lambda: softmask.commit_rule("entropy")(lambda rows: 0), "a commit rule entropy already"),
        (lambda: softmask.commit_rule("a:b"), "'a:b' is no name of a rule"),
        (lambda: softmask.commit_rule("x")(lambda rows, k=1: 0), "x: k must be keyword-only"),
        (lambda: SamplingConfig(alg=["entropy"]), r"alg must be the name of a rule, not \['ent"),
        (lambda: SoftMaskConfig(mode=["topk"]), "soft-mask mode must be the name of a rule, not"),
        (lambda: SamplingConfig(alg=ordered_by("nope")), "rule by_nope: order must be .* 'nope'"),
        (lambda: SamplingConfig(alg=ordered_by("patient")), "order must be .*, not patient"),
        (lambda: SamplingConfig(alg=ordered_by("threshold")), "order must be .*, not threshold"),
        (lambda: SamplingConfig(alg=ordered_by("origin")), "order must be .*, not origin"),
        (lambda: with_option(Sequence[float]), "commit rule x: its option w cannot be set: give"),
        (lambda: with_option(tuple[float, int, int]), "x: its option w cannot be set"),
        (lambda: with_option(list[float], [1.0]), "x: its option w cannot be set"),
        (lambda: with_option("Gone"), "commit rule x: a type of its options is unknown .*'Gone'"),
        (lambda: with_option(float, "a"), "x: the default of w must be float, not 'a'"),
        (lambda: softmask.commit_rule("x", options=3), "x: options must be a dataclass, not 3"),
        (lambda: softmask.commit_rule(lambda rows: 0), r'write @commit_rule\("NAME"\)'),
        (lambda: softmask.stopping_rule(3), "3 is no name of a rule"),
        (lambda: softmask.commit_rule("x", returns="x"), "returns must be one of scores, rows"),
        (lambda: softmask.commit_rule("x", returns=[]), "returns must be one of scores, rows"),
        (lambda: softmask.commit_rule("x", frontier=5), "frontier must be a list of mappings"),
        (lambda: softmask.commit_rule("x", top=0), "top must be an int of at least 1, not 0"),
        (lambda: softmask.commit_rule("x")(lambda: 0), "as its first parameter"),
        (lambda: softmask.commit_rule("x")(3), "the commit rule x must decorate a function, not 3"),
        (lambda: softmask.commit_rule("x", state=["a"]), "state must be a mapping"),
        (lambda: softmask.commit_rule("x", state={"a": None}), "x: state a must begin as a bool"),
        (lambda: softmask.feedback_rule("x", state={"a": "s"}), "a float, not 's'"),
        (lambda: softmask.feedback_rule("x", state={3: 0}), "must be a text, not 3"),
    ],
)
def test_a_mistake_about_rules_is_one_sentence(mine, make, message) -> None:
    imported(mine)
    with pytest.raises(ValueError, match=message):
        make()


def ordered_by(order):
    """A rule that says which rows commit, and leaves the least number to another one."""
    return softmask.commit_rule(f"by_{order}", returns="rows", order=order)(
        lambda rows: rows.probability_N > 0.9
    )


def with_option(kind, default=None):
    """A rule with an option of this type."""

    def rule(rows, *, w=default):
        return rows.entropy_N

    rule.__annotations__["w"] = kind
    return softmask.commit_rule("x")(rule)


def test_options_may_be_choices_lists_and_mappings() -> None:
    @softmask.commit_rule("choosy")
    def choosy(
        rows,
        *,
        kind: Literal["sure", "left"] = "sure",
        most: Literal[1, 2] | None = None,
        weights: tuple[float, ...] = [1],
        names: dict[str, int] = {},  # noqa: B006
    ):
        assert isinstance(weights, tuple)
        return {"sure": -rows.entropy_N, "left": -rows.position_N.float()}[kind] * weights[0]

    given = {"kind": "left", "most": np.int64(2), "weights": [2, 3], "names": {"a": 1}}
    config = SamplingConfig(steps=12, alg=choosy, alg_options=given)
    assert config.alg_options == given | {"weights": (2.0, 3.0)}
    assert type(config.alg_options["most"]) is int
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    settings = {"rules": only_mask(model)}
    by_hand = drain(model, canvas, SamplingConfig(steps=12, alg="sequential"), **settings)
    assert drain(model, canvas, config, **settings).canvas_BL.equal(by_hand.canvas_BL)
    drain(model, canvas, SamplingConfig(steps=2, alg=choosy), **settings)
    for options, message in (
        ({"kind": "right"}, "kind must be one of 'sure', 'left', not 'right'"),
        ({"most": True}, r"most must be one of 1, 2 \| null, not True"),
        ({"weights": 1.0}, r"weights must be tuple\[float, ...\], not 1.0"),
    ):
        with pytest.raises(ValueError, match=f"alg_options of choosy: {message}"):
            SamplingConfig(alg=choosy, alg_options=options)


def test_a_rule_that_is_sent_to_another_process_is_the_one_of_its_name_there(mine) -> None:
    rule = imported(mine)
    assert pickle.loads(pickle.dumps(rule)) is copy.deepcopy(rule) is rule
    sent = pickle.dumps({"alg": rule})
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['alg'])"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, input=sent, capture_output=True, check=True)
    assert said.stdout.split() == [b"the", b"commit", b"rule", b"patient"]


def test_options_may_have_ranges() -> None:
    @dataclasses.dataclass(frozen=True)
    class Range:
        most: float = 0.5

        def __post_init__(self) -> None:
            if self.most > 1:
                raise ValueError(f"most must be at most 1, not {self.most}")

    rule = softmask.commit_rule("ranged", options=Range)(lambda rows, most: rows.entropy_N)
    assert SamplingConfig(alg=rule, alg_options={"most": 1}).alg_options == {"most": 1.0}
    with pytest.raises(ValueError, match="alg_options of ranged: most must be at most 1"):
        SamplingConfig(alg=rule, alg_options={"most": 2.0})


def test_settings_with_rules_are_kept_in_files(mine) -> None:
    imported(mine)
    sampling = SamplingConfig(alg="patient", alg_options={"patience": 3})
    assert sampling_to_file(sampling) == {"alg": "patient", "alg_options": {"patience": 3}}
    soft = SoftMaskConfig(mode="trust", scale=0.5, options={"rate": 0.1})
    written = soft_mask_to_published(soft)
    assert written["transparency_alg"] == "trust"
    assert soft_mask_from_published(written, "a file") == soft


def test_training_takes_a_batched_feedback_rule_and_learns_how_strong_it_is() -> None:
    @softmask.feedback_rule("margin", batched=True)
    def margin(rows, *, power: float = 1.0):
        return rows.margin_N**power

    model = tiny_model()
    model.soft_mask = SoftMask(0.5, mode="margin", k=1, options={"power": 2.0})
    ids = torch.randint(1, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    masked = torch.arange(9).expand(2, 9) % 2 == 1
    noisy = ids.masked_fill(masked, model.config.mask_token_id)
    loss = masked_diffusion_loss(
        model,
        noisy_BL=noisy,
        ids_BL=ids,
        masked_BL=masked,
        times_B=torch.tensor([0.5, 0.5]),
        soft=True,
    )
    loss.value.backward()
    assert model.soft_mask.raw_scale.grad.abs() > 0
    assert not model.soft_mask.raw_offset.grad.any()


def test_commands_take_a_rule_by_its_place_and_list_it(mine, capsys, model) -> None:
    words = ["generate", "One day", "--model", str(model), "--device", "cpu", "--raw", "--json"]
    words += ["--max-new-tokens", "8", "--seed", "1"]
    own = ["--alg", f"{mine}:patient", "--alg-options", "patience=1", "--soft-mask-mode", "trust"]
    assert main([*words, *own, "--stop-rule", "enough", "--stop-options", '{"tokens": 5}']) == 0
    out = capsys.readouterr().out
    assert '"alg": "patient", "alg_options": {"patience": 1}' in out
    assert '"mode": "trust"' in out
    with pytest.raises(SystemExit):
        main(["generate", "--rules", mine, "--help-all"])
    assert "also patient" in " ".join(capsys.readouterr().out.split())
    for words, message in (
        (["--alg", f"{mine}:patience"], f"patience in {mine} is no rule"),
        (["--alg", "nothing_here:x"], "there is no module nothing_here"),
        (["--rules", "nothing_here"], "there is no module nothing_here"),
        (["--alg-options", "patience"], "write NAME=VALUE"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["generate", "x", *words])
        assert message in capsys.readouterr().err
    assert "unknown setting 'x'" in failed(
        capsys, "generate", "a", "--model", str(model), "--alg", "patient", "--alg-options", "x=1"
    )


def test_an_export_refuses_a_rule_that_it_cannot_bring(mine, tmp_path, model) -> None:
    imported(mine)
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    soft = SoftMaskConfig(mode="trust", scale=0.5)
    (folder / "transparency_config.json").write_text(json.dumps(soft_mask_to_published(soft)))
    assert softmask.load(folder, device="cpu").soft_mask == soft
    with pytest.raises(ValueError, match="feeds back by the rule trust"):
        export(tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


def test_a_name_imports_nothing(mine) -> None:
    for name in (f"{mine}:patient", mine):
        with pytest.raises(ValueError, match="alg must be one of"):
            SamplingConfig(alg=name)
    assert mine not in sys.modules


def test_the_page_and_the_frontier_list_rules_by_themselves(mine) -> None:
    imported(mine)
    fields = [field for group in page.settings() for field in group["fields"]]
    (alg,) = [field for field in fields if field["name"] == "softmask.alg"]
    assert alg["choices"] == [*UNMASK_RULES, "patient"]
    assert [cell.name for cell in choose_cells("full,patient")] == ["full", "patient"]
    assert "patient" in [cell.name for cell in choose_cells(None)]
    (one,) = choose_cells("patient")
    assert choose_cells(f"patient,{one.name}") == [one]


def test_installed_packages_bring_rules(mine, monkeypatch) -> None:
    points = [importlib.metadata.EntryPoint("patient", f"{mine}:patient", rules.GROUP)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(rules, "_is_loaded", False)
    assert SamplingConfig(alg="patient").adaptive
    assert rules.names("stopping") == ["end", "first_end", "enough"]
    points[0] = importlib.metadata.EntryPoint("gone", "no_such_module:x", rules.GROUP)
    monkeypatch.setattr(rules, "_is_loaded", False)
    with pytest.raises(ValueError, match="the rule gone of a package cannot be loaded"):
        rules.names("commit")
