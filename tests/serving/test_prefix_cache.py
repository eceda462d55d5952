"""Prefixes of earlier requests: what comes out is the same, and only what is new is computed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass

import httpx2 as httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_server import serving
from tiny import tiny_model

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.kv_cache import bytes_per_position
from softmask.decoding.prefix_cache import PrefixCache
from softmask.serving.config import ServeConfig
from softmask.serving.engine import Engine, Request, Result
from softmask.serving.service import Service

BLOCK = 4
START = tiny_model(block_size=BLOCK, logit_shift=False)
SHIFTED = tiny_model(block_size=BLOCK, logit_shift=True)
FROM_PROMPT = tiny_model(block_size=BLOCK, logit_shift=False, block_origin="prompt")
MASK = START.mask_id
TEMPERED = SoftMaskConfig(mode="temperature", scale=0.5)
SOFT = SoftMaskConfig(k=3, scale=0.8, offset=-3.0, steepness=1.0)
BLOCK_MB = BLOCK * bytes_per_position(START) / 2**20


def request(prompt: tuple[int, ...], masks: int = 8, **more) -> Request:
    sampling = {"steps": masks, "threshold": 0.1, "cache": "exact", **more.pop("sampling", {})}
    return Request((*prompt, *[MASK] * masks), SamplingConfig(**sampling), top_logprobs=2, **more)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, MASK, length).tolist())


def engine(model=START, blocks: int = 64, **more) -> Engine:
    """With room for so many blocks of earlier requests."""
    return Engine(model, positions=256, prefix_cache_mb=blocks * BLOCK_MB, **more)


def run(one: Engine, *requests: Request) -> list[Result]:
    """They run side by side, to their end."""
    handles = [one.submit(asked) for asked in requests]
    while one.run_once():
        pass
    return [handle.result() for handle in handles]


@dataclass
class Computed:
    """Columns that a model's forwards have computed."""

    columns: int = 0


@pytest.fixture
def computed():
    """Counts what START and SHIFTED compute."""
    count = Computed()

    def add(_layer, given, keywords) -> None:
        x = given[0] if given else keywords["hidden_states"]
        count.columns += x.shape[1]

    hooks = [
        model.model.layers[0].register_forward_pre_hook(add, with_kwargs=True)
        for model in (START, SHIFTED)
    ]
    yield count
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    "soft", [pytest.param(None, id="plain", marks=pytest.mark.slow), pytest.param(SOFT, id="soft")]
)
@pytest.mark.parametrize("model", [START, SHIFTED], ids=["start", "shifted"])
def test_a_second_turn_computes_what_is_new_alone(model, soft, computed) -> None:
    kept, anew = engine(model), engine(model, blocks=0)
    said = prompt(13)
    for turn in range(3):
        asked, columns, logprobs = request(said, 12, soft_mask=soft), [], []
        for one in (kept, anew):
            computed.columns, handle = 0, one.submit(asked)
            while one.run_once():
                pass
            columns.append(computed.columns)
            result, events = handle.result(), handle.pending()
            logprobs.append([event.logprobs.logprob_N for event in events])
            assert {event.cached_tokens for event in events} == {result.cached_tokens}
            if one is anew:
                assert result.cached_tokens == 0
            else:
                reused, ids = result.cached_tokens, result.ids
        assert ids == result.ids
        for with_, without in zip(*logprobs, strict=True):
            np.testing.assert_allclose(with_, without, rtol=1e-4, atol=1e-4)
        # All blocks of the turn before, its answer included, but for the last one: that one was
        # never computed as text. It had a single column of 25, and four of 40.
        assert reused == (0, 24, 36)[turn]
        assert columns[1] - columns[0] == reused
        said = (*ids, *prompt(3, seed=turn))


def test_blocks_that_begin_at_the_prompts_end_are_reused_where_they_lie_alike() -> None:
    one, said = engine(FROM_PROMPT), prompt(14)
    first = run(one, request(said))[0]
    longer = (*first.ids[:20], *prompt(2))  # 22 columns, as 14 two more than whole blocks
    for asked, reused in ((longer, 18), ((*longer, 5), 0)):
        with_, without = (run(e, request(asked))[0] for e in (one, engine(FROM_PROMPT, blocks=0)))
        assert with_.ids == without.ids
        assert with_.cached_tokens == reused


def test_a_prompt_is_reused_while_its_first_request_still_runs() -> None:
    one, said = engine(), prompt(16)
    first = one.submit(request(said, 12))
    for _ in range(2):
        one.run_once()
    assert not first.is_over
    second = run(one, request((*said, 3), 5))[0]
    assert second.cached_tokens == 16
    assert run(engine(blocks=0), request((*said, 3), 5))[0].ids == second.ids


def test_what_is_kept_is_of_tokens_alone_whatever_the_settings() -> None:
    ways = [
        {"soft_mask": SOFT},
        {"soft_mask": TEMPERED, "sampling": {"temperature": 0.9}, "seed": 3},
        {"sampling": {"commit_from": "plain"}, "soft_mask": SOFT},
        {"sampling": {"block_length": 2}},
    ]
    for before, after in itertools.pairwise([*ways, ways[0]]):
        one, said = engine(), prompt(9)
        first = run(one, request(said, **before))[0]
        asked = request((*first.ids, 7), 4, **after)
        later = run(one, asked)[0]
        assert later.cached_tokens == 16
        assert later.ids == run(engine(blocks=0), asked)[0].ids
    # A guided request has two branches, and without a cache every column is computed.
    for apart in ({"guidance": 0.5}, {"cache": "none"}):
        one = engine()
        run(one, request(said))
        held = one.stats().prefixes
        assert run(one, request(said, sampling=apart))[0].cached_tokens == 0
        assert one.stats().prefixes == held


def test_requests_of_different_salts_share_nothing() -> None:
    one, said = engine(), prompt(12)
    found = [run(one, request(said, cache_salt=salt))[0] for salt in ("", "a", "a", "b", "")]
    assert [result.cached_tokens for result in found] == [0, 0, 12, 0, 12]
    assert len({result.ids for result in found}) == 1


def test_the_block_that_was_used_longest_ago_makes_room_and_none_before_those_behind_it() -> None:
    one = engine(blocks=5)
    shared = prompt(8)
    left, right = ((*shared, *prompt(4, seed)) for seed in (1, 2))
    for said in (left, right, left):
        run(one, request(said, 1))
    # Two shared blocks and one of each; of the answers nothing was computed as text.
    stats = one.stats().prefixes
    assert (stats.bytes, stats.evictions) == (4 * BLOCK_MB * 2**20, 0)
    assert (stats.queries, stats.hits, stats.tokens) == (3, 2, 8 + 12)
    run(one, request(prompt(8, seed=3), 1))  # takes what is free and what `right` had alone
    stats = one.stats().prefixes
    assert (stats.bytes, stats.evictions) == (5 * BLOCK_MB * 2**20, 1)
    assert [run(one, request(said, 1))[0].cached_tokens for said in (left, right)] == [12, 8]
    # A text longer than the memory leaves its beginning.
    said = prompt(40, seed=4)
    run(one, request(said, 1))
    assert run(one, request(said, 1))[0].cached_tokens == 5 * BLOCK


SAID = st.tuples(
    st.integers(0, 2),  # which text it begins as
    st.integers(1, 24),  # for how long
    st.lists(st.integers(0, 5), max_size=3).map(tuple),  # and what comes then
    st.integers(1, 9),  # masks
    st.integers(0, 3),  # steps of the engine before the next one comes
    st.sampled_from([None, None, 0, 2]),  # when all are there: it is cancelled after so many more
    st.sampled_from(["", "", "salt"]),
)
MODELS = st.sampled_from([START, SHIFTED, FROM_PROMPT])
BLOCKS = st.sampled_from([1, 2, 5, 12])


def answers_are_the_same(model, blocks, asked) -> None:
    """With and without kept prefixes, whatever comes, waits and is cancelled."""
    one, runs = engine(model, blocks=blocks, running=3), []
    for text, length, more, masks, steps, ends, salt in asked:
        own = request(
            (*prompt(24, seed=text)[:length], *more),
            masks,
            cache_salt=salt,
            soft_mask=SOFT if length % 2 else None,
        )
        runs.append((own, one.submit(own), ends))
        for _ in range(steps):
            one.run_once()
    for step in itertools.count():
        for _, handle, ends in runs:
            if step == ends:
                handle.cancel()
        if not one.run_once():
            break
        assert one.stats().prefixes.bytes <= blocks * BLOCK_MB * 2**20
    anew = engine(model, blocks=0)
    for own, handle, _ in runs:
        alone, result = run(anew, own)[0].ids, handle.result()
        assert result.cached_tokens <= own.ids.index(MASK)
        assert result.ids == alone or result.finish_reason == "cancelled"
        # What was left behind by those that were cancelled serves as well.
        assert run(one, own)[0].ids == alone


@given(model=MODELS, blocks=BLOCKS, asked=st.lists(SAID, min_size=2, max_size=5))
@settings(max_examples=3, deadline=None)
def test_whatever_comes_and_goes_answers_are_the_same(model, blocks, asked) -> None:
    answers_are_the_same(model, blocks, asked)


@pytest.mark.slow
@given(model=MODELS, blocks=BLOCKS, asked=st.lists(SAID, min_size=2, max_size=12))
@settings(max_examples=50, deadline=None)
def test_so_it_is_for_many_more_that_come_and_go(model, blocks, asked) -> None:
    answers_are_the_same(model, blocks, asked)


def test_a_shutdown_midway_leaves_the_others_their_answers() -> None:
    one, said = engine(), prompt(16)
    wanted = run(engine(blocks=0), request(said, 12))[0].ids
    run(one, request(said, 4))
    first, second = one.submit(request(said, 12)), one.submit(request((*said, 9), 12))
    one.run_once()
    second.cancel()
    one.close(finish="running")
    assert (first.result().ids, first.result().cached_tokens) == (wanted, 16)
    assert second.result().finish_reason == "cancelled"


def test_a_text_whose_forward_failed_leaves_nothing(monkeypatch) -> None:
    model = tiny_model(block_size=BLOCK, logit_shift=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan
    bad, good = request((5,) * 8), request(prompt(3) + (7,) * 5)
    one = engine(model)
    assert run(one, bad)[0].finish_reason == "failed"
    assert one.stats().prefixes.bytes == 0
    # On an accelerator logits are looked at every few steps alone.
    monkeypatch.setattr("softmask.decoding.batch.fail_where_nan", lambda predictions: None)
    run(one, bad)
    assert one.stats().prefixes.bytes == 0
    run(one, good)
    assert one.stats().prefixes.bytes > 0


def test_without_memory_to_keep_prefixes_in_requests_go_on(monkeypatch, caplog) -> None:
    asked, wanted = request(prompt(9)), run(engine(blocks=0), request(prompt(9)))[0].ids

    def full(*_given) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for name in ("put", "load"):
        with monkeypatch.context() as patch:
            patch.setattr(PrefixCache, name, full)
            one = engine()
            assert [run(one, asked)[0].ids for _ in range(2)] == [wanted, wanted]
        assert one.stats().prefixes.bytes == 0
    assert caplog.text.count("no prefixes are kept from now on") == 2


def test_more_memory_than_a_cpu_has_leaves_requests_without_kept_prefixes(caplog) -> None:
    one = engine(blocks=10**14)  # torch raises a plain RuntimeError where such a pool is made
    wanted = run(engine(blocks=0), request(prompt(9)))[0].ids
    assert [run(one, request(prompt(9)))[0].ids for _ in range(2)] == [wanted, wanted]
    assert caplog.text.count("no prefixes are kept from now on") == 1


def test_what_may_be_kept_is_a_quarter_of_the_memory_unless_said() -> None:
    for memory_mb, asked, most in ((64, None, 16), (64, 1, 1), (64, 0, 0)):
        one = Engine(START, memory_mb=memory_mb, prefix_cache_mb=asked)
        cache = one.limits.make_prefix_cache(object())
        blocks = 0 if cache is None else cache.capacity
        assert blocks == int(most / BLOCK_MB)
        assert one.limits.memory == (memory_mb - most) * 2**20
    assert Engine(tiny_model(), memory_mb=64).limits.make_prefix_cache(object()) is None


def test_memory_that_prefixes_leave_no_room_in_is_refused_with_how_much_it_takes() -> None:
    for asked in (None, 1):
        with pytest.raises(ValueError, match="too little memory: give") as refused:
            Engine(START, memory_mb=1.5, prefix_cache_mb=asked)
        enough = float(str(refused.value).split("give ")[1].split()[0]) + 0.1
        Engine(START, memory_mb=enough, prefix_cache_mb=asked)


@pytest.mark.parametrize(
    ("model", "asked", "why"),
    [
        (tiny_model(), 8, "leave out prefix_cache_mb"),
        (START, -1, "prefix_cache_mb must be 0"),
        (START, float("nan"), "prefix_cache_mb must be 0"),
        (START, BLOCK_MB / 2, "does not hold a block: give 0.000"),
    ],
    ids=["full attention", "negative", "no number", "less than a block"],
)
def test_a_size_that_makes_no_sense_is_refused(model, asked, why) -> None:
    with pytest.raises(ValueError, match=why):
        Engine(model, positions=64, prefix_cache_mb=asked)


@pytest.fixture(scope="module")
def chat(chat_checkpoint):
    """A block-causal model with a chat template."""
    vocabulary = chat_checkpoint.model.config.vocab_size
    model = tiny_model(
        block_size=BLOCK, logit_shift=False, vocab_size=vocabulary, max_position_embeddings=512
    )
    model.config.mask_token_id = chat_checkpoint.model.mask_id
    sampling = {"cache": "exact", "threshold": 0.1}
    return dataclasses.replace(chat_checkpoint, model=model, sampling=sampling)


def test_clients_are_told_what_of_a_prompt_was_kept_at_every_door(chat) -> None:
    said = [{"role": "user", "content": "Tell me a story about a boat and a cat."}]
    with serving(chat) as (url, service), httpx.Client(base_url=url, timeout=None) as http:

        def ask(route: str, **body):
            answer = http.post(f"/v1/{route}", json={"seed": 0, **body})
            assert answer.status_code == 200, answer.text
            return answer.json()

        def usage(**body):
            return ask("chat/completions", max_tokens=12, ignore_eos=True, **body)["usage"]

        first = ask("chat/completions", messages=said, max_tokens=12, ignore_eos=True)
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        text = first["choices"][0]["message"]["content"]
        longer = [*said, {"role": "assistant", "content": text}, {"role": "user", "content": "Go"}]
        tokens = first["usage"]["prompt_tokens"] // BLOCK * BLOCK
        reused = usage(messages=longer)["prompt_tokens_details"]["cached_tokens"]
        assert reused >= tokens
        # Of several texts on one prompt, the prompt counts once.
        several = usage(messages=longer, n=2)
        assert several["prompt_tokens"] - BLOCK < several["prompt_tokens_details"]["cached_tokens"]
        assert several["prompt_tokens_details"]["cached_tokens"] <= several["prompt_tokens"]
        assert usage(messages=said, cache_salt="mine")["prompt_tokens_details"] == {
            "cached_tokens": 0,
            "audio_tokens": 0,
        }
        trace = ask("denoise", messages=said, max_tokens=4, stream=False)
        assert trace["end"]["cached_tokens"] == tokens
        body = {"input": said[0]["content"], "max_output_tokens": 4}
        answer = ask("responses", **body)
        assert answer["usage"]["input_tokens_details"]["cached_tokens"] == tokens
        assert answer["softmask"]["cached_tokens"] == tokens
        whole = {"prompt": "Once upon a time there was", "max_tokens": 4, "stream": True}
        whole["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        for again in (False, True):
            lines = http.post("/v1/completions", json=whole).text.split("\n\n")
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            counted = events[-1]["usage"]
            found = counted["prompt_tokens_details"]["cached_tokens"]
            assert found == again * (counted["prompt_tokens"] // BLOCK * BLOCK)
            assert {event["usage"]["prompt_tokens"] for event in events} == {
                counted["prompt_tokens"]
            }
        metrics = dict(
            line.split() for line in http.get("/metrics").text.splitlines() if line[0] != "#"
        )
        stats = service.engine.stats().prefixes
        for name in ("queries", "hits", "tokens", "evictions"):
            assert float(metrics[f"softmask_prefix_cache_{name}_total"]) == getattr(stats, name)
        assert float(metrics["softmask_prefix_cache_bytes"]) == stats.bytes > 0
        refused = http.post("/v1/chat/completions", json={"messages": said, "cache_salt": ""})
        assert refused.status_code == 400
        assert "cache_salt" in refused.text


def test_a_server_of_another_model_refuses_to_keep_prefixes(chat_checkpoint) -> None:
    with pytest.raises(ValueError, match="leave out prefix_cache_mb"):
        Service(chat_checkpoint, ServeConfig(prefix_cache_mb=64))
    for asked in (-1, 512):
        with pytest.raises(ValueError, match="a part of the 512 MB of memory_mb"):
            ServeConfig(memory_mb=512, prefix_cache_mb=asked)
