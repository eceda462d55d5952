"""Given texts on a server: scores of choices, and prompts echoed with log-probabilities."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models import api_models
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from test_server import HELLO, post, serving
from tiny import tiny_model

import softmask
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.likelihood import LikelihoodConfig, Scorer
from softmask.decoding.prompts import encode_chat
from softmask.serving.engine import Engine, Request
from softmask.serving.scoring import ScoreRequest

CHOICES = [" red", " a blue one"]
SOFT = {"k": 3, "scale": 0.8, "offset": -3.0, "steepness": 1.0}
CHAIN = LikelihoodConfig(estimator="chain")


def chain(checkpoint, context: list[int], continuation: list[int], top: int = 0) -> Scorer:
    """The package's own likelihood of one pair."""
    scorer = Scorer(checkpoint.model, [(context, continuation)], CHAIN, top=top)
    while scorer.step(16):
        pass
    return scorer


# Echo.


def test_a_likelihood_task_of_lm_eval_gives_the_chain_of_the_package(
    url, checkpoint, tmp_path, monkeypatch
) -> None:
    """Its own client of completions; it comes with packages to try again that are not needed."""
    monkeypatch.setattr(api_models, "find_spec", lambda name: True)
    for name in ("stop_after_attempt", "wait_exponential"):
        monkeypatch.setattr(api_models, name, lambda *_, **__: None, raising=False)
    monkeypatch.setattr(api_models, "retry", lambda **_: lambda call: call, raising=False)
    tokenizer = str(tmp_path / "words")
    checkpoint.tokenizer.save_pretrained(tokenizer)
    bar = SimpleNamespace(update=lambda _: None)
    monkeypatch.setattr(api_models, "tqdm", lambda **_: bar, raising=False)
    lm = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions",
        model="chat",
        tokenizer=tokenizer,
        tokenizer_backend="huggingface",
        max_length=128,
        batch_size=2,
    )
    data = tmp_path / "data.jsonl"
    data.write_text('{"q": "One day, the hat was", "right": 0}\n{"q": "Two", "right": 1}\n')
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": [choice.strip() for choice in CHOICES],
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}],
    }
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
    samples = found["samples"]["colours"]
    assert len(samples) == 2
    for sample in samples:
        pairs = zip(sample["arguments"], sample["resps"], strict=True)
        for (context, continuation), answer in pairs:
            own = chain(
                checkpoint,
                checkpoint.tokenizer(context)["input_ids"],
                checkpoint.tokenizer(continuation)["input_ids"],
                top=1,
            )
            likely, is_greedy = answer[0]
            assert float(likely) == pytest.approx(-own.estimates()[0].nats, rel=1e-5)
            first = [token.top[0][1] == token.logprob for token in own.tokens()[0]]
            assert str(is_greedy) == str(all(first))


def test_an_echo_is_the_prompt_with_a_share_for_each_token_but_the_first(url, checkpoint) -> None:
    body = {"prompt": "Onè", "echo": True, "max_tokens": 0, "logprobs": 2}
    answer = post(url, "/v1/completions", body).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "Onè"
    logprobs = choice["logprobs"]
    ids = checkpoint.tokenizer("Onè")["input_ids"]
    own = chain(checkpoint, ids[:1], ids[1:]).tokens()[0]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx([one.logprob for one in own], rel=1e-5)
    # Those of the same text, as halves of a character, share an entry.
    assert logprobs["token_logprobs"][1] in logprobs["top_logprobs"][1].values()
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["completion_tokens_details"]["forwards"] == len(ids) - 1


def test_a_text_behind_which_the_model_ends_has_its_likelihood_by_lm_evals_client() -> None:
    """It asks for one token behind the text, which is the end, and wants an entry for that too."""
    model = softmask.load(device="cpu")
    before, after = (
        model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("They all lived happily ever after. The", " end.")
    )
    body = {"prompt": [before + after], "max_tokens": 1, "logprobs": 1, "echo": True}
    with serving(model) as (url, _service):
        answer = post(url, "/v1/completions", {**body, "temperature": 0, "seed": 1234}).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 0
    (found,) = LocalCompletionsAPI.parse_logprobs(answer, ctxlens=[len(before)])
    (own,) = softmask.score(model, before, [after], estimator="chain")
    assert found[0] == pytest.approx(-own.nats, abs=1e-3)


def test_an_echo_comes_before_each_answer_streamed_or_not(url) -> None:
    body = {"prompt": ["One", "Two"], "n": 2, "max_tokens": 3, "seed": 1, "logprobs": 1}
    plain = post(url, "/v1/completions", body).json()["choices"]
    echoed = post(url, "/v1/completions", {**body, "echo": True}).json()["choices"]
    for index, (without, whole) in enumerate(zip(plain, echoed, strict=True)):
        assert whole["text"] == ("One", "Two")[index // 2] + without["text"]
        assert whole["logprobs"]["tokens"][3:] == without["logprobs"]["tokens"]
        starts = whole["logprobs"]["text_offset"]
        assert starts[:4] == [0, 1, 2, 3]
    stream = post(url, "/v1/completions", {**body, "echo": True, "stream": True}).text
    assert stream.count('"text":"One"') == stream.count('"text":"Two"') == 2
    assert stream.endswith("data: [DONE]\n\n")
    alone = {"prompt": "One", "echo": True, "max_tokens": 0, "stream": True}
    events = post(url, "/v1/completions", alone).text
    assert '"text":"One"' in events
    assert '"finish_reason":"length"' in events


@pytest.mark.parametrize("tokens", [[99999], [5, 2**33], [2**63]])
@pytest.mark.parametrize("more", [{"echo": True, "max_tokens": 0}, {"max_tokens": 1}])
def test_ids_beyond_the_vocabulary_are_refused(url, tokens, more) -> None:
    answer = post(url, "/v1/completions", {"prompt": tokens, **more})
    assert answer.status_code == 400
    assert "vocabulary" in answer.json()["error"]["message"]


def test_the_last_tokens_alone_are_scored_where_the_server_says_so(checkpoint) -> None:
    body = {"prompt": "One day", "echo": True, "max_tokens": 0, "logprobs": 0}
    with serving(checkpoint, echo_tokens=2) as (url, _service):
        answer = post(url, "/v1/completions", body).json()
    values = answer["choices"][0]["logprobs"]["token_logprobs"]
    ids = checkpoint.tokenizer("One day")["input_ids"]
    own = chain(checkpoint, ids[:-2], ids[-2:]).tokens()[0]
    assert values[:-2] == [None] * 5
    assert values[-2:] == pytest.approx([one.logprob for one in own], rel=1e-5)


# Choices.


OPTIONS = {
    "masks": {"samples": 8, "guidance": 0.5},
    "chain": {},
    "one_step": {},
    "llada": {"samples": 8, "batch_size": 4, "guidance": 1.5},
}


@pytest.mark.parametrize("estimator", OPTIONS)
@pytest.mark.parametrize("soft_mask", [None, SOFT])
def test_scores_of_a_server_are_those_of_the_package(url, checkpoint, estimator, soft_mask) -> None:
    body = {
        "prompt": "The hat was",
        "choices": CHOICES,
        "seed": 3,
        "softmask": {"estimator": estimator, "soft_mask": soft_mask, **OPTIONS[estimator]},
    }
    answer = post(url, "/v1/score", body).json()
    own = softmask.score(
        checkpoint,
        "The hat was",
        CHOICES,
        estimator=estimator,
        **OPTIONS[estimator],
        seed=3,
        soft_mask=None if soft_mask is None else SoftMaskConfig(**soft_mask),
    )
    assert [one["score"] for one in answer["data"]] == pytest.approx([-o.nats for o in own])
    assert [one["error"] for one in answer["data"]] == pytest.approx([o.error for o in own])
    assert [one["tokens"] for one in answer["data"]] == [o.tokens for o in own]
    assert answer["softmask"]["forwards"] == sum(o.forwards for o in own)


def test_a_chain_and_the_bound_agree_on_one_token_and_spaces_move_on(checkpoint) -> None:
    masks = softmask.score(checkpoint, "A cat", ["x"])
    exact = softmask.score(checkpoint, "A cat", ["x"], estimator="chain")
    assert masks[0].nats == pytest.approx(exact[0].nats, rel=1e-6)
    moved = softmask.score(checkpoint, "A cat ", ["sat"])
    assert moved == softmask.score(checkpoint, "A cat", [" sat"])
    with pytest.raises(ValueError, match="choice 1 is empty"):
        softmask.score(checkpoint, "A cat", [" sat", ""])


def test_a_space_stays_before_a_choice_that_is_token_ids(checkpoint) -> None:
    ids = checkpoint.tokenizer("sat", add_special_tokens=False)["input_ids"]
    before = checkpoint.tokenizer("A cat ", add_special_tokens=False)["input_ids"]
    spaced = softmask.score(checkpoint, "A cat ", [ids])
    assert spaced == softmask.score(checkpoint, before, [ids])
    assert spaced != softmask.score(checkpoint, "A cat", [ids])
    both = softmask.score(checkpoint, "A cat ", [ids, "sat"], estimator="chain")
    alone = [softmask.score(checkpoint, "A cat ", [one], estimator="chain") for one in (ids, "sat")]
    assert [one.nats for one in both] == pytest.approx([one.nats for (one,) in alone], rel=1e-6)


def test_a_conversation_is_scored_as_its_template_has_it(url, checkpoint) -> None:
    answer = post(url, "/v1/score", {"messages": HELLO, "choices": ["Yes"]}).json()
    ids = encode_chat(checkpoint, HELLO)
    own = softmask.score(checkpoint, ids, ["Yes"])
    assert answer["data"][0]["score"] == pytest.approx(-own[0].nats)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "a", "choices": []}, "choices"),
        ({"prompt": "a", "choices": ["b" * 200]}, "the model's window is 128"),
        ({"choices": ["b"]}, "give either prompt or messages"),
        ({"prompt": "a", "choices": [[271]]}, "is the mask"),
        ({"prompt": "a", "choices": ["b"], "softmask": {"samples": 0}}, "samples"),
        (
            {"prompt": "a", "choices": ["b"], "softmask": {"estimator": "llada", "samples": 8}},
            "samples of at least 16",
        ),
        ({"prompt": "a", "choices": ["b"], "softmask": {"batch_size": 8}}, "by itself"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(url, checkpoint, body, said) -> None:
    if body["choices"] == [[271]]:
        body = {**body, "choices": [[checkpoint.model.mask_id]]}
    answer = post(url, "/v1/score", body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("prompt", "choices", "more", "said"),
    [
        ([-5], ["b"], {}, "token id -5 cannot stand"),
        ([10**9], ["b"], {}, "token id 1000000000 cannot stand"),
        ([5], [[1.5]], {}, "token id 1.5 cannot stand"),
        ([5], [[-5]], {}, "token id -5 cannot stand"),
        (["a", "b"], ["c"], {}, "behind one prompt, not several"),
        (None, ["c"], {}, "a prompt is"),
        ("a", 7, {}, "choices are a list of texts, not 7"),
        ("a", iter(()), {}, "there is nothing to score"),
        ([5], [7], {}, "choice 0 is no text and no list of token ids"),
        ([5], ["b"], {"seed": "a"}, "a seed must be a whole number"),
        ([5], ["b"], {"seed": -1}, "a seed must lie between"),
    ],
)
def test_what_the_package_cannot_score_is_refused_in_a_sentence(
    checkpoint, prompt, choices, more, said
) -> None:
    with pytest.raises(ValueError, match=said):
        softmask.score(checkpoint, prompt, choices, **more)


def test_token_ids_are_scored_in_whatever_form_they_come(checkpoint) -> None:
    ids = [5, 6, 7]
    plain = softmask.score(checkpoint, ids, [[8, 9]])
    for same in (torch.tensor(ids), np.array(ids), [np.int64(index) for index in ids]):
        assert softmask.score(checkpoint, same, [torch.tensor([8, 9])]) == plain
    message = {"role": "user", "content": "hi"}
    assert softmask.score(checkpoint, ["One"], ["a"]) == softmask.score(checkpoint, "One", ["a"])
    assert softmask.score(checkpoint, message, ["a"]) == softmask.score(
        checkpoint, [message], ["a"]
    )
    with pytest.raises(ValueError, match="is the mask"):
        softmask.score(checkpoint, [checkpoint.model.mask_id], [[8]])


# On the engine.


def test_a_long_scoring_takes_turns_with_steps_and_with_others() -> None:
    model = tiny_model()
    engine = Engine(model, positions=256)
    mask = model.mask_id
    running = engine.submit(Request((1, 2, *[mask] * 8), SamplingConfig(steps=8)))
    long = engine.score(ScoreRequest((((1,), tuple(range(2, 42))),), CHAIN))
    short = engine.score(ScoreRequest((((1,), (2,)),), CHAIN))
    engine.run_once()
    assert long.scorer is not None
    # A row of 41 tokens: more than the 10 that run, so one at a time.
    assert long.scorer.forwards == 1
    engine.run_once()
    assert short.result(0).finish_reason == "done"
    while engine.run_once():
        pass
    assert running.result(0).finish_reason == "done"
    assert len(long.result(0).tokens[0]) == 40


def test_scoring_ends_when_it_is_cancelled_late_failed_or_shut_down(monkeypatch) -> None:
    model, now = tiny_model(), [0.0]
    engine = Engine(model, positions=256, clock=lambda: now[0])
    pair = ((1,), tuple(range(2, 42)))
    cancelled, late = (
        engine.score(ScoreRequest((pair,), CHAIN, deadline=one)) for one in (None, 5.0)
    )
    cancelled.cancel()
    now[0] = 6.0
    engine.run_once()
    assert cancelled.result(0).finish_reason == "cancelled"
    assert late.result(0).finish_reason == "deadline"
    with monkeypatch.context() as patched:
        patched.setattr(model.model, "forward", None)
        failed = engine.score(ScoreRequest((pair,), CHAIN))
        engine.run_once()
    assert failed.result(0).finish_reason == "failed"
    assert failed.result(0).error is not None
    waiting = engine.score(ScoreRequest((pair,), CHAIN))
    engine.close()
    assert waiting.result(0).finish_reason == "shutdown"
    with pytest.raises(softmask.serving.engine.EngineClosed):
        engine.score(ScoreRequest((pair,), CHAIN))


def test_threads_wait_for_scores_of_an_engine_that_runs() -> None:
    with Engine(tiny_model(), positions=256) as engine:
        found: list[Any] = []

        def ask() -> None:
            found.append(engine.score(ScoreRequest((((1,), (2, 3)),))).result(60))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({one.estimates for one in found}) == 1
