"""generate(): prompts, holes, seeds and what never appears in a text."""

from __future__ import annotations

import dataclasses
import subprocess

import numpy as np
import pytest
import torch
from processes import ENVIRONMENT, python
from tiny import write_dream_folder, write_json

import softmask
from softmask.config import FEEDBACK_PRESETS, SamplingConfig, SoftMaskConfig
from softmask.decoding import generation
from softmask.decoding.prompts import encode_chat

SOFT = SoftMaskConfig(k=3, scale=0.8, offset=-3.0, steepness=1.0)
MASK = "<|mask|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_dream_folder(tmp_path_factory.mktemp("model") / "dream")
    return softmask.load(folder, device="cpu")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    folder = write_dream_folder(tmp_path_factory.mktemp("model") / "chat", chat=True)
    return softmask.load(folder, device="cpu")


def test_a_single_prompt_gives_one_completion_and_several_a_list(checkpoint) -> None:
    one = softmask.generate(checkpoint, "Hello", max_new_tokens=8)
    assert isinstance(one.text, str)
    assert one.prompt == "Hello"
    assert one.steps <= 8
    many = softmask.generate(checkpoint, ["Hello", "A longer prompt"], max_new_tokens=8)
    assert many[0].text == one.text
    several = softmask.generate(checkpoint, "Hello", max_new_tokens=8, num_return_sequences=3)
    assert [c.prompt for c in several] == ["Hello"] * 3


def test_a_conversation_or_token_ids_are_one_prompt_and_a_list_of_them_several(chatty) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    text = softmask.generate(chatty, "Hello", max_new_tokens=8).text
    one = softmask.generate(chatty, hello, max_new_tokens=8)
    assert one.text == text
    assert [c.text for c in softmask.generate(chatty, [hello, hello], max_new_tokens=8)] == [
        text
    ] * 2
    ids = encode_chat(chatty, hello)
    assert softmask.generate(chatty, ids, max_new_tokens=8).text == text
    assert [c.text for c in softmask.generate(chatty, [ids], max_new_tokens=8)] == [text]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"text": "lo"}]}]
    array = torch.tensor(ids)
    for one in (hello[0], tuple(hello), parts, tuple(ids), array, array.numpy(), list(array)):
        assert softmask.generate(chatty, one, max_new_tokens=8).text == text
    several = (word for word in ("Hello", hello, ids))
    assert [c.text for c in softmask.generate(chatty, several, max_new_tokens=8)] == [text] * 3
    assert len(softmask.generate(chatty, torch.tensor([ids, ids]), max_new_tokens=8)) == 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        (["Hello", ""], "prompt is empty"),
        ([[]], "prompt is empty"),
        (None, "not of type NoneType"),
        (b"Hello", "not of type bytes"),
        ({"input_ids": [1]}, "not of type dict"),
        (["Hello", 3], "not of type int"),
        (torch.tensor(5), "not of type int"),
        (torch.tensor([]), "prompt is empty"),
        ([{"role": "user"}], "message 1 is no message"),
        ([{"role": "user", "content": None}], "content of message 1 is no text"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_by_its_type(chatty, prompt, message) -> None:
    with pytest.raises(ValueError, match=message):
        softmask.generate(chatty, prompt, max_new_tokens=4)


def test_soft_masking_is_asked_for_by_true_false_or_what_changes(checkpoint) -> None:
    def text(soft_mask, own) -> tuple[int, ...]:
        model = dataclasses.replace(checkpoint, soft_mask=own)
        return softmask.generate(model, "Hello", max_new_tokens=10, soft_mask=soft_mask).token_ids

    plain, soft = text(None, None), text(SOFT, None)
    assert plain != soft
    assert text(False, SOFT) == text("checkpoint", None) == plain
    assert text(True, SOFT) == text("checkpoint", SOFT) == text({}, SOFT) == soft
    assert text({"scale": 0.0}, SOFT) == plain
    assert text(dataclasses.asdict(SOFT), None) == soft
    for name in ("spherical", "rcd"):  # for any checkpoint
        preset = softmask.generate(
            dataclasses.replace(checkpoint, soft_mask=None),
            "Hello",
            max_new_tokens=10,
            soft_mask=FEEDBACK_PRESETS[name],
        ).token_ids
        assert text(name, None) == text({"feedback": name}, SOFT) == preset
    assert text({"feedback": "spherical", "scale": 0.0}, SOFT) == plain
    assert text("off", SOFT) == plain
    assert text("published", SOFT) == text({"feedback": "published"}, SOFT) == soft
    for asked, message in [
        ("published", "has no soft-mask parameters"),
        ({"feedback": "off", "k": 2}, "feedback off and k of soft_mask contradict"),
        ({"feedback": "round"}, "feedback must be one of published"),
        (True, "has no soft-mask parameters"),
        ({"k": 2}, "give a scale too"),
        ({"scale": 0.5, "ofset": -1.0}, "did you mean 'offset'"),
        ("on", "must be True, False"),
    ]:
        with pytest.raises(ValueError, match=message):
            text(asked, None)


LEFT = """
import softmask
checkpoint = softmask.load(device="cpu")
early = softmask.Generation(checkpoint, "One day", max_new_tokens=4, seed=1)
for step in early:
    break
late = softmask.Generation(checkpoint, "One day", max_new_tokens=4, seed=1)
for step in late:
    pass
"""


def test_runs_that_were_iterated_over_say_nothing_when_python_exits() -> None:
    command = [*python(), "-c", LEFT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stderr == ""


def test_a_seed_decides_the_text_whatever_stands_beside_it(checkpoint) -> None:
    settings = {"max_new_tokens": 10, "temperature": 1.0, "soft_mask": SOFT}
    batch = softmask.generate(checkpoint, ["One", "Two words", "x"], seed=7, **settings)
    for row, prompt in enumerate(["One", "Two words", "x"]):
        alone = softmask.generate(checkpoint, prompt, seed=7 + row, **settings)
        assert alone.token_ids == batch[row].token_ids
        assert batch[row].seed == 7 + row
    again = softmask.generate(checkpoint, "One", seed=batch[0].seed, **settings)
    assert again.token_ids == batch[0].token_ids
    for same in (np.array(7), np.int64(7), np.array([7]), torch.tensor(7), torch.tensor([7])):
        assert softmask.generate(checkpoint, "One", seed=same, **settings).seed == 7
    unseeded = softmask.generate(checkpoint, "One", **settings)
    repeated = softmask.generate(checkpoint, "One", seed=unseeded.seed, **settings)
    assert unseeded.token_ids == repeated.token_ids


@pytest.mark.parametrize("soft_mask", [None, SOFT])
def test_a_text_with_fewer_masks_takes_no_more_steps_beside_another(checkpoint, soft_mask) -> None:
    texts = ["aa[[3]]bb", "the[[12]]on"]
    options = {"infill": True, "temperature": 1.0, "soft_mask": soft_mask}
    together = softmask.generate(checkpoint, texts, seed=5, **options)
    for row, (text, beside) in enumerate(zip(texts, together, strict=True)):
        alone = softmask.generate(checkpoint, text, seed=5 + row, **options)
        assert (beside.token_ids, beside.forwards) == (alone.token_ids, alone.forwards)
        assert beside.steps == alone.steps
    assert [one.forwards for one in together] == [3, 12]
    # Asked for, they are everybody's.
    same = softmask.generate(checkpoint, texts, seed=5, steps=12, **options)
    assert [one.forwards for one in same] == [12, 12]


def test_a_run_that_failed_has_no_texts(checkpoint) -> None:
    steps = iter(range(3))

    @softmask.commit_rule("fails")
    def fails(rows):
        next(steps, None)
        if next(steps, None) is None:
            raise ArithmeticError("so it goes")
        return rows.probability_N

    run = softmask.Generation(checkpoint, "Hello", max_new_tokens=8, sampling={"alg": "fails"})
    for again in (run.__iter__, run.completions, run.completions, run.__iter__):
        with pytest.raises(Exception, match="so it goes"):
            list(again())
    assert run.last.left_B[0] > 0


def test_a_rule_that_reads_random_numbers_has_to_say_that_it_draws(checkpoint) -> None:
    @softmask.commit_rule("secretly")
    def secretly(rows):
        return rows.uniform_N

    @softmask.commit_rule("openly", draws=True)
    def openly(rows):
        return rows.uniform_N

    with pytest.raises(ValueError, match=r"cannot read uniform_N here \(a commit rule that draws"):
        softmask.generate(checkpoint, "Hello", max_new_tokens=4, alg="secretly", seed=1)
    texts = [
        softmask.generate(checkpoint, "Hello", max_new_tokens=8, alg="openly", seed=1).text
        for _ in "ab"
    ]
    assert texts[0] == texts[1]


def test_the_seconds_of_a_run_are_those_of_its_steps(checkpoint, monkeypatch) -> None:
    now = iter(range(10**6))
    monkeypatch.setattr(generation.time, "perf_counter", lambda: float(next(now)))
    run = softmask.Generation(checkpoint, "Hello", max_new_tokens=8)
    for step in run:
        _ = [next(now) for _ in range(1000)]  # the reader takes its time
        if step.index == 3:
            break
    assert run.completions()[0].seconds == 8


def test_the_mask_and_ids_beyond_the_tokenizer_are_never_written(checkpoint) -> None:
    banned = {checkpoint.model.config.mask_token_id, *range(len(checkpoint.tokenizer), 272)}
    with torch.no_grad():
        checkpoint.model.lm_head.weight[sorted(banned)] *= 20  # the model would love them
    many = softmask.generate(
        checkpoint, ["Hello"] * 4, max_new_tokens=16, temperature=1.5, seed=1, soft_mask=SOFT
    )
    assert not {i for c in many for i in c.token_ids} & banned


def test_the_text_of_the_mask_token_in_a_prompt_is_text(checkpoint, chatty) -> None:
    for one in (checkpoint, chatty):
        run = softmask.Generation(one, f"a {MASK} b", max_new_tokens=4)
        mask_id = one.model.config.mask_token_id
        assert (run.canvas_BL == mask_id).sum() == 4
        assert MASK in one.tokenizer.decode(run.canvas_BL[0, :-4])


def test_holes_are_filled_and_nothing_else_changes(checkpoint) -> None:
    text = f"def f(x):\n    return [[3]] + {MASK}[[2]]\n"
    filled = softmask.generate(checkpoint, text, infill=True)
    before, middle_and_after = filled.text[:21], filled.text[21:]
    assert before == "def f(x):\n    return "
    assert f" + {MASK}" in middle_and_after
    assert filled.text.endswith("\n")
    assert filled.forwards <= 5
    assert not set(filled.token_ids) & set(checkpoint.end_ids)


@pytest.mark.parametrize("text", ["no hole", "a [[0]] b", "[[x]]"])
def test_a_text_without_a_hole_cannot_be_infilled(checkpoint, text) -> None:
    with pytest.raises(ValueError, match="mark holes"):
        softmask.generate(checkpoint, text, infill=True)


@pytest.mark.parametrize("digits", ["1000000", "9" * 5000])
def test_a_hole_beyond_every_context_is_too_long_whatever_its_digits(checkpoint, digits) -> None:
    with pytest.raises(ValueError, match="tokens, but the context is"):
        softmask.generate(checkpoint, f"a [[2]] b [[{digits}]]", infill=True)


def test_the_text_ends_before_the_end_token_and_the_row_stops(checkpoint) -> None:
    mine = softmask.generate(checkpoint, "Hi", max_new_tokens=24, alg="maskgit_plus")
    end = checkpoint.tokenizer.eos_token_id

    def prefer_the_end(_module, _args, output) -> None:
        output[..., end] = 100.0

    bias = checkpoint.model.lm_head.register_forward_hook(prefer_the_end)
    try:
        stopped = softmask.generate(checkpoint, "Hi", max_new_tokens=24)
        penalised = softmask.generate(checkpoint, "Hi", max_new_tokens=24, end_penalty=1000.0)
    finally:
        bias.remove()
    assert mine.finish_reason in ("stop", "length")
    assert (stopped.text, stopped.finish_reason) == ("", "stop")
    assert stopped.forwards < 24
    assert penalised.finish_reason == "length"


def test_a_message_in_parts_is_the_text_that_it_says(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream", chat=True)
    kinds = [{"prompt_starts_with": ["Puzzle"], "max_new_tokens": 3}]
    write_json(folder / "sampling_config.json", {"prompt_kinds": kinds})
    chatty = softmask.load(folder, device="cpu")
    parts = [{"type": "text", "text": "Puz"}, {"type": "text", "text": "zle"}]
    said = [
        softmask.generate(chatty, prompt, seed=1)
        for prompt in ([{"role": "user", "content": parts}], "Puzzle")
    ]
    assert [one.prompt for one in said] == ["Puzzle", "Puzzle"]
    assert said[0].token_ids == said[1].token_ids


def test_the_chat_template_is_used_where_there_is_one(chatty) -> None:
    run = softmask.Generation(chatty, "Hello", max_new_tokens=4, system="Be brief.")
    shown = chatty.tokenizer.decode(run.canvas_BL[0, :-4])
    assert shown == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    raw = softmask.Generation(chatty, "Hello", max_new_tokens=4, chat=False)
    assert chatty.tokenizer.decode(raw.canvas_BL[0, :-4]) == "Hello"


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens"),
        ("x", {"max_new_tokens": -5}, "max_new_tokens"),
        ("x", {"max_new_tokens": 3.5}, "max_new_tokens must be a whole number, not 3.5"),
        ("x", {"max_new_tokens": "8"}, "max_new_tokens must be a whole number, not '8'"),
        ("x", {"max_new_tokens": True}, "max_new_tokens must be a whole number, not True"),
        ("x", {"max_length": 5}, "takes no max_length, .*: give max_new_tokens"),
        ("x", {"max_new_token": 5}, "did you mean 'max_new_tokens'"),
        ("x", {"num_return_sequences": 0}, "num_return_sequences"),
        ("x", {"num_return_sequences": 1.5}, "num_return_sequences must be a whole number"),
        ("x", {"seed": 1.5}, "a seed must be a whole number, not 1.5"),
        ("x", {"seed": [True]}, "a seed must be a whole number, not True"),
        ("x", {"seed": np.array(1.5)}, "a seed must be a whole number, not 1.5"),
        ("x", {"seed": -1}, "seed"),
        ("x", {"seed": 2**63}, "seed"),
        ("x", {"steps": 0}, "steps"),
        ("x", {"tempertaure": 1.0}, "did you mean 'temperature'"),
        ("x", {"top_p": "0.9"}, "top_p must be float"),
        ("x", {"max_new_tokens": 500}, "context"),
        ("x" * 500, {}, "context"),
        ("x", {"chat": True}, "no chat template"),
        ("x\udc80", {}, "half a character"),
        ([5, 272], {}, "token id 272 cannot stand in a text"),
        ([5, -1], {}, "token id -1"),
        ([5, 263], {}, "263 is the mask"),
        ([{"role": "user", "content": "x"}], {}, "through the chat template"),
        ("x", {"system": "y"}, "chat template"),
        ("x", {"constraint": "[a-z]"}, "constraint must be a softmask.Constraint"),
        ("x", {"soft_mask": SoftMaskConfig(k=300, scale=0.5), "max_new_tokens": 8}, "lower k"),
    ],
)
def test_bad_input_is_one_clear_sentence(checkpoint, prompt, arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        softmask.generate(checkpoint, prompt, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ([{"role": "user"}], {}, "message 1 is no message"),
        ([{"role": "user", "content": "x"}, "y"], {}, "message 2 is no message"),
        ([{"role": "user", "content": "[[2]]"}], {"infill": True}, "no holes"),
        ([5, 6], {"system": "Be brief."}, "token ids are taken as they are"),
        ([5, 6], {"infill": True, "steps": 4}, "token ids have no holes"),
        ("[[2]]", {"infill": True, "chat": True, "system": "x"}, "leave out chat, or infill"),
        ("x", {"noise": "float64", "alg": "origin", "temperature": 1.0}, "give another alg"),
    ],
)
def test_a_bad_conversation_is_one_clear_sentence(chatty, prompt, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        softmask.generate(chatty, prompt, **arguments)


def test_a_checkpoint_brings_settings_of_its_own_and_the_caller_wins(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    write_json(folder / "sampling_config.json", {"temperature": 0.7, "block_length": 4})
    checkpoint = softmask.load(folder, device="cpu")
    own = softmask.Generation(checkpoint, "x", max_new_tokens=8).sampling
    assert (own.temperature, own.block_length, own.steps) == (0.7, 4, 8)
    run = softmask.Generation(checkpoint, "x", max_new_tokens=8, sampling={"temperature": 0.0})
    assert (run.sampling.temperature, run.sampling.block_length) == (0.0, 4)
    whole = softmask.Generation(checkpoint, "x", max_new_tokens=8, sampling=SamplingConfig(steps=8))
    assert whole.sampling == SamplingConfig(steps=8)


def test_a_commit_rule_of_the_callers_wins_over_another_of_the_checkpoints(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    own = {"entropy_threshold": 0.4, "surest_anywhere": True}
    write_json(folder / "sampling_config.json", own)
    checkpoint = softmask.load(folder, device="cpu")
    for given in ({"entropy_bound": 0.1}, {"threshold": 0.9}, {"alg": "origin"}, {"alg_temp": 0.5}):
        found = softmask.Generation(checkpoint, "x", max_new_tokens=4, sampling=given).sampling
        assert {name: getattr(found, name) for name in given} == given
        assert (found.entropy_threshold, found.surest_anywhere) == (None, False)
    kept = softmask.Generation(
        checkpoint, "x", max_new_tokens=4, sampling={"block_length": 2}
    ).sampling
    assert (kept.entropy_threshold, kept.surest_anywhere) == (0.4, True)
    with pytest.raises(ValueError, match=r"sampling must be a mapping or a SamplingConfig, not \["):
        softmask.Generation(checkpoint, "x", sampling=[1])


def test_a_kind_of_prompts_has_settings_and_a_length_of_its_own(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    puzzles = {"prompt_starts_with": ["Puzzle"], "sampling": {"alg": "topk_margin"}}
    general = {"temperature": 0.7, "block_length": 4}
    kinds = [puzzles | {"max_new_tokens": 3}]
    write_json(folder / "sampling_config.json", general | {"prompt_kinds": kinds})
    checkpoint = softmask.load(folder, device="cpu")
    story = softmask.Generation(checkpoint, "A Puzzle", max_new_tokens=8)
    assert (story.sampling.temperature, story.sampling.steps) == (0.7, 8)
    puzzle = softmask.Generation(checkpoint, "Puzzle")
    assert puzzle.sampling == SamplingConfig(steps=3, alg="topk_margin")
    ids = checkpoint.tokenizer("Puzzle")["input_ids"]
    assert softmask.Generation(checkpoint, [ids, ids]).sampling == puzzle.sampling
    for same in (ids, np.array(ids), torch.tensor(ids), [np.int64(index) for index in ids]):
        assert checkpoint.kind_of(same) == checkpoint.kind_of("Puzzle")
    holed = softmask.Generation(checkpoint, "Puzzle[[5]]", infill=True)
    assert holed.sampling == SamplingConfig(steps=5, alg="topk_margin")
    own = softmask.Generation(checkpoint, "Puzzle", max_new_tokens=6, sampling={"alg": "entropy"})
    assert own.sampling == SamplingConfig(steps=6)
    with pytest.raises(ValueError, match="ask for each kind by itself"):
        softmask.Generation(checkpoint, ["Puzzle", "A story"])
    both = softmask.Generation(
        checkpoint, ["Puzzle", "A story"], max_new_tokens=6, sampling=SamplingConfig(steps=6)
    )
    assert len(both.completions()) == 2


def test_what_is_decided_from_the_left_only_grows_and_ends_as_the_text(checkpoint) -> None:
    run = softmask.Generation(checkpoint, "Hello", max_new_tokens=16, soft_mask=SOFT)
    seen = ""
    for step in run:
        now = run.decided(step)
        assert now.startswith(seen)
        seen = now
    assert run.completions()[0].text.startswith(seen)
